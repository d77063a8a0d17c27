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

from xdray.batches import Batch
from xdray.config import TrainingConfig
from xdray.errors import TrainingError
from xdray.exchange import Exchange
from xdray.learner import Learner, Wanted
from xdray.sessions import Session
from xdray.stages import Stage, Term
from xdray.task import Task
from xdray.terms import target_moments, term_count, term_loss


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
        self.variances = torch.ones(len(stage.terms), device=session.device)
        """Of what each term imitates, where it is divided by it."""
        self.rate = 0.0
        """Of the last step."""
        self._checked = self.sums.to("cpu", copy=True)
        self._losses = StepLosses(student, stage.terms, task)
        self._embedding = student.model.get_input_embeddings().weight
        self.parts = 1
        """Passes that a batch takes: more where memory was short, and from then on."""

    def normalise(self, batches: Sequence[Batch]) -> None:
        """Find the variances of what the terms imitate, over these batches of all ranks."""
        for number, term in enumerate(self.stage.terms):
            if not term.normalise:
                continue
            found = [target_moments(term, batch, self.student.heads) for batch in batches]
            widths = [its.shape[1] for its in found[:1]]
            sizes = torch.tensor([len(widths), sum(widths)], device=self.session.device)
            self.session.all_sum(sizes)  # a rank may have no held-out sentence
            ranks, width = sizes.tolist()
            if not ranks:
                raise TrainingError(
                    f"stage {self.stage.name}: no held-out sentence to see how much the target of "
                    f"{term.long_name} varies; raise training.held_out, or set normalise: false"
                )
            nothing = torch.zeros(
                3, width // ranks, dtype=torch.float64, device=self.session.device
            )
            moments = torch.stack([nothing, *found]).sum(0)
            self.session.all_sum(moments)
            mean, square = moments[0] / moments[2], moments[1] / moments[2]
            self.variances[number] = float((square - mean.square()).mean().clamp(min=1e-12))

    def step(self, window: Sequence[Mapping[str, Batch]], rate: float, seed: int) -> None:
        """One optimiser step over an accumulation window; `seed` is the dropout's on this rank."""
        self.rate = rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        terms, session = self.stage.terms, self.session
        learns = self._embedding.requires_grad
        seen = [batch.input_ids for its in window for batch in its.values()] if learns else []
        exchange = Exchange(session.world_size, self._counts(window), seen)
        weights = torch.tensor([term.weight for term in terms], device=session.device)
        weights = weights / self.variances
        while True:
            torch.manual_seed(seed)
            passes = [its for batches in window for its in _in_parts(batches, self.parts)]
            sums, short = self._backward(passes, weights, exchange)
            if not self._exchange(exchange, sums, short):
                break
            self._halve()
        if self.settings.clip is not None:
            trained = [p for group in self.optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.sums += torch.stack([sums, exchange.counts()]).double()

    def _backward(
        self, passes: Sequence[Mapping[str, Batch]], weights: Tensor, exchange: Exchange
    ) -> tuple[Tensor, bool]:
        """Loss sum of each term over this rank, with gradients; whether memory was short."""
        sums = torch.zeros(len(self.stage.terms), device=self.session.device)
        try:
            for batches in passes:
                with self._autocast():
                    loss_sums = self._losses(batches)
                    scale = weights / exchange.counts().clamp(min=1)
                    (loss_sums * scale).sum().backward()
                sums += loss_sums.detach()
        except torch.OutOfMemoryError:
            return sums, True
        return sums, False

    def _exchange(self, exchange: Exchange, sums: Tensor, short: bool) -> bool:
        """Add up gradients and `sums` over all ranks; whether any of them was short of memory.

        All ranks end with gradients of the same bits.
        """
        if self.session.world_size == 1:
            return short
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        for parameter in trained:
            if parameter.grad is None:  # losses of some layers leave others without
                parameter.grad = torch.zeros_like(parameter)
        if short:
            torch.cuda.empty_cache()  # messages take memory too; without a GPU it does nothing
        rest = [its for its in trained if its is not self._embedding]
        flag = sums.new_tensor([float(short)])
        mine = [*(its.grad for its in rest), sums, flag]
        *totals, all_sums, flags = exchange.add_up(mine, self._embedding.grad)
        for parameter, total in zip(rest, totals, strict=True):
            parameter.grad = total
        sums.copy_(all_sums)
        return bool(flags.item())

    def _halve(self) -> None:
        """Take batches in twice as many passes. Raises TrainingError below one sentence."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        self.parts *= 2
        if self.parts > self.stage.batch_tokens:
            raise TrainingError(
                f"stage {self.stage.name}: the memory of {self.session.device} does not hold one "
                "sentence with its gradients; lower tokens.max_length or the student's size"
            )

    def check(self, step: int) -> dict[str, float]:
        """Mean loss of each term since the last check or `clear`, over all ranks.

        Raises TrainingError, naming this step, for losses that are no longer finite.
        """
        sums = self.sums.to("cpu", copy=True)
        for name, value in zip(self.stage.term_names, sums[0].tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"stage {self.stage.name}, step {step}: the sum of the {name} loss is "
                    f"{value}; lower training.learning_rate"
                )
        new, self._checked = sums - self._checked, sums
        return self._by_term(new)

    def mean_losses(self) -> dict[str, float]:
        """Mean loss of each term since the last `clear`, over all ranks."""
        return self._by_term(self.sums)

    def _by_term(self, sums: Tensor) -> dict[str, float]:
        means = (sums[0] / sums[1].clamp(min=1)).tolist()
        return dict(zip(self.stage.term_names, means, strict=True))

    def weighted_losses(self) -> dict[str, float]:
        """The same as they stand in the sum that is minimised."""
        shares = (
            term.weight / float(v) for term, v in zip(self.stage.terms, self.variances, strict=True)
        )
        means = self.mean_losses()
        return {
            name: mean * share for (name, mean), share in zip(means.items(), shares, strict=True)
        }

    def clear(self) -> None:
        """Forget the losses so far."""
        self.sums.zero_()
        self._checked.zero_()

    def held_out_loss(self, batches: Sequence[Batch]) -> float:
        """The stage's loss on these transfer batches, on its device, of all ranks together."""
        terms = [term for term in self.stage.terms if term.split == "transfer"]
        losses_of = StepLosses(self.student, terms, self.task)
        totals = torch.zeros(2, len(terms), dtype=torch.float64, device=self.session.device)
        with torch.inference_mode(), self._autocast():
            for batch in batches:
                for part in _in_parts({"transfer": batch}, self.parts):
                    totals[0] += losses_of(part)
                totals[1] += torch.tensor(
                    [term_count(term, batch, self.task) for term in terms],
                    device=self.session.device,
                )
        self.session.all_sum(totals)
        weights = torch.tensor([term.weight for term in terms], dtype=torch.float64)
        transfer = [term.split == "transfer" for term in self.stage.terms]
        weights /= self.variances.double().cpu()[torch.tensor(transfer)]
        return float((weights * totals[0].cpu() / totals[1].cpu().clamp(min=1)).sum())

    def state(self) -> dict[str, Any]:
        """What a resumable checkpoint holds of it."""
        return {
            "sums": self.sums,
            "checked": self._checked,
            "rate": self.rate,
            "parts": self.parts,
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sums.copy_(state["sums"])
        self._checked.copy_(state["checked"])
        self.rate, self.parts = state["rate"], state["parts"]
        self.optimiser.load_state_dict(state["optimiser"])

    def _counts(self, window: Sequence[Mapping[str, Batch]]) -> Tensor:
        """Tokens of each term over the window, on this rank: (len(terms),)."""
        return torch.tensor(
            [
                float(sum(term_count(term, its[term.split], self.task) for its in window))
                for term in self.stage.terms
            ],
            device=self.session.device,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.autocast == "none":
            return nullcontext()
        return torch.autocast(self.session.device.split(":")[0], dtype=torch.bfloat16)


class StepLosses:
    """The losses of one pass of a student, for the terms of a stage."""

    def __init__(self, student: Learner, terms: Sequence[Term], task: Task) -> None:
        """Find what the terms compare."""
        self.student = student
        self.terms = terms
        self.task = task
        hidden = {term.student_layer for term in terms if term.loss == "hidden"}
        pairs = {t.student_layer for t in terms if t.loss in {"attention", "relations"}}
        self.wanted = Wanted(tuple(sorted(hidden)), tuple(sorted(pairs)))

    def __call__(self, batches: Mapping[str, Batch]) -> Tensor:
        """Loss sum of each term, over this rank's tokens: (len(terms),) float32."""
        found = {
            split: self.student.observe(
                batch.input_ids, batch.attention_mask, batch.token_types, self.wanted
            )
            for split, batch in batches.items()
        }
        heads = self.student.heads
        return torch.stack(
            [
                term_loss(term, found[term.split], batches[term.split], self.task, heads)
                for term in self.terms
            ]
        )


def _in_parts(batches: Mapping[str, Batch], parts: int) -> list[Mapping[str, Batch]]:
    if parts == 1:
        return [batches]
    return [
        {split: its.part(number, parts) for split, its in batches.items()}
        for number in range(parts)
    ]


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
