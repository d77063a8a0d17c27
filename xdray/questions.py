"""Questions, their answers in a context, and the windows in which a context is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdray.errors import CorpusError
from xdray.sentences import Sentence
from xdray.tokenised import Tokens, token_types


@dataclass(frozen=True, slots=True)
class Asked:
    """Gold of a window: what is known of its question."""

    question: str
    """Where it stands: ids may come again in other files."""
    answers: tuple[tuple[str, int], ...]
    """Text of each right answer, and where it starts in the whole context; none: there is none."""
    offset: int
    """Where the window starts in the whole context."""


def answers_of(here: str, given: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Answers with where they start, without white space around. Raises CorpusError."""
    texts, starts = given["text"], given["answer_start"]
    lists = isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
    if not lists or not all(
        isinstance(text, str) and type(start) is int and start >= 0  # a bool is an int too
        for text, start in zip(texts, starts, strict=True)
    ):
        raise CorpusError(
            f"{here}: answers {given!r:.80}, expected lists of equal length: texts, and the "
            "characters of the context at which they start; correct the file"
        )
    for text, start in zip(texts, starts, strict=True):
        yield text.strip(), start + len(text) - len(text.lstrip())


def contexts_of(tokens: Tokens) -> list[NDArray[np.int64]]:
    """For each window its context's tokens (n, 3): first and one past the last character, position.

    Characters are those of the window.
    """
    assert tokens.spans is not None, "answering tokenises with spans"
    types = token_types(tokens.word_ids, tokens.offsets)
    second = np.zeros(len(tokens.ids), bool) if types is None else types.astype(bool)
    kept = second & (tokens.word_ids >= 0) & (tokens.spans[:, 1] > tokens.spans[:, 0])
    position = np.arange(len(kept)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    rows = np.column_stack([tokens.spans, position]).astype(np.int64)
    counts = np.add.reduceat(kept, tokens.offsets[:-1]) if len(kept) else []
    return np.split(rows[kept], np.cumsum(counts)[:-1])


def first_windows(sentences: Sequence[Sentence]) -> list[Sentence]:
    """One sentence a question, in the order in which they come up."""
    found: dict[str, Sentence] = {}
    for sentence in sentences:
        found.setdefault(sentence.gold.question, sentence)
    return list(found.values())
