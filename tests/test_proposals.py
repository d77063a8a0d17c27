"""proposals: what is tried next, and which of the results nothing beats."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdray.errors import ConfigError
from xdray.fronts import hypervolume, pareto_front
from xdray.proposals import make_proposer
from xdray.space import Choice, Range, Space

GRID = Space({"a": Choice((1, 2)), "b": Choice(("x", "y", "z"))})
WIDE = Space({"a": Range(0.0, 1.0, log=False), "b": Choice((1, 2, 4, 8))})


def test_a_grid_names_each_combination_once_and_none_that_was_told():
    proposer = make_proposer(GRID, "grid", ["score"], 0)
    proposer.tell({"b": "y", "a": 1}, [0.5])
    asked = list(iter(proposer.ask, None))
    assert asked == [fields for fields in GRID.combinations() if fields != {"a": 1, "b": "y"}]


def test_a_grid_over_any_number_of_a_range_is_refused():
    with pytest.raises(ConfigError, match="grid needs values or steps"):
        make_proposer(WIDE, "grid", ["score"], 0)


def test_random_draws_depend_on_the_seed_alone():
    first, second, other = (make_proposer(WIDE, "random", ["score"], seed) for seed in (1, 1, 2))
    drawn = [first.ask() for _ in range(4)]
    assert drawn == [second.ask() for _ in range(4)]
    assert drawn != [other.ask() for _ in range(4)]


@pytest.mark.parametrize("algorithm", ["tpe", "nsga2"])
@pytest.mark.parametrize("objectives", [["score"], ["score", "parameters"]])
def test_optunas_samplers_stay_in_the_space_and_take_failures(
    algorithm: str, objectives: list[str]
):
    proposer = make_proposer(WIDE, algorithm, objectives, 0)
    for number in range(20):
        fields = proposer.ask()
        assert fields is not None
        assert 0 <= fields["a"] <= 1
        assert fields["b"] in (1, 2, 4, 8)
        values = [fields["a"], float(fields["b"])][: len(objectives)]
        proposer.tell(fields, None if number % 5 == 4 else values)


def test_tpe_told_of_an_earlier_search_seeks_where_that_one_found_most():
    def mean_of_asked(best: float) -> float:
        proposer = make_proposer(WIDE, "tpe", ["score"], 0)
        rng = random.Random(0)
        for _ in range(40):
            fields = WIDE.draw(rng)
            proposer.tell(fields, [-abs(fields["a"] - best)])
        asked = [proposer.ask() for _ in range(8)]
        return sum(fields["a"] for fields in asked if fields) / 8

    assert mean_of_asked(0.1) < 0.35
    assert mean_of_asked(0.9) > 0.65


def test_fields_of_another_space_are_left_aside():
    proposer = make_proposer(WIDE, "tpe", ["score"], 0)
    for fields in ({"a": 0.5}, {"a": 0.5, "b": 3}, {"a": 7.0, "b": 1}):
        proposer.tell(fields, [1.0])
    assert proposer.ask() is not None


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points=points)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]):
    front = [points[k] for k in pareto_front(points, ["score", "parameters"])]
    assert len(set(front)) == len(front)
    for score, cost in points:
        beaten = any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points)
        assert beaten == ((score, cost) not in front)


@given(points=points)
def test_the_hypervolume_counts_the_dominated_cells(points: list[tuple[int, int]]):
    cells = sum(
        any(s >= x + 1 and c <= y for s, c in points) for x in range(-1, 6) for y in range(7)
    )
    assert hypervolume(points, (-1, 7)) == pytest.approx(cells)
