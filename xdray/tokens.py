"""Words to tokens (subwords): splitting text, encoding, cutting to length.

Letters: N tokens of all sentences end to end, S sentences, V ids of a vocabulary. transformers is
imported where a tokenizer is loaded or built, so that splitting words costs nothing.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xdray.errors import ConfigError
from xdray.header import resolve_model
from xdray.sentences import Content, TextPair, text_of
from xdray.weights import trusted
from xdray.wordpieces import tokens_of_words, unlimited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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
    spans: npt.NDArray[np.int32] | None = None
    """(N, 2) characters of its own text that a token stands for, -1 on special tokens."""


def load_tokenizer(model: str) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a folder, a Hub name or "package:NAME/FOLDER".

    Byte-level tokenizers (RoBERTa-like) get `add_prefix_space`: without it the words of a sentence
    glue together (METHOD.md section 5). Raises ConfigError.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = resolve_model(model)
    try:
        code = {"trust_remote_code": trusted("remote_code")}
        tokenizer = AutoTokenizer.from_pretrained(path, **code)
        if _lacks_prefix_space(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(path, add_prefix_space=True, **code)
        tokenizer([" ".join(PROBES), "\U0001f600\u0f00"])  # what cannot encode is damaged too
    except BaseException as error:  # tokenizers raises Exception, or panics, on a damaged file
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
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
    tokenizer.chat_template = None  # an encoder needs none; saved, its names would name files
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
    prefix, _, suffix = _special_ids(tokenizer)
    budget = _budget(max_length, prefix, suffix)
    side = _encode_words(tokenizer, sentences)
    kept = _kept_lengths(side.word_ids, side.starts, budget)
    offsets = np.concatenate([[0], np.cumsum(kept + len(prefix) + len(suffix))])
    result = _blank(offsets, side.cut_words(kept))
    side.copy(result, kept, offsets[:-1] + len(prefix), 0)
    result.ids[offsets[:-1, None] + np.arange(len(prefix))] = prefix
    result.ids[offsets[1:, None] - len(suffix) + np.arange(len(suffix))] = suffix
    return result


def encode_texts(
    tokenizer: "PreTrainedTokenizerFast",
    contents: Sequence[Content],
    max_length: int,
    *,
    cut_second: bool = False,
    spans: bool = False,
) -> Encoded:
    """Encode raw texts and pairs of them, as they are, in at most `max_length` tokens.

    A pair that is too long loses tokens of its longer text; with `cut_second` only of the second,
    while the first fits half of the room. word_ids go on counting in the second text. spans: also
    say which characters each token stands for. Words given as such are joined by spaces.
    """
    prefix, middle, suffix = _special_ids(tokenizer)
    is_pair = np.array([isinstance(content, TextPair) for content in contents], np.int64)
    between = is_pair * len(middle)
    room = _budget(max_length, prefix, suffix) - between
    if (room < 2).any():
        _budget(0, prefix, suffix)
    texts = [c.first if isinstance(c, TextPair) else text_of(c) for c in contents]
    seconds = [c.second if isinstance(c, TextPair) else "" for c in contents]
    one, two = (_encode_side(tokenizer, its, spans) for its in (texts, seconds))
    half = room // 2
    rest = np.maximum(room - two.lengths, half if cut_second else room - half)
    kept_one = np.minimum(one.lengths, rest)
    kept_two = np.minimum(two.lengths, room - kept_one)
    sizes = len(prefix) + kept_one + between + kept_two + len(suffix)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    cut = one.cut_words(kept_one) + two.cut_words(kept_two)
    result = _blank(offsets, cut, spans)
    first = offsets[:-1] + len(prefix)
    one.copy(result, kept_one, first, 0)
    two.copy(result, kept_two, first + kept_one + between, one.num_words)
    pairs = np.flatnonzero(is_pair)
    for places, ids in (
        (offsets[:-1], prefix),
        ((first + kept_one)[pairs], middle),
        (offsets[1:] - len(suffix), suffix),
    ):
        result.ids[places[:, None] + np.arange(len(ids))] = ids
    return result


def _budget(max_length: int, prefix: Sequence[int], suffix: Sequence[int]) -> int:
    """Tokens beside the special ones."""
    budget = max_length - len(prefix) - len(suffix)
    if budget < 1:
        raise ConfigError(
            f"tokens.max_length = {max_length}: no room for a word beside the "
            f"{len(prefix) + len(suffix)} special tokens; set it higher"
        )
    return budget


def _blank(
    offsets: npt.NDArray[np.int64], cut_words: npt.NDArray[np.int64], spans: bool = False
) -> Encoded:
    return Encoded(
        ids=np.empty(offsets[-1], np.int32),
        word_ids=np.full(offsets[-1], -1, np.int32),
        offsets=offsets,
        cut_words=cut_words,
        spans=np.full((offsets[-1], 2), -1, np.int32) if spans else None,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """One text of each sentence as tokens, uncut and without special tokens."""

    ids: npt.NDArray[np.int32]
    word_ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int32] | None

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def num_words(self) -> npt.NDArray[np.int64]:
        """(S,) one more than the last word id."""
        last = np.zeros(len(self.lengths), np.int64)
        some = self.lengths > 0
        last[some] = self.word_ids[self.starts[1:][some] - 1] + 1
        return last

    def cut_words(self, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(S,) words without a token among the first `kept` of each sentence."""
        starts = self.starts
        firsts = np.concatenate([[0], np.cumsum(is_first(self.word_ids, starts))])
        return firsts[starts[1:]] - firsts[starts[:-1] + kept]

    def copy(
        self,
        result: Encoded,
        kept: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        word: npt.NDArray[np.int64] | int,
    ) -> None:
        """Copy the first `kept` tokens of each sentence to `places` on; words count from `word`."""
        lengths = self.lengths
        position = np.arange(len(self.ids)) - np.repeat(self.starts[:-1], lengths)
        is_kept = position < np.repeat(kept, lengths)
        target = (position + np.repeat(places, lengths))[is_kept]
        first = np.repeat(np.broadcast_to(word, lengths.shape), lengths)
        result.ids[target] = self.ids[is_kept]
        result.word_ids[target] = (self.word_ids + first)[is_kept]
        if result.spans is not None and self.spans is not None:
            result.spans[target] = self.spans[is_kept]


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


