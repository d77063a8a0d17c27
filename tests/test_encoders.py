"""Pre-trained encoders that are cut to a student's size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from xdray.encoders import cut_encoder

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
