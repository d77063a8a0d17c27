"""space: the values of fields, the combinations they make, and those that are refused."""

import random
from typing import Any

import pytest

from xdray.config import Config
from xdray.configfile import make_config
from xdray.errors import ConfigError
from xdray.space import Choice, Range, check_space, space_of, trial_config, trial_id


def config_with(space: dict[str, Any], **sections: Any) -> Config:
    values: dict[str, Any] = {
        "run": {"folder": "runs/x"},
        "data": {"train": "a.conll", "dev": "b.conll", "test": "c.conll", "transfer": "t.txt"},
        "teacher": {"model": "m"},
        "search": {"space": space},
    }
    return make_config({**values, **sections}, "test")


def test_steps_become_values_whole_where_all_is_whole_and_a_range_stays_one():
    space = space_of(
        config_with(
            {
                "student.hidden": {"low": 100, "high": 200, "step": 50},
                "training.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
                "student.dropout": {"low": 0.0, "high": 0.2, "step": 0.1},
            }
        )
    )
    hidden, rate, dropout = space.domains.values()
    assert hidden == Choice((100, 150, 200))
    assert rate == Range(1e-3, 1e-2, log=True)
    assert isinstance(dropout, Choice)
    assert dropout.values == pytest.approx((0.0, 0.1, 0.2))
    assert space.size is None
    drawn = [space.draw(random.Random(seed))["training.learning_rate"] for seed in range(200)]
    assert min(drawn) >= 1e-3
    assert max(drawn) <= 1e-2
    assert 80 <= sum(value < 10**-2.5 for value in drawn) <= 120  # even on a logarithmic scale


def test_a_finite_space_lists_all_combinations_and_its_parts():
    space = space_of(config_with({"student.hidden": [8, 16], "recipe.layer": [1, 2, 3]}))
    assert space.size == 6
    combinations = list(space.combinations())
    assert len({trial_id(fields) for fields in combinations}) == 6
    assert list(space.part("recipe.").combinations()) == [{"recipe.layer": n} for n in (1, 2, 3)]
    assert list(space.part("data.").combinations()) == [{}]


def test_a_trial_is_named_by_its_values_whatever_their_order():
    assert trial_id({"a": 1, "b": 2}) == trial_id({"b": 2, "a": 1}) != trial_id({"a": 2, "b": 1})


def test_a_trial_config_has_the_values_and_no_search():
    config = config_with({"student.hidden": [8]})
    its = trial_config(config, {"student.hidden": 8, "recipe.overrides.labels.epochs": 7})
    assert (its.student.hidden, its.search) == (8, None)
    assert its.recipe.overrides["labels"].epochs == 7


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"student.hiden": [8]}, r"student has no key 'hiden'; did you mean 'hidden'"),
        (
            {"student.kind": ["transformer"], "student.hidden": [96], "student.heads": [4, 5]},
            r"1 of 2 combinations cannot be trained, the first: .*heads = 5 does not divide",
        ),
        ({"recipe.temperature": [2]}, r"recipe.temperature = 2.0 goes with recipe.distance: kl"),
        ({"student.dropout": {"low": 0.5, "high": 1.5}}, r"of 1000 combinations cannot"),
        ({"recipe.layer": [1, 9]}, "the teacher has layers"),
    ],
)
def test_a_space_with_a_combination_that_cannot_be_trained_is_refused(
    space: dict[str, Any], message: str
):
    def check(config: Config) -> None:
        if (config.recipe.layer or 0) > 4:
            raise ConfigError("the teacher has layers 0 to 4")

    config = config_with(space)
    with pytest.raises(ConfigError, match=message):
        check_space(config, space_of(config), check)


@pytest.mark.parametrize("field", ["data.scheme", "training.workers", "teacher.model"])
def test_fields_that_trials_share_cannot_vary(field: str):
    with pytest.raises(ConfigError, match=f"'{field}' cannot vary between trials"):
        space_of(config_with({field: [1, 2]}))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {}}, "the space is empty"),
        ({"space": {"student.hidden": 5}}, r"search.space.student.hidden = 5: .* valid dictionary"),
        ({"space": {"student.hidden": {"low": 5}}}, "search.space.student.hidden.high is missing"),
        ({"space": {"student.hidden": []}}, "the space is empty: student.hidden"),
        ({"space": {"student.hidden": {"low": 3, "high": 3}}}, "low = 3 is not below high = 3"),
        ({"space": {"a": {"low": 0, "high": 3, "log": True}}}, "log: true needs low above 0"),
        ({"space": {"a": [1]}, "objectives": ["score", "score"]}, "expected each once"),
    ],
)
def test_a_section_that_says_nothing_is_refused(search: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config_with({}, search=search)


def test_what_changes_when_the_best_is_made_is_checked_before_the_first_trial():
    search = {"space": {"student.hidden": [8]}, "retrain": {"training.epoch": 9}}
    config = config_with({}, search=search)
    with pytest.raises(ConfigError, match="training has no key 'epoch'; did you mean 'epochs'"):
        check_space(config, space_of(config), lambda _: None)


def test_a_latency_limit_without_a_measured_latency_is_refused():
    search = {"space": {"student.hidden": [8]}, "max_latency_ms": 2.0}
    with pytest.raises(ConfigError, match=r"needs evaluation\.latency: true"):
        config_with({}, search=search, evaluation={"latency": False})
