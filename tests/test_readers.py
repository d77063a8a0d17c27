"""Rows out of every format: what counts as one, where it lies, and what is refused."""

import importlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from hypothesis import given, settings
from hypothesis import strategies as st

from xdray.errors import CorpusError
from xdray.places import FORMATS, Place, Span, expand, format_of
from xdray.readers import class_names, read_rows

TAGS = ["O", "B-LOC", "I-LOC"]
TOKENS = [["Rom", "brennt"], ["In", "New", "York"], ["Ja"]]
LABELS = [[1, 0], [0, 1, 2], [0]]


def place(path: object, kind: str, **kwargs: Any) -> Place:
    return Place(
        str(path), kind, "tokens", "ner_tags", "text", kwargs.pop("language", None), **kwargs
    )


def write(path: Path, data: bytes | str, kind: str) -> Place:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return place(path, kind)


def rows_of(source: Place, gold: str = "") -> list:
    return list(read_rows(Span(source), gold))


def write_features(folder: Path, name: str = "train.parquet") -> Path:
    """Write a Parquet file as `datasets` does, with ClassLabel names in its schema."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=TAGS)),
        }
    )
    rows = {"id": ["a", "b", "c"], "tokens": TOKENS, "ner_tags": LABELS}
    pq.write_table(pa.table(rows, schema=features.arrow_schema), folder / name, row_group_size=2)
    return folder / name


def test_text_drops_byte_order_mark_and_line_ends_and_counts_a_last_line_without_one(tmp_path):
    source = write(tmp_path / "x.txt", b"\xef\xbb\xbfRom brennt\r\n\n\xef\xbb\xbfb\nend", "text")
    assert [(row.number, row.content) for row in rows_of(source)] == [
        (1, "Rom brennt"),
        (2, ""),
        (3, "\ufeffb"),
        (4, "end"),
    ]


def test_lines_that_straddle_blocks_come_out_as_one_split_of_the_file_gives_them(tmp_path):
    lines = [f"{n} " + "ä\u2028x" * (n % 900) for n in range(3000)]
    source = write(tmp_path / "x.txt", "\n".join(lines), "text")
    assert Path(source.path).stat().st_size > 3 << 20
    assert [row.content for row in rows_of(source)] == lines


def test_a_conll_line_with_a_column_less_is_refused(tmp_path):
    source = write(tmp_path / "x.conll", "Rom NNP B-LOC\nist VB O\nalt O\n", "conll")
    with pytest.raises(CorpusError, match=r"x\.conll:3: 'alt O' has 2 columns, expected 3, a word"):
        rows_of(source, gold="tags")


def test_conll_takes_first_and_last_column_and_ends_at_blank_lines_docstarts_and_file_end(tmp_path):
    data = (
        "-DOCSTART- -X- O\n\nRom NNP  I-NP B-LOC\n10\u00a0000 CD O O\n\n\n"
        "-DOCSTART- -X- O\nNew York\tNNP\tB-LOC\nJa\tUH\tO\n-DOCSTART-\tO\nNein O"
    )
    source = write(tmp_path / "x.conll", data, "conll")
    assert [(row.number, row.content, row.gold) for row in rows_of(source, gold="tags")] == [
        (3, ("Rom", "10\u00a0000"), ["B-LOC", "O"]),
        (8, ("New York", "Ja"), ["B-LOC", "O"]),
        (11, ("Nein",), ["O"]),
    ]


def test_conll_of_words_alone_is_text_but_not_labelled(tmp_path):
    source = write(tmp_path / "x.conll", "Rom\nbrennt\n", "conll")
    assert rows_of(source)[0].content == ("Rom", "brennt")
    with pytest.raises(CorpusError, match=r"x\.conll:1: 'Rom' has 1 columns, expected 2, a word"):
        rows_of(source, gold="tags")


def test_tsv_reads_the_prefix_of_its_tags_as_language(tmp_path):
    source = write(tmp_path / "x.tsv", "Em Roma\tpt:O pt:B-LOC\nJa\tO\n\n", "tsv")
    found = [(row.content, row.gold, row.language) for row in rows_of(source, gold="tags")]
    assert found == [
        (("Em", "Roma"), ["O", "B-LOC"], "pt"),
        (("Ja",), ["O"], None),
        ((), [], None),
    ]


def test_tsv_keeps_quotes_and_a_colon_inside_a_type(tmp_path):
    source = write(tmp_path / "x.tsv", '"Rom" "\tB-place:city O\n', "tsv")
    row = rows_of(source, gold="tags")[0]
    assert (row.content, row.gold, row.language) == (('"Rom"', '"'), ["B-place:city", "O"], None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Em Roma", "1 columns, expected 2"),
        ("Em\tO\tO", "3 columns, expected 2"),
        ("Em Roma\tpt:O es:O", "expected one for all"),
    ],
)
def test_tsv_line_that_is_not_words_tab_tags_is_refused_with_its_number(tmp_path, line, message):
    source = write(tmp_path / "x.tsv", f"Ja\tO\n{line}\n", "tsv")
    with pytest.raises(CorpusError, match=rf"x\.tsv:2: .*{message}"):
        rows_of(source, gold="tags")


def test_jsonl_takes_words_before_text_and_null_as_empty(tmp_path):
    records = [
        {"text": "a b", "language": "de"},
        {"text": "x", "tokens": ["a", "b"]},
        {"text": None},
    ]
    source = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, records)), "jsonl")
    assert [row.content for row in rows_of(source)] == ["a b", ("a", "b"), ()]
    assert rows_of(source)[0].language == "de"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "list, expected an object"),
        ('{"txt": "a"}', r"has \['txt'\], expected 'tokens' or 'text'"),
        ('{"text": 3}', "'text' is 3, expected text or a list of words"),
        ('{"tokens": ["a", null]}', "expected text or a list of words"),
        ('{"text": "\\ud800"}', "not JSON in UTF-8"),
        ('{"text": "a", "language": 7}', "language is 7, expected a code"),
    ],
)
def test_jsonl_line_that_is_no_sentence_is_refused_with_its_number(tmp_path, line, message):
    source = write(tmp_path / "x.jsonl", f'{{"text": "\\ud83d\\ude00"}}\n{line}\n', "jsonl")
    with pytest.raises(CorpusError, match=rf"x\.jsonl:2: .*{message}"):
        rows_of(source)


def test_unlabelled_formats_and_columns_are_refused_as_labelled(tmp_path):
    text = write(tmp_path / "x.txt", "Rom O\n", "text")
    with pytest.raises(CorpusError, match=r"x\.txt: text, .* has no tags; name the `format`"):
        rows_of(text, gold="tags")
    pq.write_table(pa.table({"tokens": TOKENS}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"x\.parquet: has \['tokens'\], expected .*'ner_tags'"):
        rows_of(place(tmp_path / "x.parquet", "parquet"), gold="tags")
    jsonl = write(tmp_path / "x.jsonl", '{"tokens": ["a"]}', "jsonl")
    with pytest.raises(CorpusError, match=r"x\.jsonl:1: has \['tokens'\], expected .*'ner_tags'"):
        rows_of(jsonl, gold="tags")
    raw = write(tmp_path / "z.jsonl", '{"text": "a", "ner_tags": ["O"]}', "jsonl")
    with pytest.raises(CorpusError, match=r"z\.jsonl:1: has .*, expected 'tokens', 'ner_tags'"):
        rows_of(raw, gold="tags")
    bare = write(tmp_path / "y.jsonl", '{"tokens": ["a"], "ner_tags": "O"}', "jsonl")
    with pytest.raises(CorpusError, match=r"y\.jsonl:1: 'ner_tags' is 'O', expected a list"):
        rows_of(bare, gold="tags")


@pytest.mark.parametrize("kind", ["text", "conll", "tsv", "jsonl"])
def test_bad_utf8_is_refused_with_file_line_and_byte(tmp_path, kind):
    source = write(tmp_path / "x", b"\n\nab\xff\n", kind)
    with pytest.raises(CorpusError, match="x:3: byte 0xff at 3 is not UTF-8"):
        rows_of(source)


def test_bad_utf8_in_parquet_is_refused_with_the_rows(tmp_path):
    good, bad = pa.array(["a"]), pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": pa.concat_arrays([good, bad])}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"x\.parquet: rows 1 to 2: cannot be read: .*utf-8"):
        rows_of(place(tmp_path / "x.parquet", "parquet"))


@pytest.mark.parametrize("kind", sorted({*FORMATS.values()}))
def test_missing_files_are_refused_by_name(tmp_path, kind):
    with pytest.raises(CorpusError, match=r"nowhere: cannot be read: .*No such file"):
        rows_of(place(tmp_path / "nowhere", kind))


def test_file_that_is_no_parquet_is_refused(tmp_path):
    source = write(tmp_path / "x.parquet", b"not a table", "parquet")
    for read in (rows_of, lambda its: class_names(its, "tags")):
        with pytest.raises(CorpusError, match=r"x\.parquet: cannot be read"):
            read(source)


def test_parquet_stretch_is_read_without_the_row_groups_before_it(tmp_path):
    path = tmp_path / "x.parquet"
    texts = [f"sentence {n} of many" for n in range(300)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, compression="none")
    whole = rows_of(place(path, "parquet"))
    first = pq.read_metadata(path).row_group(0).column(0)
    offset = first.dictionary_page_offset or first.data_page_offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * first.total_compressed_size)
    stretch = list(read_rows(Span(place(path, "parquet"), 150, 260)))
    assert stretch == whole[150:260]
    assert [row.content for row in stretch] == texts[150:260]
    with pytest.raises(CorpusError):
        rows_of(place(path, "parquet"))


def test_parquet_columns_of_other_types_are_refused(tmp_path):
    pq.write_table(pa.table({"tokens": [[1, 2]]}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"x\.parquet:1: 'tokens' is \[1, 2\], expected text or"):
        rows_of(place(tmp_path / "x.parquet", "parquet"))


def test_hub_data_set_and_parquet_file_give_the_same_rows_and_names(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_features(tmp_path / "wiki")
    hub = place(tmp_path / "wiki", "hub", split="train")
    parquet = place(path, "parquet")
    assert rows_of(hub, gold="tags") == rows_of(parquet, gold="tags")
    assert [row.gold for row in rows_of(hub, gold="tags")] == LABELS
    assert list(read_rows(Span(hub, 1, 2))) == rows_of(hub)[1:2]
    assert class_names(hub, "tags") == class_names(parquet, "tags") == TAGS


def test_hub_data_set_without_the_split_or_at_all_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_features(tmp_path / "wiki")
    with pytest.raises(CorpusError, match=r"wiki:dev: cannot be read: .*dev"):
        rows_of(place(tmp_path / "wiki", "hub", split="dev"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="empty:train: cannot be read"):
        rows_of(place(tmp_path / "empty", "hub", split="train"))


@pytest.mark.parametrize(
    "head", ["[", "x: !!python/object/apply:os.mkdir [CANARY]", "dataset_info: {features: 3}"]
)
def test_a_hub_data_set_with_a_damaged_card_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, head
):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_features(tmp_path / "wiki")
    card = head.replace("CANARY", str(tmp_path / "canary"))
    (tmp_path / "wiki" / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(CorpusError, match="wiki:train: cannot be read: `datasets` says: "):
        rows_of(place(tmp_path / "wiki", "hub", split="train"))
    assert not (tmp_path / "canary").exists()


def test_class_names_are_found_in_the_older_way_to_write_a_list_of_labels(tmp_path):
    for feature in ([{"names": TAGS, "_type": "ClassLabel"}], {"feature": {"names": TAGS}}):
        described = json.dumps({"info": {"features": {"ner_tags": feature}}})
        table = pa.table({"tokens": TOKENS, "ner_tags": LABELS})
        table = table.replace_schema_metadata({"huggingface": described})
        pq.write_table(table, tmp_path / "x.parquet")
        assert class_names(place(tmp_path / "x.parquet", "parquet"), "tags") == TAGS
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "x.parquet")
    assert class_names(place(tmp_path / "x.parquet", "parquet"), "tags") is None


characters = st.characters(codec="utf-8", exclude_characters=" \ufeff", exclude_categories=["Cc"])
words = st.text(characters, min_size=1, max_size=5)
sentences = st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=12)


@given(sentences, st.booleans())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_every_row_is_read_again_from_its_own_positions(tmp_path_factory, rows, last_line_ends):
    folder = tmp_path_factory.mktemp("rows")
    end = "\n" if last_line_ends else ""
    files = {
        "text": "\n".join(" ".join(row) for row in rows) + end,
        "tsv": "\n".join(" ".join(row) + "\t" + " ".join("O" for _ in row) for row in rows) + end,
        "jsonl": "\n".join(json.dumps({"tokens": row, "ner_tags": []}) for row in rows) + end,
        "conll": "\n\n".join("\n".join(f"{word}\tO" for word in row) for row in rows) + end,
    }
    places = [write(folder / kind, "\ufeff" + data, kind) for kind, data in files.items()]
    pq.write_table(pa.table({"tokens": rows}), folder / "parquet", row_group_size=3)
    for source in [*places, place(folder / "parquet", "parquet")]:
        found = rows_of(source)
        expected = [" ".join(row) if source.format == "text" else tuple(row) for row in rows]
        assert [row.content for row in found] == expected
        for row in found:
            assert list(read_rows(Span(source, row.start, row.stop, row.number))) == [row]
        assert list(read_rows(Span(source, found[-1].start, None, found[-1].number))) == found[-1:]


def test_globs_and_uris_name_files_in_order_and_hidden_ones_never(tmp_path):
    for name in (
        "en/b.txt",
        "en/a.txt",
        "de/deep/a b.txt",
        "de/.hidden.txt",
        "x[1].txt",
        "en/c.tsv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [name.removeprefix(f"{tmp_path}/") for name in expand(f"{tmp_path}/{pattern}")]

    assert found("en/*.txt") == ["en/a.txt", "en/b.txt"]
    assert found("*/?.t*") == ["en/a.txt", "en/b.txt", "en/c.tsv"]
    assert found("**/*.txt") == ["de/deep/a b.txt", "en/a.txt", "en/b.txt", "x[1].txt"]
    assert found("x[1].txt") == ["x[1].txt"]
    remote = expand(f"file://{tmp_path}/**/a*.txt")
    assert remote == [f"file://{tmp_path}/de/deep/a%20b.txt", f"file://{tmp_path}/en/a.txt"]
    assert [rows_of(place(name, "text")) for name in remote] == [[], []]
    assert expand(f"file://{tmp_path}/en/a.txt") == [f"file://{tmp_path}/en/a.txt"]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").touch()
    assert expand("a.txt") == expand("*.txt") == [f"{tmp_path}/a.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}/no.txt", "no such file"),
        ("{}/*.txt", "no file matches"),
        ("{}", "is a folder, expected files"),
        ("file://{}/no.txt", "no such file"),
        ("file://{}/*.txt", "no file matches"),
        ("nosuch://{}/a.txt", "cannot be read"),
    ],
)
def test_path_or_glob_that_names_no_file_is_refused(tmp_path, path, message):
    with pytest.raises(CorpusError, match=message):
        expand(path.format(tmp_path))


def test_format_follows_the_ending_and_an_unknown_one_is_refused():
    assert format_of("s3://bucket/a.conll?region=x.y") == "conll"
    assert format_of("a.b.txt") == "text"
    with pytest.raises(
        CorpusError, match=r"a\.gz: ending '\.gz', not txt jsonl .*name its `format`"
    ):
        format_of("a.gz")


# from strangers, and damaged


def test_a_word_that_only_begins_like_a_docstart_is_a_word(tmp_path):
    source = write(tmp_path / "x.conll", "-DOCSTART-s\tO\nRom\tB-LOC\n", "conll")
    assert rows_of(source, gold="tags")[0].content == ("-DOCSTART-s", "Rom")


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("conll", "Rom O\rbrennt O\r"),
        ("tsv", "Rom\tO\rJa\tO\r"),
        ("table", "a\tO\rb\tO\r"),
    ],
)
def test_line_ends_of_old_macs_are_refused_where_they_would_lose_words(tmp_path, kind, data):
    source = write(tmp_path / "x", data, kind)
    with pytest.raises(CorpusError, match=r"x:1: a carriage return within a line"):
        rows_of(source, gold="label" if kind == "table" else "tags")


@pytest.mark.parametrize("kind", ["text", "conll", "tsv", "table", "jsonl"])
@pytest.mark.parametrize("data", ["Rom brennt\n".encode("utf-16-le"), b"\0" * 4096])
def test_utf_16_without_a_mark_and_blocks_of_zeros_are_no_text(tmp_path, kind, data):
    with pytest.raises(CorpusError, match=r"x:1: byte 0x00 at \d+, expected text"):
        rows_of(write(tmp_path / "x", data, kind))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b"}', "key 'text' twice in one object"),
        ('{"text": ' + "[" * 5000 + "]" * 5000 + "}", "more than 100 values inside one another"),
        ('{"text": ' + "[" * 120 + "]" * 120 + "}", "more than 100 values inside one another"),
        ('{"x": ' * 5000, "more than 100 values inside one another"),
    ],
)
def test_json_that_nobody_could_mean_is_refused_with_its_line(tmp_path, line, message):
    source = write(tmp_path / "x.jsonl", f'{{"text": "a"}}\n{line}\n', "jsonl")
    with pytest.raises(CorpusError, match=rf"x\.jsonl:2: not JSON in UTF-8: {message}"):
        rows_of(source)


@pytest.mark.parametrize("rows", ["one\ntwo\tmore\n", "a\tb\n\none\nc\td\n"])
def test_short_rows_of_a_table_are_refused_or_read_as_empty_but_long_ones_refused(tmp_path, rows):
    source = write(tmp_path / "x.tsv", "text\tlabel\n" + rows, "table")
    with pytest.raises(CorpusError, match=r"x\.tsv:\d: 1 columns, expected 2 .* short_rows: empty"):
        rows_of(source, "label")
    lenient = replace(source, short_rows="empty")
    expected = [tuple(line.split("\t")) for line in rows.splitlines()]
    read = [(row.content, row.gold) for row in rows_of(lenient, "label")]
    assert read == [its if len(its) == 2 else ((), None) for its in expected]
    with pytest.raises(CorpusError, match=r"x\.tsv:2: 3 columns, expected 2"):
        rows_of(
            replace(
                write(tmp_path / "x.tsv", "text\tlabel\na\tb\tc\n", "table"), short_rows="empty"
            )
        )


def test_a_column_that_comes_twice_is_refused(tmp_path):
    table = write(tmp_path / "x.tsv", "text\ttext\na\tb\n", "table")
    with pytest.raises(CorpusError, match=r"x\.tsv:2: column 'text' comes twice"):
        rows_of(table)
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"x\.parquet: column 'text' comes twice"):
        rows_of(place(tmp_path / "x.parquet", "parquet"))


def test_a_message_about_a_long_line_is_short(tmp_path):
    source = write(tmp_path / "x.conll", "a O\n" + "x " * 100_000, "conll")
    with pytest.raises(CorpusError) as caught:
        rows_of(source, gold="tags")
    assert len(str(caught.value)) < 400
    source = write(tmp_path / "x.jsonl", json.dumps({"x" * 100_000: 1}), "jsonl")
    with pytest.raises(CorpusError) as caught:
        rows_of(source)
    assert len(str(caught.value)) < 600


def described(path: Path, metadata: Any) -> Place:
    """A Parquet file whose schema says this of its features."""
    table = pa.table({"tokens": TOKENS, "ner_tags": LABELS})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), path)
    return place(path, "parquet")


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        {"info": []},
        {"info": {"features": [1]}},
        {"info": {"features": {"ner_tags": []}}},
        {"info": {"features": {"ner_tags": "feature"}}},
        {"info": {"features": {"ner_tags": {"feature": 3}}}},
    ],
)
def test_metadata_of_another_layout_names_no_classes(tmp_path, metadata):
    assert class_names(described(tmp_path / "x.parquet", metadata), "tags") is None


@pytest.mark.parametrize("names", [5, ["O", 1], ["O", ""], ["O", "O"]])
def test_class_names_that_are_no_distinct_texts_are_refused(tmp_path, names):
    source = described(
        tmp_path / "x.parquet", {"info": {"features": {"ner_tags": {"names": names}}}}
    )
    with pytest.raises(CorpusError, match=r"x\.parquet: ClassLabel .*'ner_tags'"):
        class_names(source, "tags")


def test_a_parquet_file_that_contradicts_itself_on_its_rows_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), path, store_schema=False)
    whole, found = path.read_bytes(), 0
    for at in range(len(whole) - 8, 3, -1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        try:
            metadata = pq.read_metadata(path)
        except (OSError, ValueError):
            continue
        if metadata.num_row_groups == 1 and metadata.row_group(0).num_rows != metadata.num_rows:
            found += 1
            with pytest.raises(CorpusError, match=r"x\.parquet"):
                rows_of(place(path, "parquet"))
    assert found


class _Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "name", ["ray.data.arrow_pickled_object", "ray.data.arrow_tensor", "arrow.py_extension_type"]
)
def test_pickles_in_a_parquet_file_are_never_loaded(tmp_path, name):
    importlib.import_module("ray.data")  # registers types with Arrow
    payload = pickle.dumps(_Canary(tmp_path / "canary"))
    marks = {"ARROW:extension:name": name, "ARROW:extension:metadata": payload}
    values: pa.Array = pa.array([payload], pa.large_binary())
    if name == "ray.data.arrow_tensor":
        values = pa.array([[1]], pa.list_(pa.int64()))
    field = pa.field("text", values.type, metadata=marks)
    inner = pa.struct([field])
    nested = pa.StructArray.from_arrays([values], fields=[field])
    for column in (values, nested):
        its = field if column is values else pa.field("text", inner)
        pq.write_table(
            pa.Table.from_arrays([column], schema=pa.schema([its])), tmp_path / "x.parquet"
        )
        with pytest.raises(CorpusError, match=r"x\.parquet"):
            rows_of(place(tmp_path / "x.parquet", "parquet"))
        assert not (tmp_path / "canary").exists()
    assert pickle.loads(payload) is None  # it would have
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"question": "q"', '"question": 5'),
        ('"question": "q"', '"question": "\\ud800"'),
        ('"answers": []', '"answers": ""'),
        ('"answers": []', '"answers": {"text": [], "answer_start": []}'),
        ('"qas": [', '"qas": "", "x": ['),
        ('"paragraphs": [', '"paragraphs": {}, "x": ['),
        ('"id": "1"', '"id": ' + "[" * 5000),
        ('{"context"', '[], {"context"'),
        ('"context": "c"', '"context": "c", "context": "d"'),
    ],
)
def test_squad_files_of_another_layout_are_refused_and_lose_no_question(tmp_path, old, new):
    asked = '{"id": "1", "question": "q", "answers": []}'
    whole = f'{{"data": [{{"paragraphs": [{{"context": "c", "qas": [{asked}]}}]}}]}}'
    assert len(rows_of(write(tmp_path / "x.json", whole, "squad"))) == 1
    assert old in whole
    source = write(tmp_path / "y.json", whole.replace(old, new), "squad")
    with pytest.raises(CorpusError, match=r"y\.json"):
        rows_of(source)
