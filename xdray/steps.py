"""One optimiser step of a stage: what trains, at what rate, against which losses.

A step's losses are sums; they are divided by the counts of all workers and of the whole
accumulation window, so one worker and two take the same step.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xdray import losses
from xdray.batches import Batch
from xdray.config import TrainingConfig
from xdray.errors import TrainingError
from xdray.learner import Learner
from xdray.sessions import Session
from xdray.stages import Stage, Term
from xdray.task import Task


class Stepper:
    """Takes the steps of one stage with a student, over one window of batches at a time."""

    def __init__(
        self,
        student: Learner,
        stage: Stage,
        task: Task,
        settings: TrainingConfig,
        session: Session,
    ) -> None:
        """Freeze all but the stage's groups. Raises TrainingError where nothing is left to train.

        The student must be on the session's device; every rank must come here.
        """
        self.student, self.stage, self.settings, self.session = student, stage, settings, session
        self.task = task
        self.optimiser = _optimiser(_trainable(student, stage), stage, settings)
        self.sums = torch.zeros(2, len(stage.terms), dtype=torch.float64, device=session.device)
        """Loss sum and token count of each term since the last `clear`, over all ranks."""
        self.rate = 0.0
        """Of the last step."""
        self._losses: nn.Module = StepLosses(student, stage.terms, task)
        if session.world_size > 1:
            self._losses = DistributedDataParallel(self._losses, broadcast_buffers=False)

    def step(self, window: Sequence[Mapping[str, Batch]], rate: float, seed: int) -> None:
        """One optimiser step over an accumulation window; `seed` is the dropout's on this rank."""
        self.rate = rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        terms, session = self.stage.terms, self.session
        counts = self._counts(window)
        weights = torch.tensor([term.weight for term in terms], device=session.device)
        scale = weights * session.world_size / counts.clamp(min=1)
        torch.manual_seed(seed)
        sums = torch.zeros(len(terms), device=session.device)
        for position, batches in enumerate(window):
            last = position == len(window) - 1
            with self._no_sync(last), self._autocast():
                loss_sums = self._losses(batches)
                (loss_sums * scale).sum().backward()
            sums += loss_sums.detach()
        if self.settings.clip is not None:
            trained = [p for group in self.optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        session.all_sum(sums)
        self.sums += torch.stack([sums, counts]).double()

    def check(self, step: int) -> None:
        """Raise TrainingError, naming this step, for losses that are no longer finite."""
        for term, value in zip(self.stage.terms, self.sums[0].tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"stage {self.stage.name}, step {step}: the sum of the {term.name} loss is "
                    f"{value}; lower training.learning_rate"
                )

    def mean_losses(self) -> dict[str, float]:
        """Mean loss of each term since the last `clear`, over all ranks."""
        means = (self.sums[0] / self.sums[1].clamp(min=1)).tolist()
        several = len({term.name for term in self.stage.terms}) < len(means)
        return {
            term.long_name if several else term.name: mean
            for term, mean in zip(self.stage.terms, means, strict=True)
        }

    def clear(self) -> None:
        """Forget the losses so far."""
        self.sums.zero_()

    def held_out_loss(self, batches: Sequence[Batch]) -> float:
        """The stage's loss on these transfer batches, on its device, of all ranks together."""
        terms = [term for term in self.stage.terms if term.split == "transfer"]
        losses_of = StepLosses(self.student, terms, self.task)
        totals = torch.zeros(2, len(terms), dtype=torch.float64, device=self.session.device)
        with torch.inference_mode(), self._autocast():
            for batch in batches:
                totals[0] += losses_of({"transfer": batch})
                totals[1] += torch.tensor(
                    [_term_count(term, batch, self.task) for term in terms],
                    device=self.session.device,
                )
        self.session.all_sum(totals)
        weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
        return float((weights * totals[0].cpu() / totals[1].cpu().clamp(min=1)).sum())

    def state(self) -> dict[str, Any]:
        """What a resumable checkpoint holds of it."""
        return {"sums": self.sums, "optimiser": self.optimiser.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sums.copy_(state["sums"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _counts(self, window: Sequence[Mapping[str, Batch]]) -> Tensor:
        """Tokens of each term over the window and all ranks: (len(terms),)."""
        terms = self.stage.terms
        counts = torch.tensor(
            [
                float(sum(_term_count(term, its[term.split], self.task) for its in window))
                for term in terms
            ],
            device=self.session.device,
        )
        self.session.all_sum(counts)
        return counts

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._losses, DistributedDataParallel) and not last:
            return self._losses.no_sync()
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.autocast == "none":
            return nullcontext()
        return torch.autocast(self.session.device.split(":")[0], dtype=torch.bfloat16)


class StepLosses(nn.Module):
    """The losses of one step in one forward call, so that DDP sees one forward a step."""

    def __init__(self, student: Learner, terms: Sequence[Term], task: Task) -> None:
        """Wrap a student for the terms of a stage."""
        super().__init__()
        self.student = student
        self.terms = terms
        self.task = task

    def forward(self, batches: Mapping[str, Batch]) -> Tensor:
        """Loss sum of each term, over this rank's tokens: (len(terms),) float32."""
        outputs = {}
        for split, batch in batches.items():
            hidden, logits = self.student(batch.input_ids, batch.attention_mask, batch.token_types)
            if not self.task.sentence_logits:
                logits = _kept(logits, batch)
            outputs[split] = (_kept(hidden, batch), logits)
        return torch.stack(
            [
                _term_loss(term, outputs[term.split], batches[term.split], self.task)
                for term in self.terms
            ]
        )


def learning_rate(stage: Stage, settings: TrainingConfig, done: float, steps: int) -> float:
    """Rate of the next step: warm-up, then constant or a cosine over the planned epochs.

    done: share of the stage's planned `steps` that is done, 0 to 1.
    """
    if done < settings.warmup:
        first = 1 / steps
        return stage.learning_rate * (done + first) / (settings.warmup + first)
    if stage.schedule == "constant":
        return stage.learning_rate
    turned = (done - settings.warmup) / (1 - settings.warmup)
    share = 0.5 * (1 + math.cos(math.pi * turned))
    return stage.learning_rate * (settings.final_rate + (1 - settings.final_rate) * share)


def _trainable(student: Learner, stage: Stage) -> list[tuple[str, nn.Parameter]]:
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
    trainable: Sequence[tuple[str, nn.Parameter]], stage: Stage, settings: TrainingConfig
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


def _kept(values: Tensor, batch: Batch) -> Tensor:
    return values.flatten(0, 1).index_select(0, batch.kept)


def _term_loss(term: Term, output: tuple[Tensor, Tensor], batch: Batch, task: Task) -> Tensor:
    """Loss sum of a term; a batch that only joins the step has no rows to score."""
    hidden, logits = output
    if term.loss == "hidden":
        assert term.layer is not None
        hidden, target = (
            _pooled(states, batch, term.tokens) for states in (hidden, batch.hidden[term.layer])
        )
        if term.distance == "kl":
            return losses.representation_kl_loss(hidden, target)
        return losses.representation_loss(hidden, target)
    scored = batch.labels if term.loss == "labels" else batch.logits
    assert scored is not None
    if task.sentence_logits:
        logits = logits[: len(scored)]
    if term.loss == "labels":
        return task.label_loss(logits, scored, batch)
    return task.logit_loss(term, logits, scored, batch)


def _pooled(states: Tensor, batch: Batch, tokens: str) -> Tensor:
    """States of all kept tokens (N, W), of the first ones, or their means by sentence (B, W)."""
    if tokens == "first":
        return states[batch.first]
    if tokens == "all" or not len(states):
        return states
    sums = states.new_zeros(len(batch.input_ids), states.shape[-1])
    counts = torch.bincount(batch.owners, minlength=len(sums)).clamp(min=1)
    return sums.index_add(0, batch.owners, states) / counts[:, None]


def _term_count(term: Term, batch: Batch, task: Task) -> int:
    """Tokens or sentences that the term's mean is over, on this rank."""
    if term.loss == "labels":
        return batch.num_labels
    if term.loss != "hidden":
        return task.logit_count(term, batch)
    if term.tokens == "mean":
        return len(batch.input_ids) if len(batch.kept) else 0
    return len(batch.first if term.tokens == "first" else batch.kept)
