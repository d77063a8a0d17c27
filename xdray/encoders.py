"""Pre-trained encoders as students: under a head, or cut to some of their layers and tokens."""

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from xdray.errors import ConfigError
from xdray.learner import quiet_transformers
from xdray.task import Task
from xdray.weights import loading, trusted

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def load_encoder(folder: str, task: Task, dropout: float | None) -> Any:
    """Load an encoder under a fresh head for a task. dropout: None: its own. Raises ConfigError."""
    try:
        with quiet_transformers():
            shape = AutoConfig.from_pretrained(
                folder, trust_remote_code=trusted("remote_code"), **task.model_settings
            )
            if dropout is not None:
                set_dropout(shape, dropout)
            return getattr(transformers, task.model_class).from_pretrained(
                folder,
                config=shape,
                dtype=torch.float32,
                **loading(),
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder}: no encoder can be loaded from it: {reason}") from error


def set_dropout(shape: Any, dropout: float) -> None:
    """Give a transformers config this dropout, whatever its family calls it."""
    for name in DROPOUTS:
        if hasattr(shape, name):
            setattr(shape, name, dropout)


def cut_encoder(
    folder: str, layers: Sequence[int], teacher_ids: Tensor, intermediate: int | None = None
) -> PreTrainedModel:
    """Load an encoder and keep these of its layers (from 1), and these rows of its embeddings.

    intermediate: feed-forward units of a layer that stay, those with the largest weights; None:
    all. Raises ConfigError for a layer that is not there.
    """
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a pooler, which a model with another head has not
            model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **loading())
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{folder}: no encoder can be loaded from it: {reason}") from error
    stack = encoder_stack(model)
    wrong = [layer for layer in layers if not 1 <= layer <= len(stack.layer)]
    if wrong:
        raise ConfigError(
            f"student.start_layers: layer {wrong[0]}, but {folder} has layers 1 to "
            f"{len(stack.layer)}"
        )
    stack.layer = nn.ModuleList(copy.deepcopy(stack.layer[layer - 1]) for layer in layers)
    _set_first(model.config, ("num_hidden_layers", "n_layers"), len(layers))
    if intermediate is not None:
        for layer in stack.layer:
            _narrow(layer, intermediate)
        _set_first(model.config, ("intermediate_size", "hidden_dim"), intermediate)
    set_embeddings(model, token_table(model)[teacher_ids])
    return model


def _set_first(shape: Any, names: Sequence[str], value: int) -> None:
    """Set what the family calls by one of these names."""
    setattr(shape, next(name for name in names if hasattr(shape, name)), value)


def _narrow(layer: Any, units: int) -> None:
    """Keep so many feed-forward units: those with the largest product of both weights' norms."""
    if hasattr(layer, "ffn"):
        up, down = layer.ffn.lin1, layer.ffn.lin2
    else:
        up, down = layer.intermediate.dense, layer.output.dense
    with torch.no_grad():
        strength = up.weight.norm(dim=1) * down.weight.norm(dim=0)
        kept = strength.topk(units).indices.sort().values
        for module, weight in ((up, up.weight[kept]), (down, down.weight[:, kept])):
            module.weight = nn.Parameter(weight.clone())
            module.out_features, module.in_features = weight.shape
        up.bias = nn.Parameter(up.bias[kept].clone())


def token_table(model: Any) -> Tensor:
    """(V, W) token embeddings of a model."""
    return model.get_input_embeddings().weight.detach()


def set_embeddings(model: Any, rows: Tensor) -> None:
    """Give a model these token embeddings (V, W) in place of its own."""
    kept = nn.Embedding(rows.shape[0], rows.shape[1])
    with torch.no_grad():
        kept.weight.copy_(rows)
    model.set_input_embeddings(kept)
    model.config.vocab_size = len(rows)


@contextmanager
def captured_qkv(model: Any, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Catch queries, keys and values of these layers (from 1) in this thread's next forward pass.

    Each (B, T, 3 W), before they are cut into heads. Raises ConfigError for a family of encoders
    whose attention has no such three maps.
    """
    found: dict[int, Tensor] = {}
    parts: dict[int, list[Tensor]] = {}
    handles = []
    caller = threading.get_ident()

    def hook(layer: int) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if threading.get_ident() != caller:  # another thread's pass, with hooks of its own
                return
            parts.setdefault(layer, []).append(output)
            if len(parts[layer]) == 3:
                found[layer] = torch.cat(parts.pop(layer), dim=-1)

        return keep

    try:
        for layer in layers:
            modules = _qkv_modules(encoder_stack(model.base_model).layer[layer - 1].attention)
            handles += [module.register_forward_hook(hook(layer)) for module in modules]
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _qkv_modules(attention: Any) -> list[nn.Module]:
    """Maps to queries, keys and values, called in this order."""
    inner = getattr(attention, "self", attention)
    for names in (("query", "key", "value"), ("q_lin", "k_lin", "v_lin")):
        if all(hasattr(inner, name) for name in names):
            return [getattr(inner, name) for name in names]
    raise ConfigError(
        f"{type(attention).__name__}: its queries, keys and values are not known; attention and "
        "relation losses go with BERT, RoBERTa, XLM-R, ELECTRA and DistilBERT"
    )


def encoder_stack(base: Any) -> Any:
    """Module of an encoder that has its layers as `layer`."""
    return base.encoder if hasattr(base, "encoder") else base.transformer


def spaced_layers(count: int, of: int) -> list[int]:
    """`count` of the layers 1 to `of`, evenly spaced, the last among them."""
    return [round(of * (number + 1) / count) for number in range(count)]
