"""Recipes become stages: the papers' schedules, as data."""

import pytest

from xdray.config import Config
from xdray.configfile import make_config
from xdray.errors import ConfigError
from xdray.recipes import label_stage, plan_stages
from xdray.stages import chain_keys, layer_groups, needed_layers


def _config(**sections: object) -> Config:
    values: dict[str, object] = {
        "run": {"folder": "x"},
        "data": {"train": "a", "dev": "b", "test": "c", "transfer": "t"},
        "teacher": {"model": "m"},
    }
    return make_config({**values, **sections}, "test")


def test_the_default_recipe_is_the_table_of_progress_of_the_paper():
    plan = plan_stages(_config(), 12)
    assert [(stage.name, len(stage.trainable)) for stage in plan] == [
        ("representation", 3),
        ("logits +head", 1),
        ("logits +projection", 2),
        ("logits +encoder", 3),
        ("logits +embedding", 4),
        ("labels +head", 1),
        ("labels +projection", 2),
        ("labels +encoder", 3),
        ("labels +embedding", 4),
    ]
    assert "head" not in plan[0].trainable
    assert needed_layers(plan) == (6,)


def test_each_sub_step_frees_one_more_group_from_the_top():
    student = {"kind": "transformer", "layers": 2, "hidden": 64}
    plan = [s for s in plan_stages(_config(student=student), 4) if s.stage == "logits"]
    assert [stage.trainable for stage in plan] == [
        ("head",),
        ("head", "layer_2"),
        ("head", "layer_2", "layer_1"),
        ("head", "layer_2", "layer_1", "embedding"),
    ]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("labels", [{"labels"}]),
        ("joint_logits", [{"labels", "logits"}]),
        ("joint", [{"labels", "logits", "hidden"}]),
        ("staged_joint", [{"hidden"}, {"labels", "logits"}]),
        ("staged", [{"hidden"}, {"logits"}, {"labels"}]),
    ],
)
def test_named_recipes_are_those_of_the_paper(recipe: str, expected: list[set[str]]):
    plan = plan_stages(_config(recipe=recipe), 12)
    assert [{term.loss for term in stage.terms} for stage in plan] == expected


def test_epochs_before_the_last_sub_step_are_partial():
    recipe = {
        "name": "staged_unfreezing",
        "overrides": {"logits": {"epochs": 9, "partial_epochs": 2}},
    }
    plan = [s for s in plan_stages(_config(recipe=recipe), 12) if s.stage == "logits"]
    assert [stage.epochs for stage in plan] == [2, 2, 2, 9]


def test_only_the_first_sub_step_starts_from_a_fresh_head():
    plan = plan_stages(_config(recipe={"name": "staged_unfreezing", "new_head": True}), 12)
    assert [stage.name for stage in plan if stage.new_head] == ["labels +head"]


def test_a_layer_that_the_teacher_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"recipe.layer = 13: the teacher has layers 0 .* to 12"):
        plan_stages(_config(recipe={"name": "staged", "layer": 13}), 12)


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        (["hidden", "logits"], ("hidden", "logits")),
        (["logits", {"distance": "kl"}], ("logits mse all", "logits kl all")),
        (["logits", {"tokens": "first"}], ("logits mse all", "logits mse first")),
        (["logits", "logits"], ("logits (1)", "logits (2)")),
    ],
)
def test_terms_of_a_stage_have_a_name_each(terms: list[str | dict[str, str]], names: tuple[str]):
    written = [
        {"loss": its, "split": "transfer"}
        if isinstance(its, str)
        else {"loss": "logits", "split": "transfer", **its}
        for its in terms
    ]
    (stage,) = plan_stages(_config(recipe=[{"name": "one", "terms": written}]), 12)
    assert stage.term_names == names


def test_overrides_of_a_stage_that_is_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"no stage 'logit'"):
        plan_stages(_config(recipe={"name": "staged", "overrides": {"logit": {"epochs": 1}}}), 12)


def test_trainable_groups_that_the_losses_do_not_reach_are_refused():
    term = {"loss": "hidden", "split": "transfer"}
    stage = {"name": "a", "terms": [term], "trainable": ["head"]}
    with pytest.raises(ConfigError, match="they reach projection, encoder, embedding"):
        plan_stages(_config(recipe=[stage]), 12)


def test_a_changed_third_stage_keeps_the_keys_of_the_first_two():
    base = {"seed": 0}
    plan = plan_stages(_config(recipe="staged"), 12)
    overrides = {"labels": {"epochs": 99}}
    other = plan_stages(_config(recipe={"name": "staged", "overrides": overrides}), 12)
    keys, changed = chain_keys(plan, base), chain_keys(other, base)
    assert keys[:2] == changed[:2]
    assert keys[2] != changed[2]
    assert chain_keys(plan, {"seed": 1})[0] != keys[0]


def test_a_control_has_no_early_end_and_trains_all_groups():
    (stage,) = label_stage(_config(training={"patience": 1}), "labels", epochs=7)
    assert stage.patience == stage.epochs == 7
    assert stage.trainable == layer_groups(_config().student)
    assert stage.by_dev
