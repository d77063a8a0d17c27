"""Fuzzed text: each input is read as it stands, or refused in one message; nothing else comes.

What was not damaged must be accepted and come back; what was damaged may be accepted where another,
simpler reader finds the same in it.
"""

import io
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import config as datasets_config
from fuzzing import changes, damaged, fuzzed, nest, outcome, spoiled, texts, words, written
from hypothesis import given, reject
from hypothesis import strategies as st

from xdray.config import TaskConfig
from xdray.config_data import SourceConfig, TransferConfig
from xdray.corpus import Labelled, plan_transfer, read_shard
from xdray.kinds import task_class
from xdray.sentences import TextPair
from xdray.task import Task

CLASSES = ["no", "yes", "1"]
TAGS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


pytestmark = pytest.mark.usefixtures("nothing_is_printed")


@pytest.fixture(scope="module", autouse=True)
def _quiet_datasets() -> Iterator[None]:
    """`datasets` draws a bar, and logs each file that it cannot read."""
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("datasets").setLevel(logging.NOTSET)
    datasets.enable_progress_bars()


def task_of(kind: str, scheme: str = "IOB2", **values: Any) -> Task:
    found, its = task_class(kind), TaskConfig(kind=kind, **values)
    return found(
        labels=found.given_labels(its),
        metric=next(iter(found.metrics)),
        settings=its,
        word_rule="punctuation",
        max_length=48,
        scheme=scheme,
    )


def lines_of(data: bytes) -> list[str]:
    """Lines of a file, as the simplest reader has them."""
    found = data.decode().removeprefix("\ufeff").split("\n")
    return [line.removesuffix("\r") for line in (found if found[-1] else found[:-1])]


# transfer text, and what predict reads


def transfer(path: Path, **columns: Any) -> tuple[list[Any], dict[str, Any]]:
    sources = TransferConfig(sources=[SourceConfig(path=str(path), **columns)])
    plan = plan_transfer(sources, frozenset(), 3, 0, in_order=True)
    return [its.content for shard in plan.shards for its in read_shard(shard)], plan.counts


@fuzzed
@given(
    lines=st.lists(texts | st.sampled_from(["", " ", "\u3000"]), max_size=9),
    ends=st.booleans(),
    done=changes,
)
def test_text(tmp_path, lines, ends, done):
    whole = ("\n".join(lines) + "\n" * ends).encode()
    data = damaged(whole, done)
    with written(tmp_path, "txt", data) as path:
        found = outcome("text", (path.name, "data.transfer"), lambda: transfer(path))
    assert found or done or not any(map(str.strip, lines))
    if found:
        contents, counts = found
        given_lines = lines_of(data)
        assert contents == [line for line in given_lines if line.strip()]
        assert counts["read"] == len(given_lines) == len(contents) + counts["empty"]


# words and tags


@st.composite
def entities(draw: Any) -> list[str]:
    """Tags in IOB2, without an orphan."""
    tags = []
    for kind, size in draw(
        st.lists(
            st.tuples(st.sampled_from(["O", "LOC", "PER"]), st.integers(1, 3)),
            min_size=1,
            max_size=4,
        )
    ):
        tags += ["O"] * size if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
    return tags


def as_bioes(tags: list[str]) -> list[str]:
    """The same entities with E- where they end, S- where they are one word."""
    ends = [not tag.startswith("I-") for tag in [*tags[1:], "O"]]
    change = {("B", True): "S", ("I", True): "E"}
    return [
        change.get((tag[0], end), tag[0]) + tag[1:] for tag, end in zip(tags, ends, strict=True)
    ]


@st.composite
def tagged(draw: Any) -> list[tuple[list[str], list[str]]]:
    tags = draw(st.lists(entities(), min_size=1, max_size=5))
    return [(draw(st.lists(words, min_size=len(its), max_size=len(its))), its) for its in tags]


def check_tagged(found: Labelled, rows: list[tuple[list[str], list[str]]]) -> None:
    assert [(its.content, its.gold) for its in found.sentences] == [
        (tuple(w), tuple(t)) for w, t in rows
    ]
    assert found.counts == {"sentences": len(rows), "empty": 0, "repaired_tags": 0}


