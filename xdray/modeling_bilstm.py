"""BiLSTM students as Hugging Face models: token embeddings, BiLSTM, projection, head.

A saved student carries a copy of this file, so that it loads with `trust_remote_code` where xdray
is not installed: it imports torch and transformers only. P1 is XtremeDistil (Mukherjee and
Awadallah, ACL 2020), section 2 and table 4.

Shapes: B sentences, T tokens, E embedding width, H units per direction, W width of the projection,
C labels. Padding stands at the end of a sentence, as `attention_mask` says.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class BiLstmConfig(PretrainedConfig):
    """Shape of a BiLSTM.

    hidden_size: units per direction. projection_size: width under the head, that of the teacher's
    hidden layers. projection_activation: "linear"; "gelu", part of the projection (P1);
    "gelu_head", between the projection, which a hidden loss sees as it is, and the head. pooling:
    of a sentence's states where it has one row of logits: "max", "mean" or "last". dropout: after
    the embeddings, each LSTM layer and the projection.
    """

    model_type = "xdray_bilstm"

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 50,
        hidden_size: int = 200,
        num_layers: int = 1,
        projection_size: int = 768,
        projection_activation: str = "gelu_head",
        pooling: str = "max",
        dropout: float = 0.2,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        """Take what transformers keeps for every model (id2label ...) as further arguments."""
        if projection_activation not in {"linear", "gelu", "gelu_head"}:
            raise ValueError(
                f"projection_activation: '{projection_activation}', expected 'linear', 'gelu' or "
                "'gelu_head'"
            )
        if pooling not in {"max", "mean", "last"}:
            raise ValueError(f"pooling: '{pooling}', expected 'max', 'mean' or 'last'")
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.projection_size = projection_size
        self.projection_activation = projection_activation
        self.pooling = pooling
        self.dropout = dropout
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


def reversed_positions(attention_mask: Tensor) -> Tensor:
    """Where each token of the sentences read from their ends is taken from, padding last again.

    attention_mask: (B, T), real tokens first. Returns (T * B,) int64: row t * B + b of a time-major
    batch is to hold row result[t * B + b]. It is its own inverse.
    """
    batch, length = attention_mask.shape
    lengths = attention_mask.long().sum(1)
    steps = torch.arange(length, device=attention_mask.device)
    rows = torch.arange(batch, device=attention_mask.device)
    positions = (lengths[None, :] - 1 - steps[:, None]).remainder(length)
    return (positions * batch + rows[None, :]).reshape(-1)


class FastDropout(nn.Dropout):
    """Dropout that on CPUs draws 16 random bits an entry, four entries from one number.

    torch draws a number for each: a tenth of a training step of this model. p is rounded to 2**-16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Zero entries with probability p and scale up the others; when training only."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        numbers = torch.empty((input.numel() + 3) // 4, dtype=torch.int64)
        numbers.random_(-(2**63), None)  # all 64 bits
        draws = numbers.view(torch.int16)[: input.numel()].view(input.shape)
        kept = draws >= round(self.p * 2**16) - 2**15
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))


class BiLstmLayer(nn.Module):
    """One bidirectional layer on time-major input whose backward direction never reads padding.

    Two LSTMs, the second on reversed sentences, give the figures of one bidirectional LSTM on
    packed sequences. Packing costs a third of the speed on CPUs and, on GPUs, a wait for lengths.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        """Map `input_size` to 2 * `hidden_size`."""
        super().__init__()
        self.ahead = nn.LSTM(input_size, hidden_size)
        self.back = nn.LSTM(input_size, hidden_size)

    def forward(self, inputs: Tensor, reversal: Tensor) -> Tensor:
        """(T, B, input_size) to (T, B, 2H); reversal: of `reversed_positions`."""
        ahead, _ = self.ahead(inputs)
        back, _ = self.back(_take_rows(inputs, reversal))
        return torch.cat([ahead, _take_rows(back, reversal)], dim=-1)


def _take_rows(states: Tensor, rows: Tensor) -> Tensor:
    return states.flatten(0, 1).index_select(0, rows).view(states.shape)


class BiLstmPreTrainedModel(PreTrainedModel):
    """Embeddings, BiLSTM and projection, under whatever head.

    The projection stays under the head at inference, as in all sizes that P1 reports.
    """

    config_class = BiLstmConfig
    base_model_prefix = "bilstm"
    main_input_name = "input_ids"

    def __init__(self, config: BiLstmConfig) -> None:
        """Start as Keras does, where P1 was trained; but embeddings as torch does."""
        super().__init__(config)
        width = 2 * config.hidden_size
        sizes = [config.embedding_size] + [width] * (config.num_layers - 1)
        self.embeddings = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        self.encoder = nn.ModuleList(BiLstmLayer(size, config.hidden_size) for size in sizes)
        self.projection = nn.Linear(width, config.projection_size)
        place = config.projection_activation
        self.activation = nn.GELU() if place == "gelu" else nn.Identity()
        self.head_activation = nn.GELU() if place == "gelu_head" else nn.Identity()
        self.dropout = FastDropout(config.dropout)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        assert isinstance(value, nn.Embedding)
        self.embeddings = value

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Glorot kernels, orthogonal recurrence, forget gates open (bias 1), embeddings N(0, 1)."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            kernel, recurrence, bias, other_bias = module.all_weights[0]
            nn.init.xavier_uniform_(kernel)
            nn.init.orthogonal_(recurrence)
            nn.init.zeros_(other_bias)
            if not getattr(bias, "_is_hf_initialized", False):  # a slice of it does not know
                bias.zero_()[module.hidden_size : 2 * module.hidden_size] = 1.0  # gates: i f g o
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Projected state of each token, (B, T, W); what a student's hidden loss compares.

        input_ids: (B, T). attention_mask: (B, T), 1 or True on real tokens, which come first; None:
        all are. States at padding mean nothing.
        """
        return self._encode(input_ids, attention_mask)[0]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Projected states (B, T, W), and the mask."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        reversal = reversed_positions(attention_mask)
        states = self.dropout(self.embeddings(input_ids.transpose(0, 1)))
        for layer in self.encoder:
            states = self.dropout(layer(states, reversal))
        return self.activation(self.projection(states.transpose(0, 1))), attention_mask

    def _head_input(self, projected: Tensor) -> Tensor:
        return self.dropout(self.head_activation(projected))

    def _finish(
        self, output: Any, projected: Tensor, hidden: bool | None, named: bool | None
    ) -> Any:
        """Add the projected states where asked for; a tuple where no names are wanted.

        hidden_states, when asked for, holds the projected states alone.
        """
        if self.config.output_hidden_states if hidden is None else hidden:
            output["hidden_states"] = (projected,)
        return (
            output if (self.config.return_dict if named is None else named) else output.to_tuple()
        )


