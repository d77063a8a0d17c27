"""Long second texts in overlapping windows, cut by words before anything is tokenised.

So teacher and student read the same windows whatever their tokenizers, and a window is a row of the
corpus like any other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from xdray.sentences import TextPair
from xdray.words import CJK

_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


@dataclass(frozen=True, slots=True)
class Windows:
    """How the second text of a pair is cut: at most `size` words, `overlap` of them shared."""

    size: int
    overlap: int

    def cut(self, pair: TextPair) -> Iterator[tuple[int, TextPair]]:
        """Yield (first character in the second text, pair with that window), one or more."""
        spans = [match.span() for match in _WORD.finditer(pair.second)]
        first = 0
        while first + self.size < len(spans):
            start, stop = spans[first][0], spans[first + self.size - 1][1]
            yield start, TextPair(pair.first, pair.second[start:stop])
            first += self.size - self.overlap
        start = spans[first][0] if spans else 0
        yield start, TextPair(pair.first, pair.second[start:])
