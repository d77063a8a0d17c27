"""Losses against plain loops and torch's own answers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xdray.labels import IGNORE_INDEX
from xdray.losses import (
    label_loss,
    logit_loss,
    representation_kl_loss,
    representation_loss,
    soft_target_loss,
)


def _values(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_representation_loss_is_the_squared_error_meaned_over_the_width():
    hidden, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    loss_sum = representation_loss(hidden, target)
    assert loss_sum.item() == pytest.approx((1 + 4) / 2 + 4 / 2)


def test_logit_loss_in_half_precision_is_computed_in_float32():
    logits = torch.full((1, 3), 300.0, dtype=torch.bfloat16)
    loss_sum = logit_loss(logits, torch.zeros(1, 3))
    assert loss_sum.dtype == torch.float32
    assert loss_sum.item() == pytest.approx(300.0**2)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_soft_target_loss_is_kl_of_the_softmaxes_times_temperature_squared(temperature: float):
    logits, teacher = _values(4, 5, 0), _values(4, 5, 1)
    expected = 0.0
    for row, target in zip(logits.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in target]
        q = [math.exp(v / temperature) for v in row]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss_sum = soft_target_loss(logits, teacher, temperature)
    assert loss_sum.item() == pytest.approx(expected * temperature**2, rel=1e-5)


def test_soft_targets_keep_the_size_of_gradients_as_temperature_rises():
    norms = []
    for temperature in (1.0, 8.0):
        logits = _values(64, 7, 0).mul(0.1).requires_grad_()
        soft_target_loss(logits, _values(64, 7, 1).mul(0.1), temperature).backward()
        assert logits.grad is not None
        norms.append(logits.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_representation_kl_is_zero_only_between_equal_states():
    hidden = _values(3, 8, 0)
    assert representation_kl_loss(hidden, hidden).item() == pytest.approx(0.0, abs=1e-6)
    assert representation_kl_loss(hidden, -hidden).item() > 0.1


def test_label_loss_leaves_out_ignored_tokens():
    logits = _values(4, 3, 0)
    labels = torch.tensor([2, IGNORE_INDEX, 0, IGNORE_INDEX])
    expected = -(logits.log_softmax(-1)[0, 2] + logits.log_softmax(-1)[2, 0])
    loss_sum = label_loss(logits, labels)
    assert loss_sum.item() == pytest.approx(expected.item(), rel=1e-6)


@given(cut=st.integers(0, 6), seed=st.integers(0, 1000))
def test_a_split_batch_has_the_same_loss_sum(cut: int, seed: int):
    hidden, teacher = _values(6, 4, seed), _values(6, 4, seed + 1)
    labels = torch.arange(6) % 4
    for loss in (representation_loss, logit_loss, lambda a, b: soft_target_loss(a, b, 2.0)):
        whole = loss(hidden, teacher)
        parts = loss(hidden[:cut], teacher[:cut]) + loss(hidden[cut:], teacher[cut:])
        torch.testing.assert_close(whole, parts)
    whole = label_loss(hidden, labels)
    parts = label_loss(hidden[:cut], labels[:cut]) + label_loss(hidden[cut:], labels[cut:])
    torch.testing.assert_close(whole, parts)
