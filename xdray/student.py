"""The student: build it, start its embeddings from the teacher's, order its layers, save, load.

Both kinds are Hugging Face models: a BiLSTM of ours (P1 section 2; it registers with the Auto
classes when this module is imported, and its folder carries its own modelling file) and ELECTRA's
factorised Transformer, which transformers has. P1 is XtremeDistil (Mukherjee and Awadallah, 2020).

Shapes: B sentences, T tokens, V vocabulary, E embedding width, W width of the teacher's hidden
layers, C labels.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    ElectraConfig,
    PreTrainedModel,
)

from xdray.config import StudentConfig
from xdray.encoders import captured_qkv, encoder_stack, load_encoder
from xdray.learner import (
    Learner,
    Observed,
    Wanted,
    logits_of,
    model_inputs,
)
from xdray.modeling_bilstm import (
    BiLstmConfig,
    BiLstmForQuestionAnswering,
    BiLstmForSequenceClassification,
    BiLstmForTokenClassification,
    BiLstmModel,
)
from xdray.task import Task

DROPOUT = 0.2
"""Of a student that starts from nothing (P1 table 13: the best)."""
BILSTMS: dict[str, Any] = {
    "AutoModel": BiLstmModel,
    "AutoModelForTokenClassification": BiLstmForTokenClassification,
    "AutoModelForSequenceClassification": BiLstmForSequenceClassification,
    "AutoModelForQuestionAnswering": BiLstmForQuestionAnswering,
}
AutoConfig.register(BiLstmConfig.model_type, BiLstmConfig, exist_ok=True)
BiLstmConfig.register_for_auto_class()  # a saved folder gets `auto_map` and the file
for _name, _class in BILSTMS.items():
    getattr(transformers, _name).register(BiLstmConfig, _class, exist_ok=True)
    _class.register_for_auto_class(_name)


class Student(Learner):
    """A model in training: the Hugging Face model, and what only training needs.

    A BiLSTM has its projection to the teacher's width inside. A Transformer's stands beside it, for
    hidden losses alone, and is not saved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        projection: nn.Module | None,
        max_length: int,
        layer_projections: Mapping[int, nn.Module] | None = None,
        teacher_heads: int = 0,
    ) -> None:
        """Hold the parts; max_length: tokens a sentence that the saved tokenizer will cut to.

        layer_projections: of layers before the last, those that losses compare.
        """
        super().__init__()
        self.model = model
        self.projection = projection
        self.max_length = max_length
        self.layer_projections = nn.ModuleDict(
            {str(layer): its for layer, its in (layer_projections or {}).items()}
        )
        self.teacher_heads = teacher_heads

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states in the teacher's width (B, T, W), and logits (B, T, C) or (B, C).

        input_ids, attention_mask: (B, T), padding last; states and logits there mean nothing.
        """
        inputs = model_inputs(self.model, input_ids, attention_mask, token_types)
        output = self.model(**inputs, output_hidden_states=True)
        states = output.hidden_states[-1]
        return states if self.projection is None else self.projection(states), logits_of(output)

    def observe(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_types: Tensor | None,
        wanted: Wanted,
    ) -> Observed:
        """Forward pass with the hidden states of some layers, and queries, keys and values."""
        inputs = model_inputs(self.model, input_ids, attention_mask, token_types)
        top = int(getattr(self.model.config, "num_hidden_layers", 0))
        layers = {layer: top if layer < 0 else layer for layer in wanted.qkv}
        with captured_qkv(self.model, sorted(set(layers.values()))) as found:
            output = self.model(**inputs, output_hidden_states=True)
        hidden = {}
        for layer in wanted.hidden:
            states = output.hidden_states[layer]
            if layer >= 0:
                states = self.layer_projections[str(layer)](states)
            elif self.projection is not None:
                states = self.projection(states)
            hidden[layer] = states
        qkv = {layer: found[number] for layer, number in layers.items()}
        return Observed(logits_of(output), hidden, qkv)

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads of the student and of the teacher."""
        return int(getattr(self.model.config, "num_attention_heads", 0)), self.teacher_heads

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by group, from the top down: the order of gradual unfreezing.

        bilstm: head, projection, encoder, embedding. transformer: head, projection (only hidden
        losses reach it), layer_n ... layer_1, embedding. Each parameter is in exactly one.
        """
        model: Any = self.model
        groups: dict[str, list[nn.Parameter]] = {"head": _parameters(*self.head(), *self.above())}
        if self.projection is None:
            groups["projection"] = _parameters(model.projection)
            groups["encoder"] = _parameters(model.encoder)
        else:
            groups["projection"] = _parameters(self.projection, self.layer_projections)
            layers = list(enumerate(encoder_stack(model.base_model).layer, start=1))
            groups |= {f"layer_{number}": _parameters(layer) for number, layer in reversed(layers)}
        taken = {id(parameter) for group in groups.values() for parameter in group}
        groups["embedding"] = [p for p in model.parameters() if id(p) not in taken]
        return groups

    def head(self) -> list[nn.Module]:
        """What stands above the encoder and, in a BiLSTM, the projection."""
        names = ("classifier", "qa_outputs")
        return [getattr(self.model, name) for name in names if hasattr(self.model, name)]

    def above(self) -> list[nn.Module]:
        """What stands between encoder and head; a fresh head leaves its weights alone."""
        model: Any = self.model
        found = [getattr(model.base_model, "pooler", None), getattr(model, "pre_classifier", None)]
        return [module for module in found if module is not None]

    def reset_head(self, seed: int) -> None:
        """Give the head fresh weights, in place, the same for the same seed."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for part in self.head():
                for module in part.modules():
                    if isinstance(module, nn.Linear):
                        fresh = nn.Linear(module.in_features, module.out_features)
                        self.model._init_weights(fresh)
                        module.load_state_dict(fresh.state_dict())


