"""Watching a run at work: meters that Prometheus reads from Ray, curves that TensorBoard shows.

Ray is handed in. Without it meters say nothing; curves are files in the run folder and need none.
"""

import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from xdray.errors import XdrayError

MAX_POINTS = 1000
"""Of a curve within a stage, epochs apart: what TensorBoard shows of it."""
FLUSH_SECONDS = 10.0
"""Between two times that a curve's file goes to the disk."""


class Meter(NamedTuple):
    """A number that Prometheus knows as ray_xdray_NAME, a counter as ray_xdray_NAME_total."""

    kind: str
    """Of ray.util.metrics: Counter or Gauge."""
    about: str
    tags: tuple[str, ...]


_PART = ("run", "part")
_STAGE = (*_PART, "stage")
METERS = {
    "sentences": Meter("Counter", "Sentences that the teacher forwarded", _PART),
    "tokens": Meter("Counter", "Real tokens that the teacher forwarded", _PART),
    "positions": Meter("Counter", "Tokens that the teacher forwarded, with padding", _PART),
    "bytes": Meter("Counter", "Bytes of targets that were written", _PART),
    "shards_done": Meter("Counter", "Shards that came back", _PART),
    "shards_retried": Meter("Counter", "Tries of these beyond the first: an actor died", _PART),
    "shards_failed": Meter("Counter", "Shards whose error ended the teacher's pass", _PART),
    "steps": Meter("Counter", "Optimiser steps", _STAGE),
    "step_seconds": Meter("Gauge", "Wall time of a step, lately", _STAGE),
    "loss": Meter("Gauge", "Mean loss of a term, lately", (*_STAGE, "term")),
    "learning_rate": Meter("Gauge", "Learning rate", _STAGE),
    "score": Meter("Gauge", "What the best epoch is chosen by: on dev, or minus a loss", _STAGE),
}
"""run: `run_name`. part: targets; student, baseline, finetuning ... as trained."""


