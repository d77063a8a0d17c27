"""Tagging: one tag a word. Its labels on tokens, its tags from logits, its entities.

N tokens, C classes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xdray.batches import Tokens
from xdray.corpus import Sentence
from xdray.labels import IGNORE_INDEX, OUTSIDE, LabelSet
from xdray.padding import pad, token_budget_batches
from xdray.tokens import encode, is_first, words_of

Forward = Callable[[Tensor, Tensor], Tensor]
"""(input_ids (B, T), attention_mask (B, T)) -> logits (B, T, C), on its own device."""

Entity = tuple[str, int, int]
"""(type, first word, last word), both inside."""


def tokenise(
    tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sequence[str]], max_length: int
) -> tuple[Tokens, int]:
    """Tokens of sentences given as words, and the number of words cut off."""
    encoded = encode(tokenizer, sentences, max_length)
    tokens = Tokens(encoded.ids, encoded.word_ids, encoded.offsets)
    return tokens, int(encoded.cut_words.sum())


def words_and_tags(
    sentences: Sequence[Sentence], rule: str
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Words and gold tags of labelled sentences."""
    return [words_of(s, rule) for s in sentences], [s.tags or () for s in sentences]


def first_tokens(tokens: Tokens) -> NDArray[np.bool_]:
    """(N,) True on the first token of each word."""
    return is_first(tokens.word_ids, tokens.offsets)


def token_labels(
    tokens: Tokens, tags: Sequence[Sequence[str]], labels: LabelSet
) -> NDArray[np.int64]:
    """(N,) the word's label on its first token, else IGNORE_INDEX. tags: a list a sentence."""
    ids = labels.ids
    lengths = np.array([len(sentence) for sentence in tags], dtype=np.int64)
    words = np.array([ids[tag] for sentence in tags for tag in sentence], dtype=np.int64)
    begin = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
    first = first_tokens(tokens)
    flat = np.full(len(tokens.word_ids), IGNORE_INDEX, dtype=np.int64)
    flat[first] = words[np.repeat(begin, tokens.lengths)[first] + tokens.word_ids[first]]
    return flat


def predict_logits(
    forward: Forward, tokens: Tokens, batch_tokens: int, pad_id: int, num_labels: int
) -> NDArray[np.float32]:
    """(N, C) logits of every token, in length-sorted batches without gradients."""
    result = np.zeros((len(tokens.ids), num_labels), dtype=np.float32)
    with torch.inference_mode():
        for rows in token_budget_batches(tokens.lengths, batch_tokens):
            input_ids, mask, index = pad(tokens.ids, tokens.offsets, rows, pad_id)
            logits = forward(input_ids, mask).float().cpu()
            result[index] = logits[mask.bool()].numpy()
    return result


def decode_tags(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int], labels: LabelSet
) -> list[list[str]]:
    """Best tag of each word; a word without a token (cut off, or unreadable) is O."""
    best = logits.argmax(-1)
    first = first_tokens(tokens)
    sentences = np.repeat(np.arange(len(num_words)), tokens.lengths)[first]
    result = [[OUTSIDE] * count for count in num_words]
    for sentence, word, label in zip(
        sentences.tolist(), tokens.word_ids[first].tolist(), best[first].tolist(), strict=True
    ):
        result[sentence][word] = labels.tags[label]
    return result


def word_logits(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int]
) -> NDArray[np.float32]:
    """(words, C) logits of each word's first token, NaN rows for words without a token."""
    first = first_tokens(tokens)
    begin = np.concatenate([[0], np.cumsum(num_words)]).astype(np.int64)
    result = np.full((int(begin[-1]), logits.shape[1]), np.nan, dtype=np.float32)
    result[np.repeat(begin[:-1], tokens.lengths)[first] + tokens.word_ids[first]] = logits[first]
    return result


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Entities of one sentence as seqeval reads them: an I- after O or another type starts one."""
    return [(kind, first, last) for kind, first, last in get_entities(list(tags))]
