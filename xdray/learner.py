"""What can be trained: a student, or a teacher that is fine-tuned. B sentences, T tokens."""

import abc
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.utils import logging as transformers_logging


class Learner(nn.Module, abc.ABC):
    """What can be trained: a student, or a teacher that is fine-tuned."""

    @abc.abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) each -> hidden states in the teacher's width (B, T, W), logits (B, T, C)."""

    @abc.abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group of layers, from the top down, each in exactly one."""

    @abc.abstractmethod
    def reset_head(self, seed: int) -> None:
        """Give the head fresh weights."""


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
