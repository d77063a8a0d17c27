"""The benchmark's turns, parts and tables."""

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import (
    Found,
    Settings,
    as_markdown,
    epoch_seconds,
    measure_all,
    pass_rate,
    read_settings,
    take_turns,
)


def test_all_take_their_turns_before_one_has_a_second() -> None:
    calls: list[str] = []

    def call(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    measures = {name: functools.partial(call, name) for name in ("ours", "theirs")}
    found = take_turns(measures, 2, lambda text: None)
    assert calls == ["ours", "theirs", "ours", "theirs"]
    assert found == {"ours": [1, 3], "theirs": [2, 4]}


def test_the_median_is_told_and_every_turn_beside_it() -> None:
    found = Found()
    assert found.take({"epoch, s": [7.0, 5.0, 30.0]}) == {"epoch, s": 7.0}
    text = as_markdown(found, "python jobs/benchmark.py x.yaml", {"date": "2026-11-30"})
    assert "| epoch, s | 7 |" in text
    assert "epoch, s 7, 5, 30" in text
    assert "Ratio" not in text


def test_a_part_that_fails_loses_no_other_and_leaves_no_environment() -> None:
    def sets(settings: Settings) -> Found:
        os.environ["XDRAY_HARNESS"] = "1"
        return Found(ratios={"one": 1.0})

    def fails(settings: Settings) -> Found:
        assert "XDRAY_HARNESS" not in os.environ
        raise RuntimeError("no\npeer")

    settings = Settings(config="x.yaml", parts=["start", "run", "memory"])
    measures: Any = {"start": sets, "run": fails, "memory": sets}
    total, before = Found(), dict(os.environ)
    for its in measure_all(settings, measures):
        total.add(its)
    assert total.failed == ["run"]
    assert total.ratios == {"one": 1.0}
    assert total.notes == ["run: failed: RuntimeError('no\\npeer')"]
    assert dict(os.environ) == before


@pytest.mark.parametrize(("steady", "rate"), [(50.0, 50.0), (None, 25.0)])
def test_a_pass_of_one_shard_is_timed_with_its_start(steady: float | None, rate: float) -> None:
    facts = {"sentences_per_second": steady, "rows": 100, "seconds": 4.0}
    assert pass_rate(facts) == rate


def test_the_first_epoch_is_not_timed() -> None:
    assert epoch_seconds({"history": [{"seconds": 9.0}, {"seconds": 11.0}, {"seconds": 15.0}]}) == 3


@pytest.mark.parametrize(
    ("text", "parts", "told"),
    [
        (None, None, "cannot be read"),
        ("config: x.yaml", ["sutdent"], "no part ['sutdent']"),
        ("{config: x.yaml, repeat: 3}", None, "repeat: Extra inputs are not permitted; its keys"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    tmp_path: Path, text: str | None, parts: list[str] | None, told: str
) -> None:
    path = tmp_path / "speed.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as found:
        read_settings(str(path), parts, [])
    assert told in str(found.value)
    assert str(found.value).startswith(f"{path}: ")
    assert "\n" not in str(found.value)
