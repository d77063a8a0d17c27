"""Rows out of every input format, each with the position from which it is read again.

A `Place` is one file, or one subset of a Hub data set. Positions are bytes in line formats (text,
JSONL, CoNLL, TSV) and rows in tables (Parquet, Hub): `read_rows` starts wherever a row starts.
Text is strict UTF-8; a byte order mark at its start is dropped. Raises CorpusError naming file and
line (tables: row, counted from 1).
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from xdray.errors import CorpusError
from xdray.sentences import Content

FORMATS = {"txt": "text", "jsonl": "jsonl", "conll": "conll", "tsv": "tsv", "parquet": "parquet"}
BLOCK_BYTES, BATCH_ROWS = 1 << 20, 2048
PREFIXED_TAG = re.compile(r"([^:\s]+):(O|[BIES]-.+)")


@dataclass(frozen=True, slots=True)
class Place:
    """One file (path or URI), or one subset of a Hub data set, and the columns to read there.

    format: a value of FORMATS, or "hub". language: of all rows; None: a row says, or nobody.
    """

    path: str
    format: str
    words: str
    tags: str
    text: str
    language: str | None
    subset: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """Name it in messages."""
        return ":".join(part for part in (self.path, self.subset, self.split) if part)


class Row(NamedTuple):
    """One sentence as it stands in the input, between the positions `start` and `stop`.

    number: line (of a CoNLL sentence: its first) or row, from 1.
    """

    start: int
    stop: int
    number: int
    content: Content
    tags: list[str | int] | None = None
    language: str | None = None
    row_id: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a place from the start of a row, numbered `number`; stop None: to the end."""

    place: Place
    start: int = 0
    stop: int | None = None
    number: int = 1


def read_rows(span: Span, labelled: bool = False) -> Iterator[Row]:
    """Yield the rows of a stretch. labelled: with tags and ids, refusing what has no tags."""
    return READERS[span.place.format](span, labelled)


def format_of(path: str) -> str:
    """Return the format that the ending of a file tells."""
    ending = PurePosixPath(path.partition("?")[0] if "://" in path else path).suffix
    if ending[1:] not in FORMATS:
        raise CorpusError(f"{path}: ending '{ending}', not {' '.join(FORMATS)}; name its `format`")
    return FORMATS[ending[1:]]


def expand(path: str) -> list[str]:
    """Return the files that a path, glob or URI names, in alphabetical order.

    Local paths come back absolute: a descriptor made here is read in another process. In a URI
    "?" starts the query, so only "*" and "[" make a glob there.
    """
    remote = "://" in path
    address, mark, query = path.partition("?") if remote else (str(Path(path).absolute()), "", "")
    literal = not has_magic(address) or (not remote and Path(address).exists())
    parts = address.split("/")
    fixed = len(parts) if literal else next(i for i, part in enumerate(parts) if has_magic(part))
    base = "/".join(parts[:fixed]) or "/"
    with _reading(path):
        system, folder = _locate(base + mark + query)
        info = system.get_file_info(folder)
        names = {name.removeprefix(folder) for name in _glob(system, info, parts[fixed:])}
    if not names:
        what = "is a folder, expected files" if literal else "no file matches"
        what = "no such file" if info.type == pafs.FileType.NotFound and literal else what
        raise CorpusError(f"{path}: {what}; paths are taken from where the command was typed")
    return sorted(base + (quote(name) if remote else name) + mark + query for name in names)


def class_names(place: Place) -> list[str] | None:
    """Return the names of the ClassLabel feature in the column of tags; None: there is none."""
    if place.format not in {"hub", "parquet"}:
        return None
    with _reading(place):
        if place.format == "hub":
            schema = _hub_dataset(place).features.arrow_schema
        else:
            schema = pq.read_schema(open_place(place.path))
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = features.get("info", {}).get("features", {}).get(place.tags)
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    return feature.get("names") if isinstance(feature, dict) else None


