"""What a sentence is, and the hashes by which it, and a shard of it, are known again."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that are read together: premise and hypothesis, question and context."""

    first: str
    second: str


Content = str | tuple[str, ...] | TextPair  # raw text, words, or two texts


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one row of text holds, and what people said of it where they did."""

    sentence_id: str
    language: str
    content: Content
    gold: Any = None
    """As the task has it: tags, a class, a number, answers."""


def text_keys(sentences: Iterable[Sentence]) -> frozenset[int]:
    """64-bit hashes of sentences, case-folded, without white space: equal for text and words."""
    return frozenset(key_of(squeeze(sentence.content)) for sentence in sentences)


def squeeze(content: Content) -> str:
    """Case-fold and take out all white space; "" says that a sentence is empty.

    A pair is empty when one of its texts is; a tab stands between them.
    """
    if isinstance(content, TextPair):
        parts = [squeeze(content.first), squeeze(content.second)]
        return "\t".join(parts) if all(parts) else ""
    text = content if isinstance(content, str) else "".join(content)
    return "".join(text.split()).casefold()


def text_of(content: Content) -> str:
    """Return content as one line of text, for counts and samples."""
    if isinstance(content, TextPair):
        return f"{content.first} {content.second}"
    return content if isinstance(content, str) else " ".join(content)


def about_tokens(content: Content, max_length: int) -> int:
    """Tokens of a sentence, special ones included, told by its UTF-8 bytes, 4 a token."""
    return min(max_length, 2 + len(text_of(content).encode()) // 4)


def key_of(squeezed: str) -> int:
    """64-bit hash of what `squeeze` gave."""
    return int.from_bytes(hashlib.blake2b(squeezed.encode(), digest_size=8).digest(), "little")


def shard_id_of(sentences: Sequence[tuple[str, Content]], copies: Counter[str]) -> tuple[str, int]:
    """Hash of sentences, and how many shards of the same ones `copies` knew before."""
    first = shard_hash(sentences, 0)
    copy = copies[first]
    copies[first] += 1
    return (shard_hash(sentences, copy) if copy else first), copy


def shard_hash(sentences: Sequence[tuple[str, Content]], copy: int) -> str:
    """Hash the sizes of all parts, then the parts: text "a b" differs from words "a", "b"."""
    sizes, parts = [copy], []
    for language, content in sentences:
        if isinstance(content, TextPair):
            size, its = -2, (content.first, content.second)
        else:
            size, its = (-1, (content,)) if isinstance(content, str) else (len(content), content)
        sizes.append(size)
        for part in (language, *its):
            parts.append(part.encode())
            sizes.append(len(parts[-1]))
    hasher = hashlib.blake2b(np.array(sizes, dtype="<i8").tobytes(), digest_size=16)
    hasher.update(b"".join(parts))
    return hasher.hexdigest()
