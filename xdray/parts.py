"""One file of the targets store: a part of what the teacher said of one shard.

shards/xx/SHARD_ID.PART.parquet in the store's folder, xx the first two characters of SHARD_ID.
Part "logits": sentence_id, language, length, ids and word_ids (int32), logits (float32, C a token;
C a sentence where the footer says by_sentence).
Part "hidden-LAYER-CODEC", or "qkv-LAYER-CODEC" (queries, keys, values): sentence_id, length, hidden
(W values a token, 3 W of qkv; k of pca<k>), scales (float32 a token; int8 only), basis (pca<k>
only: 1 + k rows of W float32 in the first sentence's row, nothing in the others').
Blobs are little-endian; a row is a sentence, in the shard's order. Under "xdray" the footer holds
JSON: shard_id, key, part, rows, tokens, cut_words, width (values a token), layer, codec,
codec_error.
A valid footer alone proves nothing: a writer closed by an exception leaves one. So a part counts as
there when its footer names the shard, the store and the rows that were asked for.

N tokens of all sentences end to end, S sentences, W teacher width, C classes.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from xdray.errors import TargetsError
from xdray.hidden import Hidden, directions_of, value_type
from xdray.places import object_columns
from xdray.storage import join, open_input, write_atomic
from xdray.strict_json import parse_json
from xdray.tokenised import Signal

LOGITS = "logits"
TOKENS = "tokens-"
TEXT = ("ids", "word_ids")
ROW_GROUP = 256
BLOCK = 4 * ROW_GROUP
"""Sentences of a shard that training reads, or a stream forwards, at once. A shard is of one
language: blocks of many shards mix them, where as many whole ones would not fit the memory."""
_BROKEN = (OSError, ValueError, LookupError, TypeError, pa.ArrowException)
"""What pyarrow and numpy raise over damaged files."""
_TYPES: dict[str, Any] = {
    "ids": np.int32,
    "word_ids": np.int32,
    "matches": np.int32,
    "logits": np.float32,
    "scales": np.float32,
}


def tokens_part(tokenizer: str) -> str:
    """Name of the part with the tokens of another tokenizer than the teacher's. Its fingerprint."""
    return f"{TOKENS}{tokenizer[:16]}"


def hidden_part(signal: Signal, codec: str) -> str:
    """Name of the part with a hidden layer, or with queries, keys and values of one."""
    return f"hidden-{signal}-{codec}" if isinstance(signal, int) else f"{signal}-{codec}"


def signal_and_codec(part: str) -> tuple[Signal, str]:
    """Signal and codec in the name of such a part."""
    signal, _, codec = part.rpartition("-")
    kind, _, layer = signal.partition("-")
    return (int(layer) if kind == "hidden" else signal), codec


class _Footer(BaseModel):
    """What every footer says, beside the file's identity."""

    model_config = ConfigDict(strict=True, extra="allow")

    rows: NonNegativeInt
    tokens: NonNegativeInt
    cut_words: NonNegativeInt
    width: NonNegativeInt
    codec: str | None
    codec_error: float | None
    by_sentence: bool = False


