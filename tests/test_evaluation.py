"""Scores against seqeval, intervals against a plain loop, latency and size on small real models."""

import math
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
import seqeval.metrics as seqeval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification

from xdray.agreement import class_agreement
from xdray.entities import entity_counts, entity_scores, f1_of
from xdray.evaluation import (
    Resampling,
    gain_interval,
    machine,
    measure_latency,
    num_parameters,
    retention_interval,
)

SEQEVAL: Any = seqeval  # its hints do not know its own zero_division=0
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-geo-area", "I-geo-area"]
TAG_PAIRS = st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS))
SENTENCE = st.tuples(st.sampled_from(["en", "sw", "ti"]), st.lists(TAG_PAIRS, max_size=9))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.lists(SENTENCE, min_size=1, max_size=8))
def test_scores_are_those_of_seqeval_in_both_modes(sentences):
    gold = [[tag for tag, _ in pairs] for _, pairs in sentences]
    predicted = [[tag for _, tag in pairs] for _, pairs in sentences]
    languages = [language for language, _ in sentences]
    scores = entity_scores(gold, predicted, languages)
    micro = {"average": "micro", "zero_division": 0}
    for name, function in (
        ("precision", seqeval.precision_score),
        ("recall", seqeval.recall_score),
        ("entity_f1", seqeval.f1_score),
    ):
        assert scores[name] == pytest.approx(function(gold, predicted, **micro))
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    assert scores["entity_f1_strict"] == pytest.approx(SEQEVAL.f1_score(gold, predicted, **strict))
    if scores["by_type"]:
        by_type = SEQEVAL.f1_score(gold, predicted, average=None, zero_division=0)
        assert list(scores["by_type"].values()) == pytest.approx(list(by_type))
        macro = SEQEVAL.f1_score(gold, predicted, average="macro", zero_division=0)
        assert scores["macro_f1"] == pytest.approx(macro)
    assert list(scores["by_language"]) == sorted(set(languages))
    for language, row in scores["by_language"].items():
        rows = [i for i, name in enumerate(languages) if name == language]
        ours, theirs = [gold[i] for i in rows], [predicted[i] for i in rows]
        assert row["sentences"] == len(rows)
        assert row["entity_f1"] == pytest.approx(SEQEVAL.f1_score(ours, theirs, zero_division=0))
        assert row["entity_f1_strict"] == pytest.approx(SEQEVAL.f1_score(ours, theirs, **strict))


def test_an_inside_tag_that_continues_nothing_is_an_entity_only_in_default_mode():
    gold = [["B-LOC", "I-LOC", "O"], ["B-PER"]]
    predicted = [["I-LOC", "I-LOC", "O"], ["B-PER"]]
    scores = entity_scores(gold, predicted, ["en", "en"])
    assert scores["entity_f1"] == 1.0
    assert scores["entity_f1_strict"] == pytest.approx(2 / 3)  # 1 found of 1 predicted, 2 gold
    assert entity_counts(gold, predicted).tolist() == [[1, 1, 1], [1, 1, 1]]
    strict = entity_counts(gold, predicted, metric="entity_f1_strict")
    assert strict.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_an_entity_ends_with_its_sentence_and_empty_sentences_count_nothing():
    gold = [[], ["O", "B-LOC"], [], ["I-LOC", "O"], []]
    assert entity_counts(gold, gold)[:, 2].tolist() == [0, 1, 0, 1, 0]


def test_mean_over_languages_leaves_out_those_without_a_gold_entity():
    gold = [["B-LOC"], ["B-LOC", "O", "B-PER"], ["O"]]
    predicted = [["B-LOC"], ["B-LOC", "O", "O"], ["B-PER"]]
    scores = entity_scores(gold, predicted, ["en", "sw", "ti"])
    f1 = [1.0, 2 / 3]  # ti has none
    assert scores["mean_language_f1"] == pytest.approx(sum(f1) / 2)
    assert scores["std_language_f1"] == pytest.approx((f1[0] - f1[1]) / 2)  # population
    assert scores["by_language"]["ti"] == {
        "entity_f1": 0.0,
        "entity_f1_strict": 0.0,
        "sentences": 1,
        "entities": 0,
    }


