"""Raw text split into words, as labelled text is: punctuation apart, each CJK character a word."""

import functools
import itertools
import re
import sys
import unicodedata

from xdray.sentences import Content, text_of

# Han (with its iteration marks, zero and numerals), Hiragana and Katakana: written without spaces.
CJK = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\U00020000-\U0003ffff"
)


WORD_RULES = ("punctuation", "whitespace")
"""Of `tokens.words`."""


def split_words(text: str, rule: str) -> list[tuple[int, int]]:
    """Return the character span of each word of a text.

    whitespace: between white space. punctuation: also each punctuation mark or symbol (Unicode P*,
    S*) and each Han, Hiragana or Katakana character is a word of its own, with the combining marks
    that follow it; Hangul and Thai are split at white space alone.
    """
    return [match.span() for match in _word_pattern(rule).finditer(text)]


def words_of(content: Content, rule: str) -> tuple[str, ...]:
    """Return the words of a sentence: those it has, else its text split by the rule."""
    if isinstance(content, tuple):
        return content
    return tuple(_word_pattern(rule).findall(text_of(content)))


@functools.cache
def _word_pattern(rule: str) -> re.Pattern[str]:
    """One match a word. Letters of the first 65,536 code points take a path with a small table."""
    if rule == "whitespace":
        return re.compile(r"\S+")
    single = _characters("PS") + CJK
    beyond = "\U00010000-\U0010ffff"
    letters = rf"[^\s{single}{beyond}]++|(?=[{beyond}])[^\s{single}]"
    return re.compile(rf"(?:{letters})++|\S[{_characters('M')}]*+")


def _characters(categories: str) -> str:
    """Return the inside of a regular expression's set: all characters of Unicode's categories."""
    codes = (
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in categories
    )
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        group = [code for _, code in run]
        parts.append(f"\\U{group[0]:08x}-\\U{group[-1]:08x}")
    return "".join(parts)