class Meters:
    """The meters of one process. Silent without `ray.util.metrics`, which is handed in."""

    def __init__(self, metrics: Any = None) -> None:
        self._metrics = metrics
        self._made: dict[str, Any] = {}

    def add(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Raise a counter. tags: at least those of the meter."""
        if self._metrics is not None and value > 0:
            self._meter(name).inc(float(value), _own(name, tags))

    def set(self, name: str, value: float, tags: Mapping[str, str]) -> None:
        """Set a gauge."""
        if self._metrics is not None:
            self._meter(name).set(float(value), _own(name, tags))

    def _meter(self, name: str) -> Any:
        if name not in self._made:
            kind, about, tags = METERS[name]
            self._made[name] = getattr(self._metrics, kind)(f"xdray_{name}", about, tags)
        return self._made[name]


def _own(name: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {key: tags[key] for key in METERS[name].tags}


def run_name(place: str) -> str:
    """Name of a run's folder, as tags have it: without the user and the options of a URI."""
    return Path(place.partition("?")[0]).name.rpartition("@")[2]


def counted(
    receipts: Iterable[dict[str, Any]], meters: Meters, run: str
) -> Iterator[dict[str, Any]]:
    """Yield the receipts of the teacher's pass, counted where they come home. run: `run_name`.

    There each shard is counted once, whatever became of its actors; Ray's ledger of tries came with
    it. The driver's last counts leave with Ray's shutdown, those of a dead actor would be lost.
    """
    tags = {"run": run, "part": "targets"}
    try:
        for receipt in receipts:
            meters.add("shards_done", 1, tags)
            meters.add("shards_retried", receipt["tries"] - 1, tags)
            meters.add("sentences", receipt["forwarded"], tags)
            if receipt["forwarded"]:  # else another run had written it meanwhile
                meters.add("tokens", receipt["tokens"], tags)
                meters.add("positions", receipt["padded_tokens"], tags)
            meters.add("bytes", receipt["bytes"], tags)
            yield receipt
    except XdrayError:
        meters.add("shards_failed", 1, tags)
        raise


@dataclass(frozen=True)
class Watch:
    """Where what is seen of a training goes. As it is made by default: nowhere."""

    run: Path | None = None
    """The run's folder."""
    name: str = ""
    """`run_name`."""
    part: str = "student"
    meters: Meters = field(default_factory=Meters)

    def stage(self, name: str) -> "StageWatch":
        """Watch one stage, by the name of its folder."""
        folder = None if self.run is None else self.run / "tensorboard" / self.part / name
        tags = {"run": self.name, "part": self.part, "stage": name}
        return StageWatch(folder, self.meters, tags)


def watch_training(run: Path, name: str, stages: Path, meters: Meters) -> Watch:
    """Watch the training whose stages are kept in a folder under the run's: baseline/stages."""
    parts = [part for part in stages.relative_to(run).parts if part != "stages"]
    return Watch(run, name, "/".join(parts) or "student", meters)


class StageWatch:
    """Meters and curves of one stage, told by the loop at the moments when it looks anyway."""

    def __init__(self, folder: Path | None, meters: Meters, tags: Mapping[str, str]) -> None:
        """Take a folder for TensorBoard, None for no curves."""
        self._folder, self._meters, self._tags = folder, meters, tags
        self._points: list[dict[str, Any]] = []
        self._curves: Curves | None = None
        self._step, self._clock = 0, time.monotonic()

    @contextmanager
    def drawing(self, points: list[dict[str, Any]]) -> Iterator[None]:
        """Begin the stage's one file with these points; new ones are put into the list as well.

        The list is part of the stage's checkpoint. So a stage that was killed draws again what it
        had drawn until the checkpoint, and nothing of the steps that it takes a second time.
        """
        if self._folder is None:
            yield
            return
        with closing(Curves(self._folder)) as self._curves:
            self._points = points
            for point in points:
                self._curves.draw(**point)
            yield

    def begin(self, step: int) -> None:
        """Start the clock; scoring is not counted in the time of steps."""
        self._step, self._clock = step, time.monotonic()

    def look(self, step: int, planned: int, rate: float, losses: Mapping[str, float]) -> None:
        """After step `step` of the `planned` ones. losses: means since the last look, by term."""
        before, seconds = self._step, time.monotonic() - self._clock
        self._meters.add("steps", step - before, self._tags)
        self._meters.set("step_seconds", seconds / (step - before), self._tags)
        self._meters.set("learning_rate", rate, self._tags)
        for term, loss in losses.items():
            self._meters.set("loss", loss, {**self._tags, "term": term})
        if step * MAX_POINTS // planned > before * MAX_POINTS // planned:
            curves = {f"loss/{term}": loss for term, loss in losses.items()}
            self._draw(step, {**curves, "learning_rate": rate})
        self.begin(step)

    def end_epoch(self, epoch: Mapping[str, Any], score_name: str) -> None:
        """After an epoch. epoch: its entry in the history of the stage."""
        self._meters.add("steps", epoch["step"] - self._step, self._tags)
        self._meters.set("score", epoch["score"], self._tags)
        curves = {f"epoch_loss/{term}": loss for term, loss in epoch["terms"].items()}
        self._draw(epoch["step"], {**curves, f"score/{score_name}": epoch["score"]})

    def best(self, step: int, dev: Mapping[str, Any] | None) -> None:
        """At the end of the stage. dev: scores of the state that was chosen."""
        scores = {n: v for n, v in (dev or {}).items() if isinstance(v, int | float)}
        self._draw(step, {f"best/dev {name}": score for name, score in scores.items()})

    def forwarded(self, sentences: int) -> None:
        """Count what the teacher did meanwhile, where targets are streamed."""
        self._meters.add("sentences", sentences, self._tags)

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        if self._curves is not None:
            point = {"step": step, "seconds": time.time(), "values": dict(values)}
            self._points.append(point)
            self._curves.draw(**point)


class Curves:
    """A new TensorBoard file, the only one in its folder; by tensorboardX, without its thread."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import event_file_writer  # not at the top: it imports torch
        from tensorboardX.proto import event_pb2, summary_pb2

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        self._protos: tuple[Any, Any] = event_pb2, summary_pb2
        self._flushed = time.monotonic()

    def draw(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Put a point on each of some curves. seconds: since the epoch of the clock."""
        events, summaries = self._protos
        summary = summaries.Summary()
        for name, value in values.items():
            summary.value.add(tag=re.sub(r"[^\w./-]", "_", name), simple_value=value)
        self._writer.write_event(events.Event(step=step, wall_time=seconds, summary=summary))
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Bring the rest to the disk."""
        self._writer.close()