def read_words(reader: str, path: Path, scheme: str, labels: bool) -> Labelled | None:
    task = task_of("tagging", scheme, labels=TAGS if labels else None)
    names = (path.name, "data.train")
    return outcome(reader, names, lambda: task.read([SourceConfig(path=str(path))], "train"))


@fuzzed
@given(
    rows=tagged(),
    scheme=st.sampled_from(["IOB2", "BIOES"]),
    between=st.sampled_from([" ", "\t", "  ", " NN ", "\tNN\t"]),
    labels=st.booleans(),
    mark=st.sampled_from(["", "-DOCSTART- O\n\n", "\n\n"]),
    done=changes,
)
def test_conll(tmp_path, rows, scheme, between, labels, mark, done):
    lines = [
        zip(its, tags if scheme == "IOB2" else as_bioes(tags), strict=True) for its, tags in rows
    ]
    whole = mark + "\n".join("".join(f"{w}{between}{t}\n" for w, t in its) for its in lines)
    data = damaged(whole.encode(), done)
    with written(tmp_path, "conll", data) as path:
        found = read_words("conll", path, scheme, labels)
    assert found or done
    if found and not done:
        check_tagged(found, rows)
    if found:
        cells = [
            re.split("\t" if "\t" in line.rstrip(" \t") else " +", line.strip(" \t"))[:1]
            for line in lines_of(data)
        ]
        firsts = [
            "".join(cell[0].split()) for cell in cells if cell and cell[0] not in {"", "-DOCSTART-"}
        ]
        assert "".join(firsts) == "".join(
            "".join("".join(cast(Any, its.content)).split()) for its in found.sentences
        )


@fuzzed
@given(
    rows=tagged(), prefix=st.sampled_from(["", "pt:", "x-y:"]), labels=st.booleans(), done=changes
)
def test_tsv(tmp_path, rows, prefix, labels, done):
    whole = "".join(f"{' '.join(w)}\t{' '.join(prefix + tag for tag in t)}\n" for w, t in rows)
    data = damaged(whole.encode(), done)
    with written(tmp_path, "tsv", data) as path:
        found = read_words("tsv", path, "IOB2", labels)
    assert found or done
    if found and not done:
        check_tagged(found, rows)
        assert {its.language for its in found.sentences} == {prefix[:-1] or "und"}
    if found:
        given_lines = lines_of(data)
        firsts = ["".join(line.split("\t")[0].split()) for line in given_lines]
        assert [its for its in firsts if its] == [
            "".join("".join(cast(Any, its.content)).split()) for its in found.sentences
        ]
        assert len(given_lines) == len(found.sentences) + found.counts["empty"]


# records


class Example(NamedTuple):
    kind: str
    settings: dict[str, Any]
    columns: dict[str, Any]
    rows: list[dict[str, Any]]
    gold: list[Any]


def _tagging(draw: Any) -> Example:
    rows = draw(tagged())
    ids = draw(st.booleans())
    records = [
        {"tokens": w, "ner_tags": [TAGS.index(tag) for tag in t] if ids else t} for w, t in rows
    ]
    return Example("tagging", {"labels": TAGS}, {}, records, [tuple(t) for _, t in rows])


def _classification(draw: Any) -> Example:
    several, pair, ids = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    one = st.sampled_from([0, 1] if ids else [0, 1, 2])  # the class "1" is the third, also as 1
    gold = draw(
        st.lists(st.lists(one, unique=True).map(sorted) if several else one, min_size=1, max_size=5)
    )
    names = {0: 0, 1: 1.0} if ids else dict(enumerate(CLASSES))
    labels = CLASSES[:2] if ids else CLASSES
    rows = [
        {
            "text": draw(texts),
            **({"pair": draw(texts)} if pair else {}),
            "label": [names[its] for its in row] if several else names[row],
        }
        for row in gold
    ]
    settings = {"labels": labels, "multi_label": several}
    known = [tuple(its) for its in gold] if several else gold
    return Example("classification", settings, {"pair": "pair"} if pair else {}, rows, known)


def _regression(draw: Any) -> Example:
    gold = draw(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=5))
    rows = [{"text": draw(texts), "label": its} for its in gold]
    return Example("regression", {}, {}, rows, gold)


