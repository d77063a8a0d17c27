"""Faults of the driver: a job killed at random calls and times, a disk that fills up, bad files.

The targets are in the store before, so the jobs need no Ray and are forked; those that start Ray
are in test_faults_ray.
"""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig
from faulty_jobs import Forker, Job, forker

from xdray.configfile import dump_config
from xdray.distillation import annotate_only

pytestmark = pytest.mark.faults
SETTINGS: dict[str, Any] = {
    "recipe": {"name": "staged"},
    "training": {"workers": 0, "checkpoint_seconds": 0, "epochs": 2},
    "evaluation": {"baseline": False, "latency": False, "bootstrap": 0},
}


@dataclass
class Runs:
    """A maker of jobs on one store of targets, and what the undisturbed one came to."""

    make: MakeConfig
    jobs: Forker
    calls: int = 0
    seconds: float = 0.0
    end: Any = None

    def argv(self, folder: Path) -> list[str]:
        """Write the config of a run in a folder; the command for it."""
        path = folder.with_suffix(".yaml")
        path.write_text(dump_config(self.make(folder, **SETTINGS)), encoding="utf-8")
        return ["distill", str(path)]

    def run(self, folder: Path, **fault: Any) -> Job:
        """Run it."""
        return self.jobs.run(self.argv(folder), str(folder), **fault)


def _end(folder: Path) -> Any:
    """What must come out the same: weights to the bit, scores, steps, and the names of files."""
    report = json.loads((folder / "report.json").read_text())
    names = {
        re.sub(r"(checkpoint-|tfevents\.)\d+", r"\1N", str(p.relative_to(folder)))
        for p in folder.rglob("*")
    }
    stages = [
        {k: row[k] for k in ("name", "steps", "epochs", "dev", "key")} for row in report["stages"]
    ]
    weights = (folder / "student" / "model.safetensors").read_bytes()
    facts = {k: report["targets"][k] for k in ("rows", "tokens", "key", "rejected")}
    return weights, report["student"]["test"], report["teacher"]["test"], stages, facts, names


@pytest.fixture(scope="module")
def runs(
    tiny_at: MakeConfig, faulty_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("jobs")
    annotate_only(tiny_at(folder / "pass", **SETTINGS))
    with forker(folder / "out") as jobs:
        found = Runs(tiny_at, jobs)
        assert found.run(folder / "warm", warm=True).status == 0
        job = found.run(folder / "whole")
        assert job.status == 0, job.output
        found.calls, found.seconds, found.end = job.calls, job.seconds, _end(folder / "whole")
        yield found


@pytest.mark.parametrize("seed", range(12))
def test_a_job_killed_anywhere_ends_like_an_undisturbed_one(
    runs: Runs, tmp_path: Path, tell_faults: Callable[..., None], seed: int
):
    rng, killed = random.Random(seed), 0
    for _ in range(4):
        if rng.random() < 0.75:
            call = 1 + int(runs.calls * rng.random() ** 1.5)
            fault = {"kill_at": call, "torn": rng.random() < 0.5}
        else:
            fault = {"kill_after": rng.uniform(0.0, runs.seconds)}
        job = runs.run(tmp_path / "run", **fault)
        if job.status == 0:  # the fault lay beyond what was left to do
            break
        assert job.status == -9, job.output
        killed += 1
    job = runs.run(tmp_path / "run")
    assert job.status == 0, job.output
    assert _end(tmp_path / "run") == runs.end
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.yaml"}
    tell_faults("driver, killed at a random call or time", survived=killed)


@contextmanager
def _disk(folder: Path, kib: int) -> Iterator[None]:
    """A file system of so many KiB."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_one_clear_error_each_time_and_the_job_goes_on(
    runs: Runs, tmp_path: Path, tell_faults: Callable[..., None]
):
    disk = tmp_path / "disk"
    rng, failed = random.Random(0), 0
    yaml = runs.argv(tmp_path / "run")[1]
    with _disk(disk, 12):
        for kib in [12, *sorted(rng.sample(range(24, 360), 9))]:
            subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)
            job = runs.jobs.run(["distill", yaml, f"run.folder={disk}/run"], str(disk))
            if job.status == 0:
                break
            assert job.status == 1, job.output
            assert "Traceback" not in job.output, f"{kib} KiB: {job.output}"
            message = job.last["error"]["message"]
            assert "the disk is full" in message, f"{kib} KiB: {message}"
            failed += 1
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        job = runs.jobs.run(["distill", yaml, f"run.folder={disk}/run"], str(disk))
        assert job.status == 0, job.output
        assert _end(disk / "run") == runs.end
        assert {path.name for path in disk.iterdir()} == {"run"}
    assert failed >= 5
    tell_faults("local disk that fills up (run folder)", refused=failed)


def test_a_damaged_file_of_a_run_is_made_anew_or_named_in_one_clear_error(
    runs: Runs, tmp_path: Path, tell_faults: Callable[..., None]
):
    folder = tmp_path / "run"
    assert runs.run(folder).status == 0
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    others = ("student/", "plots/", "report.html", ".lock")  # the lock is empty
    ours = [name for name in files if not name.startswith(others)]
    saved = tmp_path / "saved"
    shutil.copytree(folder, saved)
    rng, survived, refused = random.Random(0), 0, []
    for name in ours:
        data = (folder / name).read_bytes()
        if name != "report.json":
            (folder / "report.json").unlink()
        (folder / name).write_bytes(data[: rng.randrange(len(data))])
        job = runs.run(folder)
        if job.status == 0:
            assert _end(folder) == runs.end, name
            survived += 1
        else:
            assert "Traceback" not in job.output, f"{name}: {job.output}"
            assert Path(name).name in job.last["error"]["message"], f"{name}: {job.last}"
            refused.append(name)
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
    assert survived
    tell_faults("file of a run folder cut off", survived=survived, refused=len(refused))
