"""Where text lies: files, globs and URIs, and the lines of a file from any position on.

A `Place` is one file, or one subset of a Hub data set. Positions are bytes in line formats (text,
JSONL, CoNLL, TSV, table) and rows in tables (Parquet, Hub, SQuAD). Text is strict UTF-8; a byte
order mark at its start is dropped. Raises CorpusError naming file and line (tables: row, from 1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from xdray.errors import CorpusError
from xdray.sentences import Content
from xdray.windows import Windows
from xdray.workspace import paths_from

FORMATS = {
    "txt": "text",
    "jsonl": "jsonl",
    "conll": "conll",
    "tsv": "tsv",
    "parquet": "parquet",
    "json": "squad",
}
TABLES = {"parquet", "hub", "squad"}  # positions are rows, not bytes
SEPARATED = {"conll", "tsv", "table"}
"""Where the end of a line decides which word or column is meant."""
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """One file (path or URI), or one subset of a Hub data set, and the columns to read there.

    format: a value of FORMATS, "table" or "hub". language: of all rows; None: a row says, or
    nobody.
    """

    path: str
    format: str
    words: str
    tags: str
    text: str
    language: str | None
    subset: str | None = None
    split: str | None = None
    pair: str | None = None
    label: str = "label"
    header: bool = True
    short_rows: str = "refuse"
    rows: tuple[int, int | None] | None = None
    """Rows that are read of it, the first and the one after the last, from 0; None: all."""
    windows: Windows | None = None
    """How pairs are cut; None: not at all."""

    def __str__(self) -> str:
        """Name it in messages."""
        return ":".join(part for part in (self.path, self.subset, self.split) if part)


class Row(NamedTuple):
    """One sentence as it stands in the input, between the positions `start` and `stop`.

    number: line (of a CoNLL sentence: its first) or row, from 1. gold: tags, or what the column of
    labels holds, as it stands there. A pair cut into windows is a row for each: `part` numbers
    them, `offset` is where the window starts in the second text.
    """

    start: int
    stop: int
    number: int
    content: Content
    gold: Any = None
    language: str | None = None
    row_id: str | None = None
    part: int = 0
    offset: int = 0
    whole: Content = ""
    """Of a window: the pair that it was cut from."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a place from the start of a row, numbered `number`; stop None: all of it."""

    place: Place
    start: int = 0
    stop: int | None = None
    number: int = 1
    part: int = 0
    """Window of the first row at which the stretch starts."""


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
    with reading(path):
        system, folder = _locate(base + mark + query)
        info = system.get_file_info(folder)
        names = {name.removeprefix(folder) for name in _glob(system, info, parts[fixed:])}
    if not names:
        what = "is a folder, expected files" if literal else "no file matches"
        what = "no such file" if info.type == pafs.FileType.NotFound and literal else what
        raise CorpusError(f"{path}: {what}; {paths_from()}")
    return sorted(base + (quote(name) if remote else name) + mark + query for name in names)


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn what pyarrow and the file system raise into a CorpusError."""
    try:
        yield
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(f"{where}: cannot be read: {reason:.300}") from error


def _locate(path: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(path) if "://" in path else (pafs.LocalFileSystem(), path)


def open_place(path: str) -> pa.NativeFile:
    """Open a file or URI."""
    system, name = _locate(path)
    return system.open_input_file(name)


def object_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns with an extension type that Python code reads.

    Ray Data registers one that unpickles: whoever wrote the file would run what he likes here.
    """
    return [field.name for field in schema if _is_object(field.type)]


def _is_object(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ExtensionType):  # pyarrow's own (JSON, UUID) are not of this class
        return True
    if isinstance(kind, pa.DictionaryType | pa.RunEndEncodedType):
        return _is_object(kind.value_type)
    return any(_is_object(kind.field(position).type) for position in range(kind.num_fields))


def _glob(system: pafs.FileSystem, info: pafs.FileInfo, patterns: list[str]) -> Iterator[str]:
    """Yield the files at or below `info` that match; "**" is any number of folders."""
    if not patterns and info.is_file:
        yield info.path
    if not patterns or info.type != pafs.FileType.Directory:
        return
    anywhere, is_local = patterns[0] == "**", isinstance(system, pafs.LocalFileSystem)
    if anywhere:
        yield from _glob(system, info, patterns[1:])
    for child in system.get_file_info(pafs.FileSelector(info.path)):
        hidden = child.base_name.startswith(".") and not patterns[0].startswith(".")
        if fnmatchcase(child.base_name, patterns[0]) and not hidden:
            deeper = anywhere and child.type == pafs.FileType.Directory
            if deeper and is_local and Path(child.path).is_symlink():
                continue  # it may lead back up
            yield from _glob(system, child, patterns if deeper else patterns[1:])


def lines(span: Span) -> Iterator[tuple[int, int, int, str]]:
    """Yield (start byte, stop byte, line number, line without its end)."""
    place, position, number = span.place, span.start, span.number
    pieces: list[bytes] = []  # of a line longer than a block
    with reading(place), open_place(place.path) as file:
        file.seek(position)
        while block := file.read(min(BLOCK_BYTES, (span.stop or file.size()) - file.tell())):
            first, *others = block.split(b"\n")
            pieces.append(first)
            if not others:
                continue
            for raw in (b"".join(pieces), *others[:-1]):
                after = position + len(raw) + 1
                yield position, after, number, _decode(place, raw, position, number)
                position, number = after, number + 1
            pieces = [others[-1]]
    if rest := b"".join(pieces):
        yield position, position + len(rest), number, _decode(place, rest, position, number)


def _decode(place: Place, raw: bytes, position: int, number: int) -> str:
    try:
        line = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{place}:{number}: byte 0x{raw[error.start]:02x} at {error.start + 1} is not UTF-8; "
            "convert the file to UTF-8"
        ) from error
    if "\0" in line:
        raise CorpusError(
            f"{place}:{number}: byte 0x00 at {raw.index(0) + 1}, expected text; the file is not "
            "text, is UTF-16 (convert it to UTF-8), or was damaged (write it anew)"
        )
    if not position:
        line = line.removeprefix("\ufeff")
    line = line.removesuffix("\r")
    if "\r" in line and (place.format in SEPARATED or (place.format == "text" and not position)):
        raise CorpusError(
            f"{place}:{number}: a carriage return within a line, expected lines that end in "
            "a line feed; convert the file's line ends"
        )
    return line