@contextmanager
def _reading(where: object) -> Iterator[None]:
    """Turn what pyarrow and the file system raise into a CorpusError."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CorpusError(f"{where}: cannot be read: {' '.join(str(error).split())}") from error


def _locate(path: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)


def open_place(path: str) -> pa.NativeFile:
    """Open a file or URI."""
    system, name = _locate(path)
    return system.open_input_file(name)


def _glob(system: pafs.FileSystem, info: pafs.FileInfo, patterns: list[str]) -> Iterator[str]:
    """Yield the files at or below `info` that match; "**" is any number of folders."""
    if not patterns and info.is_file:
        yield info.path
    if not patterns or info.type != pafs.FileType.Directory:
        return
    anywhere = patterns[0] == "**"
    if anywhere:
        yield from _glob(system, info, patterns[1:])
    for child in system.get_file_info(pafs.FileSelector(info.path)):
        hidden = child.base_name.startswith(".") and not patterns[0].startswith(".")
        if fnmatchcase(child.base_name, patterns[0]) and not hidden:
            deeper = anywhere and child.type == pafs.FileType.Directory
            yield from _glob(system, child, patterns if deeper else patterns[1:])


def _lines(span: Span) -> Iterator[tuple[int, int, int, str]]:
    """Yield (start byte, stop byte, line number, line without its end)."""
    place, position, number, rest = span.place, span.start, span.number, b""
    with _reading(place), open_place(place.path) as file:
        file.seek(position)
        while block := file.read(min(BLOCK_BYTES, (span.stop or file.size()) - file.tell())):
            *raws, rest = (rest + block).split(b"\n")
            for raw in raws:
                after = position + len(raw) + 1
                yield position, after, number, _decode(place, raw, position, number)
                position, number = after, number + 1
    if rest:
        yield position, position + len(rest), number, _decode(place, rest, position, number)


def _decode(place: Place, raw: bytes, position: int, number: int) -> str:
    try:
        line = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{place}:{number}: byte 0x{raw[error.start]:02x} at {error.start + 1} is not UTF-8; "
            "convert the file to UTF-8"
        ) from error
    if not position:
        line = line.removeprefix("\ufeff")
    return line.removesuffix("\r")


def _text_rows(span: Span, labelled: bool) -> Iterator[Row]:
    if labelled:
        raise CorpusError(f"{span.place}: text, a sentence a line, has no tags; name the `format`")
    return itertools.starmap(Row, _lines(span))


def _conll_rows(span: Span, labelled: bool) -> Iterator[Row]:
    """Word first, tag last, between tabs if the line has one, else spaces; a blank line ends."""
    words, tags, begin, end, first, width = [], [], 0, 0, 0, 0
    for position, after, line_number, line in itertools.chain(_lines(span), [(0, 0, 0, "")]):
        line = line.rstrip(" \t").lstrip(" ")
        if not line or line.startswith("-DOCSTART-"):
            if words:
                yield Row(begin, end, first, tuple(words), tags if labelled else None)
                words, tags = [], []
            continue
        columns = line.split("\t") if "\t" in line else re.split(" +", line)
        width = width if words else max(2, len(columns))
        if not columns[0] or (labelled and len(columns) != width):
            found = f"{line!r} has {len(columns)} columns, expected {width}"
            raise CorpusError(f"{span.place}:{line_number}: {found}, a word first and a tag last")
        if not words:
            begin, first = position, line_number
        end = after
        words.append(columns[0])
        tags.append(columns[-1])


def _tsv_rows(span: Span, labelled: bool) -> Iterator[Row]:
    """The reference's: words TAB tags, each between spaces; `pt:B-PER` names a language too."""
    for position, after, line_number, line in _lines(span):
        left, *others = line.split("\t")
        words = tuple(word for word in left.split(" ") if word)
        tags = [tag for tag in others[-1].split(" ") if tag] if others else []
        if labelled and words and len(others) != 1:
            found = f"{len(others) + 1} columns"
            raise CorpusError(f"{span.place}:{line_number}: {found}, expected 2 (words, tab, tags)")
        marks = [PREFIXED_TAG.fullmatch(tag) for tag in tags]
        languages = {mark[1] if mark else None for mark in marks}
        if len(languages) > 1:
            found = f"{span.place}:{line_number}: tags of languages {languages}"
            raise CorpusError(f"{found}, expected one for all")
        tags = [mark[2] if mark else tag for mark, tag in zip(marks, tags, strict=True)]
        language = next(iter(languages), None)
        yield Row(position, after, line_number, words, [*tags] if labelled else None, language)


def _jsonl_rows(span: Span, labelled: bool) -> Iterator[Row]:
    for position, after, line_number, line in _lines(span):
        if not line.strip():
            yield Row(position, after, line_number, ())
            continue
        where = f"{span.place}:{line_number}"
        try:
            record = json.loads(line)
            if "\\u" in line:  # half a surrogate pair passes json, and fails in every tokenizer
                json.dumps(record, ensure_ascii=False).encode()
        except ValueError as error:
            raise CorpusError(f"{where}: not JSON in UTF-8: {error}; write it anew") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: {type(record).__name__}, expected an object on each line")
        columns = _columns(span.place, where, record, labelled)
        yield Row(position, after, line_number, *_values(where, record, columns, labelled))


