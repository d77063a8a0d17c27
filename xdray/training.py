"""Training a student through its stages: epochs, choice of the best, early stop, exact resume.

`run_stages` is the same loop in this process, in one Ray Train worker and in many; what differs is
the `Session` it is handed. steps.py takes the single step.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdray.batches import Batch
from xdray.config import TrainingConfig
from xdray.console import Console
from xdray.errors import TrainingError
from xdray.learner import Learner
from xdray.loader import Loader
from xdray.sessions import Session, rank_0_says
from xdray.signals import before_leaving, unbroken
from xdray.stage_files import Progress, load_stage, save_stage, stage_folder
from xdray.stages import Stage
from xdray.steps import Stepper, learning_rate
from xdray.task import Task
from xdray.watching import Watch
from xdray.workers import trim_memory

Scores = dict[str, Any]
Score = Callable[[Learner], Scores]
"""Scores of a student on dev, the same on every rank."""

CHECK_EVERY = 20
"""Steps between looks at the clock (checkpoint due?) and at the loss (finite?)."""
TRIM_EVERY = 5 * CHECK_EVERY
"""Steps between which freed memory is handed back on CPUs."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `run_stages` needs: everything but the student."""

    stages: Sequence[Stage]
    keys: Sequence[str]
    """Chained key of each stage (stages.chain_keys)."""
    task: Task
    settings: TrainingConfig
    seed: int
    loaders: Callable[[Stage], Mapping[str, Loader]]
    """Split to its loader, for a stage."""
    score: Score
    folder: Path
    """Finished stages are kept under it."""
    start_from: Path | None
    """Another run's folder of stages that may serve."""
    session: Session
    console: Console
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    """Told after each epoch: stage, epoch, done (of all planned), dev (None: no head yet)."""
    on_save: Callable[[], object] = lambda: None
    """Called by rank 0 when a stage or a checkpoint is on the disk."""
    watch: Watch = field(default_factory=Watch)


def run_stages(student: Learner, training: Training) -> list[dict[str, Any]]:
    """Train through all stages; finished ones are loaded, an interrupted one is continued.

    Returns one row a stage as the report has it. The student ends in the best state of the last
    stage. Raises TrainingError for a loss that is not finite.
    """
    session = training.session
    student.to(session.device)
    rows: list[dict[str, Any]] = []
    for index, (stage, key) in enumerate(zip(training.stages, training.keys, strict=True)):
        row = _finished(student, training, index, key)
        if rank_0_says(session, row is not None) != (row is not None):
            raise TrainingError(
                f"stage {stage.name}: finished where rank 0 is, and not so on this machine; put "
                "run.folder (and run.start_from) where all machines see it, or at a URI"
            )
        if row is None:
            row = _StageRun(student, training, index).run()
            if session.rank == 0:
                save_stage(student, training.folder / stage_folder(index, stage), row)
                training.on_save()
            rank_0_says(session, True)  # it is on the disk
        rows.append(row)
    return rows


def _finished(student: Learner, training: Training, index: int, key: str) -> dict[str, Any] | None:
    """Load stage `index` if it was finished here, or in the run to start from, under this key."""
    stage = training.stages[index]
    name = stage_folder(index, stage)
    for folder in (training.folder, training.start_from):
        row = None if folder is None else load_stage(student, folder / name, key)
        if row is None:
            continue
        if folder != training.folder and training.session.rank == 0:
            save_stage(student, training.folder / name, row)
        training.console.say(f"stage {stage.name}: finished before, taken from {folder}")
        return row
    return None


