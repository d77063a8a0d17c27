"""What the teacher said, on disk: the store, and the view of it that training reads. No torch.

A store lies in URI/KEY/, KEY the hash of its identity (teacher, tokenizer, word rule, length,
dtype, labels), which store.json spells out. parts.py says what its files hold, annotator.py fills
them.

N tokens of all sentences end to end, S sentences, W teacher width, C classes.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from xdray.corpus import Shard
from xdray.errors import TargetsError, XdrayError
from xdray.parts import LOGITS, TEXT, PartFile, hidden_part, signal_and_codec
from xdray.redaction import redacted
from xdray.storage import (
    absolute,
    delete_tree,
    exists,
    file_sizes,
    fingerprint,
    join,
    list_folder,
    read_json,
    size,
    write_bytes_atomic,
    write_json,
)
from xdray.tokenised import Signal, Tokens

READERS = 16
"""Footers read at once: on an object store each takes a round trip."""
FOREIGN = "foreign"
"""In place of a part's name: a file that no store wrote."""


@dataclass(frozen=True, slots=True)
class AnnotateTask:
    """A shard, and the hidden layers that are wanted of it beside the logits."""

    shard: Shard
    layers: tuple[Signal, ...] = ()
    rows: Sequence[int] | None = None
    """Of the shard, where a stream asks for some of them."""

    def __str__(self) -> str:
        """As errors name it."""
        return str(self.shard)

    def parts(self, codec: str) -> list[str]:
        """Names of the parts that it asks for."""
        return [LOGITS, *(hidden_part(layer, codec) for layer in self.layers)]


