"""A rank's batches of a split, epoch after epoch, read through its source in one go."""

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdray.batch_plan import BatchPlan
from xdray.batches import Batch, collate
from xdray.errors import TargetsError
from xdray.tokenised import Signal, Tokens
from xdray.workers import trim_memory


@dataclass
class Loader:
    """Reads a rank's rows of each global batch of a plan."""

    plan: BatchPlan
    layers: tuple[Signal, ...]
    pad_id: int
    id_map: NDArray[np.int64] | None
    rank: int = 0
    world_size: int = 1
    others: tuple[BatchPlan, ...] = ()
    """Of the other ranks, where each has shards of its own and shares no batch."""
    epochs: int = 0
    """Planned: they are read in one go, so that a teacher that is streamed stays at work."""
    _reader: tuple[int, Generator[Tokens]] | None = None
    """One that goes on with this epoch."""

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch, the same on every rank."""
        return max(plan.num_steps(epoch) for plan in (self.plan, *self.others))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step `start` on; windows before it are not read."""
        position, done = 0, 0
        reader, loaded = None if start else self._waiting(epoch), []
        for blocks, batches in self.plan.windows(epoch):
            skip = max(0, start - position)
            position += len(batches)
            if reader is not None or skip < len(batches):  # a window without rows is read past
                reader = reader or self._open(epoch, done)
                loaded = []  # else two windows were in memory
                trim_memory()
                loaded = list(itertools.islice(reader, len(blocks)))
                if len(loaded) < len(blocks):
                    raise TargetsError(
                        f"epoch {epoch}: the teacher's stream ended {len(blocks) - len(loaded)} "
                        "blocks of shards too early; the same command goes on from the last "
                        "checkpoint"
                    )
                for batch in batches[skip:]:
                    yield self._rank_batch(loaded, batch)
            done += len(blocks)
        if reader is not None:
            self._reader = (epoch + 1, reader) if epoch + 1 < self.epochs else None
        if self.others and (missing := self.num_steps(epoch) - max(start, position)) > 0:
            first = itertools.islice(self.plan.order(epoch), 1)
            loaded = loaded or list(self.plan.source.read(first, self.layers))
            yield from itertools.repeat(
                self._collate(loaded, np.zeros((1, 2), np.int64)).unscored(), missing
            )

    def _open(self, epoch: int, done: int) -> Generator[Tokens]:
        """Blocks of an epoch from number `done` of its order on, and of the epochs after it."""
        epochs = range(epoch, max(epoch + 1, self.epochs))
        blocks = itertools.chain.from_iterable(self.plan.order(its) for its in epochs)
        return self.plan.source.read(itertools.islice(blocks, done, None), self.layers)

    def _waiting(self, epoch: int) -> Generator[Tokens] | None:
        """The reader of the epoch before, if it goes on with this one."""
        return self._reader[1] if self._reader is not None and self._reader[0] == epoch else None

    def close(self) -> None:
        """Read no further: a teacher that is streamed ends its work."""
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None

    def endless(self, start: int) -> Iterator[Batch]:
        """Batches epoch after epoch, from batch `start` of all on."""
        epoch = 0
        while start >= (steps := self.num_steps(epoch)):
            start, epoch = start - steps, epoch + 1
        while True:
            yield from self.batches(epoch, start)
            start, epoch = 0, epoch + 1

    def held_out(self) -> list[Batch]:
        """Return this rank's held-out sentences, in batches over all shards of the plan."""
        shards, rows, batches = self.plan.held_out_batches()
        shares = [its for b in batches if len(its := b[self.rank :: self.world_size])]
        if not shares:
            return []
        mine = np.sort(np.concatenate(shares))
        parts = [(shard, rows[mine][shards[mine] == shard]) for shard in np.unique(shards[mine])]
        found = self.plan.source.read_rows(parts, self.layers)
        selected = [tokens.select(its) for tokens, its in found]
        every = enumerate(len(its.lengths) for its in selected)
        places = np.array([(part, row) for part, count in every for row in range(count)])
        return [self._collate(selected, places[np.searchsorted(mine, its)]) for its in shares]

    def _rank_batch(self, loaded: list[Tokens], batch: NDArray[np.int64]) -> Batch:
        mine = batch[self.rank :: self.world_size]
        if not len(mine):  # fewer rows than ranks: join the step with one row that is not scored
            return self._collate(loaded, batch[:1]).unscored()
        return self._collate(loaded, mine)

    def _collate(self, loaded: list[Tokens], places: NDArray[np.int64]) -> Batch:
        owners, rows = places.T
        parts = [(loaded[owner], rows[owners == owner]) for owner in np.unique(owners)]
        return collate(parts, self.pad_id, self.id_map)
