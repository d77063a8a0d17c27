"""Words to tokens (subwords): splitting text, encoding, cutting to length.

Letters: N tokens of all sentences end to end, S sentences, V ids of a vocabulary. transformers is
imported where a tokenizer is loaded or built, so that splitting words costs nothing.
"""

import functools
import hashlib
import itertools
import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xdray.corpus import Sentence
from xdray.errors import ConfigError
from xdray.header import resolve_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


# Han (with its iteration marks, zero and numerals), Hiragana and Katakana: written without spaces.
CJK = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\U00020000-\U0003ffff"
)
PROBES = ("a", "e", "0", ".", "\u7684")  # words of which any tokenizer knows one
SENTENCES_PER_CALL = 1000  # held at once by the Rust side, about 200 bytes a token


@dataclass(frozen=True, slots=True)
class Encoded:
    """Sentences as tokens, end to end; sentence s is `offsets[s] : offsets[s + 1]`."""

    ids: npt.NDArray[np.int32]
    """(N,) token ids."""
    word_ids: npt.NDArray[np.int32]
    """(N,) position of the token's word in its sentence, -1 on special tokens."""
    offsets: npt.NDArray[np.int64]
    """(S + 1,) where each sentence starts, and N."""
    cut_words: npt.NDArray[np.int64]
    """(S,) words that the length cut off: all their tokens are gone."""


def split_words(text: str, rule: str) -> list[tuple[int, int]]:
    """Return the character span of each word of a text.

    whitespace: between white space. punctuation: also each punctuation mark or symbol (Unicode P*,
    S*) and each Han, Hiragana or Katakana character is a word of its own, with the combining marks
    that follow it; Hangul and Thai are split at white space alone.
    """
    return [match.span() for match in _word_pattern(rule).finditer(text)]


def words_of(sentence: Sentence, rule: str) -> tuple[str, ...]:
    """Return the words of a sentence: those it has, else its text split by the rule."""
    if sentence.words is not None:
        return sentence.words
    return tuple(_word_pattern(rule).findall(sentence.text or ""))


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


