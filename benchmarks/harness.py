"""What every part of the benchmark shares: its settings, taking turns, conditions, the table."""

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from xdray.config import Config
from xdray.config_data import Section
from xdray.configfile import load_config
from xdray.evaluation import machine

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "start",
    "paper_shape",
    "teacher",
    "student",
    "workers",
    "run",
    "replicas",
    "codecs",
    "memory",
)
BARS = {
    "teacher_over_bare_loop": 0.92,
    "teacher_over_pipeline_same_dtype": 1.5,
    "teacher_over_pipeline_default": 3,
    "student_epoch_over_bare_loop": 0.90,
    "student_two_workers_over_one": 1.0,
    "student_epoch_over_trainer": 3,
    "student_epoch_over_textbrewer": 3,
    "run_over_trainer": 3,
    "run_over_textbrewer": 3,
    "paper_shape_float32_batch_32": 110,
    "paper_shape_float32_batch_1": 70,
    "paper_shape_int8_batch_32": 150,
    "paper_shape_parameters": 34.4,
    "memory_300k_over_10k_teacher": 1.15,
    "memory_300k_over_10k_training": 1.15,
    "replicas_64_over_ideal": 0.9,
    "plan_start_s": 4,
    "import_s": 0.5,
    "tiny_run_s": 25,
}


class Settings(Section):
    """A benchmark's own YAML."""

    config: str
    """The run's config: teacher, student, text."""
    overrides: list[str] = Field(default=[])
    """Of that config."""
    memory_config: str | None = None
    """Config of the part `memory`: more text."""
    memory_overrides: list[str] = Field(default=[])
    tiny_config: str = "configs/tiny.yaml"
    threads: int = Field(default=2, gt=0)
    """Of every model here: ours, bare loops and peers."""
    repeats: int = Field(default=3, ge=1)
    """Turns; medians are reported."""
    sentences: int = Field(default=20_000, gt=0)
    """Of the teacher's pass."""
    epoch_sentences: int = Field(default=10_000, gt=0)
    """Of a student's epoch."""
    pipeline_sentences: int = Field(default=2_000, gt=0)
    """Of transformers' pipeline at batch 64, a quarter of them at batch 1."""
    run_sentences: int = Field(default=20_000, gt=0)
    """Transfer sentences of the part `run`."""
    dev_score: float = 0.6
    """Dev score that the part `run` trains to, or to ours where that is less."""
    peer_epochs: list[int] = Field(default=[5, 8])
    """Lengths of a peer's schedule in that part: all run, the one that is there first counts."""
    memory_sentences: list[int] = Field(default=[10_000, 300_000])
    replicas: list[int] = Field(default=[1, 4, 16, 64])
    batch_seconds: float = 0.05
    """Latency of the simulated teacher."""
    parts: list[str] = Field(default=list(PARTS))


@dataclass
class Found:
    """What a part has measured."""

    ratios: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Parts without figures."""

    def take(self, turns: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Keep the median of each as a figure, and all its turns in a note; returns the medians."""
        medians = {name: statistics.median(values) for name, values in turns.items()}
        self.figures |= medians
        told = (
            f"{name} {', '.join(f'{value:.4g}' for value in values)}"
            for name, values in turns.items()
        )
        self.notes.append(f"each turn: {'; '.join(told)}")
        return medians

    def add(self, other: "Found") -> None:
        """Add what another part has found."""
        self.ratios |= other.ratios
        self.figures |= other.figures
        self.notes += other.notes
        self.failed += other.failed


def read_settings(path: str, parts: list[str] | None, changes: Sequence[str]) -> Settings:
    """Read a benchmark's YAML; parts and key=value from the command line come on top."""
    yaml = YAML(typ="safe")
    try:
        values: Any = yaml.load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise SystemExit(f"{path}: cannot be read as a benchmark's settings: {error}") from error
    values |= {key: yaml.load(value) for key, _, value in (its.partition("=") for its in changes)}
    if parts:
        values["parts"] = parts
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(Settings.model_fields)
        raise SystemExit(f"{path}: {told}; its keys are {known}") from error
    unknown = set(settings.parts) - set(PARTS)
    if unknown:
        raise SystemExit(f"{path}: no part {sorted(unknown)}; there is {', '.join(PARTS)}")
    return settings


