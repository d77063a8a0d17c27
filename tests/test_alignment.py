"""Two tokenisations of a text: which tokens begin alike, and the teacher's words under others."""

import numpy as np
import pytest
import torch
from conftest import MakeTeacher, tagging_task

from xdray.alignment import StretchHidden, match_characters, under_own_tokens
from xdray.batches import Batch, collate
from xdray.config import TaskConfig
from xdray.kinds import task_class
from xdray.labels import LabelSet
from xdray.learner import Observed
from xdray.sentences import TextPair
from xdray.stages import Term
from xdray.task import own_tokens
from xdray.terms import term_loss
from xdray.tokenised import Tokens, stretches
from xdray.tokens import Encoded, encode_texts, load_tokenizer

TEXTS = (
    "Anna lives in Lyon.",
    "  Zo\u00eb  na\u00efve caf\u00e9 \U0001f600\U0001f680 don't",
    TextPair("Who lives there?", "Anna  and Bob live in Lyon, he said."),
    "\u4e1c\u4eac Tokyo",
    TextPair("A", ""),
    "x",
)


@pytest.mark.parametrize("own", ["bert", "xlm-roberta", "roberta"])
@pytest.mark.parametrize("teacher", ["roberta", "bert", "deberta-v2"])
def test_matched_tokens_begin_at_the_same_character(
    make_teacher: MakeTeacher, own: str, teacher: str
):
    mine, theirs = (
        encode_texts(load_tokenizer(str(make_teacher(its))), TEXTS, 64, spans=True)
        for its in (own, teacher)
    )
    matches = match_characters(mine, theirs, TEXTS)
    assert len(matches) == len(mine.ids)
    for row, content in enumerate(TEXTS):
        places = range(mine.offsets[row], mine.offsets[row + 1])
        start, stop = theirs.offsets[row : row + 2]
        found = [(place, start + matches[place]) for place in places if matches[place] >= 0]
        assert found[0] == (mine.offsets[row], start)  # [CLS] or its like
        assert found[-1] == (mine.offsets[row + 1] - 1, stop - 1)  # [SEP]
        assert [b for _, b in found] == sorted({b for _, b in found})
        inner = [pair for pair in found if mine.word_ids[pair[0]] >= 0]
        for a, b in inner:
            assert theirs.word_ids[b] >= 0
            texts = [content.first, content.second] if isinstance(content, TextPair) else [content]
            ends = [spans_of(its)[at] for its, at in ((mine, a), (theirs, b))]
            words = [{text[s:e].strip()[:1] for text in texts} for s, e in ends]
            assert words[0] & words[1]
    sentence = range(mine.offsets[0], mine.offsets[1])
    starts = {int(spans_of(mine)[p, 0]) for p in sentence if matches[p] >= 0}
    assert {0, 5, 11, 14, 18} <= {s + (s > 0 and TEXTS[0][s] == " ") for s in starts}


def test_words_match_by_their_number_whatever_their_pieces(make_teacher: MakeTeacher):
    tokenizers = [load_tokenizer(str(make_teacher(its))) for its in ("bert", "roberta")]
    task = tagging_task(LabelSet(("O", "B-PER")), max_length=12)
    contents = [("Anna", "unbelievably", "lives"), ("Bob",)]
    own = own_tokens(task, tokenizers[0], tokenizers[1], contents)
    theirs = task.encode(tokenizers[1], contents)
    assert own.matches is not None
    for place in np.flatnonzero(own.matches >= 0):
        row = int(np.searchsorted(own.offsets, place, side="right") - 1)
        assert theirs.word_ids[theirs.offsets[row] + own.matches[place]] == own.word_ids[place]
    assert sum(own.matches >= 0) == len(set(zip_words(own)) & set(zip_words(theirs)))
    assert (own.matches[own.word_ids < 0] == -1).all()


def spans_of(encoded: Encoded) -> np.ndarray:
    assert encoded.spans is not None
    return encoded.spans


def zip_words(tokens: Tokens | Encoded) -> list[tuple[int, int]]:
    owner = np.repeat(np.arange(len(tokens.offsets) - 1), np.diff(tokens.offsets))
    return [(a, b) for a, b in zip(owner.tolist(), tokens.word_ids.tolist(), strict=True) if b >= 0]


