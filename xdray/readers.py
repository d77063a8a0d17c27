"""Rows out of every input format, each with the position from which it is read again.

`read_rows` starts wherever a row starts. Raises CorpusError naming file and line (tables: row,
counted from 1).
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xdray.errors import CorpusError
from xdray.hub import hub_dataset
from xdray.places import BLOCK_BYTES, Place, Row, Span, lines, open_place, reading
from xdray.sentences import Content, TextPair, text_of
from xdray.squad import squad_questions
from xdray.strict_json import parse_json
from xdray.windows import Windows

BATCH_ROWS = 2048
MOST_LANGUAGE = 64
NO_COLUMNS = {"text", "conll", "tsv"}
PREFIXED_TAG = re.compile(r"([^:\s]+):(O|[BIES]-.+)")


class _Columns(NamedTuple):
    """Which columns of a record are read."""

    content: list[str]
    gold: str | None
    others: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.content, *([self.gold] if self.gold else []), *self.others]


def read_rows(span: Span, gold: str = "") -> Iterator[Row]:
    """Yield the rows of a stretch.

    gold: "tags" or "label", to read words with that column, or text, and ids too; refuses what has
    none.
    """
    place = span.place
    if place.format in NO_COLUMNS and (place.pair or place.text != "text"):
        raise CorpusError(
            f"{place}: read as {place.format}, which has no columns, but `text` or `pair` names "
            "one; set its `format` (predict: --format), e.g. table for columns between tabs"
        )
    rows = READERS[place.format](span, gold)
    if span.stop is None and place.rows is not None:
        rows = itertools.islice(rows, *place.rows)
    if place.windows is None:
        return rows
    return itertools.islice(_window_rows(rows, place.windows), span.part, None)


def _window_rows(rows: Iterator[Row], windows: Windows) -> Iterator[Row]:
    for row in rows:
        if not isinstance(row.content, TextPair):
            yield row
            continue
        for part, (offset, content) in enumerate(windows.cut(row.content)):
            yield row._replace(content=content, part=part, offset=offset, whole=row.content)


def class_names(place: Place, gold: str) -> list[str] | None:
    """Return the names of the ClassLabel feature in the column of `gold`; None: there is none."""
    if place.format not in {"hub", "parquet"}:
        return None
    with reading(place):
        if place.format == "hub":
            schema = hub_dataset(place).features.arrow_schema
        else:
            schema = pq.read_schema(open_place(place.path))
        feature = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
    for name in ("info", "features", getattr(place, gold)):
        feature = feature.get(name) if isinstance(feature, dict) else None
    while (isinstance(feature, list) and feature) or (
        isinstance(feature, dict) and "feature" in feature
    ):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        found = f"{place}: ClassLabel names of '{getattr(place, gold)}' are {names!r:.60}"
        raise CorpusError(f"{found}, expected a list of texts; write the file anew")
    if len(set(names)) < len(names):
        found = f"{place}: ClassLabel of '{getattr(place, gold)}' names one twice: {names!r:.60}"
        raise CorpusError(f"{found}; write the file anew")
    return names


def _text_rows(span: Span, gold: str) -> Iterator[Row]:
    if gold:
        found = f"{span.place}: text, a sentence a line, has no {gold}"
        raise CorpusError(f"{found}; name the `format`")
    return itertools.starmap(Row, lines(span))


def _conll_rows(span: Span, gold: str) -> Iterator[Row]:
    """Word first, tag last, between tabs if the line has one, else spaces; a blank line ends."""
    labelled = _has_tags(span.place, gold)
    words, tags, begin, end, first, width = [], [], 0, 0, 0, 0
    for position, after, line_number, line in itertools.chain(lines(span), [(0, 0, 0, "")]):
        line = line.rstrip(" \t").lstrip(" ")
        columns = line.split("\t") if "\t" in line else re.split(" +", line)
        if line == "" or columns[0] == "-DOCSTART-":
            if words:
                yield Row(begin, end, first, tuple(words), tags if labelled else None)
                words, tags = [], []
            continue
        width = width if words else max(2, len(columns))
        if not columns[0] or (labelled and len(columns) != width):
            found = f"{line!r:.60} has {len(columns)} columns, expected {width}"
            raise CorpusError(f"{span.place}:{line_number}: {found}, a word first and a tag last")
        if not words:
            begin, first = position, line_number
        end = after
        words.append(columns[0])
        tags.append(columns[-1])


def _tsv_rows(span: Span, gold: str) -> Iterator[Row]:
    """The reference's: words TAB tags, each between spaces; `pt:B-PER` names a language too."""
    labelled = _has_tags(span.place, gold)
    for position, after, line_number, line in lines(span):
        left, *others = line.split("\t")
        words = tuple(word for word in left.split(" ") if word)
        tags = [tag for tag in others[-1].split(" ") if tag] if others else []
        if labelled and words and len(others) != 1:
            found = f"{len(others) + 1} columns"
            raise CorpusError(f"{span.place}:{line_number}: {found}, expected 2 (words, tab, tags)")
        marks = [PREFIXED_TAG.fullmatch(tag) for tag in tags]
        languages = {mark[1] if mark else None for mark in marks}
        if len(languages) > 1:
            found = f"{span.place}:{line_number}: tags of languages {languages!r:.60}"
            raise CorpusError(f"{found}, expected one for all")
        tags = [mark[2] if mark else tag for mark, tag in zip(marks, tags, strict=True)]
        language = next(iter(languages), None)
        yield Row(position, after, line_number, words, [*tags] if labelled else None, language)