def _special_ids(
    tokenizer: "PreTrainedTokenizerFast",
) -> tuple[list[int], list[int], list[int]]:
    """Return the special ids before a sentence, between the two of a pair, and after the last."""
    backend = unlimited(tokenizer)
    for probe in PROBES:
        encoding = backend.encode([probe], [probe], is_pretokenized=True)
        special = encoding.special_tokens_mask
        if 0 not in special:
            continue
        ids, begin, end = encoding.ids, special.index(0), len(special) - special[::-1].index(0)
        inside = [at for at in range(begin, end) if special[at]]
        middle = ids[inside[0] : inside[-1] + 1] if inside else []
        return ids[:begin], middle, ids[end:]
    raise ConfigError(f"the tokenizer has no token for any of {', '.join(PROBES)}; is it trained?")


def _encode_words(
    tokenizer: "PreTrainedTokenizerFast", sentences: Sequence[Sequence[str]]
) -> _Side:
    """Encode sentences of words."""
    chain = itertools.chain.from_iterable
    sizes = np.fromiter(map(len, sentences), np.int64, len(sentences))
    tokens = tokens_of_words(tokenizer, list(chain(sentences)))
    counts = np.fromiter(map(len, tokens), np.int64, len(tokens))
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.concatenate([[0], np.cumsum(counts)])
    words = np.arange(len(tokens)) - np.repeat(firsts[:-1], sizes)
    return _Side(
        np.fromiter(chain(tokens), np.int32, ends[-1]),
        np.repeat(words, counts).astype(np.int32),
        np.diff(ends[firsts]),
        None,
    )


def _encode_side(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], spans: bool = False
) -> _Side:
    """Encode texts."""
    backend = unlimited(tokenizer)
    ids, word_ids, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int32)], []
    places = [np.empty((0, 2), np.int32)]
    chain = itertools.chain.from_iterable
    for start in range(0, len(texts), SENTENCES_PER_CALL):
        group = list(texts[start : start + SENTENCES_PER_CALL])
        encodings = backend.encode_batch(group, add_special_tokens=False)
        ids.append(np.fromiter(chain(one.ids for one in encodings), np.int32))
        word_ids.append(np.fromiter(chain(one.word_ids for one in encodings), np.int32))
        lengths.extend(map(len, encodings))
        if spans:
            flat = np.fromiter(chain(chain(one.offsets) for one in encodings), np.int32)
            places.append(flat.reshape(-1, 2))
    return _Side(
        np.concatenate(ids),
        np.concatenate(word_ids),
        np.asarray(lengths, np.int64),
        np.concatenate(places) if spans else None,
    )


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
