"""Some sentences as the tensors of a step.

B sentences in a batch, T tokens, N kept tokens, W teacher width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray.labels import IGNORE_INDEX
from xdray.padding import pad, padded
from xdray.tokenised import Signal, Tokens, stretches, token_types


@dataclass
class Batch:
    """One rank's rows of one global batch."""

    input_ids: Tensor
    """(B, T) int64, padded."""
    attention_mask: Tensor
    """(B, T) int64, 1 on tokens that are there."""
    token_types: Tensor | None
    """(B, T) int64, 1 in the second text of a pair; None: there is no pair."""
    kept: Tensor
    """(N,) int64 positions in the flattened (B, T) of tokens that losses see; special ones among
    them where the task says so."""
    first: Tensor
    """int64 places in `kept` of the first token of each word; with special ones, of each
    sentence."""
    logits: Tensor | None
    """float32 of the teacher: (N, C), or (B, C) where a sentence has one."""
    hidden: dict[Signal, Tensor]
    """Teacher layer to (N, W) float32."""
    labels: Tensor | None
    """(N,) int64, IGNORE_INDEX off the first token of a word; or (B, ...) as the task has them."""
    num_labels: int
    """Labels that are not IGNORE_INDEX; sentences where they have one each."""
    pieces: tuple[Tensor, Tensor] | None = None
    """Where the teacher cuts text into other tokens, `kept` are the first ones of the stretches
    that both cut alike: position in (B, T) and place in `kept` of every token of these."""
    sentence_logits: bool = False
    """Whether `logits` have one row a sentence."""
    sentence_labels: bool = False

    def unscored(self) -> "Batch":
        """Return the same sentences, none of whose tokens a loss sees."""
        return self._scored(self.kept < 0, slice(0, 0))

    def part(self, number: int, parts: int) -> "Batch":
        """Return part `number` of so many like ones; where it has no sentence, one unscored."""
        rows = len(self.input_ids)
        first, last = (rows * its // parts for its in (number, number + 1))
        if first == last:
            return self.part(0, rows).unscored()
        length = self.input_ids.shape[1]
        mine = (self.owners >= first) & (self.owners < last)
        found = self._scored(mine, slice(first, last))
        return replace(
            found,
            input_ids=self.input_ids[first:last],
            attention_mask=self.attention_mask[first:last],
            token_types=None if self.token_types is None else self.token_types[first:last],
            kept=found.kept - first * length,
            pieces=found.pieces and (found.pieces[0] - first * length, found.pieces[1]),
        )

    def _scored(self, mine: Tensor, rows: slice) -> "Batch":
        """Keep for losses these of the kept tokens, mask (N,), and these sentences."""
        places = mine.cumsum(0) - 1
        logits, labels, pieces = self.logits, self.labels, self.pieces
        if logits is not None:
            logits = logits[rows] if self.sentence_logits else logits[mine]
        if labels is not None:
            labels = labels[rows] if self.sentence_labels else labels[mine]
        if pieces is not None:
            its = mine[pieces[1]]
            pieces = pieces[0][its], places[pieces[1][its]]
        num_labels = 0
        if labels is not None:
            scored = labels != IGNORE_INDEX
            num_labels = len(labels) if self.sentence_labels else int(scored.sum())
        return replace(
            self,
            kept=self.kept[mine],
            first=places[self.first[mine[self.first]]],
            logits=logits,
            hidden={layer: values[mine] for layer, values in self.hidden.items()},
            labels=labels,
            num_labels=num_labels,
            pieces=pieces,
        )

    def unflatten(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ...) values of kept tokens put back to (B, T, ...), 0 elsewhere; the mask (B, T)."""
        batch, length = self.input_ids.shape
        result = values.new_zeros(batch * length, *values.shape[1:])
        mask = torch.zeros(batch * length, dtype=torch.int64, device=values.device)
        mask[self.kept] = 1
        return (
            result.index_copy(0, self.kept, values).unflatten(0, (batch, length)),
            mask.view(batch, length),
        )

    @property
    def owners(self) -> Tensor:
        """(N,) sentence of each kept token."""
        return self.kept // self.input_ids.shape[1]

    def to(self, device: str) -> "Batch":
        """Return the same batch on another device."""
        if device == "cpu":
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            token_types=None if self.token_types is None else self.token_types.to(device),
            kept=self.kept.to(device, non_blocking=True),
            first=self.first.to(device, non_blocking=True),
            pieces=self.pieces and (self.pieces[0].to(device), self.pieces[1].to(device)),
            logits=None if self.logits is None else self.logits.to(device, non_blocking=True),
            hidden={layer: values.to(device) for layer, values in self.hidden.items()},
            labels=None if self.labels is None else self.labels.to(device, non_blocking=True),
        )


def collate(
    parts: Sequence[tuple[Tokens, NDArray[np.int64]]],
    pad_id: int,
    id_map: NDArray[np.int64] | None,
) -> Batch:
    """Make a batch of rows of several shards, in the order given; padding comes after the map.

    id_map: teacher id to student id.
    """
    ids, word_ids, labels, logits, keeps = [], [], [], [], []
    lengths: list[NDArray[np.int64]] = []
    hidden: dict[Signal, list[NDArray[np.float32]]] = {}
    for tokens, rows in parts:
        index = tokens.places(rows)
        its_kept = tokens.kept(index)
        kept = index[its_kept]
        lengths.append(tokens.offsets[rows + 1] - tokens.offsets[rows])
        ids.append(tokens.ids[index])
        keeps.append(its_kept)
        word_ids.append(tokens.word_ids[index])
        if tokens.labels is not None:
            labels.append(tokens.labels[rows if tokens.sentence_labels else kept])
        if tokens.logits is not None:
            logits.append(tokens.logits[rows if tokens.sentence_logits else kept])
        for layer, values in tokens.hidden.items():
            hidden.setdefault(layer, []).append(values.take(kept))
    flat = np.concatenate(ids)
    if id_map is not None:
        flat = id_map[flat]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    input_ids, mask, _ = pad(flat, offsets, np.arange(len(offsets) - 1), pad_id)
    words, real = np.concatenate(word_ids), mask.numpy().astype(bool)
    kept = np.concatenate(keeps)
    scored = np.full(mask.shape, False)
    scored[real] = kept
    of_sentences = parts[0][0].keeps_special
    begins = np.full(len(words), False) if of_sentences else np.diff(words, prepend=-1) != 0
    begins[offsets[:-1]] = True  # word 0 may follow word 0 of the sentence before
    gold = torch.from_numpy(np.concatenate(labels)) if labels else None
    num_labels = 0
    if gold is not None:
        num_labels = len(gold) if parts[0][0].sentence_labels else int((gold != IGNORE_INDEX).sum())
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        token_types=padded(token_types(words, offsets), real),
        kept=torch.from_numpy(np.flatnonzero(scored)),
        first=torch.from_numpy(np.flatnonzero(begins[kept])),
        pieces=_pieces(kept, words, offsets, real) if parts[0][0].matches is not None else None,
        logits=torch.from_numpy(np.concatenate(logits)) if logits else None,
        hidden={layer: torch.from_numpy(np.concatenate(parts)) for layer, parts in hidden.items()},
        labels=gold,
        num_labels=num_labels,
        sentence_logits=parts[0][0].sentence_logits,
        sentence_labels=parts[0][0].sentence_labels,
    )


def _pieces(
    kept: NDArray[np.bool_],
    words: NDArray[np.int32],
    offsets: NDArray[np.int64],
    real: NDArray[np.bool_],
) -> tuple[Tensor, Tensor]:
    owners = stretches(kept, words, offsets)
    inside = owners >= 0
    places = (np.cumsum(kept) - 1)[owners[inside]]
    return torch.from_numpy(np.flatnonzero(real)[inside]), torch.from_numpy(places)
