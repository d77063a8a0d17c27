"""Labelled text, the choice of transfer text, and shards that are read again."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from hypothesis import given, settings
from hypothesis import strategies as st

from xdray.config_data import SourceConfig, TransferConfig
from xdray.corpus import (
    Sentence,
    TransferPlan,
    inline_shards,
    plan_transfer,
    read_shard,
    text_keys,
)
from xdray.errors import ConfigError, CorpusError
from xdray.labels import LabelSet
from xdray.planning import estimate_transfer
from xdray.tagged import read_tagged

NOTHING: frozenset[int] = frozenset()


def write(path: Path, data: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data, encoding="utf-8")
    return path


def write_labelled(path: Path, tags: list, names: list[str] | None = None, **columns: list) -> Path:
    """Write one word a tag, with ClassLabel names in the schema as `datasets` writes them."""
    words = [[f"w{i}" for i in range(len(row))] for row in tags]
    table = pa.table({"tokens": words, "ner_tags": tags, **columns})
    if names:
        feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"}
        described = json.dumps({"info": {"features": {"ner_tags": feature}}})
        table = table.replace_schema_metadata({"huggingface": described})
    pq.write_table(table, path)
    return path


def source(path: object, **kwargs: str) -> SourceConfig:
    return SourceConfig(path=str(path), **kwargs)  # pyright: ignore[reportArgumentType]


def plan(
    sources: list[SourceConfig],
    size: int = 16,
    excluded: frozenset[int] = NOTHING,
    seed: int = 0,
    **kwargs: Any,
) -> TransferPlan:
    return plan_transfer(TransferConfig(sources=sources, **kwargs), excluded, size, seed)


def texts(shards) -> list[tuple[str, Any]]:
    return [(s.language, s.content) for shard in shards for s in read_shard(shard)]


def labelled(sources: list[SourceConfig], scheme="IOB2", labels=None, split="train"):
    return read_tagged(sources, scheme, labels, split)


@pytest.mark.parametrize(
    ("scheme", "given_tags", "expected", "repaired"),
    [
        ("IOB2", "B-LOC I-LOC O I-PER", "B-LOC I-LOC O B-PER", 1),
        ("IOB1", "I-LOC B-LOC O I-PER", "B-LOC B-LOC O B-PER", 0),
        ("BIOES", "B-LOC E-LOC O S-PER", "B-LOC I-LOC O B-PER", 0),
    ],
)
def test_each_scheme_is_read_into_iob2(tmp_path, scheme, given_tags, expected, repaired):
    lines = "".join(f"w\t{tag}\n" for tag in given_tags.split())
    read = labelled([source(write(tmp_path / "x.conll", lines))], scheme)
    assert read.sentences[0].gold == tuple(expected.split())
    assert read.labels.names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert read.counts == {"sentences": 1, "repaired_tags": repaired, "empty": 0}


def test_order_of_classlabel_names_is_the_order_of_labels_and_binds_later_sources(tmp_path):
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    first = source(write_labelled(tmp_path / "a.parquet", [[1, 2, 0]], names))
    second = source(write_labelled(tmp_path / "b.parquet", [[1, 0]], ["O", "B-LOC", "I-LOC"]))
    read = labelled([first, second])
    assert read.labels.names == tuple(names)
    assert [s.gold for s in read.sentences] == [("B-PER", "I-PER", "O"), ("B-LOC", "O")]
    foreign = source(write(tmp_path / "x.conll", "a\tO\nb\tB-ORG\n"))
    with pytest.raises(CorpusError, match=r"x\.conll:2: tag 'B-ORG', expected one of O B-PER"):
        labelled([first, foreign])


def test_classlabel_names_of_iob2_stay_as_they_are_even_if_a_type_lacks_its_inside(tmp_path):
    names = ["O", "B-PER", "I-PER", "B-DAY"]
    path = write_labelled(tmp_path / "a.parquet", [[3, 1, 2]], names)
    assert labelled([source(path)]).labels.names == tuple(names)


def test_classlabel_names_of_bioes_become_an_iob2_set(tmp_path):
    names = ["O", "B-PER", "I-PER", "E-PER", "S-PER"]
    path = write_labelled(tmp_path / "a.parquet", [[1, 3, 4]], names)
    read = labelled([source(path)], "BIOES")
    assert read.labels.names == ("O", "B-PER", "I-PER")
    assert read.sentences[0].gold == ("B-PER", "I-PER", "B-PER")
    with pytest.raises(CorpusError, match=r"a\.parquet: ClassLabel 'E-PER' .* no tag of IOB2"):
        labelled([source(path)])


def test_numbers_without_names_are_places_in_the_given_labels(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"tokens": ["a", "b"], "ner_tags": [2, 0]}')
    labels = LabelSet(("B-X", "I-X", "O"))
    assert labelled([source(path)], labels=labels).sentences[0].gold == ("O", "B-X")
    with pytest.raises(CorpusError, match=r"x\.jsonl:1: tag 2, expected tags of IOB2 by name"):
        labelled([source(path)])


def test_tag_outside_the_label_set_is_refused_with_file_line_tag_and_allowed(tmp_path):
    labels = LabelSet(("O", "B-LOC", "I-LOC"))
    conll = write(tmp_path / "x.conll", "a\tO\n\nb\tO\nc\tB-ORG\n")
    with pytest.raises(
        CorpusError, match=r"x\.conll:4: tag 'B-ORG', expected one of O B-LOC I-LOC"
    ):
        labelled([source(conll)], labels=labels)
    for tag in (3, -1):
        path = write_labelled(tmp_path / "x.parquet", [[0], [0, tag]], list(labels.names))
        with pytest.raises(CorpusError, match=rf"x\.parquet:2: tag {tag}, expected one of O B-LOC"):
            labelled([source(path)])
    scheme = write(tmp_path / "y.conll", "a\tS-LOC\n")
    with pytest.raises(CorpusError, match=r"y\.conll:1: tag 'S-LOC', expected .*data\.scheme"):
        labelled([source(scheme)])


def test_rows_of_more_words_than_tags_are_refused(tmp_path):
    path = write(tmp_path / "x.tsv", "a b\tO O\na b c\tO O\n")
    with pytest.raises(CorpusError, match=r"x\.tsv:2: 3 words and 2 tags, expected a tag for each"):
        labelled([source(path)])


def test_empty_sentences_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "x.tsv", "a\tO\n\n\u3000\tO\nb\tO\n")
    read = labelled([source(path)])
    assert read.counts == {"sentences": 2, "repaired_tags": 0, "empty": 2}
    assert [s.sentence_id for s in read.sentences] == ["train-0", "train-1"]


def test_id_twice_in_a_source_and_language_is_refused_naming_both_rows(tmp_path):
    ids = {"id": ["1", "2", "1"], "language": ["en", "en", "de"]}
    path = write_labelled(tmp_path / "x.parquet", [["O"]] * 3, **ids)
    assert labelled([source(path)]).counts["sentences"] == 3
    other = write_labelled(tmp_path / "y.parquet", [["O"]] * 3, **ids)
    assert labelled([source(path), source(other)]).counts["sentences"] == 6
    with pytest.raises(CorpusError, match=r"y\.parquet:1: id '1' again, it was in .*x\.parquet:1"):
        labelled([source(tmp_path / "*.parquet")])
    with pytest.raises(CorpusError, match=r"x\.parquet:3: id '1' again, it was in .*x\.parquet:1"):
        labelled([source(path, language="en")])


def test_language_comes_from_the_source_the_path_the_column_or_the_tags(tmp_path):
    rows = [["O"]]
    for name in ("pt/a.parquet", "fi/b.parquet"):
        (tmp_path / name).parent.mkdir()
        write_labelled(tmp_path / name, rows, language=["sw"])
    write(tmp_path / "c.tsv", "a\tpt:O\nb\tO\n")

    def languages(pattern: str, **kwargs: str) -> list[str]:
        sources = [source(tmp_path / pattern, **kwargs)]
        return [s.language for s in labelled(sources).sentences]

    assert languages("*/*.parquet") == ["sw", "sw"]
    assert languages("*/*.parquet", language="{parent}") == ["fi", "pt"]
    assert languages("*/*.parquet", language="x-{stem}") == ["x-b", "x-a"]
    assert languages("*.tsv") == ["pt", "und"]
    assert languages("*.tsv", language="de") == ["de", "de"]
    with pytest.raises(ConfigError, match=r"language '\{subset\}' of .*: files have \{stem\}"):
        languages("*.tsv", language="{subset}")


def test_language_of_a_hub_source_is_its_subset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("de", "fi"):
        write(
            tmp_path / "wiki" / name / "train.jsonl", f'{{"text": "{name} a"}}\n{{"text": "b"}}\n'
        )
    configs = "".join(
        f"- config_name: {name}\n  data_files: {name}/train.jsonl\n" for name in ("de", "fi")
    )
    write(tmp_path / "wiki" / "README.md", f"---\nconfigs:\n{configs}---\n")
    hub = SourceConfig(
        hub=str(tmp_path / "wiki"), subsets=["fi", "de"], split="train", language="{subset}"
    )
    shards = plan([hub]).shards
    assert texts(shards) == [("fi", "fi a"), ("fi", "b"), ("de", "de a"), ("de", "b")]
    assert [shard.span and (shard.span.start, shard.span.stop) for shard in shards] == [(0, 2)] * 2


@pytest.mark.parametrize(("empty", "language"), [("", "fi"), ("\n \n", "fi")])
def test_language_that_ends_empty_is_refused_by_name(tmp_path, empty, language):
    full, bare = write(tmp_path / "de.tsv", "a\tO\n"), write(tmp_path / "fi.tsv", empty)
    sources = [source(full, language="{stem}"), source(bare, language="{stem}")]
    with pytest.raises(
        CorpusError, match=rf"data\.dev: no sentence of language {language} is left"
    ):
        labelled(sources, split="dev")
    cases: list[dict[str, Any]] = [{}, {"cap": 5}]
    for limits in cases:
        with pytest.raises(CorpusError, match=rf"transfer: no sentence of language {language} is"):
            plan(sources, **limits)
    assert plan(sources, caps={"fi": 0}).counts["taken"] == 1


def test_no_rows_at_all_are_refused(tmp_path):
    path = source(write(tmp_path / "x.tsv", "\n"))
    blank = source(write(tmp_path / "y.txt", ""))
    with pytest.raises(CorpusError, match=r"data\.test: no sentence"):
        labelled([path], split="test")
    cases: list[dict[str, Any]] = [{}, {"cap": 2}, {"caps": {"und": 0}}]
    for kwargs in cases:
        with pytest.raises((CorpusError, ConfigError), match=r"data\.transfer"):
            plan([blank], **kwargs)
    words = source(write(tmp_path / "z.txt", "a\n"))
    with pytest.raises(CorpusError, match=r"data\.transfer.*: no sentence at all"):
        plan([words], caps={"und": 0})


def test_file_named_by_two_sources_is_refused(tmp_path):
    path = write(tmp_path / "x.txt", "a\n")
    with pytest.raises(CorpusError, match=r"data\.transfer: .*x\.txt is read 2 times"):
        plan([source(path, language="en"), source(tmp_path / "*.txt")])


languages = st.sampled_from(["en", "fi", "ta"])
rows = st.lists(st.tuples(languages, st.sampled_from("ab cd  ")), min_size=1, max_size=60)
kinds = st.sampled_from(["text", "jsonl", "parquet", "tsv", "conll"])


def write_rows(path: Path, kind: str, rows: list[tuple[str, str]]) -> None:
    """Write (language, text) rows; only JSONL and Parquet have a column for the language."""
    if kind == "text":
        write(path, "\n".join(text for _, text in rows))
    elif kind == "jsonl":
        write(path, "\n".join(json.dumps({"text": t, "language": code}) for code, t in rows))
    elif kind == "parquet":
        columns = {"language": [code for code, _ in rows], "text": [text for _, text in rows]}
        pq.write_table(pa.table(columns), path, row_group_size=7)
    elif kind == "tsv":
        write(path, "\n".join(f"{text}\tO" for _, text in rows))
    else:
        write(path, "\n\n".join(text.replace(" ", "\n") for _, text in rows))


@given(rows, st.sampled_from([1, 2, 3, 5, 8, 70]), kinds, st.booleans())
@settings(deadline=None, derandomize=True, max_examples=80)
def test_shards_of_any_size_hold_the_same_sentences_in_the_order_of_the_file(
    tmp_path_factory, drawn, size, kind, capped
):
    path = tmp_path_factory.mktemp("x") / "x"
    rows = [(code, f"{word} {n}" if word != " " else "") for n, (code, word) in enumerate(drawn)]
    write_rows(path, kind, rows)
    sources = [source(path, format=kind)]
    in_column, words = kind in {"jsonl", "parquet"}, kind in {"tsv", "conll"}
    languages = {code if in_column else "und" for code, _ in rows}
    expected = [
        (code if in_column else "und", tuple(text.split()) if words else text)
        for code, text in rows
        if text
    ]
    if languages > {code for code, _ in expected}:
        return  # a language without sentences is refused
    limits: dict[str, Any] = {"cap": 5} if capped else {}
    made, other = plan(sources, size, **limits), plan(sources, 13, **limits)
    found = texts(made.shards)
    for code in {code for code, _ in expected}:
        of_language = [row for row in expected if row[0] == code]
        taken = [row for row in found if row[0] == code]
        assert taken == [row for row in texts(other.shards) if row[0] == code]
        assert taken == [row for row in of_language if row in set(taken)]
        assert len(taken) == (min(5, len(of_language)) if capped else len(of_language))
    assert all(len({s.language for s in read_shard(shard)}) == 1 for shard in made.shards)
    assert all(len(read_shard(shard)) == shard.rows <= size for shard in made.shards)
    for code, count in Counter(code for code, _ in found).items():
        of_language = [shard.rows for shard in made.shards if shard.language == code]
        assert of_language[:-1] == [size] * (count // size - (count % size == 0))
    ids = [s.sentence_id for shard in made.shards for s in read_shard(shard)]
    assert len(set(ids)) == len(ids)
    assert ids[0] == f"{made.shards[0].shard_id[:16]}-0"
    counts = made.counts
    dropped = counts["empty"] + counts["duplicates"] + counts["left_by_cap"]
    assert counts["read"] == dropped + counts["taken"]
    assert counts["taken"] == len(found)


def test_shards_cross_neither_a_file_nor_depend_on_where_it_lies(tmp_path):
    lines = [f"sentence {n}" for n in range(40)]
    for name in ("en/a.txt", "fi/b.txt"):
        write(tmp_path / name, "\n".join(lines))
    write(tmp_path / "c.jsonl", "\n".join(json.dumps({"text": line}) for line in lines))
    first = plan([source(tmp_path / "en/a.txt", language="en")]).shards
    both = plan([source(tmp_path / "*/*.txt", language="{parent}")]).shards
    assert [shard.rows for shard in both] == [16, 16, 8] * 2
    assert [shard.shard_id for shard in both[:3]] == [shard.shard_id for shard in first]
    assert not {shard.shard_id for shard in both[3:]} & {shard.shard_id for shard in first}
    again = plan([source(tmp_path / "c.jsonl", language="en")]).shards
    assert [shard.shard_id for shard in again] == [shard.shard_id for shard in first]
    more = write(tmp_path / "en/a.txt", "\n".join([*lines, *lines]))
    longer = plan([source(more, language="en")]).shards
    assert [shard.shard_id for shard in longer[:2]] == [shard.shard_id for shard in first[:2]]


def test_long_sentences_make_shards_of_fewer(tmp_path):
    short, long = "four bytes", "x" * 400  # about 4 and 102 tokens
    path = write(tmp_path / "x.txt", "\n".join([short] * 32 + [long] * 32))

    def rows(max_length: int | None) -> list[int]:
        sources = TransferConfig(sources=[source(path)])
        return [
            s.rows for s in plan_transfer(sources, NOTHING, 16, 0, max_length=max_length).shards
        ]

    assert rows(512) == [16, 16, *[6] * 5, 2]  # 16 sentences of 32 tokens are 5.02 of 102
    assert rows(34) == rows(None) == [16, 16, 16, 16]  # cut, 34 each
    assert rows(64) == [16, 16, *[8] * 4]


@pytest.mark.parametrize(("length", "size", "each"), [(400, 64, 21), (1800, 16, 2), (8, 64, 64)])
def test_a_plan_foretells_the_shards_of_long_sentences(tmp_path, length, size, each):
    path = write(tmp_path / "x.txt", f"{'x' * length}\n" * 1260)
    sources = TransferConfig(sources=[source(path)])
    estimate = estimate_transfer(sources, size, max_length=512)
    shards = plan_transfer(sources, NOTHING, size, 0, max_length=512).shards
    assert estimate.sentences == 1260
    assert estimate.shard_sentences == shards[0].rows == each
    assert estimate.shards == len(shards)


def test_shards_of_equal_sentences_have_different_ids_and_are_both_read(tmp_path):
    path = write(tmp_path / "x.txt", "a\nb\n" * 48)
    shards = plan([source(path)], 32).shards
    assert len({shard.shard_id for shard in shards}) == 3
    assert texts(shards) == [("und", "a"), ("und", "b")] * 48
    assert {shard.shard_id for shard in plan([source(path)], 32).shards} == {
        s.shard_id for s in shards
    }
    twice = [Sentence("x", "en", "a")] * 4
    assert len({shard.shard_id for shard in inline_shards(twice, 2)}) == 2


def test_shard_id_tells_text_from_words_and_language_from_language():
    same = [
        Sentence("x", "en", "a b"),
        Sentence("x", "en", ("a", "b")),
        Sentence("x", "en", ("ab",)),
        Sentence("x", "en", ("a b",)),
        Sentence("x", "fi", "a b"),
    ]
    assert len({inline_shards([sentence], 16)[0].shard_id for sentence in same}) == len(same)


def test_inline_shards_keep_order_tags_and_language():
    sentences = [Sentence(f"dev-{n}", ["en", "fi"][n % 2], (f"w{n}",), ("O",)) for n in range(20)]
    shards = inline_shards(sentences, 16)
    assert [shard.rows for shard in shards] == [16, 4]
    read = [sentence for shard in shards for sentence in read_shard(shard)]
    assert [(s.language, s.content, s.gold) for s in read] == [
        (s.language, s.content, s.gold) for s in sentences
    ]
    assert read[17].sentence_id == f"{shards[1].shard_id[:16]}-1"


def test_descriptor_survives_pickling_and_stays_small_whatever_its_sentences(tmp_path):
    path = write(tmp_path / "x.txt", "\n".join(f"{n} {'x' * 200}" for n in range(4096)))
    shard = plan([source(path)], 4096).shards[0]
    packed = pickle.dumps(shard)
    assert len(packed) < 1000
    assert texts([pickle.loads(packed)]) == texts([shard])


def test_caps_take_exactly_so_many_of_each_language_by_seed(tmp_path):
    for code, count in (("en", 500), ("fi", 30), ("ta", 90)):
        write(tmp_path / f"{code}.txt", "\n".join(f"{code} {n}" for n in range(count)))
    sources = [source(tmp_path / "*.txt", language="{stem}")]
    made = plan(sources, cap=50, caps={"ta": 70})
    assert Counter(code for code, _ in texts(made.shards)) == {"en": 50, "fi": 30, "ta": 70}
    assert made.counts["left_by_cap"] == 450 + 20
    assert made.counts["by_language"]["ta"] == {"read": 90, "taken": 70}
    assert texts(plan(sources, cap=50, caps={"ta": 70}).shards) == texts(made.shards)
    assert texts(plan(sources, cap=50, caps={"ta": 70}, seed=1).shards) != texts(made.shards)


def test_draw_takes_each_sentence_equally_often(tmp_path):
    path = write(tmp_path / "x.txt", "\n".join(map(str, range(10))))
    taken = Counter(
        text
        for seed in range(1000)
        for _, text in texts(plan([source(path)], cap=3, seed=seed).shards)
    )
    assert taken.total() == 3000
    assert all(
        240 < taken[str(n)] < 360 for n in range(10)
    )  # 300, four standard deviations of 14.5


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"sentences": 100}, {"en": 80, "fi": 4, "ta": 16}),
        (
            {"sentences": 100, "alpha": 0.5},
            {"en": 60, "fi": 13, "ta": 27},
        ),  # 59.85, 13.38, 26.77
        ({"sentences": 300, "alpha": 0.0}, {"en": 50, "fi": 50, "ta": 200}),
        ({"sentences": 260, "alpha": 0.0}, {"en": 105, "fi": 50, "ta": 105}),
        ({"sentences": 9999}, {"en": 1000, "fi": 50, "ta": 200}),
    ],
)
def test_sentences_are_shared_out_by_alpha_and_small_languages_taken_whole(
    tmp_path, limits, expected
):
    for code, count in (("en", 1000), ("fi", 50), ("ta", 200)):
        write(tmp_path / f"{code}.txt", "\n".join(f"{code} {n}" for n in range(count)))
    caps: dict[str, Any] = {"caps": {"en": 50}} if limits.get("sentences") == 300 else {}
    made = plan([source(tmp_path / "*.txt", language="{stem}")], **limits, **caps)
    assert Counter(code for code, _ in texts(made.shards)) == expected


def test_share_of_nothing_and_caps_of_unknown_languages_are_refused(tmp_path):
    for code, count in (("en", 1000), ("fi", 2)):
        write(tmp_path / f"{code}.txt", "\n".join(f"{code} {n}" for n in range(count)))
    sources = [source(tmp_path / "*.txt", language="{stem}")]
    with pytest.raises(
        CorpusError, match=r"data\.transfer\.sentences = 10: no sentence of language fi"
    ):
        plan(sources, sentences=10)
    with pytest.raises(ConfigError, match=r"caps: de: 5, expected .* language of the text: en fi"):
        plan(sources, caps={"de": 5})


def test_sentences_of_dev_and_test_are_dropped_whatever_their_spacing_and_case(tmp_path):
    path = write(tmp_path / "x.txt", "Rom brennt !\nROM  brennt!\nrom\nSTRASSE\n\n")
    dev = [
        Sentence("d", "it", ("Rom", "brennt", "!")),
        Sentence("d", "de", "Stra\u00dfe"),
    ]
    made = plan([source(path)], excluded=text_keys(dev))
    assert texts(made.shards) == [("und", "rom")]
    counts = {name: made.counts[name] for name in ("read", "empty", "duplicates", "taken")}
    assert counts == {"read": 5, "empty": 1, "duplicates": 3, "taken": 1}
    assert len(text_keys(dev)) == 2
    assert all(0 <= key < 2**64 for key in text_keys(dev))


def test_file_changed_since_planning_is_refused_naming_file_and_range(tmp_path):
    path = write(tmp_path / "x.txt", "".join(f"sentence {n:02}\n" for n in range(32)))
    shards = plan([source(path)]).shards
    data = path.read_text()
    write(path, data.replace("sentence 20", "sentence xx"))
    assert len(read_shard(shards[0])) == 16
    with pytest.raises(
        CorpusError, match=r"x\.txt: bytes 192 to 384 changed since .*other sentences"
    ):
        read_shard(shards[1])
    write(path, data[:200])
    with pytest.raises(CorpusError, match="bytes 192 to 384 changed"):
        read_shard(shards[1])
    path.unlink()
    with pytest.raises(CorpusError, match=r"bytes 0 to 192 changed .*cannot be read"):
        read_shard(shards[0])


def test_uri_is_read_as_the_file_it_names(tmp_path):
    write(tmp_path / "en" / "a b.txt", "a\nb\n")
    remote = plan([source(f"file://{tmp_path}/*/*.txt", language="{parent}")])
    assert texts(remote.shards) == [("en", "a"), ("en", "b")]


def test_plan_holds_one_shard_a_language_and_no_more_of_the_text(tmp_path):
    def peak(count: int) -> int:
        path = write(tmp_path / "x.txt", "".join(f"{n} {'x' * 2000}\n" for n in range(count)))
        tracemalloc.start()
        plan([source(path)], 512, cap=count // 2)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(2_000)
    assert peak(10_000) < 1.15 * peak(2_000)


def test_importing_it_loads_neither_torch_nor_transformers_nor_ray_nor_datasets():
    code = "import sys, xdray.corpus; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "transformers", "ray", "datasets"} & set(loaded.stdout.split())
