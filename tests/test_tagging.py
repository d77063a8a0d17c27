"""Words, tokens and tags, by hand."""

import numpy as np

from xdray.labels import IGNORE_INDEX, LabelSet
from xdray.tasks.tagging import (
    decode_tags,
    entities_of,
    first_tokens,
    token_labels,
    word_logits,
)
from xdray.tokenised import Tokens

LABELS = LabelSet(("O", "B-LOC", "I-LOC"))
# [CLS] w0 w0 w1 [SEP] | [CLS] w0 w2 [SEP]   (word 1 of the second sentence has no token)
TOKENS = Tokens(
    ids=np.arange(9, dtype=np.int32),
    word_ids=np.array([-1, 0, 0, 1, -1, -1, 0, 2, -1], dtype=np.int32),
    offsets=np.array([0, 5, 9]),
)


def test_second_subword_of_a_word_is_never_scored():
    assert np.flatnonzero(first_tokens(TOKENS)).tolist() == [1, 3, 6, 7]
    labels = token_labels(TOKENS, [["B-LOC", "I-LOC"], ["O", "B-LOC", "I-LOC"]], LABELS)
    assert labels.tolist() == [IGNORE_INDEX, 1, IGNORE_INDEX, 2, *[IGNORE_INDEX] * 2, 0, 2, -100]


def test_a_sentence_that_begins_with_a_word_is_not_glued_to_the_one_before():
    tokens = Tokens(np.zeros(2, np.int32), np.array([0, 0], np.int32), np.array([0, 1, 2]))
    assert first_tokens(tokens).tolist() == [True, True]


def test_words_without_a_token_are_outside():
    logits = np.zeros((9, 3), dtype=np.float32)
    logits[[1, 7], 1] = 1
    logits[2, 2] = 9  # a later piece says nothing
    assert decode_tags(logits, TOKENS, [2, 4], LABELS) == [
        ["B-LOC", "O"],
        ["O", "O", "B-LOC", "O"],
    ]


def test_word_logits_are_those_of_the_first_token():
    logits = np.arange(27, dtype=np.float32).reshape(9, 3)
    words = word_logits(logits, TOKENS, [2, 3])
    assert words[[0, 1, 2, 4], 0].tolist() == [3, 9, 18, 21]
    assert np.isnan(words[3]).all()


def test_an_inside_tag_after_another_type_starts_an_entity():
    assert entities_of(["O", "I-LOC", "I-LOC", "B-LOC", "I-PER"]) == [
        ("LOC", 1, 2),
        ("LOC", 3, 3),
        ("PER", 4, 4),
    ]
