"""What can be trained: a student, or a teacher that is fine-tuned. B sentences, T tokens."""

import abc

from torch import Tensor, nn


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
