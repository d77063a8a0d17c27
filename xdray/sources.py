"""Where batches come from: labelled text in memory, a store of targets, or the teacher at work."""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdray.alignment import under_own_tokens
from xdray.annotator import StreamingAnnotator
from xdray.batch_plan import Block
from xdray.cluster import Cluster, map_shards
from xdray.config_cluster import ClusterConfig
from xdray.corpus import Shard
from xdray.parts import BLOCK, LOGITS, ROW_GROUP, hidden_part
from xdray.resources import ResourcePlan
from xdray.targets import AnnotateTask, TargetView
from xdray.task import Task
from xdray.tokenised import Signal, Tokens

Part = tuple[int, NDArray[np.int64]]
"""A shard and some of its rows."""


class LabelledSource:
    """Labelled sentences as one shard in memory, in one block."""

    forwarded = 0

    def __init__(self, tokens: Tokens) -> None:
        """Take tokens with labels."""
        self.tokens = tokens
        self.block_rows = max(1, len(tokens.lengths))

    def shard_lengths(self) -> Sequence[NDArray[np.int64]]:
        """Tokens of each sentence."""
        return [self.tokens.lengths]

    def shard_ids(self) -> Sequence[str]:
        """One name."""
        return ["labelled"]

    def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
        """All sentences, whatever the layers: nothing of them is recorded."""
        yield from (self.tokens for _ in blocks)

    def read_rows(
        self, parts: Sequence[Part], layers: Sequence[Signal]
    ) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
        """Rows of all sentences."""
        yield from ((self.tokens, rows) for _, rows in parts)


class StoredSource:
    """Transfer sentences with what the teacher said, read from the store."""

    forwarded, block_rows = 0, BLOCK

    def __init__(
        self, view: TargetView, codec: str, task: Task, pieces: str, most_kept: int = 0
    ) -> None:
        """Take the shards of a view, hidden states in one codec. pieces: `tokens.pieces`.

        most_kept: where there are no more tokens, all are kept in memory for the next epoch.
        """
        self.view, self.codec, self.task, self.pieces = view, codec, task, pieces
        few = sum(map(len, view.lengths)) <= most_kept  # told without a look at the lengths
        self._keeps = few and sum(int(its.sum()) for its in view.lengths) <= most_kept
        self._kept: tuple[tuple[Signal, ...], dict[Block, Tokens]] = (), {}

    def shard_lengths(self) -> Sequence[NDArray[np.uint16]]:
        """Tokens of each sentence, by shard."""
        return self.view.lengths

    def shard_ids(self) -> Sequence[str]:
        """Names of the shards."""
        return self.view.shard_ids

    def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
        """Read tokens, logits and these layers."""
        if self._kept[0] != tuple(layers):
            self._kept = tuple(layers), {}
        kept = self._kept[1]
        for block in blocks:
            tokens = kept[block] if block in kept else self._load(block, layers)
            if self._keeps:
                kept[block] = tokens
            yield tokens

    def _load(self, block: Block, layers: Sequence[Signal]) -> Tokens:
        parts = [LOGITS, *(hidden_part(layer, self.codec) for layer in layers)]
        tokens = self.task.mark(self.view.load_shard(block.shard, parts, block.start, block.stop))
        if self.view.text == LOGITS:
            return tokens
        own = self.task.mark(self.view.load_text(*block))
        return under_own_tokens(own, tokens, self.task.stretch_logits, self.pieces)

    def read_rows(
        self, parts: Sequence[Part], layers: Sequence[Signal]
    ) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
        """Read the row groups that these rows stand in, one at a time."""
        for shard, rows in parts:
            for start in np.unique(rows // ROW_GROUP * ROW_GROUP).tolist():
                stop = min(start + ROW_GROUP, len(self.view.lengths[shard]))
                its = rows[(rows >= start) & (rows < stop)]
                yield self._load(Block(shard, start, stop), layers), its - start


@dataclass(frozen=True)
class Stream:
    """A teacher at work while students learn: what its actors are made from. Picklable."""

    shards: tuple[Shard, ...]
    kwargs: dict[str, Any]
    """Of `StreamingAnnotator`."""
    plan: ResourcePlan
    """With the actors of all ranks."""
    cluster: ClusterConfig
    worker: Callable[..., Any] = StreamingAnnotator


class StreamedSource:
    """One rank's transfer sentences, forwarded as they are asked for, each epoch anew.

    A rank has the shards rank, rank + world_size and so on, and actors of its own for them, so what
    it reads, and the steps of an epoch, are known before. (Ray's `streaming_split` tells nobody
    which shard goes where, and drops rows to make steps equal.)
    """

    block_rows = BLOCK

    def __init__(
        self, stream: Stream, view: TargetView, task: Task, rank: int, world_size: int
    ) -> None:
        """View: lengths of all shards."""
        self.task, self.cluster = task, stream.cluster
        self.shards = stream.shards[rank::world_size]
        self._ids = [shard.shard_id for shard in self.shards]
        self.lengths = view.lengths[rank::world_size]
        self.forwarded = 0
        """Rows so far."""
        self._kept: tuple[tuple[Signal, ...], list[Tokens]] | None = None
        whole, rest = divmod(stream.plan.replicas, world_size)
        self.plan = dataclasses.replace(stream.plan, replicas=whole + (rank < rest))
        self.worker, self.kwargs = stream.worker, stream.kwargs

    def shard_lengths(self) -> Sequence[NDArray[np.uint16]]:
        """Tokens of each sentence, by shard."""
        return self.lengths

    def shard_ids(self) -> Sequence[str]:
        """Names of the shards."""
        return self._ids

    def read(self, blocks: Iterable[Block], layers: Sequence[Signal]) -> Generator[Tokens]:
        """Forward these blocks; the teacher works ahead of who reads."""
        return self._forward(
            AnnotateTask(self.shards[shard], tuple(layers), range(start, stop))
            for shard, start, stop in blocks
        )

    def read_rows(
        self, parts: Sequence[Part], layers: Sequence[Signal]
    ) -> Iterator[tuple[Tokens, NDArray[np.int64]]]:
        """Forward these rows and no others; they stay in memory for the stages that follow.

        They are the held-out ones, always the same.
        """
        tasks = [
            AnnotateTask(self.shards[shard], tuple(layers), tuple(rows.tolist()))
            for shard, rows in parts
        ]
        if self._kept is None or not set(layers) <= set(self._kept[0]):
            self._kept = tuple(layers), list(self._forward(tasks))
        for tokens in self._kept[1]:
            yield tokens, np.arange(len(tokens.lengths))

    def _forward(self, tasks: Iterable[AnnotateTask]) -> Generator[Tokens]:
        with Cluster(self.cluster) as cluster:
            for receipt in map_shards(
                cluster, self.worker, self.kwargs, tasks, self.plan, in_order=True
            ):
                tokens = receipt["tokens"]
                self.forwarded += len(tokens.lengths)
                yield tokens
