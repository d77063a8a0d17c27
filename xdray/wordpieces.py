"""Tokens of words, each looked up once: a tokenizer takes words that come apart one by one.

A text has few distinct words: five times faster than to tokenise them all again.
"""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

MOST_WORDS = 200_000
"""Remembered at once, about 200 bytes each."""

_KNOWN: "weakref.WeakKeyDictionary[PreTrainedTokenizerFast, tuple[object, dict[str, list[int]]]]"
_KNOWN = weakref.WeakKeyDictionary()


def unlimited(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """Return the Rust tokenizer, without the truncation and padding its file may carry."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def tokens_of_words(tokenizer: "PreTrainedTokenizerFast", words: Sequence[str]) -> list[list[int]]:
    """Token ids of each word, without special tokens.

    A tokenizer may gain tokens between calls; its normaliser and model stay as they are.
    """
    backend = unlimited(tokenizer)
    rules = (tokenizer.split_special_tokens, backend.get_vocab_size())
    before, known = _KNOWN.get(tokenizer, (None, {}))
    if before != rules or len(known) > MOST_WORDS:
        known = {}  # a new one: another thread may be reading the old one
        _KNOWN[tokenizer] = rules, known
    unknown = [word for word in dict.fromkeys(words) if word not in known]
    for start in range(0, len(unknown), MOST_WORDS // 10):
        group = unknown[start : start + MOST_WORDS // 10]
        encodings = backend.encode_batch(
            [[word] for word in group], is_pretokenized=True, add_special_tokens=False
        )
        known.update(zip(group, (one.ids for one in encodings), strict=True))
    return list(map(known.__getitem__, words))