def _has_tags(place: Place, gold: str) -> bool:
    if gold == "label":
        raise CorpusError(
            f"{place}: {place.format} holds words and tags, expected a text and its label; set "
            "`format: table` for columns between tabs"
        )
    return bool(gold)


def _table_format_rows(span: Span, gold: str) -> Iterator[Row]:
    """Columns between tabs, quotes are text; named by the first line, or numbered from 1."""
    place, names = span.place, []
    if place.header:
        _, begin, _, line = next(lines(Span(place)), (0, 0, 1, ""))
        names = line.split("\t")
        if not span.start:
            span = replace(span, start=begin, number=2)
    for position, after, line_number, line in lines(span):
        where, cells = f"{place}:{line_number}", line.split("\t")
        names = names or [str(number) for number in range(1, len(cells) + 1)]
        if len(cells) < len(names) and place.short_rows == "empty":
            yield Row(position, after, line_number, ())
            continue
        if len(cells) != len(names):
            found = f"{where}: {len(cells)} columns, expected {len(names)} as in the lines before"
            raise CorpusError(f"{found}; correct the file, or set the source's short_rows: empty")
        record = dict(zip(names, cells, strict=True))
        columns = _columns(place, where, names, gold)
        yield Row(position, after, line_number, *_values(where, record, columns, gold))


def _jsonl_rows(span: Span, gold: str) -> Iterator[Row]:
    for position, after, line_number, line in lines(span):
        if not line.strip():
            yield Row(position, after, line_number, ())
            continue
        where = f"{span.place}:{line_number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise CorpusError(f"{where}: not JSON in UTF-8: {error}; write it anew") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: {type(record).__name__}, expected an object on each line")
        columns = _columns(span.place, where, record, gold)
        values = _values(where, record, columns, gold)
        yield Row(position, after, line_number, *values)


def _parquet_rows(span: Span, gold: str) -> Iterator[Row]:
    """Of the file only the row groups that hold rows of the stretch are read."""
    place, start = span.place, span.start
    with reading(place), open_place(place.path) as file:
        table = pq.ParquetFile(file, buffer_size=BLOCK_BYTES)
        sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        if sum(sizes) != table.metadata.num_rows or any(its < 0 for its in sizes):
            raise ValueError(f"{table.metadata.num_rows} rows, but groups of {sizes!r:.60}")
        ends = list(itertools.accumulate(sizes))
        stop = min(sum(sizes) if span.stop is None else span.stop, sum(sizes))
        groups = [g for g, end in enumerate(ends) if end > start and end - sizes[g] < stop]
        columns = _columns(place, str(place), table.schema_arrow.names, gold)
        position = ends[groups[0]] - sizes[groups[0]] if groups else stop
        for batch in table.iter_batches(BATCH_ROWS, groups, columns.all, use_threads=False):
            skipped = max(start - position, 0)
            wanted = batch.slice(skipped, max(min(stop - position, len(batch)) - skipped, 0))
            yield from _table_rows(place, wanted, position + skipped, columns, gold)
            position += len(batch)
            if position >= stop:
                return
        if position < stop:
            raise ValueError(f"{position} rows, expected {stop}")


def _hub_rows(span: Span, gold: str) -> Iterator[Row]:
    place = span.place
    dataset = hub_dataset(place)
    columns = _columns(place, str(place), dataset.column_names, gold)
    dataset = dataset.select_columns(columns.all).with_format("arrow")
    stop = min(len(dataset) if span.stop is None else span.stop, len(dataset))
    for position in range(span.start, stop, BATCH_ROWS):
        table = dataset[position : min(position + BATCH_ROWS, stop)]
        yield from _table_rows(place, table, position, columns, gold)