def _answering(draw: Any) -> Example:
    rows, gold = [], []
    for its in draw(st.lists(st.lists(words, min_size=2, max_size=30), min_size=1, max_size=4)):
        context = " ".join(its)
        picked = draw(st.integers(0, len(its) - 1))
        start = sum(len(word) + 1 for word in its[:picked])
        answers = {"text": [its[picked]], "answer_start": [start]}
        if draw(st.booleans()):
            answers = {"text": [], "answer_start": []}
        rows.append({"text": draw(texts), "pair": context, "label": answers})
        gold.append(tuple(zip(answers["text"], answers["answer_start"], strict=True)))
    settings = {"null_answers": True, "window": 9, "overlap": 3}
    return Example("answering", settings, {"pair": "pair"}, rows, gold)


@st.composite
def examples(draw: Any) -> Example:
    kinds = [_tagging, _classification, _regression, _answering]
    example = draw(st.sampled_from(kinds))(draw)
    if draw(st.booleans()):
        rows = [{**row, "id": str(n), "language": "de"} for n, row in enumerate(example.rows)]
        return example._replace(rows=rows)
    return example


def read_example(reader: str, example: Example, path: Path, **columns: Any) -> Labelled | None:
    task = task_of(example.kind, **example.settings)
    source = SourceConfig(path=str(path), **example.columns, **columns)
    return outcome(reader, (path.name, "data.train"), lambda: task.read([source], "train"))


def expected_contents(example: Example) -> list[Any]:
    """What was written, as it must come back."""
    pair = example.columns.get("pair")
    return [
        tuple(row["tokens"])
        if "tokens" in row
        else TextPair(row["text"], row[pair])
        if pair
        else row["text"]
        for row in example.rows
    ]


def check_example(found: Labelled, example: Example) -> None:
    if example.kind == "answering":
        sentences: list[Any] = list(found.sentences)
        golds = {its.gold.question: its.gold.answers for its in sentences}
        assert list(golds.values()) == example.gold
        assert found.counts["questions"] == len(example.rows)
        for its in sentences:
            context = {row["pair"] for row in example.rows if row["text"] == its.content.first}
            assert any(c[its.gold.offset :].startswith(its.content.second) for c in context)
        return
    expected = expected_contents(example)
    assert [its.content for its in found.sentences] == expected
    assert [its.gold for its in found.sentences] == example.gold
    assert found.counts["sentences"] == len(expected)
    assert found.counts["empty"] == 0
    if example.kind == "regression":
        assert all(np.isfinite(np.float32(its.gold)) for its in found.sentences)


def units(found: Labelled) -> int:
    """Rows that were read, windows of a context once, and the empty ones."""
    return found.counts.get("questions", found.counts["sentences"]) + found.counts["empty"]


@fuzzed
@given(example=examples(), spoil=st.booleans(), data=st.data(), done=changes)
def test_jsonl(tmp_path, example, spoil, data, done):
    rows = example.rows
    if spoil:
        rows = data.draw(spoiled(rows))
    lines = "".join(
        nest(json.dumps(its)) + "\n" for its in (rows if isinstance(rows, list) else [rows])
    )
    raw = damaged(lines.encode(), done)
    with written(tmp_path, "jsonl", raw) as path:
        found = read_example("jsonl", example, path)
    assert found or done or spoil
    if found and not (done or spoil):
        check_example(found, example)
    if found and example.kind != "answering":  # an empty window of a context is a row of its own
        kept = [json.loads(line) for line in lines_of(raw) if line.strip()]
        blank = sum(not line.strip() for line in lines_of(raw))
        assert len(kept) + blank == units(found)


