"""What a sentence is, and the hashes by which it, and a shard of it, are known again."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Content = str | tuple[str, ...]  # raw text, or words


@dataclass(frozen=True, slots=True)
class Sentence:
    """Raw text, or words; with tags (IOB2, one a word) where people gave them."""

    sentence_id: str
    language: str
    text: str | None
    words: tuple[str, ...] | None
    tags: tuple[str, ...] | None = None


def text_keys(sentences: Iterable[Sentence]) -> frozenset[int]:
    """64-bit hashes of sentences, case-folded, without white space: equal for text and words."""
    return frozenset(key_of(squeeze(content_of(sentence))) for sentence in sentences)


def content_of(sentence: Sentence) -> Content:
    """Return the words of a sentence, or the text that it has instead."""
    return sentence.words if sentence.words is not None else sentence.text or ""


def squeeze(content: Content) -> str:
    """Case-fold and take out all white space; "" says that a sentence is empty."""
    text = content if isinstance(content, str) else "".join(content)
    return "".join(text.split()).casefold()


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
        sizes.append(-1 if isinstance(content, str) else len(content))
        for part in (language, content) if isinstance(content, str) else (language, *content):
            parts.append(part.encode())
            sizes.append(len(parts[-1]))
    hasher = hashlib.blake2b(np.array(sizes, dtype="<i8").tobytes(), digest_size=16)
    hasher.update(b"".join(parts))
    return hasher.hexdigest()