def _table_rows(
    place: Place, table: pa.RecordBatch, start: int, columns: _Columns, gold: str
) -> Iterator[Row]:
    for column in table.schema:
        if not _is_plain(column.type):
            raise CorpusError(
                f"{place}: column {column.name!r:.60} is of type {column.type!s:.60}, expected "
                "text, numbers, or lists of them; write the file anew"
            )
    with reading(f"{place}: rows {start + 1} to {start + len(table)}"):  # bad UTF-8 shows here
        records = table.to_pylist()
    for row, record in enumerate(records, start):
        values = _values(f"{place}:{row + 1}", record, columns, gold)
        yield Row(row, row + 1, row + 1, *values)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a type's values are text, numbers, or lists and structs of them.

    Others may run code when they become Python's: a type that a library has registered (Ray Data
    has one of pickles) is its own to unpack.
    """
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    if pa.types.is_nested(kind) and not pa.types.is_map(kind) and not pa.types.is_union(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_number = pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)
    is_other = pa.types.is_string_view(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    return is_text or is_number or is_other


def _squad_rows(span: Span, gold: str) -> Iterator[Row]:
    """SQuAD's JSON: (question, context), with its answers; positions count questions."""
    place = span.place
    found = squad_questions(place.path)
    for index in range(span.start, min(len(found), span.stop or len(found))):
        content, answers, row_id = found[index]
        yield Row(index, index + 1, index + 1, content, answers if gold else None, None, row_id)


def _columns(place: Place, where: str, present: Collection[str], gold: str) -> _Columns:
    """Content, gold where asked, then language and id where they are there."""
    is_words = gold == "tags" or (not gold and not place.pair and place.words in present)
    content = [place.words] if is_words else [place.text, *filter(None, [place.pair])]
    columns = _Columns(content, getattr(place, gold) if gold else None, [])
    if not set(columns.all) <= set(present):
        expected = f"'{place.words}' or '{place.text}'"
        if gold or place.pair:
            expected = ", ".join(f"'{name}'" for name in columns.all)
        raise CorpusError(
            f"{where}: has {list(present)!s:.200}, expected {expected}; name the source's columns: "
            "words, tags, text, pair, label"
        )
    columns = columns._replace(others=[name for name in ("language", "id") if name in present])
    twice = [name for name in columns.all if list(present).count(name) > 1]
    if twice:
        raise CorpusError(f"{where}: column '{twice[0]}' comes twice; name each column once")
    return columns


def _values(
    where: str, record: dict[str, Any], columns: _Columns, gold: str
) -> tuple[Content, Any, str | None, str | None]:
    """Content, gold, language and id of a record, types checked; null content is empty."""
    language, row_id = record.get("language"), record.get("id")
    value = record[columns.gold] if columns.gold else None
    parts = [_words_or_text(where, name, record[name], gold) for name in columns.content]
    content: Content = parts[0]
    if len(parts) > 1:
        content = TextPair(text_of(parts[0]), text_of(parts[1]))
    if gold == "tags":
        value = value or []
        if not isinstance(value, list):
            found = f"{where}: '{columns.gold}' is {value!r:.60}"
            raise CorpusError(f"{found}, expected a list of tags")
    if language is not None and (not isinstance(language, str) or len(language) > MOST_LANGUAGE):
        raise CorpusError(f"{where}: language is {language!r:.60}, expected a code such as 'en'")
    return content, value, language, None if row_id is None else str(row_id)


def _words_or_text(where: str, name: str, content: Any, gold: str) -> str | tuple[str, ...]:
    if isinstance(content, list) and all(isinstance(word, str) for word in content):
        words = tuple(content)
        return " ".join(words) if gold == "label" else words
    if content is not None and (gold == "tags" or not isinstance(content, str)):
        expected = "a list of words" if gold == "tags" else "text or a list of words"
        raise CorpusError(f"{where}: '{name}' is {content!r:.60}, expected {expected}")
    return content or ()


READERS: dict[str, Callable[[Span, str], Iterator[Row]]] = {
    "text": _text_rows,
    "jsonl": _jsonl_rows,
    "conll": _conll_rows,
    "tsv": _tsv_rows,
    "table": _table_format_rows,
    "squad": _squad_rows,
    "parquet": _parquet_rows,
    "hub": _hub_rows,
}