class Table:
    """Hidden states held as they are."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def take(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


def a_pair() -> tuple[Tokens, Tokens]:
    """[CLS] ab|c d [SEP] of the student, [CLS] a|bc d [SEP] of the teacher, twice."""
    words = np.array([-1, 0, 0, 1, -1] * 2, np.int32)
    offsets = np.array([0, 5, 10])
    matches = np.array([0, 1, -1, 3, 4] * 2, np.int32)
    own = Tokens(np.arange(10, dtype=np.int32), words, offsets, matches=matches)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((10, 2)).astype(np.float32)
    hidden = Table(rng.standard_normal((10, 3)).astype(np.float32))
    teacher = Tokens(own.ids, words, offsets, logits, {1: hidden})
    for its in (own, teacher):
        its.keeps_special = True
    return own, teacher


def test_stretches_end_before_the_next_and_before_special_tokens():
    own, _ = a_pair()
    assert own.matches is not None
    found = stretches(own.matches >= 0, own.word_ids, own.offsets)
    assert found.tolist() == [0, 1, 1, 3, 4, 5, 6, 6, 8, 9]
    lost = own.matches >= 0
    lost[1] = False  # not begun alike: of no stretch, and not of [CLS]'s
    assert stretches(lost, own.word_ids, own.offsets).tolist()[:5] == [0, -1, -1, 3, 4]


@pytest.mark.parametrize("pieces", ["first", "mean"])
def test_what_the_teacher_said_comes_under_the_students_tokens(pieces: str):
    own, teacher = a_pair()
    said = under_own_tokens(own, teacher, "logsumexp", pieces)
    states = teacher.hidden[1].take(np.arange(10))
    expected = states[[1, 3]] if pieces == "first" else [states[1:3].mean(0), states[3]]
    assert isinstance(said.hidden[1], StretchHidden)
    np.testing.assert_allclose(said.hidden[1].take(np.array([1, 3])), expected, rtol=1e-6)
    assert said.logits is not None
    assert teacher.logits is not None
    sums = np.log(np.exp(teacher.logits[[1, 2]]).sum(0))
    np.testing.assert_allclose(said.logits[1], sums, rtol=1e-5)
    np.testing.assert_allclose(said.logits[[0, 3, 4]], teacher.logits[[0, 3, 4]], rtol=1e-6)


def test_losses_see_stretches_of_both_sides():
    own, teacher = a_pair()
    tokens = under_own_tokens(own, teacher, "logsumexp", "mean")
    batch = collate([(tokens, np.array([0, 1]))], pad_id=0, id_map=None)
    assert batch.kept.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    task = task_class("answering")(
        labels=LabelSet(("start", "end")),
        metric="f1",
        settings=TaskConfig(kind="answering"),
        word_rule="punctuation",
        max_length=48,
        scheme="IOB2",
    )
    # a student that says what the teacher says, spread over other tokens
    ours = torch.zeros(2, 5, 2)
    states = torch.zeros(2, 5, 3)
    for row in range(2):
        for mine, theirs in ((0, [0]), (1, [1, 2]), (3, [3]), (4, [4])):
            its = torch.tensor(teacher.logits)[5 * row + torch.tensor(theirs)]
            ours[row, mine] = its.logsumexp(0)
            mean = torch.tensor(teacher.hidden[1].take(5 * row + np.array(theirs)).mean(0))
            states[row, mine] = mean
            if mine == 1:
                states[row, 2] = mean
        ours[row, 2] = -40.0
    found = Observed(ours, {-1: states}, {})
    for term in (a_term("hidden", pieces="mean", layer=1), a_term("logits", distance="kl")):
        assert loss(term, found, batch, task) == pytest.approx(0.0, abs=1e-5)
    states[0, 2] += 1.0
    assert loss(a_term("hidden", pieces="mean", layer=1), found, batch, task) > 0.1
    assert loss(a_term("hidden", layer=1), found, batch, task) == pytest.approx(0.0, abs=1e-5)


def a_term(loss: str, distance: str = "mse", pieces: str = "first", layer: int | None = None):
    return Term(
        loss=loss,
        split="transfer",
        weight=1.0,
        distance=distance,
        temperature=1.0,
        layer=layer,
        tokens="all",
        pieces=pieces,
    )


def loss(term: Term, found: Observed, batch: Batch, task: object) -> float:
    return float(term_loss(term, found, batch, task, (0, 0)))  # type: ignore[arg-type]
