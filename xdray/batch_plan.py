"""Which sentences make a step: blocks of shards, windows of blocks, token-budget batches.

Only lengths are needed to plan, so the plan of an epoch is known before a shard is read, and each
rank computes the same one. A global batch is split by rows, so one worker and two take the same
step.
"""

import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from xdray.padding import token_budget_batches
from xdray.tokenised import Signal, Tokens

PLAN_VERSION = 2
"""Of the rules that a plan follows. It is part of the keys of stages, so that none goes on in the
middle of another plan: to be raised with the rules."""
HELD_OUT_LIMIT = 1_000
"""Sentences held out at most, about: they are scored after each epoch."""
HELD_OUT_TOKENS = 2**16
"""And tokens: their states stay in memory, decoded (100 MB a layer of width 384)."""


class Block(NamedTuple):
    """Sentences of a shard that are read at once."""

    shard: int
    start: int
    stop: int


class Source(Protocol):
    """A split cut into shards of known lengths, read in the order asked for."""

    block_rows: int
    """Sentences of a shard that are read at once, at most."""
    forwarded: int
    """Rows that the teacher was run for so far, to read them."""

    def shard_lengths(self) -> Sequence[NDArray[np.uint16] | NDArray[np.int64]]:
        """Tokens of each sentence, by shard."""
        ...

    def shard_ids(self) -> Sequence[str]:
        """Names of the shards; a sentence is held out by the hash of its shard's name and row."""
        ...

    def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
        """Yield these blocks in this order, with these teacher layers."""
        ...

    def read_rows(
        self, parts: Sequence[tuple[int, NDArray[np.int64]]], layers: Sequence[Signal]
    ) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
        """Yield (tokens, rows of them) for some rows of some shards, in their order.

        A shard may come in several pieces.
        """
        ...


def id_draws(shard_id: str, start: int, stop: int) -> NDArray[np.float64]:
    """(stop - start,) a number below 1 for each of these sentences of a shard, by their ids' hash.

    CRC-32 of the shard's name, then the row. What a row adds to it is the same after any name: it
    is looked up.
    """
    nothing = bytes(4)
    of_shard = zlib.crc32(nothing, zlib.crc32(shard_id.encode())) ^ zlib.crc32(nothing)
    return (_row_hashes(1 << (stop - 1).bit_length())[start:stop] ^ np.uint32(of_shard)) / 2**32


@cache
def _row_hashes(count: int) -> NDArray[np.uint32]:
    hashes = (zlib.crc32(row.to_bytes(4, "little")) for row in range(count))
    return np.fromiter(hashes, np.uint32, count)


def _num_tokens(lengths: NDArray[Any]) -> int:
    return int(lengths.sum(dtype=np.int64))


@dataclass(frozen=True)
class BatchPlan:
    """How a split is cut into global batches, epoch by epoch."""

    source: Source
    batch_tokens: int
    window_tokens: int
    """A window has one block at least: of labelled text, all sentences."""
    seed: int
    held_out: float = 0.0
    """Share of the sentences that is kept for scoring."""
    share: float = 1.0
    """Of the rest, what is learnt from: a smaller share is part of a larger one."""

    @cached_property
    def _held_out(self) -> float:
        every = self.source.shard_lengths()
        rows, tokens = (max(1, sum(map(its, every))) for its in (len, _num_tokens))
        return min(self.held_out, HELD_OUT_LIMIT / rows, HELD_OUT_TOKENS / tokens)

    def _rows(self, block: Block, held_out: bool) -> NDArray[np.int64]:
        """Rows of the block's shard."""
        rows, kept = np.arange(block.start, block.stop), self._held_out
        if not kept and self.share == 1:
            return rows[:0] if held_out else rows
        draws = id_draws(self.source.shard_ids()[block.shard], block.start, block.stop)
        if held_out:
            return rows[draws < kept]
        return rows[(draws >= kept) & (draws < kept + self.share * (1 - kept))]

    def windows(self, epoch: int) -> Iterator[tuple[list[Block], list[NDArray[np.int64]]]]:
        """For each window of an epoch its blocks, and its batches as (B, 2): block, row of it.

        Blocks come in an order drawn by seed and epoch, as many a window as have `window_tokens`;
        sentences are shuffled within the window, sorted by length into batches, and the batches
        shuffled.
        """
        rng = self._rng(epoch)
        for window in self._windows(rng):
            places, lengths = self._places(window)
            shuffle = rng.permutation(len(places))
            places, lengths = places[shuffle], lengths[shuffle]
            batches = token_budget_batches(lengths, self.batch_tokens)
            rng.shuffle(batches)  # type: ignore[arg-type]
            yield window, [places[batch] for batch in batches]

    def _windows(self, rng: np.random.Generator) -> Iterator[list[Block]]:
        window, tokens = list[Block](), 0
        for block in self._order(rng):
            its_tokens = _num_tokens(self._lengths(block))
            if window and tokens + its_tokens > self.window_tokens:
                yield window
                window, tokens = [], 0
            window.append(block)
            tokens += its_tokens
        if window:
            yield window

    def order(self, epoch: int) -> Iterator[Block]:
        """Blocks of an epoch, window after window."""
        return self._order(self._rng(epoch))

    def _order(self, rng: np.random.Generator) -> Iterator[Block]:
        rows = [len(lengths) for lengths in self.source.shard_lengths()]
        counts = -(-np.array(rows, np.int64) // self.source.block_rows)
        shards = np.repeat(np.arange(len(rows)), counts)
        firsts = np.cumsum(counts) - counts
        for number in rng.permutation(len(shards)):
            shard = int(shards[number])
            start = int(number - firsts[shard]) * self.source.block_rows
            yield Block(shard, start, min(start + self.source.block_rows, rows[shard]))

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _lengths(self, block: Block) -> NDArray[np.int64]:
        lengths = self.source.shard_lengths()[block.shard]
        return lengths[block.start : block.stop].astype(np.int64)

    def _places(self, blocks: list[Block]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(S, 2) block and row of it of each sentence learnt from, and (S,) its tokens."""
        rows = [self._rows(block, held_out=False) - block.start for block in blocks]
        owners = np.repeat(np.arange(len(blocks)), [len(part) for part in rows])
        lengths = [self._lengths(block)[part] for block, part in zip(blocks, rows, strict=True)]
        return np.stack([owners, np.concatenate(rows)], axis=1), np.concatenate(lengths)

    def num_steps(self, epoch: int) -> int:
        """Global batches of an epoch."""
        windows = self._windows(self._rng(epoch))
        lengths = (self._places(window)[1] for window in windows)
        return sum(len(token_budget_batches(its, self.batch_tokens)) for its in lengths)

    def held_out_batches(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
        """(H,) shard and (H,) row in it of each sentence kept for scoring, and batches of them."""
        every = self.source.shard_lengths()
        rows = [
            self._rows(Block(shard, 0, len(lengths)), held_out=True)
            for shard, lengths in enumerate(every)
        ]
        shards = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
        lengths = [its[part].astype(np.int64) for its, part in zip(every, rows, strict=True)]
        batches = token_budget_batches(np.concatenate(lengths), self.batch_tokens)
        return shards, np.concatenate(rows), batches