@dataclass(frozen=True)
class TargetStore:
    """Where the targets of one teacher with one tokenisation are. Picklable.

    identity: JSON values, at least teacher, tokenizer, words, max_length, dtype, labels.
    """

    uri: str
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        """Make the place the same for processes that run elsewhere."""
        object.__setattr__(self, "uri", absolute(self.uri))

    @property
    def key(self) -> str:
        """32 hex characters: another identity is another store."""
        return fingerprint(self.identity)

    @property
    def folder(self) -> str:
        """The store's own folder under `uri`."""
        return join(self.uri, self.key)

    def prepare(self) -> None:
        """Spell out the identity in store.json, once."""
        path = join(self.folder, "store.json")
        if not exists(path):
            write_json(path, self.identity)

    def file(self, shard_id: str, part: str, rows: int) -> PartFile:
        """Return the place of a shard's part."""
        return PartFile(self.folder, self.key, shard_id, part, rows)

    def is_done(self, shard: Shard, part: str) -> bool:
        """Whether a part of a shard is there, whole, and of this store."""
        try:
            self.file(shard.shard_id, part, shard.rows).footer()
        except TargetsError:
            return False
        return True

    def missing_parts(self, task: AnnotateTask, codec: str) -> list[str]:
        """Parts that the teacher must be run for."""
        return [part for part in task.parts(codec) if not self.is_done(task.shard, part)]

    def missing(self, tasks: Sequence[AnnotateTask], codec: str) -> list[AnnotateTask]:
        """Tasks with missing parts, many footers looked at at once."""
        with ThreadPoolExecutor(READERS) as pool:
            lacking = pool.map(lambda task: self.missing_parts(task, codec), tasks)
            return [task for task, parts in zip(tasks, lacking, strict=True) if parts]

    def view(
        self, shards: Sequence[tuple[str, int]], parts: Sequence[str], text: str = LOGITS
    ) -> "TargetView":
        """Look at these shards (id, rows) in this order. text: the part with the student's tokens.

        Raises TargetsError.
        """
        with ThreadPoolExecutor(READERS) as pool:
            files = [self.file(shard_id, text, rows) for shard_id, rows in shards]
            lengths = list(pool.map(PartFile.lengths, files))
            wanted = [self.file(name, part, rows) for name, rows in shards for part in parts]
            footers = list(pool.map(PartFile.footer, wanted))
        return TargetView(
            store_uri=self.uri,
            key=self.key,
            parts=tuple(parts),
            shard_ids=tuple(shard_id for shard_id, _ in shards),
            lengths=lengths,
            cut_words=sum(footer["cut_words"] for footer in footers[:: len(parts)]),
            num_bytes=sum(footer["bytes"] for footer in footers),
            codec_error=_codec_errors(footers),
            text=text,
        )


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """Shards of a store in an order, as training reads them. `targets.json` and `lengths.npy`."""

    store_uri: str
    key: str
    parts: tuple[str, ...]
    shard_ids: tuple[str, ...]
    lengths: Sequence[NDArray[np.uint16]]
    """Tokens of each sentence as the student reads it, by shard."""
    cut_words: int
    num_bytes: int
    codec_error: dict[str, float]
    """Part to ||decoded - exact|| / ||exact||, its mean square over tokens."""
    text: str = LOGITS
    """The part with the student's tokens: that of the logits, or of its own tokenizer."""
    seen: Sequence[int] | None = None
    """Token ids that occur; None: the parts say."""

    @property
    def fingerprint(self) -> str:
        """32 hex characters that name the sentences and their teacher, not the parts or a place."""
        return fingerprint([self.key, self.shard_ids])

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, targets.json last; without the secrets of the store's URI."""
        flat = np.concatenate([np.empty(0, np.uint16), *self.lengths])
        sink = pa.BufferOutputStream()
        np.save(sink, flat)
        write_bytes_atomic(join(str(folder), "lengths.npy"), sink.getvalue())
        rows = [len(lengths) for lengths in self.lengths]
        saved = {name: getattr(self, name, rows) for name in _Saved.model_fields}
        write_json(join(str(folder), "targets.json"), redacted(saved))

    @classmethod
    def load(cls, folder: str | Path, store_uri: str) -> "TargetView":
        """Read what `save` wrote; the lengths stay on disk. Raises TargetsError.

        store_uri: as the config names it, whatever the file says of a place.
        """
        path = Path(folder) / "targets.json"
        try:
            saved = _Saved.model_validate(read_json(str(path))).model_dump()
            saved["store_uri"] = absolute(store_uri)
            rows = saved.pop("rows")
            flat = _stored_lengths(path.with_name("lengths.npy"), sum(rows))
            if len(rows) != len(saved["shard_ids"]):
                raise ValueError(f"rows of {len(rows)} shards of {len(saved['shard_ids'])}")
        except (OSError, ValueError, XdrayError) as error:
            reason = " ".join(str(error).split())
            raise TargetsError(
                f"{path}: missing or damaged ({reason:.400}); delete it and run the same command "
                "again"
            ) from error
        saved |= {name: tuple(saved[name]) for name in ("parts", "shard_ids")}
        return cls(**saved, lengths=np.split(flat, np.cumsum(rows)[:-1]))

    def load_shard(
        self, shard: int, parts: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Tokens:
        """Read a shard's tokens and these of its parts: logits and hidden states.

        They are the teacher's tokens. start, stop: of its sentences, whole row groups. Raises
        TargetsError for a file that is missing, damaged or of other sentences.
        """
        file = self._file(shard, LOGITS)
        lengths = self.lengths[shard] if self.text == LOGITS else file.lengths()
        lengths = lengths[start:stop]
        names = [*TEXT, *(part for part in parts if part == LOGITS)]
        tokens = _tokens(file.read(names, lengths, start), lengths)
        for part in parts:
            if part != LOGITS:
                hidden = self._file(shard, part).hidden(lengths, start)
                tokens.hidden[signal_and_codec(part)[0]] = hidden
        return tokens

    def load_text(self, shard: int, start: int = 0, stop: int | None = None) -> Tokens:
        """Read a shard's tokens as the student has them, with their matches where they are its own.

        start, stop, errors: as `load_shard` has them.
        """
        names = TEXT if self.text == LOGITS else (*TEXT, "matches")
        lengths = self.lengths[shard][start:stop]
        return _tokens(self._file(shard, self.text).read(names, lengths, start), lengths)

    def _file(self, shard: int, part: str) -> PartFile:
        folder, rows = join(self.store_uri, self.key), len(self.lengths[shard])
        return PartFile(folder, self.key, self.shard_ids[shard], part, rows)


def _tokens(flat: Mapping[str, NDArray[Any]], lengths: NDArray[Any]) -> Tokens:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = Tokens(flat["ids"][:, 0], flat["word_ids"][:, 0], offsets, flat.get(LOGITS))
    tokens.matches = flat["matches"][:, 0] if "matches" in flat else None
    return tokens


class _Saved(BaseModel):
    """A view as `targets.json` has it; the lengths lie beside it, end to end."""

    model_config = ConfigDict(strict=True, extra="forbid")

    store_uri: str
    key: str
    parts: list[str]
    shard_ids: list[str]
    cut_words: NonNegativeInt
    num_bytes: NonNegativeInt
    codec_error: dict[str, float]
    text: str
    seen: list[NonNegativeInt] | None
    rows: list[NonNegativeInt]
    """Sentences of each shard."""


def _stored_lengths(path: Path, count: int) -> NDArray[np.uint16]:
    """Map so many lengths. Raises ValueError for a damaged file."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)  # `load` reads archives too, and leaves them open
        with warnings.catch_warnings(action="error"):
            flat = np.load(path, mmap_mode="r")
    except Exception as error:  # numpy raises a dozen kinds over a damaged header
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(flat, np.ndarray) or flat.dtype != np.uint16 or flat.shape != (count,):
        raise ValueError(f"{path.name}: not the lengths of {count} sentences")
    return flat


def list_stores(uri: str, key: str | None = None) -> list[dict[str, Any]]:
    """Say of each store under a place, or of one: key, identity, bytes, and files of each part."""
    found = []
    for name in _store_keys(uri, key):
        folder = join(uri, name)
        parts: dict[str, dict[str, int]] = {}
        for path, num_bytes in file_sizes(join(folder, "shards")).items():
            facts = parts.setdefault(_part_of(path)[1], {"shards": 0, "bytes": 0})
            facts["shards"] += 1
            facts["bytes"] += num_bytes
        identity = read_json(join(folder, "store.json"))
        found.append({"key": name, "identity": identity, "bytes": size(folder), "parts": parts})
    return found


def verify_stores(uri: str, key: str | None = None) -> list[dict[str, Any]]:
    """Read every file of every store, or of one: key, files, rows, and the problems found."""
    found = []
    for name in _store_keys(uri, key):
        folder = join(uri, name)
        facts: dict[str, Any] = {"key": name, "files": 0, "rows": 0, "problems": []}
        if fingerprint(read_json(join(folder, "store.json"))) != name:
            facts["problems"].append(f"{folder}/store.json: not the identity that made this key")
        for path in file_sizes(join(folder, "shards")):
            facts["files"] += 1
            shard_id, part = _part_of(path)
            if part == FOREIGN:
                facts["problems"].append(f"{folder}/shards/{path}: no file of a store; move it")
                continue
            try:
                facts["rows"] += PartFile(folder, name, shard_id, part).verify()
            except TargetsError as error:
                facts["problems"].append(str(error))
        found.append(facts)
    return found


def delete_store(uri: str, key: str) -> list[dict[str, Any]]:
    """Delete one store with all that is in it; returns its key and bytes."""
    (name,) = _store_keys(uri, key)
    found = {"key": name, "bytes": size(join(uri, name))}
    delete_tree(join(uri, name))
    return [found]


def _store_keys(uri: str, key: str | None) -> list[str]:
    keys = [name for name in list_folder(uri) if exists(join(uri, name, "store.json"))]
    if key is None:
        return keys
    if key not in keys:
        there = ", ".join(keys) or "none"
        raise TargetsError(f"{uri}: no store '{key}'; there is {there}")
    return [key]


def _part_of(path: str) -> tuple[str, str]:
    """Shard id and part that a file's path names; ("", FOREIGN) for what is no file of ours."""
    shard_id, _, rest = path.rpartition("/")[2].partition(".")
    part, _, ending = rest.rpartition(".")
    return (shard_id, part) if ending == "parquet" and part else ("", FOREIGN)


def _codec_errors(footers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Root of the mean over tokens of the squared error, for each hidden part."""
    sums: dict[str, list[float]] = {}
    for footer in footers:
        if footer["codec_error"] is not None:
            squares = sums.setdefault(footer["part"], [0.0, 0.0])
            squares[0] += footer["codec_error"] ** 2 * footer["tokens"]
            squares[1] += footer["tokens"]
    return {part: float((error / tokens) ** 0.5) for part, (error, tokens) in sums.items()}