class BiLstmModel(BiLstmPreTrainedModel):
    """The states alone, without a head."""

    def __init__(self, config: BiLstmConfig) -> None:
        """Have no more than the base."""
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """last_hidden_state: projected states (B, T, W)."""
        projected = self.encode(input_ids, attention_mask)
        output = BaseModelOutput(last_hidden_state=projected)
        return self._finish(output, projected, output_hidden_states, return_dict)


class BiLstmForTokenClassification(BiLstmPreTrainedModel):
    """Tags tokens."""

    def __init__(self, config: BiLstmConfig) -> None:
        """Put a linear head on the projection."""
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_size, len(config.id2label or ()))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """Logits (B, T, C); with labels (B, T), -100 where unscored, their mean cross-entropy.

        What a tokenizer adds (token_type_ids) is ignored.
        """
        projected = self.encode(input_ids, attention_mask)
        logits = self.classifier(self._head_input(projected))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        output = TokenClassifierOutput(loss=loss, logits=logits)
        return self._finish(output, projected, output_hidden_states, return_dict)


class BiLstmForSequenceClassification(BiLstmPreTrainedModel):
    """One row of logits a sentence, of its pooled states."""

    def __init__(self, config: BiLstmConfig) -> None:
        """Put a linear head on the pooled projection."""
        super().__init__(config)
        self.classifier = nn.Linear(config.projection_size, len(config.id2label or ()))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """Logits (B, C); with labels, the mean loss of the config's problem_type."""
        projected, mask = self._encode(input_ids, attention_mask)
        logits = self.classifier(pool(self._head_input(projected), mask, self.config.pooling))
        loss = None
        if labels is not None:
            kind = self.config.problem_type
            if kind == "regression":
                loss = nn.functional.mse_loss(logits.squeeze(-1), labels.float().view(-1))
            elif kind == "multi_label_classification":
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
            else:
                loss = nn.functional.cross_entropy(logits, labels.view(-1))
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return self._finish(output, projected, output_hidden_states, return_dict)


class BiLstmForQuestionAnswering(BiLstmPreTrainedModel):
    """Where an answer starts and ends."""

    def __init__(self, config: BiLstmConfig) -> None:
        """Put two scores on each token's projection."""
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.projection_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """start_logits, end_logits (B, T)."""
        projected = self.encode(input_ids, attention_mask)
        start, end = self.qa_outputs(self._head_input(projected)).unbind(-1)
        output = QuestionAnsweringModelOutput(start_logits=start, end_logits=end)
        return self._finish(output, projected, output_hidden_states, return_dict)


def pool(states: Tensor, attention_mask: Tensor, how: str) -> Tensor:
    """States (B, T, W) of real tokens to one (B, W): "max", "mean", or "last".

    last: the last real token's, where the forward direction has read all; the backward one has read
    all at the first token, so both are averaged.
    """
    real = attention_mask.bool()[..., None]
    if how == "max":
        return states.masked_fill(~real, torch.finfo(states.dtype).min).amax(1)
    if how == "mean":
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
    last = attention_mask.long().sum(1).clamp(min=1) - 1
    rows = torch.arange(len(states), device=states.device)
    return (states[rows, last] + states[:, 0]) / 2
