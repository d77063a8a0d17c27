"""Training a student through its stages: optimiser, schedule, loop, early stop, exact resume.

`run_stages` is the same loop in this process, in one Ray Train worker and in many; what differs is
the `Session` it is handed. A step's losses are sums; they are divided by the counts of all workers
and of the whole accumulation window, so one worker and two take the same step.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from xdray.batches import Batch, Loader
from xdray.config import TrainingConfig
from xdray.console import Console
from xdray.errors import TrainingError
from xdray.learner import Learner
from xdray.sessions import Session
from xdray.stages import Stage
from xdray.step_losses import StepLosses, term_count
from xdray.storage import write_bytes_atomic

Scores = dict[str, Any]


Score = Callable[[Learner], Scores]
"""Scores of a student on dev, the same on every rank."""

CHECK_EVERY = 20
"""Steps between looks at the clock (checkpoint due?) and at the loss (finite?)."""


@dataclass(kw_only=True)
class Progress:
    """Where a sub-step stands; all of it is in a checkpoint."""

    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    bad_epochs: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `run_stages` needs: everything but the student."""

    stages: Sequence[Stage]
    keys: Sequence[str]
    """Chained key of each stage (stages.chain_keys)."""
    settings: TrainingConfig
    seed: int
    metric: str
    loaders: Callable[[Stage], Mapping[str, Loader]]
    """Split to its loader, for a stage."""
    score: Score
    folder: Path
    """Finished stages are kept under it."""
    start_from: Path | None
    """Another run's folder of stages that may serve."""
    session: Session
    console: Console


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
        if row is None:
            row = _StageRun(student, training, index).run()
            if session.rank == 0:
                _save_stage(student, training.folder / _folder_name(index, stage), row)
            _barrier(session)
        rows.append(row)
    return rows


def _folder_name(index: int, stage: Stage) -> str:
    return f"{index + 1:02}-{stage.name.replace(' ', '')}"


def _finished(student: Learner, training: Training, index: int, key: str) -> dict[str, Any] | None:
    """Load stage `index` if it was finished here, or in the run to start from, under this key."""
    name = _folder_name(index, training.stages[index])
    for folder in (training.folder, training.start_from):
        path = None if folder is None else folder / name / "stage.json"
        if path is None or not path.is_file():
            continue
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["key"] != key:
            continue
        student.load_state_dict(load_file(path.parent / "student.safetensors"))
        if folder != training.folder and training.session.rank == 0:
            _save_stage(student, training.folder / name, row)
        stage = training.stages[index].name
        training.console.say(f"stage {stage}: finished before, taken from {path.parent}")
        return row
    return None