@fuzzed
@given(
    example=examples(),
    header=st.booleans(),
    short_rows=st.sampled_from(["refuse", "empty"]),
    done=changes,
)
def test_table(tmp_path, example, header, short_rows, done):
    several = example.settings.get("multi_label")
    if several or example.kind in {"tagging", "answering"}:
        example = Example("regression", {}, {}, [{"text": "a b", "label": 1.5}], [1.5])
    names = list(example.rows[0])
    classes = example.kind == "classification"
    cells = [names] * header + [
        [str(int(its) if classes and isinstance(its, float) else its) for its in row.values()]
        for row in example.rows
    ]
    raw = damaged("".join("\t".join(row) + "\n" for row in cells).encode(), done)
    columns: dict[str, Any] = {"format": "table", "header": header, "short_rows": short_rows}
    if not header:
        columns |= {name: str(1 + names.index(name)) for name in ("text", "label")}
        if "pair" in names:
            example = example._replace(
                columns={"pair": str(1 + names.index("pair"))},
                rows=[{**row, str(1 + names.index("pair")): row["pair"]} for row in example.rows],
            )
    with written(tmp_path, "tsv", raw) as path:
        found = read_example("table", example, path, **columns)
    assert found or done
    if found and not done:
        check_example(found, example)
    if found:
        given_lines = lines_of(raw)
        assert units(found) == len(given_lines) - header
        assert {line.count("\t") for line in given_lines} == {len(names) - 1} or done


# Parquet


def _table(draw: Any, example: Example) -> pa.Table:
    """Rows as a table whose columns are of any type that can hold them."""
    table = pa.Table.from_pylist(example.rows)
    for name in table.column_names:
        column, index = table[name], table.column_names.index(name)
        choices = [column.type]
        if pa.types.is_string(column.type):
            choices += [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
        if pa.types.is_list(column.type):
            choices += [pa.large_list(column.type.value_type)]
        wanted = draw(st.sampled_from(choices))
        if pa.types.is_dictionary(wanted):
            column = column.dictionary_encode()
        elif wanted != column.type:
            column = column.cast(wanted)
        table = table.set_column(index, name, column)
    if draw(st.booleans()):
        table = table.append_column(
            "extra",
            pa.array(
                [None] * len(table),
                draw(
                    st.sampled_from(
                        [pa.null(), pa.timestamp("ns"), pa.list_(pa.struct([("x", pa.int8())]))]
                    )
                ),
            ),
        )
    return table


def _parquet(draw: Any, table: pa.Table) -> bytes:
    sink = io.BytesIO()
    options = {
        "row_group_size": draw(st.integers(1, 3)),
        "compression": draw(st.sampled_from(["none", "snappy", "zstd"])),
        "use_dictionary": draw(st.booleans()),
        "write_statistics": draw(st.booleans()),
    }
    try:
        pq.write_table(table, sink, **options)
    except (ValueError, pa.ArrowException):
        reject()
    return sink.getvalue()


FEATURES = st.sampled_from(
    [
        None,
        {"info": {"features": {"ner_tags": {"feature": {"names": TAGS, "_type": "ClassLabel"}}}}},
        {"info": {"features": {"ner_tags": [{"names": TAGS, "_type": "ClassLabel"}]}}},
        {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}},
    ]
)


def _spoilt(draw: Any, example: Example, features: Any, spoil: int) -> pa.Table:
    """A table of the rows. spoil: 1 rows, 2 metadata, 3 names of columns; else nothing."""
    try:
        rows = draw(spoiled(example.rows)) if spoil == 1 else example.rows
        table = _table(draw, example._replace(rows=rows))
    except (TypeError, ValueError, LookupError, OverflowError, AttributeError, pa.ArrowException):
        reject()  # nothing that Arrow could write
    features = draw(spoiled(features)) if spoil == 2 else features
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": nest(json.dumps(features))})
    if spoil == 3:
        count = len(table.column_names)
        names = st.sampled_from([*table.column_names, "x", ""])
        table = table.rename_columns(draw(st.lists(names, min_size=count, max_size=count)))
    return table


@fuzzed
@given(example=examples(), features=FEATURES, spoil=st.integers(0, 5), data=st.data(), done=changes)
def test_parquet(tmp_path, example, features, spoil, data, done):
    if features and example.settings.get("labels") == CLASSES[:2]:
        features = None  # ids would have other names
    table = _spoilt(data.draw, example, features, spoil)
    raw = damaged(_parquet(data.draw, table), done)
    whole = not done and spoil not in {1, 2, 3}
    with written(tmp_path, "parquet", raw) as path:
        found = read_example("parquet", example, path)
        if found and example.kind != "answering":
            assert pq.ParquetFile(path).metadata.num_rows == units(found)
            name = "tokens" if example.kind == "tagging" else "text"
            column = pq.ParquetFile(path).read([name])[name].to_pylist()
            there = {tuple(its) if isinstance(its, list) else its for its in column}
            assert {getattr(its.content, "first", its.content) for its in found.sentences} <= there
    assert found or not whole
    if found and whole:
        check_example(found, example)