def _parquet_rows(span: Span, labelled: bool) -> Iterator[Row]:
    """Of the file only the row groups that hold rows of the stretch are read."""
    place, start = span.place, span.start
    with _reading(place), open_place(place.path) as file:
        table = pq.ParquetFile(file, buffer_size=BLOCK_BYTES)
        sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        stop = min(sum(sizes) if span.stop is None else span.stop, sum(sizes))
        groups = [g for g, end in enumerate(ends) if end > start and end - sizes[g] < stop]
        columns = _columns(place, str(place), table.schema_arrow.names, labelled)
        position = ends[groups[0]] - sizes[groups[0]] if groups else stop
        for batch in table.iter_batches(BATCH_ROWS, groups, columns, use_threads=False):
            skipped = max(start - position, 0)
            wanted = batch.slice(skipped, max(min(stop - position, len(batch)) - skipped, 0))
            yield from _table_rows(place, wanted, position + skipped, columns, labelled)
            position += len(batch)
            if position >= stop:
                return


def _hub_rows(span: Span, labelled: bool) -> Iterator[Row]:
    place = span.place
    dataset = _hub_dataset(place)
    columns = _columns(place, str(place), dataset.column_names, labelled)
    dataset = dataset.select_columns(columns).with_format("arrow")
    stop = min(len(dataset) if span.stop is None else span.stop, len(dataset))
    for position in range(span.start, stop, BATCH_ROWS):
        table = dataset[position : min(position + BATCH_ROWS, stop)]
        yield from _table_rows(place, table, position, columns, labelled)


@functools.lru_cache(maxsize=8)
def _hub_dataset(place: Place) -> Any:
    """Load a data set of the Hub, or a local folder, as `datasets` keeps it: mapped from disk."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    with _reading(place):
        try:
            return load_dataset(place.path, place.subset, split=place.split)
        except DatasetsError as error:
            raise ValueError(f"`datasets` says: {error}") from error


def _table_rows(
    place: Place, table: pa.RecordBatch, start: int, columns: list[str], labelled: bool
) -> Iterator[Row]:
    with _reading(f"{place}: rows {start + 1} to {start + len(table)}"):  # bad UTF-8 shows here
        records = table.to_pylist()
    for row, record in enumerate(records, start):
        values = _values(f"{place}:{row + 1}", record, columns, labelled)
        yield Row(row, row + 1, row + 1, *values)


def _columns(place: Place, where: str, present: Collection[str], labelled: bool) -> list[str]:
    """Columns to read: content, tags where labelled, then language and id where they are there."""
    content = place.words if place.words in present or labelled else place.text
    needed = [content, place.tags] if labelled else [content]
    if not set(needed) <= set(present):
        other = f"and '{place.tags}'" if labelled else f"or '{place.text}'"
        found = f"{where}: has {list(present)}, expected '{place.words}' {other}"
        raise CorpusError(f"{found}; name the source's columns: words, tags, text")
    return [*needed, *(name for name in ("language", "id") if name in present)]


def _values(
    where: str, record: dict[str, Any], columns: list[str], labelled: bool
) -> tuple[Content, list[str | int] | None, str | None, str | None]:
    """Content, tags, language and id of a record, their types checked; null content is empty."""
    content, language, row_id = record[columns[0]], record.get("language"), record.get("id")
    tags = (record[columns[1]] or []) if labelled else None
    if isinstance(content, list) and all(isinstance(word, str) for word in content):
        content = tuple(content)
    elif content is not None and (labelled or not isinstance(content, str)):
        expected = "a list of words" if labelled else "text or a list of words"
        raise CorpusError(f"{where}: '{columns[0]}' is {content!r:.60}, expected {expected}")
    if tags is not None and not isinstance(tags, list):
        raise CorpusError(f"{where}: '{columns[1]}' is {tags!r:.60}, expected a list of tags")
    if language is not None and not isinstance(language, str):
        raise CorpusError(f"{where}: language is {language!r}, expected a code such as 'en'")
    return content or (), tags, language, None if row_id is None else str(row_id)


READERS: dict[str, Callable[[Span, bool], Iterator[Row]]] = {
    "text": _text_rows,
    "jsonl": _jsonl_rows,
    "conll": _conll_rows,
    "tsv": _tsv_rows,
    "parquet": _parquet_rows,
    "hub": _hub_rows,
}