def _save_stage(student: Learner, folder: Path, row: dict[str, Any]) -> None:
    """Weights first, then the row that says they are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    partial = folder / "student.safetensors.partial"
    save_file({k: v.cpu().contiguous() for k, v in student.state_dict().items()}, partial)
    partial.replace(folder / "student.safetensors")
    write_bytes_atomic(str(folder / "stage.json"), json.dumps(row, indent=1).encode())


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
        self.sums = torch.zeros(2, len(self.stage.terms), dtype=torch.float64)
        self.sums = self.sums.to(self.session.device)
        """Loss sum and token count of each term in this epoch, over all ranks, for the log."""
        self.held_out: list[Batch] | None = None
        self._clock = time.monotonic()
        self._last_checkpoint = self._clock

    def run(self) -> dict[str, Any]:
        """Train, restore the best state, return the row of the report."""
        stage, training = self.stage, self.training
        if stage.new_head:
            self.student.reset_head(training.seed)
        trainable = _set_trainable(self.student, stage)
        self.optimiser = _optimiser(self.student, trainable, stage, training.settings)
        self.best_state = _copy_state(self.student)
        if not self._resume():
            self._score_start()
        self.losses: nn.Module = StepLosses(self.student, stage.terms)
        if self.session.world_size > 1:
            self.losses = DistributedDataParallel(self.losses, broadcast_buffers=False)
        while self.progress.epoch < stage.epochs and self.progress.bad_epochs < stage.patience:
            self._epoch()
        self.student.load_state_dict(self.best_state)
        dev = training.score(self.student) if stage.trains_head else None
        return self._row(dev)

    def _row(self, dev: Scores | None) -> dict[str, Any]:
        progress = self.progress
        self._tick()
        return {
            "stage": self.stage.stage,
            "name": self.stage.name,
            "key": self.key,
            "trainable": list(self.stage.trainable),
            "steps": progress.total_steps,
            "epochs": progress.epoch,
            "seconds": round(progress.seconds, 2),
            "dev": dev,
            "score": progress.best,
            "score_name": self._score_name(),
            "history": progress.history,
        }

    def _score_name(self) -> str:
        return f"dev {self.training.metric}" if self.stage.by_dev else "minus held-out loss"

    def _shown_score(self, score: float) -> str:
        name = self._score_name()
        return f"{name} {score:.4f}" if self.stage.by_dev else f"held-out loss {-score:.4f}"

    def _tick(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _epoch(self) -> None:
        progress, stage = self.progress, self.stage
        main = self.loaders[stage.splits[0]]
        num_steps = math.ceil(main.plan.num_steps(progress.epoch) / self._accumulation)
        self.student.train()
        for batches in self._steps():
            rate = _rate(stage, self.training.settings, progress, num_steps)
            self._step(batches, rate)
            progress.step += 1
            progress.total_steps += 1
            if progress.total_steps % CHECK_EVERY == 0:
                title = f"stage {stage.name}, epoch {progress.epoch + 1} of {stage.epochs}"
                self.training.console.progress(title, progress.step, num_steps, "steps")
                self._check(num_steps)
        self._end_epoch()

    @property
    def _accumulation(self) -> int:
        return self.training.settings.accumulation

    def _steps(self) -> Iterator[list[dict[str, Batch]]]:
        """Batches of each step that is still to do in this epoch, a dict by split for each pass."""
        progress, first, device = self.progress, self.stage.splits[0], self.session.device
        others = {
            split: _endless(self.loaders[split], progress.total_steps * self._accumulation)
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

    def _step(self, window: list[dict[str, Batch]], rate: float) -> None:
        """One optimiser step over an accumulation window."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        terms, session = self.stage.terms, self.session
        counts = self._counts(window)
        weights = torch.tensor([term.weight for term in terms], device=session.device)
        scale = weights * session.world_size / counts.clamp(min=1)
        torch.manual_seed(self._step_seed())
        sums = torch.zeros(len(terms), device=session.device)
        for position, batches in enumerate(window):
            last = position == len(window) - 1
            with self._no_sync(last), self._autocast():
                loss_sums = self.losses(batches)
                (loss_sums * scale).sum().backward()
            sums += loss_sums.detach()
        if self.training.settings.clip is not None:
            nn.utils.clip_grad_norm_(
                [p for p in self.student.parameters() if p.requires_grad],
                self.training.settings.clip,
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if session.world_size > 1:
            dist.all_reduce(sums)
        self.sums += torch.stack([sums, counts]).double()

    def _step_seed(self) -> int:
        """Seed of a step's dropout: the same after a resume, another on each rank and stage."""
        step, rank = self.progress.total_steps, self.session.rank
        stage = self.training.seed * 1_000_003 + int(self.key[:8], 16)
        return (stage + step * 7_919 + rank) % 2**63

    def _counts(self, window: list[dict[str, Batch]]) -> Tensor:
        """Tokens of each term over the window and all ranks: (len(terms),)."""
        counts = torch.tensor(
            [
                float(sum(term_count(term, batches[term.split]) for batches in window))
                for term in self.stage.terms
            ],
            device=self.session.device,
        )
        if self.session.world_size > 1:
            dist.all_reduce(counts)
        return counts

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.losses, DistributedDataParallel) and not last:
            return self.losses.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.training.settings.autocast == "none":
            return nullcontext()
        return torch.autocast(self.session.device.split(":")[0], dtype=torch.bfloat16)

    def _check(self, num_steps: int) -> None:
        """Look at the loss and at the clock."""
        self._raise_if_not_finite()
        if self.progress.step < num_steps:  # else the epoch's end saves
            self._save_if_due()

    def _save_if_due(self) -> None:
        """Rank 0's clock decides for all, since a checkpoint is a barrier."""
        due = time.monotonic() - self._last_checkpoint >= self.training.settings.checkpoint_seconds
        if _rank_0_says(due, self.session):
            self._save()

    def _raise_if_not_finite(self) -> None:
        for term, value in zip(self.stage.terms, self.sums[0].tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"stage {self.stage.name}, step {self.progress.total_steps}: the sum of the "
                    f"{term.name} loss is {value}; lower training.learning_rate"
                )

    def _end_epoch(self) -> None:
        progress, training = self.progress, self.training
        self._raise_if_not_finite()
        self.student.eval()
        score = self._current_score()
        if score >= progress.best:  # ties to the later
            progress.best, progress.bad_epochs = score, 0
            self.best_state = _copy_state(self.student)
        else:
            progress.bad_epochs += 1
        self._tick()
        terms = self._mean_losses()
        progress.history.append(
            {
                "epoch": progress.epoch + 1,
                "step": progress.total_steps,
                "seconds": round(progress.seconds, 2),
                "learning_rate": self.optimiser.param_groups[0]["lr"],
                "terms": terms,
                "score": score,
            }
        )
        shown = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        training.console.say(
            f"stage {self.stage.name}: epoch {progress.epoch + 1}/{self.stage.epochs}, "
            f"loss {shown}, {self._shown_score(score)}, {progress.seconds:.0f} s"
        )
        progress.epoch, progress.step = progress.epoch + 1, 0
        self.sums.zero_()
        self._save_if_due()

    def _mean_losses(self) -> dict[str, float]:
        """Mean loss of each term over the epoch and all ranks."""
        means = (self.sums[0] / self.sums[1].clamp(min=1)).tolist()
        several = len({term.name for term in self.stage.terms}) < len(means)
        return {
            term.long_name if several else term.name: mean
            for term, mean in zip(self.stage.terms, means, strict=True)
        }

    def _held_out_loss(self) -> float:
        """The stage's loss on the held-out transfer sentences of all ranks."""
        if self.held_out is None:
            device = self.session.device
            self.held_out = [b.to(device) for b in self.loaders["transfer"].held_out()]
        terms = [term for term in self.stage.terms if term.split == "transfer"]
        losses_of = StepLosses(self.student, terms)
        totals = torch.zeros(2, len(terms), dtype=torch.float64)
        with torch.inference_mode(), self._autocast():
            for batch in self.held_out:
                totals[0] += losses_of({"transfer": batch}).double().cpu()
                totals[1] += torch.tensor([float(term_count(term, batch)) for term in terms])
        if self.session.world_size > 1:
            totals = totals.to(self.session.device)
            dist.all_reduce(totals)
        weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
        return float((weights * totals[0].cpu() / totals[1].cpu().clamp(min=1)).sum())

    def _save(self) -> None:
        """Write a resumable checkpoint; every rank takes part."""
        self._tick()
        state = {
            "key": self.key,
            "progress": asdict(self.progress),
            "sums": self.sums,
            "student": self.student.state_dict(),
            "best": self.best_state,
            "optimiser": self.optimiser.state_dict(),
        }
        metrics = {"stage": self.stage.name, "step": self.progress.total_steps}
        self.session.save(lambda folder: torch.save(state, folder / "state.pt"), metrics)
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
            return -self._held_out_loss()
        return float(self.training.score(self.student)[self.training.metric])

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
        self.sums = state["sums"]
        self.student.load_state_dict(state["student"])
        self.best_state = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.training.console.say(
            f"stage {self.stage.name}: continued at epoch {self.progress.epoch + 1}, "
            f"step {self.progress.step}"
        )
        return True