class _StageRun:
    """One sub-step, from its first or its last checkpointed step to its best state."""

    def __init__(self, student: Learner, training: Training, index: int) -> None:
        self.student = student
        self.training = training
        self.stage = training.stages[index]
        self.key = training.keys[index]
        self.index = index
        self.session = training.session
        self.loaders = training.loaders(self.stage)
        self.progress = Progress()
        self.watch = training.watch.stage(stage_folder(index, self.stage))
        self.held_out: list[Batch] | None = None
        self._accumulation = training.settings.accumulation
        self._counted = self._forwarded()
        self._clock = time.monotonic()
        self._last_checkpoint = self._clock

    def run(self) -> dict[str, Any]:
        """Train, restore the best state, return the row of the report."""
        stage, training = self.stage, self.training
        if stage.new_head:
            self.student.reset_head(training.seed)
        self.stepper = Stepper(self.student, stage, training.task, training.settings, self.session)
        if any(term.normalise for term in stage.terms):
            self.stepper.normalise(self._held_out_batches())
        self.best_state = _copy_state(self.student)
        if not self._resume():
            self._score_start()
        with self.watch.drawing(self.progress.points):
            with before_leaving(self._save):
                while not self._is_over():
                    self._epoch()
            self.loaders[stage.splits[0]].close()
            self.student.load_state_dict(self.best_state)
            dev = training.score(self.student) if stage.trains_head else None
            self.watch.best(self.progress.total_steps, dev)
        return self._row(dev)

    def _is_over(self) -> bool:
        progress, stage = self.progress, self.stage
        return progress.epoch >= stage.epochs or progress.bad_epochs >= stage.patience

    def _row(self, dev: Scores | None) -> dict[str, Any]:
        progress = self.progress
        self._tick()
        self._count_forwarded()
        return {
            "stage": self.stage.stage,
            "name": self.stage.name,
            "key": self.key,
            "trainable": list(self.stage.trainable),
            "steps": progress.total_steps,
            "epochs": progress.epoch,
            "seconds": round(progress.seconds, 2),
            "teacher_forward_rows": progress.forwarded,
            "dev": dev,
            "score": progress.best,
            "score_name": self._score_name(),
            "history": progress.history,
        }

    def _score_name(self) -> str:
        return f"dev {self.training.task.metric}" if self.stage.by_dev else "minus held-out loss"

    def _shown_score(self, score: float) -> str:
        name = self._score_name()
        return f"{name} {score:.4f}" if self.stage.by_dev else f"held-out loss {-score:.4f}"

    def _tick(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _count_forwarded(self) -> None:
        """Add what the teacher did for all ranks since the last call; every rank must come here."""
        mine = self._forwarded()
        new = torch.tensor([mine - self._counted], device=self.session.device)
        self.session.all_sum(new)
        self.progress.forwarded += int(new)
        self.watch.forwarded(int(new))
        self._counted = mine

    def _forwarded(self) -> int:
        return sum(loader.plan.source.forwarded for loader in self.loaders.values())

    def _epoch(self) -> None:
        progress, stage = self.progress, self.stage
        main = self.loaders[stage.splits[0]]
        num_steps = math.ceil(main.num_steps(progress.epoch) / self._accumulation)
        planned = stage.epochs * num_steps
        self.student.train()
        self.watch.begin(progress.total_steps)
        for batches in self._steps():
            done = (progress.epoch + progress.step / num_steps) / stage.epochs
            rate = learning_rate(stage, self.training.settings, done, planned)
            with unbroken():
                self.stepper.step(batches, rate, self._step_seed())
                progress.step += 1
                progress.total_steps += 1
            if progress.total_steps % CHECK_EVERY == 0:
                title = f"stage {stage.name}, epoch {progress.epoch + 1} of {stage.epochs}"
                self.training.console.progress(title, progress.step, num_steps, "steps")
                losses = self.stepper.check(progress.total_steps)
                self.watch.look(progress.total_steps, planned, rate, losses)
                if self.session.device == "cpu" and progress.total_steps % TRIM_EVERY == 0:
                    trim_memory()
                if progress.step < num_steps:  # else the epoch's end saves
                    self._save_if_due()
        self._end_epoch()

    def _steps(self) -> Iterator[list[dict[str, Batch]]]:
        """Batches of each step that is still to do in this epoch, a dict by split for each pass."""
        progress, first, device = self.progress, self.stage.splits[0], self.session.device
        others = {
            split: self.loaders[split].endless(progress.total_steps * self._accumulation)
            for split in self.stage.splits[1:]
        }
        window: list[dict[str, Batch]] = []
        main = self.loaders[first].batches(progress.epoch, progress.step * self._accumulation)
        for batch in main:
            batches = {first: batch.to(device)}
            batches |= {split: next(source).to(device) for split, source in others.items()}
            window.append(batches)
            if len(window) == self._accumulation:
                yield window
                window = []
        if window:
            yield window

    def _step_seed(self) -> int:
        """Seed of a step's dropout: the same after a resume, another on each rank and stage."""
        step, rank = self.progress.total_steps, self.session.rank
        stage = self.training.seed * 1_000_003 + int(self.key[:8], 16)
        return (stage + step * 7_919 + rank) % 2**63

    def _save_if_due(self) -> None:
        """Rank 0's clock decides for all, since a checkpoint is a barrier."""
        due = time.monotonic() - self._last_checkpoint >= self.training.settings.checkpoint_seconds
        if rank_0_says(self.session, due):
            self._save()

    def _end_epoch(self) -> None:
        self.stepper.check(self.progress.total_steps)
        self.student.eval()
        self._note_epoch(self._current_score())
        self._save_if_due()
        self._tell_epoch()

    @unbroken()
    def _note_epoch(self, score: float) -> None:
        progress = self.progress
        if score >= progress.best:  # ties to the later
            progress.best, progress.bad_epochs = score, 0
            self.best_state = _copy_state(self.student)
        else:
            progress.bad_epochs += 1
        self._tick()
        self._count_forwarded()
        terms = self.stepper.mean_losses()
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                "step": progress.total_steps,
                "seconds": round(progress.seconds, 2),
                "learning_rate": self.stepper.rate,
                "terms": terms,
                "weighted_terms": self.stepper.weighted_losses(),
                "score": score,
            }
        )
        self.watch.end_epoch(progress.history[-1], self._score_name())
        shown = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self.training.console.say(
            f"stage {self.stage.name}: epoch {progress.epoch + 1}/{self.stage.epochs}, "
            f"loss {shown}, {self._shown_score(score)}, {progress.seconds:.0f} s"
        )
        progress.epoch, progress.step = progress.epoch + 1, 0
        self.stepper.clear()

    def _tell_epoch(self) -> None:
        training, stage = self.training, self.stage
        if training.on_epoch is None:
            return
        planned = [its.epochs for its in training.stages]
        dev = training.score(self.student) if stage.trains_head else None
        self._tick()
        training.on_epoch(
            {
                "stage": stage.name,
                "epoch": self.progress.epoch,
                "done": (sum(planned[: self.index]) + self.progress.epoch) / sum(planned),
                "dev": dev,
            }
        )

    def _held_out_batches(self) -> list[Batch]:
        if self.held_out is None:
            device = self.session.device
            self.held_out = [b.to(device) for b in self.loaders["transfer"].held_out()]
        return self.held_out

    def _save(self) -> None:
        """Write a resumable checkpoint; every rank takes part."""
        self._tick()
        state = {
            "key": self.key,
            "progress": asdict(self.progress),
            "student": self.student.state_dict(),
            "best": self.best_state,
            **self.stepper.state(),
        }
        metrics = {"stage": self.stage.name, "step": self.progress.total_steps}
        self.session.save(lambda folder: torch.save(state, folder / "state.pt"), metrics)
        if self.session.rank == 0:
            self.training.on_save()
        self._last_checkpoint = time.monotonic()

    def _score_start(self) -> None:
        """Let a sub-step be judged against the state that the one before it ended in.

        Only where the score means the same there: within a stage, and on dev once a head is
        trained. A sub-step whose every epoch is worse then changes nothing.
        """
        before = self.training.stages[self.index - 1] if self.index else None
        if before is None or self.stage.new_head:
            return
        if before.stage != self.stage.stage and not (self.stage.by_dev and before.trains_head):
            return
        self.student.eval()
        self.progress.best = self._current_score()

    def _current_score(self) -> float:
        """Return what the best state is chosen by: the metric on dev or minus the held-out loss."""
        if not self.stage.by_dev:
            return -self.stepper.held_out_loss(self._held_out_batches())
        return float(self.training.score(self.student)[self.training.task.metric])

    def _resume(self) -> bool:
        """Go on from the last checkpoint if it is of this stage; says whether it was."""
        folder = self.session.latest_checkpoint()
        if folder is None or not (Path(folder) / "state.pt").is_file():
            return False
        state = torch.load(
            Path(folder) / "state.pt", map_location=self.session.device, weights_only=True
        )
        if state["key"] != self.key:
            return False
        self.progress = Progress(**state["progress"])
        self.student.load_state_dict(state["student"])
        self.best_state = state["best"]
        self.stepper.load_state(state)
        self.training.console.say(
            f"stage {self.stage.name}: continued at epoch {self.progress.epoch + 1}, "
            f"step {self.progress.step}"
        )
        return True


def _copy_state(student: Learner) -> dict[str, Tensor]:
    """Deep copy: a state_dict alone is a live reference, restoring it would do nothing."""
    return {name: value.detach().clone() for name, value in student.state_dict().items()}