def measure_all(
    settings: Settings, measures: Mapping[str, Callable[[Settings], Found]]
) -> Iterator[Found]:
    """Measure the settings' parts, one after the other, each in the environment as it is now."""
    torch.set_num_threads(settings.threads)
    before = dict(os.environ)
    for part in settings.parts:
        print(f"{part}:", flush=True)
        try:
            yield measures[part](settings)
        except Exception as error:  # what the other parts measure is not lost
            reason = " ".join(str(getattr(error, "stderr", None) or repr(error)).split())
            yield Found(failed=[part], notes=[f"{part}: failed: {reason[-500:]}"])
        os.environ.clear()
        os.environ.update(before)


def run_config(settings: Settings, folder: Path, *changes: str) -> Config:
    """Return the run's config in a folder of its own, without controls and latency."""
    own = own_places(settings, folder)
    return load_config(settings.config, [*settings.overrides, *own, *changes])


def own_places(settings: Settings, folder: Path) -> list[str]:
    """Overrides of a run in a folder of its own."""
    return [
        f"run.folder={folder}/run",
        f"targets.store={folder}/targets",
        f"cluster.threads={settings.threads}",
        "evaluation.baseline=false",
        "evaluation.latency=false",
        "evaluation.bootstrap=0",
    ]


def take_turns(
    measures: Mapping[str, Callable[[], float]], repeats: int, say: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Call all in turn, `repeats` times; what each returned, in order."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(repeats):
        for name, measure in measures.items():
            gc.collect()
            found[name].append(measure())
            say(f"  turn {turn + 1}: {name} {found[name][-1]:.4g}")
    return found


def pass_rate(facts: Mapping[str, Any]) -> float:
    """Sentences a second of a teacher's pass, its start apart where it had more than one shard."""
    return facts["sentences_per_second"] or facts["rows"] / facts["seconds"]


def epoch_seconds(stage: Mapping[str, Any]) -> float:
    """Seconds of the later epochs of a stage, scoring and saving among them."""
    history = stage["history"]
    return (history[-1]["seconds"] - history[0]["seconds"]) / (len(history) - 1)


def seconds_of(command: Sequence[str], folder: Path = ROOT) -> float:
    """Seconds of a Python command in a folder. Raises where it fails; its output is thrown away."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options: dict[str, Any] = {"capture_output": True, "text": True}
    call = [sys.executable, *command]
    return timed(lambda: subprocess.run(call, check=True, env=environment, cwd=folder, **options))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes."""
    folder = Path(tempfile.mkdtemp(prefix="xdray-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def conditions(settings: Settings) -> dict[str, Any]:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    found: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()} | machine()
    commit = f"{commit or 'no git'}{' and changes' if changed else ''}"
    found |= {"commit": commit, "threads": settings.threads, "repeats": settings.repeats}
    for package in ("onnxruntime", "textbrewer", "accelerate", "sentence-transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def as_markdown(found: Found, command: str, about: Mapping[str, Any]) -> str:
    """Return a section for the dated file: ratios beside their bars, figures, conditions."""
    lines = [f"## {about['date']}", "", f"`{command}`"]
    if found.ratios:
        lines += ["", "| Ratio | Found | Bar |", "| --- | ---: | ---: |"]
        lines += [f"| {k} | {v:.4g} | {BARS.get(k, '')} |" for k, v in found.ratios.items()]
    lines += ["", "| Figure | |", "| --- | --- |"]
    lines += [f"| {k} | {_plain(v)} |" for k, v in found.figures.items()]
    lines += ["", *(f"- {note}" for note in found.notes)]
    lines += ["", "Conditions: " + ", ".join(f"{k} {v}" for k, v in about.items() if v is not None)]
    return "\n".join(lines) + "\n\n"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
