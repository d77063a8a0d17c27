"""Sentences as tokens in flat arrays, with what is known of each. No torch.

N tokens of all sentences end to end, S sentences, C classes, W teacher width.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xdray.hidden import Hidden

Signal = int | str
"""What is recorded of the teacher: hidden states of a layer (its number, 0 for the embeddings), or
"qkv-6": queries, keys and values of layer 6, one after the other."""


def qkv(layer: int) -> Signal:
    """Queries, keys and values of a layer."""
    return f"qkv-{layer}"


def layer_of(signal: Signal) -> int:
    """Layer that a signal is of."""
    return signal if isinstance(signal, int) else int(signal.rpartition("-")[2])


class HiddenValues(Protocol):
    """Hidden states of a shard, in whatever codec."""

    def take(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of these token positions, decoded: (len(index), W)."""
        ...


@dataclass
class Tokens:
    """Sentences as flat arrays: N tokens of S sentences, and what is known of each token."""

    ids: NDArray[np.int32]
    """(N,) token ids, special tokens included."""
    word_ids: NDArray[np.int32]
    """(N,) index of the token's word in its sentence, -1 on special tokens."""
    offsets: NDArray[np.int64]
    """(S + 1,) where each sentence begins."""
    logits: NDArray[np.float32] | None = None
    """(N, C) of the teacher; (S, C) with `sentence_logits`."""
    hidden: dict[Signal, HiddenValues] = field(default_factory=dict)
    """Teacher layer to its states; queries, keys and values too."""
    labels: NDArray[Any] | None = None
    """(N,) gold label on the first token of each word, else IGNORE_INDEX; with `sentence_labels`
    (S, ...), as the task has them."""
    spans: NDArray[np.int32] | None = None
    """(N, 2) characters of its own text that a token stands for, -1 on special tokens."""
    sentence_logits: bool = False
    sentence_labels: bool = False
    keeps_special: bool = False
    """Whether losses see special tokens too."""
    matches: NDArray[np.int32] | None = None
    """(N,) where a stretch of text begins for teacher and student alike, the teacher's token in its
    sentence that begins it; -1 elsewhere. None: these are the teacher's tokens."""

    def kept(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(len(index),) which of these tokens losses see."""
        if self.matches is not None:
            return self.matches[index] >= 0
        return np.full(len(index), True) if self.keeps_special else self.word_ids[index] >= 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(S,) tokens of each sentence."""
        return np.diff(self.offsets)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat positions of the tokens of some sentences, sentence after sentence."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)

    def select(self, rows: NDArray[np.int64]) -> "Tokens":
        """Return some sentences alone, their hidden states decoded, 0 where no loss sees them."""
        index = self.places(rows)
        kept = self.kept(index)

        def decoded(states: HiddenValues) -> HiddenValues:
            taken = states.take(index[kept])
            values = np.zeros((len(index), taken.shape[1]), np.float32)
            values[kept] = taken
            return Hidden(values)

        def some(values: NDArray[Any] | None, by_sentence: bool = False) -> Any:
            return None if values is None else values[rows if by_sentence else index]

        return replace(
            self,
            ids=self.ids[index],
            word_ids=self.word_ids[index],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[rows])]),
            logits=some(self.logits, self.sentence_logits),
            hidden={signal: decoded(states) for signal, states in self.hidden.items()},
            labels=some(self.labels, self.sentence_labels),
            spans=some(self.spans),
            matches=some(self.matches),
        )


def stretches(
    starts: NDArray[np.bool_], word_ids: NDArray[np.integer], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) where the stretch begins that each token is of, -1 for one that is of none.

    A stretch ends before the next one, a special token, or the end of its sentence; one that begins
    with a special token is that token alone.
    """
    special = word_ids < 0
    sides = np.cumsum(special) + np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    latest = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), -1))
    inside = (latest >= 0) & (sides == sides[latest]) & (starts | (special == special[latest]))
    return np.where(inside & (starts | ~special), latest, -1)


def token_types(
    word_ids: NDArray[np.integer], offsets: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """(N,) 1 behind the special token that ends the first text of a pair, as BERT's tokenizer has.

    None where there is no pair, so that all would be 0.
    """
    special = word_ids < 0
    ends = special & ~np.concatenate([[True], special[:-1]])
    ends[offsets[:-1][offsets[:-1] < len(ends)]] = False
    before = np.concatenate([[0], np.cumsum(ends)])
    types = before[:-1] > np.repeat(before[offsets[:-1]], np.diff(offsets))
    return types.astype(np.int64) if (types & ~special).any() else None
