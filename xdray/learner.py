"""What can be trained: a student, or a teacher that is fine-tuned. B sentences, T tokens."""

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging


class Wanted(NamedTuple):
    """Layers of a student that losses compare; -1 is the last."""

    hidden: tuple[int, ...] = (-1,)
    qkv: tuple[int, ...] = ()


class Observed(NamedTuple):
    """What a student's forward pass gave."""

    logits: Tensor
    hidden: dict[int, Tensor]
    """By layer (B, T, W), in the teacher's width."""
    qkv: dict[int, Tensor]
    """By layer (B, T, 3 of the student's own widths)."""


class Learner(nn.Module, abc.ABC):
    """What can be trained: a student, or a teacher that is fine-tuned."""

    model: Any
    """As transformers has it, under what is added for training."""

    @abc.abstractmethod
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) each -> hidden states in the teacher's width (B, T, W), logits.

        token_types: 1 in the second text of a pair; None: there is none. Logits are (B, T, C), or
        (B, C) where a sentence has one row.
        """

    def observe(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_types: Tensor | None,
        wanted: "Wanted",
    ) -> "Observed":
        """Forward pass that also says what the losses of a stage compare."""
        hidden, logits = self(input_ids, attention_mask, token_types)
        return Observed(logits, {layer: hidden for layer in wanted.hidden}, {})

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads of the student and of the teacher; 0: it has none."""
        return 0, 0

    @abc.abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group of layers, from the top down, each in exactly one."""

    @abc.abstractmethod
    def reset_head(self, seed: int) -> None:
        """Give the head fresh weights."""


def model_inputs(
    model: Any, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor | None
) -> dict[str, Tensor]:
    """Arguments that every family of encoders takes, token types for those that know several."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_types is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = token_types
    return inputs


def logits_of(output: Any) -> Tensor:
    """Logits of a model with any head: of an answer (B, T, 2), start and end; none: (B, 0)."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    return output.logits if "logits" in output else output.last_hidden_state[:, 0, :0]


def mean_state(output: Any, mask: Tensor) -> Tensor:
    """(B, W) mean of the last hidden states over the tokens that are there. mask: (B, T)."""
    real = mask[..., None].to(output.last_hidden_state.dtype)
    return (output.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bar and loading report off the terminal: we say it ourselves."""
    bar, level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