def _parameters(*modules: nn.Module) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def build_student(
    config: StudentConfig,
    *,
    vocab_size: int,
    teacher_width: int,
    task: Task,
    pad_token_id: int,
    max_length: int,
    embeddings: Tensor | None,
    seed: int,
    encoder: str | None = None,
    layers: Sequence[int] = (),
    teacher_heads: int = 0,
) -> Student:
    """Make a student with fresh weights, the same for the same seed whatever was drawn before.

    teacher_width: W, of the hidden layers it imitates. max_length: positions of a Transformer, and
    what the saved tokenizer cuts to. embeddings: (V, E) to start from, as `svd_embeddings` makes
    them; None: random. encoder: folder of the encoder that kind encoder starts from.
    layers: before the last, whose hidden states losses compare.
    """
    shared = {
        "vocab_size": vocab_size,
        "embedding_size": config.embedding,
        "hidden_size": config.hidden,
        "pad_token_id": pad_token_id,
        **task.model_settings,
    }
    projection = None
    dropout = DROPOUT if config.dropout is None else config.dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == "bilstm":
            model = BILSTMS[task.model_class](
                BiLstmConfig(
                    **shared,
                    num_layers=config.layers,
                    projection_size=teacher_width,
                    projection_activation=config.projection,
                    pooling=config.pooling,
                    dropout=dropout,
                )
            )
        elif config.kind == "transformer":
            model = getattr(transformers, task.model_class).from_config(
                ElectraConfig(
                    **shared,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.num_heads,
                    intermediate_size=config.intermediate or 4 * config.hidden,
                    hidden_dropout_prob=dropout,
                    attention_probs_dropout_prob=dropout,
                    max_position_embeddings=max_length,
                )
            )
            projection = _projection(config, config.hidden, teacher_width)
        else:
            assert encoder is not None
            model = load_encoder(encoder, task, config.dropout)
            width = int(model.config.hidden_size)
            projection = nn.Identity()  # of equal widths there is no map (P2)
            if width != teacher_width:
                projection = _projection(config, width, teacher_width)
        between = {layer: _fresh(projection) for layer in layers}
    if embeddings is not None and config.kind != "encoder":
        table = model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        with torch.no_grad():
            table.copy_(_unit_size(embeddings) if config.kind == "bilstm" else embeddings)
    return Student(model, projection, max_length, between, teacher_heads)


def _projection(config: StudentConfig, width: int, teacher_width: int) -> nn.Module:
    activation = nn.GELU() if config.projection == "gelu" else nn.Identity()
    return nn.Sequential(nn.Linear(width, teacher_width), activation)


def _fresh(projection: nn.Module | None) -> nn.Module:
    """Make another one of the same shape."""
    assert projection is not None, "a BiLSTM has no layers before its last"
    other = copy.deepcopy(projection)
    for module in other.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return other


def _unit_size(embeddings: Tensor) -> Tensor:
    """Scale a table as a whole to entries of size 1 (root mean square), as random ones have.

    A teacher's entries are near 0.05, and Adam moves an entry by about the learning rate a step
    whatever its size: a few steps would overwrite the rows of rare words, which then fit the
    transfer text and nothing else (docs/LOG.md). A Transformer's are left alone: its position
    embeddings are added to them, and the sum is normalised.
    """
    return embeddings / embeddings.square().mean().sqrt().clamp(min=1e-12)
