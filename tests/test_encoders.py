"""Pre-trained encoders that are cut to a student's size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tagging_task
from transformers import AutoConfig, AutoModel

from xdray.config import StudentConfig
from xdray.encoders import cut_encoder
from xdray.labels import LabelSet
from xdray.student import build_student

MakeTeacher = Callable[..., Path]
KEPT = 40
"""Feed-forward units of 64."""


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_feed_forward_units_without_weight_can_go(
    family: str, make_teacher: MakeTeacher, tmp_path: Path
):
    folder = make_teacher(family, tmp_path / family)
    model: Any = AutoModel.from_pretrained(folder)
    for name, module in model.named_modules():
        with torch.no_grad():
            if name.endswith(("output.dense", "ffn.lin2")) and "attention" not in name:
                module.weight[:, : 64 - KEPT] = 0
    model.save_pretrained(folder)
    vocabulary = model.config.vocab_size
    cut: Any = cut_encoder(str(folder), [1, 2], torch.arange(vocabulary), KEPT)
    ids = torch.arange(10, 24).view(2, 7)
    torch.testing.assert_close(
        cut.eval()(ids).last_hidden_state, model.eval()(ids).last_hidden_state
    )
    cut.save_pretrained(tmp_path / "cut")
    again: Any = AutoModel.from_pretrained(tmp_path / "cut")
    assert torch.equal(again.eval()(ids).last_hidden_state, cut(ids).last_hidden_state)
    saved = 2 * 32 * (64 - KEPT) + 64 - KEPT
    assert model.num_parameters() - again.num_parameters() == 2 * saved


@pytest.mark.parametrize(("asked", "found"), [(None, 0.07), (0.0, 0.0), (0.3, 0.3)])
def test_an_encoder_keeps_its_own_dropout_where_none_is_named(
    asked: float | None, found: float, make_teacher: MakeTeacher, tmp_path: Path
):
    folder = make_teacher("bert", tmp_path / "bert")
    shape = AutoConfig.from_pretrained(folder)
    shape.hidden_dropout_prob = shape.attention_probs_dropout_prob = 0.07
    shape.save_pretrained(folder)
    student = build_student(
        StudentConfig(kind="encoder", start="teacher", dropout=asked),
        vocab_size=shape.vocab_size,
        teacher_width=shape.hidden_size,
        task=tagging_task(LabelSet(("O", "B-PER", "I-PER"))),
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
        encoder=str(folder),
    )
    settings: Any = student.model.config
    assert settings.hidden_dropout_prob == settings.attention_probs_dropout_prob == found
    student.train()
    rates = {its.p for its in student.modules() if isinstance(its, torch.nn.Dropout)}
    assert rates == {found}
