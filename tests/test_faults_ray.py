"""Faults of what runs on Ray: a driver, training workers, trials, nodes of a cluster."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, MakeConfig
from processes import alive, descendants, killer, named, wait_until
from safetensors.torch import load_file

from xdray.config import Config
from xdray.configfile import dump_config
from xdray.distillation import distill
from xdray.search import tune
from xdray.sessions import draft_name
from xdray.trial_files import all_trials

pytestmark = pytest.mark.faults
SETTINGS: dict[str, Any] = {
    "student": {"dropout": 0.0},
    "recipe": {"name": "staged"},
    "evaluation": {"baseline": False, "latency": False, "bootstrap": 0},
}


def _training(workers: int) -> dict[str, Any]:
    # Ray Train takes a report about every 2 seconds: a checkpoint a step, and few steps
    return {"workers": workers, "checkpoint_seconds": 0, "epochs": 3}


@pytest.fixture(scope="module")
def whole(
    tiny_at: MakeConfig, faulty_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and report of a run without a fault, in this process."""
    config = tiny_at(tmp_path_factory.mktemp("whole") / "run", training=_training(0), **SETTINGS)
    report = distill(config)
    return _weights(config), report


def _weights(config: Config) -> dict[str, torch.Tensor]:
    return load_file(Path(config.run.folder) / "student" / "model.safetensors")


def _checkpoints(folder: Path) -> Callable[[int], Callable[[], bool]]:
    """Return a maker of moments: so many checkpoints have been there since the start."""
    seen: set[str] = set()

    def after(count: int) -> Callable[[], bool]:
        def come() -> bool:
            seen.update(str(path) for path in folder.glob("stages/ray/*/checkpoint_*"))
            return len(seen) >= count

        return come

    return after


def _no_drafts(folder: Path) -> None:
    """No temporary folder of a checkpoint of the runs below."""
    for run in folder.glob("**/ray/*"):
        assert not list(Path(tempfile.gettempdir()).glob(f"{draft_name(str(run))}*"))
    assert not list(folder.rglob("*.partial")) + list(folder.rglob("*.tmp"))


def _nothing_left(folder: Path) -> None:
    """No process of a run, no placement group, no temporary folder."""
    from ray.util import placement_group_table

    names = ("PoolWorker", "ray::Ledger", "RayTrainWorker", "TrainController", "ImplicitFunc")
    wait_until(lambda: not [n for n in names if named(n)], 60, f"left: {descendants()}")

    def groups() -> list[Any]:
        return [its for its in placement_group_table().values() if its["state"] != "REMOVED"]

    wait_until(lambda: not groups(), 60, "placement groups are left")
    _no_drafts(folder)


@pytest.mark.parametrize("workers", [1, 2])
def test_training_workers_killed_at_random_end_like_undisturbed_ones(
    whole: tuple[dict[str, torch.Tensor], dict[str, Any]],
    tiny_at: MakeConfig,
    tmp_path: Path,
    tell_faults: Callable[..., None],
    workers: int,
):
    rng = random.Random(workers)
    config = tiny_at(tmp_path / "run", training=_training(workers), **SETTINGS)
    after = _checkpoints(tmp_path / "run")
    moments = [after(count) for count in sorted(rng.sample(range(1, 7), 2))]
    with killer("RayTrainWorker", moments, pause=rng.random()) as killed:
        report = distill(config)
    assert len(killed) == 2
    weights = _weights(config)
    for row, other in zip(whole[1]["stages"], report["stages"], strict=True):
        assert row["steps"] == other["steps"]
    for name, value in whole[0].items():
        if workers == 1:
            assert torch.equal(value, weights[name]), name
        else:
            torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=2e-3)
    _nothing_left(tmp_path)
    tell_faults(f"training worker, one of {workers}, killed", survived=len(killed))


def test_a_trial_whose_process_is_killed_goes_on_and_the_search_ends_as_it_would(
    tiny_at: MakeConfig, faulty_ray: None, tmp_path: Path, tell_faults: Callable[..., None]
):
    search = {
        "space": {"student.hidden": [4, 6, 8]},
        "algorithm": "grid",
        "trials": 3,
        "early_stopping": "none",
    }
    ends = {}
    for name in ("whole", "killed"):
        training = {"epochs": 2, "checkpoint_seconds": 0}
        config = tiny_at(tmp_path / name, training=training, search=search, **SETTINGS)
        folder = tmp_path / name

        def begun(count: int, folder: Path = folder) -> Callable[[], bool]:
            return lambda: len(list(folder.glob("trials/*/stages/checkpoint-*"))) >= count

        moments = [begun(1), begun(2)] if name == "killed" else []
        with killer("ImplicitFunc", moments) as killed:
            report = tune(config)
        assert len(killed) == len(moments)
        assert report["trials"]["finished"] == 3
        ends[name] = (
            [
                (its["fields"], its["score"], its["status"], its["steps"])
                for its in all_trials(folder)
            ],
            _weights_of(folder / "best"),
        )
    assert sorted(map(str, ends["whole"][0])) == sorted(map(str, ends["killed"][0]))
    assert ends["whole"][1] == ends["killed"][1]
    _nothing_left(tmp_path)
    tell_faults("trial of a search, its process killed", survived=2)


def _weights_of(run: Path) -> bytes:
    return (run / "student" / "model.safetensors").read_bytes()


def _start(config: Path, out: Path, **environment: str) -> "subprocess.Popen[bytes]":
    with out.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "distill.py"), str(config)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _come(condition: Callable[[], object], driver: "subprocess.Popen[bytes]", out: Path) -> None:
    def come() -> object:
        assert driver.poll() is None, out.read_text()
        return condition()

    wait_until(come, 180, "too slow to kill half-way")


def test_a_driver_killed_with_its_own_ray_leaves_no_process_and_the_same_command_goes_on(
    whole: tuple[dict[str, torch.Tensor], dict[str, Any]],
    tiny_at: MakeConfig,
    tmp_path: Path,
    tell_faults: Callable[..., None],
):
    rng = random.Random(0)
    targets = {"store": str(tmp_path / "store")}
    config = tiny_at(tmp_path / "run", training=_training(1), targets=targets, **SETTINGS)
    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(dump_config(config))
    shards = rng.randint(1, 12)
    moments = {
        "pass": lambda: len(list(tmp_path.glob("store/*/shards/*/*.parquet"))) >= shards,
        "training": _checkpoints(tmp_path / "run")(rng.randint(1, 4)),
    }
    for moment in moments.values():
        driver = _start(path, out)
        _come(moment, driver, out)
        its = {driver.pid: "driver", **descendants(driver.pid)}
        assert len(its) > 3  # Ray and a worker
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        # two agents of Ray's (2.60) wait a minute for an answer of its head, which is dead
        wait_until(lambda its=its: not alive(its), 120, f"processes outlive the driver: {its}")
    driver = _start(path, out)
    assert driver.wait(180) == 0, out.read_text()
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["targets"]["rows"] == whole[1]["targets"]["rows"]
    weights = _weights(config)
    assert all(torch.equal(value, weights[name]) for name, value in whole[0].items())
    _no_drafts(tmp_path)
    tell_faults("driver, killed with its own Ray (pass, training)", survived=2)