def _set_trainable(student: Learner, stage: Stage) -> list[tuple[str, nn.Parameter]]:
    """Freeze all but the stage's groups; returns what trains, with the name of its group."""
    trainable: list[tuple[str, nn.Parameter]] = []
    for group, parameters in student.groups().items():
        for parameter in parameters:
            parameter.requires_grad_(group in stage.trainable)
            if group in stage.trainable:
                trainable.append((group, parameter))
    if not trainable:
        raise TrainingError(f"stage {stage.name}: nothing to train; it names {stage.trainable}")
    return trainable


def _optimiser(
    student: Learner,
    trainable: Sequence[tuple[str, nn.Parameter]],
    stage: Stage,
    settings: TrainingConfig,
) -> torch.optim.Optimizer:
    """AdamW without decay on embeddings, biases and norms; without decay it is Adam (P1)."""
    decayed = [p for group, p in trainable if p.ndim > 1 and group != "embedding"]
    kept = [p for group, p in trainable if p.ndim <= 1 or group == "embedding"]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, fused=True)


def _rate(stage: Stage, settings: TrainingConfig, progress: Progress, steps_in_epoch: int) -> float:
    """Learning rate of the next step: warm-up, then constant or a cosine over planned epochs."""
    done = (progress.epoch + progress.step / max(1, steps_in_epoch)) / stage.epochs
    if done < settings.warmup:
        first = 1 / (stage.epochs * max(1, steps_in_epoch))
        return stage.learning_rate * (done + first) / (settings.warmup + first)
    if stage.schedule == "constant":
        return stage.learning_rate
    turned = (done - settings.warmup) / (1 - settings.warmup)
    share = 0.5 * (1 + math.cos(math.pi * turned))
    return stage.learning_rate * (settings.final_rate + (1 - settings.final_rate) * share)


def _endless(loader: Loader, start: int) -> Iterator[Batch]:
    """Batches of a second split, epoch after epoch, from batch `start` of all on."""
    epoch = 0
    while start >= (steps := loader.plan.num_steps(epoch)):
        start, epoch = start - steps, epoch + 1
    while True:
        yield from loader.batches(epoch, start)
        start, epoch = 0, epoch + 1


def _copy_state(student: Learner) -> dict[str, Tensor]:
    """Deep copy: a state_dict alone is a live reference, restoring it would do nothing."""
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def _rank_0_says(yes: bool, session: Session) -> bool:
    if session.world_size == 1:
        return yes
    flag = torch.tensor([float(yes and session.rank == 0)], device=session.device)
    dist.all_reduce(flag)
    return bool(flag.item() > 0)


def _barrier(session: Session) -> None:
    if session.world_size > 1:
        dist.barrier()