@dataclass(frozen=True, slots=True)
class PartFile:
    """Where a part of a shard is or will be, and what it must hold."""

    folder: str
    """Of the store."""
    key: str
    """Of the store."""
    shard_id: str
    part: str
    rows: int | None = None
    """None: any number."""

    @property
    def uri(self) -> str:
        """The file."""
        name = f"{self.shard_id}.{self.part}.parquet"
        return join(self.folder, "shards", self.shard_id[:2], name)

    def write(
        self,
        texts: Mapping[str, Sequence[str]],
        flat: Mapping[str, NDArray[Any]],
        offsets: NDArray[np.int64],
        facts: Mapping[str, Any],
        basis: NDArray[np.float32] | None = None,
    ) -> int:
        """Write the file atomically; returns its bytes.

        texts: columns with a string a sentence. flat: columns (N, ...) with values a token, cut
        into sentences by offsets (S + 1,). facts: what the footer says beside the file's identity.
        basis: of pca<k>.
        """
        columns: dict[str, pa.Array] = {name: pa.array(column) for name, column in texts.items()}
        columns["length"] = pa.array(np.diff(offsets).astype(np.int32))
        rows = np.arange(len(offsets), dtype=np.int64)
        for name, values in flat.items():
            alone = name == LOGITS and facts.get("by_sentence")
            columns[name] = _blobs(values, rows if alone else offsets)
        if basis is not None:
            blobs = [basis.tobytes(), *[b""] * (len(offsets) - 2)]
            columns["basis"] = pa.array(blobs, pa.large_binary())
        counts = {"rows": len(offsets) - 1, "tokens": int(offsets[-1])}
        footer = {**self._identity(), **counts, **facts}
        table = pa.table(columns).replace_schema_metadata({"xdray": json.dumps(footer)})

        def write(file: BinaryIO) -> None:
            with pq.ParquetWriter(
                file,
                table.schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            ) as writer:
                writer.write_table(table, row_group_size=ROW_GROUP)

        return write_atomic(self.uri, write, table.nbytes)

    def footer(self) -> dict[str, Any]:
        """Return what the footer says, and the file's "bytes". Raises TargetsError."""
        return self._open()[1]

    def lengths(self) -> NDArray[np.uint16]:
        """(S,) tokens of each sentence. Raises TargetsError."""
        file, _ = self._open()
        try:
            return _lengths(file.read(columns=["length"], use_threads=False)["length"])
        except _BROKEN as error:
            raise self._damaged(str(error)) from error

    def read(
        self, names: Sequence[str], lengths: NDArray[Any], start: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Read columns with values a token: (N, values a token) each, of their own type.

        Logits by sentence come as (S, C). lengths: (S,) that the sentences from row `start` on must
        have; they are whole row groups. Raises TargetsError for a file that is missing, damaged or
        of other sentences.
        """
        file, footer = self._open()
        widths = {"logits": footer["width"], "hidden": footer["width"]}
        tokens = int(np.sum(lengths, dtype=np.int64))
        alone = {LOGITS} if footer.get("by_sentence") else set()
        shapes = {
            name: (len(lengths) if name in alone else tokens, widths.get(name, 1)) for name in names
        }
        types = {name: np.dtype(self._type(name)) for name in names}
        if any(math.prod(shapes[its]) * types[its].itemsize > footer["bytes"] for its in names):
            raise self._damaged(f"less than {tokens} tokens of width {footer['width']}")
        flat = {name: np.empty(shapes[name], types[name]) for name in names}
        there = {name: its for name, its in flat.items() if its.shape[1]}
        try:
            self._fill(file, there, lengths, alone, start)
        except _BROKEN as error:
            raise self._damaged(str(error)) from error
        return flat

    def verify(self) -> int:
        """Read all of the file; returns its rows. Raises TargetsError for whatever is wrong."""
        file, footer = self._open()
        try:
            table = file.read(columns=["sentence_id", "length"], use_threads=False)
            found, lengths = table["sentence_id"].to_pylist(), _lengths(table["length"])
        except _BROKEN as error:
            raise self._damaged(str(error)) from error
        if found != [f"{self.shard_id[:16]}-{row}" for row in range(table.num_rows)]:
            raise self._damaged("sentence ids of another shard")
        if int(lengths.sum()) != footer["tokens"]:
            raise self._damaged(f"{lengths.sum()} tokens, its footer says {footer['tokens']}")
        if self.part == LOGITS:
            self.read([*TEXT, LOGITS], lengths)
        elif self.part.startswith(TOKENS):
            self.read([*TEXT, "matches"], lengths)
        else:
            self.hidden(lengths)
        return table.num_rows

    def hidden(self, lengths: NDArray[Any], start: int = 0) -> Hidden:
        """Read a hidden part, from row `start` on. Raises TargetsError as `read` does."""
        codec = signal_and_codec(self.part)[1]
        has_scales = codec == "int8"
        flat = self.read(["hidden", "scales"] if has_scales else ["hidden"], lengths, start)
        scales = flat["scales"][:, 0] if has_scales else None
        directions = directions_of(codec)
        return Hidden(flat["hidden"], scales, self._basis(directions) if directions else None)

    def _basis(self, directions: int) -> NDArray[np.float32]:
        file, _ = self._open()
        try:
            blob = file.read_row_group(0, columns=["basis"], use_threads=False)["basis"][0].as_py()
            flat = np.frombuffer(blob, np.float32).reshape(1 + directions, -1)
            return flat.copy()  # torch wants what may be written
        except _BROKEN as error:
            raise self._damaged(f"its basis: {error}") from error

    @property
    def _codec(self) -> str | None:
        has_none = self.part == LOGITS or self.part.startswith(TOKENS)
        return None if has_none else signal_and_codec(self.part)[1]

    def _type(self, name: str) -> Any:
        return _TYPES[name] if name in _TYPES else value_type(self._codec or "")

    def _identity(self) -> dict[str, Any]:
        return {"shard_id": self.shard_id, "key": self.key, "part": self.part}

    def _open(self) -> tuple[pq.ParquetFile, dict[str, Any]]:
        """Open the file and compare its footer with what it must hold."""
        try:
            source = open_input(self.uri)
            file = pq.ParquetFile(source, page_checksum_verification=True)
            footer = parse_json(file.metadata.metadata[b"xdray"])
            _Footer.model_validate(footer)
        except FileNotFoundError as error:
            raise TargetsError(
                f"{self.uri}: not there; run the same command again, the teacher adds what is "
                "missing"
            ) from error
        except _BROKEN as error:
            raise self._damaged(str(error)) from error
        if names := object_columns(file.schema_arrow):
            raise self._damaged(f"its column '{names[0]}' holds Python objects")
        rows = file.metadata.num_rows
        expected = {**self._identity(), "codec": self._codec}
        expected["rows"] = rows if self.rows is None else self.rows
        found = {name: footer.get(name) for name in expected}
        if found != expected or rows != expected["rows"]:
            raise self._damaged(f"{rows} rows, {found}, expected {expected}")
        least, size = _least_size(file.metadata), source.size()
        if size < least:  # the footer is at the end: what is gone stood before it
            raise self._damaged(f"{size} bytes, its footer speaks of {least}")
        return file, {**footer, "bytes": size}

    def _fill(
        self,
        file: pq.ParquetFile,
        flat: Mapping[str, NDArray[Any]],
        lengths: NDArray[Any],
        alone: Collection[str],
        start: int,
    ) -> None:
        """Copy row group by row group into flat arrays: no second copy of a shard in memory."""
        groups = range(file.num_row_groups)
        begins = list(accumulate((file.metadata.row_group(n).num_rows for n in groups), initial=0))
        if start not in begins:
            raise ValueError(f"no row group begins at row {start}")
        at, row = 0, 0
        for group in groups[begins.index(start) :]:
            if row == len(lengths):
                break
            table = file.read_row_group(group, columns=["length", *flat], use_threads=False)
            found = _lengths(table["length"])
            if not np.array_equal(found, lengths[row : row + len(found)]):
                raise ValueError(f"rows {start + row} and on: lengths of other sentences")
            count = int(found.sum())
            for name, target in flat.items():
                place = slice(row, row + len(found)) if name in alone else slice(at, at + count)
                sizes = np.ones_like(found) if name in alone else found
                target[place] = _values(table[name], target[0:0], sizes)
            at, row = at + count, row + len(found)
        if row != len(lengths):
            raise ValueError(f"{row} sentences, expected {len(lengths)}")

    def _damaged(self, reason: str) -> TargetsError:
        return TargetsError(
            f"{self.uri}: damaged or unreadable ({' '.join(reason.split()):.400}); delete it and "
            "run the same command again, the teacher does this shard anew"
        )


def _blobs(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Cut (N, ...) values into a blob a sentence, without a copy."""
    values = np.ascontiguousarray(values)
    width = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    buffers = [None, pa.py_buffer(offsets.astype(np.int64) * width), pa.py_buffer(values)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _least_size(metadata: pq.FileMetaData) -> int:
    """Bytes that a file has at least: its mark, its data (not compressed), footer, the last mark.

    Of row groups alone: pyarrow 26 ends the process where it is asked for a column of some damaged
    footers.
    """
    groups = range(metadata.num_row_groups)
    data = sum(metadata.row_group(group).total_byte_size for group in groups)
    return 4 + data + metadata.serialized_size + 8


def _lengths(column: pa.ChunkedArray) -> NDArray[np.uint16]:
    """Tokens of each sentence. Raises ValueError for what cannot be that."""
    lengths = column.to_numpy()
    if column.type != pa.int32() or column.null_count or (lengths >> 16).any():
        raise ValueError("lengths that no sentence has")
    return lengths.astype(np.uint16)


def _values(column: pa.ChunkedArray, like: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Look at the blobs of a column as (n, values a token) of the type of `like`."""
    if not pa.types.is_large_binary(column.type) or column.null_count:
        raise ValueError(f"a column of {column.type!s:.60}, expected blobs")
    blobs = column.combine_chunks()
    ends = np.frombuffer(blobs.buffers()[1], np.int64)[blobs.offset :][: len(blobs) + 1]
    width = like.itemsize * like.shape[1]
    if not np.array_equal(np.diff(ends), lengths.astype(np.int64) * width):
        raise ValueError("blobs of another size than length and width say")
    data = np.frombuffer(blobs.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    return data.view(like.dtype).reshape(-1, like.shape[1])