def test_no_sentence_at_all_scores_zero_without_a_warning():
    scores = entity_scores([], [], [])
    assert scores["entity_f1"] == scores["mean_language_f1"] == scores["macro_f1"] == 0.0
    assert scores["by_language"] == scores["by_type"] == {}


def test_predictions_of_another_length_than_gold_are_refused():
    with pytest.raises(AssertionError, match="a tag for each gold word"):
        entity_scores([["O", "O"]], [["O"]], ["en"])


def made_up_counts(seed, share, size=400):
    """Counts of a system that finds about `share` of 1 to 3 gold entities a sentence."""
    rng = random.Random(seed)
    rows = []
    for i in range(size):
        gold = 1 + i % 3
        hits = sum(rng.random() < share for _ in range(gold))
        rows.append([hits, hits + (rng.random() < 0.3), gold])
    return np.array(rows)


def plain_f1(rows):
    hits, predicted, gold = (sum(int(row[k]) for row in rows) for k in range(3))
    return 2 * hits / (predicted + gold)


def plain_metric(counts, languages, metric):
    if metric != "mean_language_f1":
        return plain_f1(counts)
    groups = sorted(set(languages))
    return sum(
        plain_f1([c for c, name in zip(counts, languages, strict=True) if name == group])
        for group in groups
    ) / len(groups)


def resampling(languages, metric, resamples, seed):
    def value(sums):
        return np.where(sums[..., 2] > 0, f1_of(sums), np.nan)

    groups = languages if metric == "mean_language_f1" else None
    return Resampling(value=value, resamples=resamples, seed=seed, groups=groups)


@pytest.mark.parametrize("metric", ["entity_f1", "mean_language_f1"])
def test_intervals_are_those_of_a_bootstrap_in_plain_loops(metric):
    first, second = made_up_counts(1, 0.9), made_up_counts(2, 0.7)
    languages = ["en" if i % 4 else "sw" for i in range(len(first))]  # 3 : 1
    rng = random.Random(3)
    ratios, differences = [], []
    for _ in range(600):
        drawn = [rng.randrange(len(first)) for _ in first]
        names = [languages[i] for i in drawn]
        one, other = (plain_metric([c[i] for i in drawn], names, metric) for c in (first, second))
        ratios.append(other / one)
        differences.append(other - one)
    retention = retention_interval(first, second, resampling(languages, metric, 3000, 0))
    gain = gain_interval(first, second, resampling(languages, metric, 3000, 0))
    assert retention == pytest.approx(np.percentile(ratios, (2.5, 97.5)), abs=0.006)
    assert gain == pytest.approx(np.percentile(differences, (2.5, 97.5)), abs=0.006)


@pytest.mark.parametrize("metric", ["entity_f1", "mean_language_f1"])
def test_both_systems_are_resampled_alike(metric):
    counts = made_up_counts(1, 0.6)
    languages = [f"l{i % 7}" for i in range(len(counts))]
    assert retention_interval(counts, counts, resampling(languages, metric, 200, 1)) == (1.0, 1.0)
    assert gain_interval(counts, counts, resampling(languages, metric, 200, 1)) == (0.0, 0.0)


def test_there_is_no_interval_without_resamples_or_for_a_teacher_that_finds_nothing():
    student = made_up_counts(1, 0.6, size=30)
    teacher = student * np.array([0, 1, 1])
    languages = ["en"] * 30
    assert retention_interval(teacher, student, resampling(languages, "entity_f1", 50, 0)) is None
    assert retention_interval(student, teacher, resampling(languages, "entity_f1", 0, 0)) is None
    assert gain_interval(student, teacher, resampling(languages, "entity_f1", 0, 0)) is None