# SQuAD


@fuzzed
@given(data=st.data(), spoil=st.booleans(), done=changes)
def test_squad(tmp_path, data, spoil, done):
    example = _answering(data.draw)
    asked = [
        {
            "context": row["pair"],
            "qas": [
                {
                    "id": str(n),
                    "question": row["text"],
                    "answers": [{"text": t, "answer_start": s} for t, s in gold],
                }
            ],
        }
        for n, (row, gold) in enumerate(zip(example.rows, example.gold, strict=True))
    ]
    document: Any = {"version": "2.0", "data": [{"title": "x", "paragraphs": asked}]}
    if spoil:
        document = data.draw(spoiled(document))
    raw = damaged(nest(json.dumps(document)).encode(), done)
    with written(tmp_path, "json", raw) as path:
        found = read_example("squad", example, path, text="text")
    assert found or done or spoil
    if found and not (done or spoil):
        check_example(found, example)


# what predict and the teacher read: any format, labels left aside


def _unlabelled(example: Example, kind: str) -> bytes:
    rows = [{name: its for name, its in row.items() if name != "label"} for row in example.rows]
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
        return sink.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "table":
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        return "".join("\t".join(line) + "\n" for line in lines).encode()
    between, end = (" ", "\n") if kind == "tsv" else ("\n", "\n\n")
    return "".join(between.join(row["tokens"]) + end for row in rows).encode()


@fuzzed
@given(example=examples(), first=st.booleans(), done=changes)
def test_predict_inputs(tmp_path, example, first, done):
    kinds = ("conll", "tsv") if example.kind == "tagging" else ("table", "table")
    kind = ("jsonl", "parquet")[first] if len(example.rows) % 2 else kinds[first]
    data = damaged(_unlabelled(example, kind), done)
    with written(tmp_path, kind, data) as path:
        names = (path.name, "data.transfer")
        columns = {**example.columns, "format": kind}
        found = outcome("predict inputs", names, lambda: transfer(path, **columns))
    assert found or done
    if found:
        contents, counts = found
        assert (
            counts["read"] == len(contents) + counts["empty"] == counts["taken"] + counts["empty"]
        )
        if not done:
            assert contents == expected_contents(example)


# folders that `datasets` loads

HUB_HEADS = (
    None,
    "x: 1",
    "[",
    "x: !!python/object/apply:os.mkdir [CANARY]",
    "dataset_info: {features: 3}",
    "configs: [{config_name: default, data_files: ../../x}]",
)


@fuzzed
@given(
    rows=tagged(),
    ending=st.sampled_from(["parquet", "jsonl"]),
    head=st.sampled_from(HUB_HEADS),
    done=changes,
)
def test_hub_folder(tmp_path_factory, rows, ending, head, done):
    folder = tmp_path_factory.mktemp("hub")
    records = [{"tokens": w, "ner_tags": t} for w, t in rows]
    whole = "".join(json.dumps(its) + "\n" for its in records).encode()
    if ending == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=2)
        whole = sink.getvalue()
    (folder / "set").mkdir()
    path = folder / "set" / f"train.{ending}"
    path.write_bytes(damaged(whole, done))
    if head is not None:
        text = head.replace("CANARY", str(folder / "canary"))
        (folder / "set" / "README.md").write_text(f"---\n{text}\n---\n")
    task = task_of("tagging", labels=TAGS)
    source = SourceConfig(hub=str(path.parent), split="train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets_config, "HF_DATASETS_CACHE", folder / "cache")
        names = (str(path.parent), "data.train")
        found = outcome("hub folder", names, lambda: task.read([source], "train"))
    assert not (folder / "canary").exists()
    assert found or done or head not in {None, "x: 1"}
    if found and not done:
        check_tagged(found, rows)
    shutil.rmtree(folder)
