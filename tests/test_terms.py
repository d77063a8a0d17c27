"""Terms on layers, attention and relations: the maps, the losses, what they are divided by."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tagging_task
from torch import Tensor
from transformers import AutoModelForTokenClassification

from xdray.batches import Batch, collate
from xdray.checks import check_plan
from xdray.config import Config, StudentConfig
from xdray.configfile import make_config
from xdray.errors import ConfigError
from xdray.labels import LabelSet
from xdray.learner import Wanted
from xdray.losses import attention_loss, attention_maps, relation_loss
from xdray.recipes import plan_stages
from xdray.sessions import LocalSession
from xdray.stages import LAST, compared_layers, needed_layers
from xdray.steps import Stepper
from xdray.student import build_student
from xdray.teacher import load_teacher
from xdray.tokenised import Tokens, qkv

MakeTeacher = Callable[..., Path]
LABELS = LabelSet(("O", "B-X", "I-X"))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "electra", "distilbert"])
def test_maps_from_queries_and_keys_are_the_models_own(family: str, make_teacher: MakeTeacher):
    folder = str(make_teacher(family))
    ids = torch.arange(10, 22).view(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    _, found = load_teacher(folder, tagging_task(), torch.float32).forward(ids, mask, (qkv(2),))
    model: Any = AutoModelForTokenClassification.from_pretrained(
        folder, attn_implementation="eager"
    )
    expected = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions[1]
    maps = attention_maps(found[qkv(2)], mask, heads=2)
    torch.testing.assert_close(maps[0], expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps[1, :, :4, :4], expected[1, :, :4, :4], atol=1e-5, rtol=1e-4)


def test_products_of_attention_and_relations_stay_float32_under_autocast():
    vectors, theirs = torch.randn(2, 2, 6, 24, generator=torch.manual_seed(0))
    mask = torch.ones(2, 6, dtype=torch.int64)
    maps, relations = attention_maps(vectors, mask, 2), relation_loss(vectors, theirs, mask, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_maps(vectors, mask, 2), maps)
        assert relation_loss(vectors, theirs, mask, 2) == relations


def test_a_family_with_other_attention_is_refused(make_teacher: MakeTeacher):
    teacher = load_teacher(str(make_teacher("deberta-v2")), tagging_task(), torch.float32)
    ids = torch.arange(10, 14).view(1, 4)
    with pytest.raises(ConfigError, match="queries, keys and values are not known"):
        teacher.forward(ids, torch.ones_like(ids), (qkv(1),))


def loops(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    """Squared error of maps, mean over real columns and heads, summed over real rows."""
    total = 0.0
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for i in range(length):
            errors = [
                (float(ours[b, a, i, j]) - float(theirs[b, a, i, j])) ** 2
                for a in range(ours.shape[1])
                for j in range(length)
            ]
            total += sum(errors) / len(errors)
    return total


def test_attention_loss_is_that_of_plain_loops_and_sees_no_padding():
    torch.manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 12) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    maps = attention_maps(ours, mask, 2), attention_maps(theirs, mask, 2)
    expected = loops(maps[0], maps[1], mask)
    assert float(attention_loss(maps[0], maps[1], mask)) == pytest.approx(expected, rel=1e-5)
    ours[1, 3:] = 99  # garbage under the mask
    other = attention_maps(ours, mask, 2)
    assert float(attention_loss(other, maps[1], mask)) == pytest.approx(expected, rel=1e-5)


def test_relation_loss_is_that_of_plain_loops_whatever_the_widths():
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 4, 3 * 6).double(), torch.randn(2, 4, 3 * 10).double()
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    total = 0.0
    for b, length in ((0, 4), (1, 2)):
        for part in range(3):
            for head in range(2):
                rows = []
                for vectors, width in ((ours, 6), (theirs, 10)):
                    start, size = part * width + head * width // 2, width // 2
                    its = vectors[b, :length, start : start + size]
                    rows.append(torch.softmax(its @ its.T / size**0.5, dim=-1))
                total += float((rows[1] * (rows[1] / rows[0]).log()).sum())
    assert float(relation_loss(ours, theirs, mask, 2)) == pytest.approx(total / 6, rel=1e-5)


def config(**sections: Any) -> Config:
    values = {
        "run": {"folder": "x"},
        "data": {"train": "a", "dev": "b", "test": "c", "transfer": "t"},
        "teacher": {"model": "m"},
        "student": {"kind": "transformer", "embedding": 6, "hidden": 8, "layers": 2, "heads": 2},
        "training": {"autocast": "none", "epochs": 2},
    }
    return make_config({**values, **sections}, "test")


def recipe(*terms: dict[str, Any], **stage: Any) -> dict[str, Any]:
    full = [{"split": "transfer", **term} for term in terms]
    return {"name": "custom", "stages": [{"name": "s", "terms": full, **stage}]}


def test_all_layers_are_paired_with_the_top_of_the_teacher():
    its = config(recipe=recipe({"loss": "hidden", "layers": "all"}, {"loss": "relations"}))
    (stage,) = plan_stages(its, 6)
    assert [(t.loss, t.student_layer, t.layer) for t in stage.terms] == [
        ("hidden", 0, 4),
        ("hidden", 1, 5),
        ("hidden", LAST, 6),
        ("relations", LAST, 6),
    ]
    assert needed_layers([stage]) == (4, 5, 6, "qkv-6")
    assert compared_layers([stage]) == (0, 1)
    assert [t.normalise for t in stage.terms] == [True, True, True, False]


def test_a_layerwise_stage_trains_one_layer_after_the_other_from_below():
    its = config(recipe=recipe({"loss": "hidden", "layers": "all"}, layerwise=True))
    stages = plan_stages(its, 6)
    assert [(s.name, s.trainable) for s in stages] == [
        ("s layer 1", ("projection", "layer_1", "embedding")),
        ("s layer 2", ("projection", "layer_2")),
    ]
    assert [[t.student_layer for t in s.terms] for s in stages] == [[0, 1], [LAST]]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"recipe": recipe({"loss": "hidden", "layers": {3: 1}})}, "student layer 3 of a hidden"),
        ({"recipe": recipe({"loss": "hidden", "layers": {1: 7}})}, "layer = 7: the teacher has"),
        ({"recipe": recipe({"loss": "attention", "layer": 0})}, "layer = 0: the teacher has lay"),
        (
            {"student": {"kind": "bilstm"}, "recipe": recipe({"loss": "hidden", "layers": "all"})},
            "needs a student with layers",
        ),
    ],
)
def test_a_layer_map_that_names_what_is_not_there_is_refused(
    sections: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        plan_stages(config(**sections), 6)


def test_unequal_heads_are_refused_where_maps_are_compared(tiny: Any, tiny_teacher: Path):
    def its(number: int, **term: Any) -> Config:
        student = {"kind": "transformer", "embedding": 8, "hidden": 16, "layers": 2}
        terms = recipe({"loss": "attention", **term})
        return tiny("heads", student={**student, "heads": number}, recipe=terms)

    check_plan(its(2))
    check_plan(its(4, heads="average"))
    with pytest.raises(ConfigError, match="compares 4 heads of the student with 2 of the teacher"):
        check_plan(its(4))
    with pytest.raises(ConfigError, match="relation_heads = 3 does not divide both widths, 16"):
        check_plan(its(2, loss="relations", relation_heads=3))


def batch_of(layers: tuple[Any, ...], width: int) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40, 16).astype(np.int32)
    words = np.array([-1, 0, 1, 2, 3, 4, 5, -1] * 2, dtype=np.int32)
    tokens = Tokens(ids, words, np.array([0, 8, 16]), keeps_special=True)

    class Values:
        def __init__(self, factor: int) -> None:
            self.values = rng.standard_normal((16, factor * width)).astype(np.float32) * 3

        def take(self, index: Any) -> Any:
            return self.values[index]

    tokens.hidden = {its: Values(1 if isinstance(its, int) else 3) for its in layers}
    return collate([(tokens, np.arange(2))], 0, None)


def test_terms_of_layers_and_relations_are_learnt_and_divided_by_their_variance():
    its = config(
        recipe=recipe(
            {"loss": "hidden", "layers": "all"},
            {"loss": "attention", "layer": 6},
            {"loss": "relations", "relation_heads": 2},
        )
    )
    (stage,) = plan_stages(its, 6)
    student = build_student(
        StudentConfig(kind="transformer", embedding=6, hidden=8, layers=2, heads=2, dropout=0),
        vocab_size=40,
        teacher_width=12,
        task=tagging_task(LABELS),
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
        layers=compared_layers([stage]),
        teacher_heads=2,
    )
    batch = batch_of(stage.layers, 12)
    seen = student.observe(batch.input_ids, batch.attention_mask, None, Wanted((0, 1, -1), (-1,)))
    assert [seen.hidden[layer].shape for layer in (0, 1, -1)] == [(2, 8, 12)] * 3
    assert seen.qkv[-1].shape == (2, 8, 24)
    stepper = Stepper(student, stage, tagging_task(LABELS), its.training, LocalSession(None, "cpu"))
    stepper.normalise([batch])
    target = batch.hidden[4].double()
    variance = float(((target - target.mean(0)) ** 2).mean())
    assert float(stepper.variances[0]) == pytest.approx(variance, rel=1e-5)
    assert 0 < float(stepper.variances[3]) < 1
    assert float(stepper.variances[4]) == 1
    before = stepper.held_out_loss([batch])
    stepper.parts = 2  # as where memory was short
    assert stepper.held_out_loss([batch]) == pytest.approx(before, rel=1e-4)
    stepper.parts = 1
    for step in range(30):
        stepper.step([{"transfer": batch}], 1e-2, step)
    assert stepper.held_out_loss([batch]) < 0.8 * before
    groups = student.groups()
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in student.parameters())


def test_a_check_tells_the_mean_losses_since_the_last_one():
    its = config(recipe=recipe({"loss": "hidden", "layer": 6}, {"loss": "logits"}))
    (stage,) = plan_stages(its, 6)
    student = build_student(
        StudentConfig(kind="bilstm", embedding=6, hidden=8),
        vocab_size=40,
        teacher_width=12,
        task=tagging_task(LABELS),
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
    )
    stepper = Stepper(student, stage, tagging_task(LABELS), its.training, LocalSession(None, "cpu"))
    stepper.sums += torch.tensor([[6.0, 1.0], [3.0, 4.0]])  # sums of losses, counts of tokens
    assert stepper.check(20) == {"hidden": 2.0, "logits": 0.25}
    stepper.sums += torch.tensor([[10.0, 3.0], [2.0, 1.0]])
    state = {name: copy.deepcopy(value) for name, value in stepper.state().items()}
    assert stepper.check(40) == {"hidden": 5.0, "logits": 3.0}
    assert stepper.mean_losses() == {"hidden": 16 / 5, "logits": 4 / 5}
    stepper.clear()
    stepper.sums += 1.0
    assert stepper.check(60) == {"hidden": 1.0, "logits": 1.0}
    stepper.load_state(state)  # saved between two checks: the next one tells of all since the first
    stepper.sums += torch.tensor([[8.0, 0.0], [2.0, 0.0]])
    assert stepper.check(80) == {"hidden": 4.5, "logits": 3.0}
