"""Two tokenisations of the same text: where both begin a token, and what the teacher said there.

A stretch is the text from one such place to the next: the least that both cut alike. N tokens of
the student, M of the teacher, all sentences end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdray.sentences import Content, TextPair, text_of
from xdray.tokenised import HiddenValues, Tokens, stretches, token_types
from xdray.tokens import Encoded, is_first

NONE = -1


def match_words(own: Encoded, teacher: Encoded) -> NDArray[np.int32]:
    """(N,) the teacher's first token of the word that begins here, in its sentence; else -1.

    Both encoded the same words; a word that either cut off has no match.
    """
    places = [np.flatnonzero(is_first(its.word_ids, its.offsets)) for its in (own, teacher)]
    keys = [
        _keys(its, place, its.word_ids[place])
        for its, place in zip((own, teacher), places, strict=True)
    ]
    return _matches(own, teacher, places, keys)


def match_characters(
    own: Encoded, teacher: Encoded, contents: Sequence[Content]
) -> NDArray[np.int32]:
    """(N,) the teacher's token that begins at the same character, in its sentence; else -1.

    Both encoded with spans. A special token at either end of a sentence matches the other's.
    """
    spaces = _Spaces.of(contents)
    places, keys = [], []
    for its in (own, teacher):
        place, character = _beginnings(its, spaces)
        places.append(place)
        keys.append(_keys(its, place, character))
    return _matches(own, teacher, places, keys)


@dataclass(frozen=True)
class _Spaces:
    """Which characters of all texts are white space."""

    flags: NDArray[np.bool_]
    """Of all texts end to end, each with one more at its end."""
    begins: NDArray[np.int64]
    """(S, 2) where the texts of each sentence begin in `flags`."""

    @classmethod
    def of(cls, contents: Sequence[Content]) -> "_Spaces":
        texts: list[str] = []
        for its in contents:
            texts += [its.first, its.second] if isinstance(its, TextPair) else [text_of(its), ""]
        flags = [flag for text in texts for flag in (*map(str.isspace, text), False)]
        sizes = np.array([len(text) + 1 for text in texts], np.int64)
        return cls(np.array(flags, bool), (np.cumsum(sizes) - sizes).reshape(-1, 2))


def _beginnings(encoded: Encoded, spaces: _Spaces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens that stand for something, and a number for where each begins.

    Twice the character, odd in a second text, and two numbers of their own for the ends.
    """
    assert encoded.spans is not None, "encoded with spans"
    types = token_types(encoded.word_ids, encoded.offsets)
    side = np.zeros(len(encoded.ids), np.int64) if types is None else types
    owner = np.repeat(np.arange(len(spaces.begins)), np.diff(encoded.offsets))
    real = (encoded.word_ids >= 0) & (encoded.spans[:, 1] > encoded.spans[:, 0])
    begins = encoded.spans[:, 0].astype(np.int64)
    # SentencePiece counts the space before a word to it
    begins[real] += spaces.flags[spaces.begins[owner[real], side[real]] + begins[real]]
    real &= begins < encoded.spans[:, 1]
    numbers = 2 * begins + side + 2
    ends = [encoded.offsets[:-1], encoded.offsets[1:] - 1]
    for number, place in enumerate(ends):
        place = place[encoded.word_ids[place] < 0]
        numbers[place], real[place] = number, True
    index = np.flatnonzero(real)
    return index, numbers[index]


def _keys(
    encoded: Encoded, places: NDArray[np.int64], numbers: NDArray[np.integer]
) -> NDArray[np.int64]:
    owner = np.searchsorted(encoded.offsets, places, side="right") - 1
    return (owner << 32) + numbers


def _matches(
    own: Encoded,
    teacher: Encoded,
    places: Sequence[NDArray[np.int64]],
    keys: Sequence[NDArray[np.int64]],
) -> NDArray[np.int32]:
    # of tokens that begin at one character (bytes of an emoji) the first counts
    _, mine, theirs = np.intersect1d(keys[0], keys[1], return_indices=True)
    matches = np.full(len(own.ids), NONE, np.int32)
    found = places[1][theirs]
    start = teacher.offsets[np.searchsorted(teacher.offsets, found, side="right") - 1]
    matches[places[0][mine]] = found - start
    return matches


@dataclass(frozen=True)
class StretchHidden:
    """Hidden states of the teacher under the student's tokens that begin a stretch."""

    states: HiddenValues
    where: NDArray[np.int64]
    """(N,) the teacher's token, -1 where no stretch begins."""
    counts: NDArray[np.int64] | None
    """(M,) tokens of the stretch that begins at each of the teacher's; None: the first one's state
    stands for all."""

    def take(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows of these tokens of the student, which begin stretches: (len(index), W)."""
        places = self.where[index]
        if self.counts is None or not len(places):
            return self.states.take(places)
        counts = self.counts[places]
        firsts = np.cumsum(counts) - counts
        every = np.arange(counts.sum()) + np.repeat(places - firsts, counts)
        sums = np.add.reduceat(self.states.take(every), firsts, axis=0)
        return (sums / counts[:, None]).astype(np.float32)


def under_own_tokens(own: Tokens, teacher: Tokens, logits: str, pieces: str) -> Tokens:
    """Put what the teacher said under the student's tokens, at the begin of each stretch.

    own: with `matches`; it is filled and returned. logits: "first" token's of a stretch, or their
    "logsumexp"; pieces: "first" or "mean", of hidden states.
    """
    assert own.matches is not None
    begins = np.flatnonzero(own.matches >= 0)
    owner = np.searchsorted(own.offsets, begins, side="right") - 1
    where = np.full(len(own.ids), NONE, np.int64)
    where[begins] = teacher.offsets[owner] + own.matches[begins]
    starts = np.zeros(len(teacher.ids), bool)
    starts[where[begins]] = True
    counts = None
    if pieces == "mean" or logits == "logsumexp":
        owners = stretches(starts, teacher.word_ids, teacher.offsets)
        counts = np.bincount(owners[owners >= 0], minlength=len(starts))
    own.hidden = {
        layer: StretchHidden(states, where, counts if pieces == "mean" else None)
        for layer, states in teacher.hidden.items()
    }
    own.logits = teacher.logits
    if teacher.logits is not None and not own.sentence_logits:
        own.logits = np.zeros((len(own.ids), teacher.logits.shape[1]), np.float32)
        own.logits[begins] = teacher.logits[where[begins]]
        if logits == "logsumexp" and counts is not None:
            own.logits[begins] = _log_sums(teacher.logits, where[begins], counts[where[begins]])
    return own


def _log_sums(
    logits: NDArray[np.float32], places: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n, C) log of the summed exponentials over `counts` rows from each place on."""
    firsts = np.cumsum(counts) - counts
    every = np.arange(counts.sum()) + np.repeat(places - firsts, counts)
    return np.logaddexp.reduceat(logits[every], firsts, axis=0).astype(np.float32)
