"""A teacher while it is fine-tuned: an encoder with a fresh head, and its folder when it is done.

B sentences, T tokens, W width of the hidden states, C classes.
"""

import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from xdray.encoders import set_dropout
from xdray.errors import ConfigError
from xdray.learner import Learner, logits_of, model_inputs, quiet_transformers
from xdray.stage_files import load_last
from xdray.storage import to_disk
from xdray.task import Task
from xdray.tokens import load_tokenizer
from xdray.weights import loading, model_folder, trusted


class TeacherLearner(Learner):
    """An encoder with a head while it is fine-tuned into a teacher."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model with a token classification head."""
        super().__init__()
        self.model = model

    @classmethod
    def from_encoder(
        cls,
        encoder: str,
        task: Task,
        seed: int,
        fresh: bool = False,
        dropout: float | None = None,
    ) -> "TeacherLearner":
        """Put a fresh head for a task on a pre-trained encoder. Raises ConfigError.

        fresh: the encoder too starts from random weights, of the shape that config.json says.
        dropout: in place of the encoder's own.
        """
        folder = model_folder(encoder, weights=not fresh)
        model_class = getattr(transformers, task.model_class)
        code = {"trust_remote_code": trusted("remote_code")}
        torch.manual_seed(seed)
        try:
            with quiet_transformers():
                shape = AutoConfig.from_pretrained(folder, **code, **task.model_settings)
                if dropout is not None:
                    set_dropout(shape, dropout)
                if fresh:
                    model = model_class.from_config(shape, **code)
                else:
                    model = model_class.from_pretrained(
                        folder,
                        config=shape,
                        dtype=torch.float32,
                        **loading(),
                        ignore_mismatched_sizes=True,  # the head of another label set
                    )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"{encoder}: a folder that is no encoder: {' '.join(str(error).split())}"
            ) from error
        learner = cls(model)
        learner.reset_head(seed)
        return learner

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T) each -> last hidden states (B, T, W), logits (B, T, C) or (B, C)."""
        inputs = model_inputs(self.model, input_ids, attention_mask, token_types)
        out = self.model(**inputs, output_hidden_states=True)
        return out.hidden_states[-1], logits_of(out)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Head, encoder, token embeddings."""
        embedding = list(self.model.get_input_embeddings().parameters())
        taken = {id(parameter) for parameter in embedding}
        base = [p for p in self.model.base_model.parameters() if id(p) not in taken]
        taken |= {id(parameter) for parameter in base}
        head = [p for p in self.model.parameters() if id(p) not in taken]
        return {"head": head, "encoder": base, "embedding": embedding}

    def reset_head(self, seed: int) -> None:
        """Draw the head's weights anew: normal with the encoder's initializer_range, biases 0."""
        generator = torch.Generator().manual_seed(seed)
        spread = float(getattr(self.model.config, "initializer_range", 0.02))
        base = set(self.model.base_model.modules())
        for module in self.model.modules():
            if isinstance(module, nn.Linear) and module not in base:
                with torch.no_grad():
                    module.weight.normal_(0.0, spread, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()


def save_finetuned(
    encoder: str, task: Task, finetuning: Path, folder: Path, fresh: bool = False
) -> None:
    """Write the teacher of the last stage under `finetuning`, with its tokenizer, to `folder`.

    The folder appears whole, by rename, in place of an older one.
    """
    learner = TeacherLearner.from_encoder(encoder, task, 0, fresh)
    load_last(learner, finetuning, 1)
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    with quiet_transformers():
        learner.model.save_pretrained(partial)
        load_tokenizer(encoder).save_pretrained(partial)
    for path in partial.iterdir():
        to_disk(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