def load_tokenizer(model: str) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a folder, a Hub name or "package:NAME/FOLDER".

    Byte-level tokenizers (RoBERTa-like) get `add_prefix_space`: without it the words of a sentence
    glue together (METHOD.md section 5). Raises ConfigError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = resolve_model(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        if _lacks_prefix_space(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(path, add_prefix_space=True)
    except Exception as error:  # tokenizers raises bare Exception on a damaged file
        is_absent = path.startswith((".", "/", "~")) and not Path(path).exists()
        reason = "no such folder" if is_absent else " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{model}: no tokenizer could be loaded: {reason}; "
            "expected a folder with tokenizer.json or the name of a model on the Hub"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"{model}: its tokenizer is a {type(tokenizer).__name__}, expected a fast one "
            "(with tokenizer.json), which says what word a token belongs to; convert it first"
        )
    if _lacks_prefix_space(tokenizer):
        _add_prefix_space(tokenizer)
    return tokenizer


def _lacks_prefix_space(tokenizer: Any) -> bool:
    """Whether words would be encoded as if nothing separated them."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    backend = tokenizer.backend_tokenizer
    levels = [step for step in _steps(backend.pre_tokenizer) if step["type"] == "ByteLevel"]
    prepends = {"type": "Prepend", "prepend": " "} in _steps(backend.normalizer)
    return bool(levels) and not levels[0]["add_prefix_space"] and not prepends


def _steps(component: Any) -> list[dict[str, Any]]:
    """Return the settings of a normaliser or pre-tokenizer, one dict a step."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get("pretokenizers") or state.get("normalizers") or [state]


def _add_prefix_space(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Separate words by a space where the tokenizer's class took no notice of the argument.

    A normaliser does it, not the ByteLevel step: that one may come after a split by a regular
    expression, and would then put a space into the middle of "don't".
    """
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    steps = [step for step in (backend.normalizer, normalizers.Prepend(" ")) if step is not None]
    backend.normalizer = normalizers.Sequence(steps)
    tokenizer.add_prefix_space = True


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """32 hexadecimal digits that change with anything that changes how words become ids."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["truncation"], rules["padding"]  # state of the last call
    rules["split_special_tokens"] = tokenizer.split_special_tokens
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:32]


def pad_id_of(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Id of the padding token, 0 where there is none (masked all the same)."""
    pad_id: Any = tokenizer.pad_token_id
    return int(pad_id or 0)


def encode(
    tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sequence[str]], max_length: int
) -> Encoded:
    """Encode sentences of words, each between its special tokens, in at most `max_length` tokens.

    A longer sentence is cut after the last word that fits whole. Where not even its first word
    fits, that word keeps its first tokens; it has a first token still and is not counted as cut.
    A word without any token (a control character) has no first token and is never counted.
    Raises ConfigError when `max_length` has no room beside the special tokens.
    """
    prefix, suffix = _special_ids(tokenizer)
    budget = max_length - len(prefix) - len(suffix)
    if budget < 1:
        raise ConfigError(
            f"tokens.max_length = {max_length}: no room for a word beside the "
            f"{len(prefix) + len(suffix)} special tokens; set it higher"
        )
    ids, word_ids, lengths = _encode_words(tokenizer, sentences)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    kept = _kept_lengths(word_ids, starts, budget)
    firsts = np.concatenate([[0], np.cumsum(is_first(word_ids, starts))])
    cut_words = firsts[starts[1:]] - firsts[starts[:-1] + kept]

    offsets = np.concatenate([[0], np.cumsum(kept + len(prefix) + len(suffix))])
    position = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    is_kept = position < np.repeat(kept, lengths)
    target = (position + np.repeat(offsets[:-1] + len(prefix), lengths))[is_kept]
    result = Encoded(
        ids=np.empty(offsets[-1], np.int32),
        word_ids=np.full(offsets[-1], -1, np.int32),
        offsets=offsets,
        cut_words=cut_words,
    )
    result.ids[target] = ids[is_kept]
    result.word_ids[target] = word_ids[is_kept]
    result.ids[offsets[:-1, None] + np.arange(len(prefix))] = prefix
    result.ids[offsets[1:, None] - len(suffix) + np.arange(len(suffix))] = suffix
    return result


def is_first(
    word_ids: npt.NDArray[np.integer], offsets: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.bool_]:
    """Whether each token is the first of its word: (N,) bool.

    offsets: (S + 1,) where several sentences lie end to end; one may end and the next begin with
    its word 0 when the tokenizer adds no special tokens.
    """
    first = np.ones(len(word_ids), np.bool_)
    first[1:] = word_ids[1:] != word_ids[:-1]
    if offsets is not None:
        first[offsets[:-1][offsets[:-1] < len(first)]] = True
    return first & (word_ids >= 0)


def _special_ids(tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], list[int]]:
    """Return the special ids before and after a sentence."""
    backend = unlimited(tokenizer)
    for probe in PROBES:
        encoding = backend.encode([probe], is_pretokenized=True)
        special = encoding.special_tokens_mask
        if 0 in special:
            begin, end = special.index(0), len(special) - special[::-1].index(0)
            return encoding.ids[:begin], encoding.ids[end:]
    raise ConfigError(f"the tokenizer has no token for any of {', '.join(PROBES)}; is it trained?")


def unlimited(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """Return the Rust tokenizer, without the truncation and padding its file may carry."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _encode_words(
    tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sequence[str]]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Ids (N,), word ids (N,) and lengths (S,), uncut and without special tokens."""
    backend = unlimited(tokenizer)
    ids, word_ids, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int32)], []
    for start in range(0, len(sentences), SENTENCES_PER_CALL):
        group = list(sentences[start : start + SENTENCES_PER_CALL])
        encodings = backend.encode_batch(group, is_pretokenized=True, add_special_tokens=False)
        chain = itertools.chain.from_iterable
        ids.append(np.fromiter(chain(one.ids for one in encodings), np.int32))
        word_ids.append(np.fromiter(chain(one.word_ids for one in encodings), np.int32))
        lengths.extend(map(len, encodings))
    return np.concatenate(ids), np.concatenate(word_ids), np.asarray(lengths, np.int64)


def _kept_lengths(
    word_ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], budget: int
) -> npt.NDArray[np.int64]:
    """(S,) tokens that a sentence keeps: `budget` of them, less those of a word cut in two."""
    kept = np.minimum(np.diff(starts), budget)
    long = np.flatnonzero(np.diff(starts) > budget)
    if len(long) == 0:
        return kept
    first = np.where(is_first(word_ids, starts), np.arange(len(word_ids)), 0)
    word_start = np.maximum.accumulate(first)[starts[long] + budget] - starts[long]
    kept[long] = np.where(word_start > 0, word_start, budget)
    return kept