def test_a_thousand_resamples_of_40000_sentences_stay_under_200_mb():
    counts = np.tile(made_up_counts(1, 0.6), (100, 1))
    languages = [f"l{i % 41}" for i in range(len(counts))]
    tracemalloc.start()
    retention_interval(counts, counts, resampling(languages, "mean_language_f1", 1000, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_agreement_is_the_share_of_equal_classes_and_the_mean_kl():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(7, 5)).astype(np.float32)
    student = teacher + rng.normal(size=teacher.shape).astype(np.float32)
    equal, nats = 0, 0.0
    for p_logits, q_logits in zip(teacher, student, strict=True):
        p, q = ([math.exp(v) for v in logits.tolist()] for logits in (p_logits, q_logits))
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        nats += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        equal += p.index(max(p)) == q.index(max(q))
    found = class_agreement(teacher, student)
    assert found == {
        "equal": pytest.approx(equal / 7),
        "mean_kl": pytest.approx(nats / 7),
        "units": 7,
    }
    assert class_agreement(teacher[:0], student[:0]) == {"equal": 0.0, "mean_kl": 0.0, "units": 0}


class Recorder:
    """A small real model that notes what it was called with."""

    def __init__(self, name, vocabulary, calls):
        torch.manual_seed(0)
        self.name, self.calls = name, calls
        self.model = nn.Sequential(nn.Embedding(vocabulary, 8), nn.Linear(8, 4))

    def __call__(self, input_ids, attention_mask):
        assert not torch.is_grad_enabled()
        assert input_ids.dtype == attention_mask.dtype == torch.int64
        assert attention_mask.all()
        self.calls.append((self.name, *input_ids.shape, int(input_ids.max())))
        return self.model(input_ids)  # an id outside the vocabulary would raise here


def test_latency_takes_turns_between_the_names_at_batch_1_and_32():
    calls = []
    sizes = {"teacher": 1000, "student": 30}
    forwards = {name: Recorder(name, size, calls) for name, size in sizes.items()}
    result = measure_latency(forwards, sizes, length=12, device="cpu", seed=0, budget_seconds=0.0)
    # without a budget one turn each: 1 call sets up, 1 brings the weights back, 5 are timed
    assert [call[:3] for call in calls[:14]] == [("teacher", 1, 12)] * 7 + [("student", 1, 12)] * 7
    assert calls[14][:3] == ("teacher", 32, 12)
    assert max(call[3] for call in calls if call[0] == "teacher") > 900
    assert set(result) == set(sizes)
    for by_batch in result.values():
        assert list(by_batch) == ["batch_1", "batch_32"]
        assert all(0 < times["median"] <= times["p95"] for times in by_batch.values())


def test_latency_ends_at_100_timed_calls_a_name():
    calls = []
    forwards = {name: Recorder(name, 30, calls) for name in ("teacher", "student")}
    sizes = dict.fromkeys(forwards, 30)
    measure_latency(forwards, sizes, length=4, device="cpu", seed=0, budget_seconds=1e9)
    turns = [call[0] for call in calls if call[1] == 1]
    assert len(turns) == 2 * (1 + 20 * 6)
    assert turns[:20] == ["teacher"] * 7 + ["student"] * 7 + ["teacher"] * 6


def test_parameters_are_counted_once_and_the_token_embeddings_apart():
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    config.num_labels = 3
    embeddings = (50 + 20 + 2) * 8 + 2 * 8  # words, positions, segments, norm
    layer = 4 * (8 * 8 + 8) + 2 * 8 + (8 * 16 + 16) + (16 * 8 + 8) + 2 * 8
    assert num_parameters(BertForTokenClassification(config)) == (
        embeddings + layer + 8 * 3 + 3,
        50 * 8,
    )
    head = (8 * 8 + 8) + 2 * 8 + 50  # transform, norm, bias; its matrix is the embedding's
    assert num_parameters(BertForMaskedLM(config)) == (embeddings + layer + head, 50 * 8)


def test_machine_names_the_processor_and_the_versions_in_use():
    found = machine()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
    assert found["cpus"] >= 1
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
