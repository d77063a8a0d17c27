"""Models as ONNX graphs: a BiLSTM node by node, every other encoder by torch's own exporter.

Inputs are named as transformers names them; so are outputs: logits, start_logits and end_logits,
or last_hidden_state. B sentences, T tokens, both free; H units per direction, W width of the
projection.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdray.modeling_bilstm import BiLstmConfig, BiLstmPreTrainedModel

OPSET = 20
"""Of all graphs: the first with Gelu."""
INT64, FLOAT = 7, 1  # onnx.TensorProto's numbers
FREE = ["batch", "length"]


def write_onnx(model: Any, path: Path) -> None:
    """Write an encoder, with or without a head, as float32 ONNX. Needs the extra `onnx`.

    model: on the CPU. Its dropout is left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    model.eval()
    if isinstance(model.config, BiLstmConfig):
        import onnx

        onnx.save(_BiLstmGraph(model).model(), path)
        return
    _trace(model, path)


class _BiLstmGraph:
    """One bidirectional LSTM node a layer, told the lengths: its way back never reads padding.

    torch's exporter would write the reversal of `BiLstmLayer` out, twice the nodes for one LSTM.
    """

    def __init__(self, model: BiLstmPreTrainedModel) -> None:
        self.its: Any = model
        self.shape: Any = model.config
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def model(self) -> Any:
        from onnx import helper, numpy_helper

        states = self._projected()
        outputs = self._head(states)
        inputs = [
            helper.make_tensor_value_info(name, INT64, FREE)
            for name in ("input_ids", "attention_mask")
        ]
        named = [
            helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()
        ]
        constants = [numpy_helper.from_array(its, name) for name, its in self.constants.items()]
        graph = helper.make_graph(self.nodes, "bilstm", inputs, named, constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _projected(self) -> str:
        """Projected states (B, T, W)."""
        self._add("Transpose", ["input_ids"], "ids", perm=[1, 0])
        self._constant("embeddings", self.its.embeddings.weight)
        states = self._add("Gather", ["embeddings", "ids"], "embedded")  # (T, B, E)
        self._add("Cast", ["attention_mask"], "mask", to=6)  # int32
        self._constant("over_tokens", np.array([1]))
        self._add("ReduceSum", ["mask", "over_tokens"], "lengths", keepdims=0)
        width = 2 * self.shape.hidden_size
        self._constant("joined", np.array([0, 0, width]))
        for number, layer in enumerate(self.its.encoder):
            states = self._lstm(number, layer, states)
        self._add("Transpose", [states], "by_sentence", perm=[1, 0, 2])
        projected = self._linear("by_sentence", self.its.projection, "projection")
        return self._gelu(projected, "gelu")

    def _lstm(self, number: int, layer: Any, states: str) -> str:
        """(T, B, .) to (T, B, 2H)."""
        names = []
        for name in ("weight_ih_l0", "weight_hh_l0"):
            its = [_gates(getattr(way, name)) for way in (layer.ahead, layer.back)]
            names.append(self._constant(f"lstm_{number}_{name}", np.stack(its)))
        biases = [
            np.concatenate([_gates(way.bias_ih_l0), _gates(way.bias_hh_l0)])
            for way in (layer.ahead, layer.back)
        ]
        names.append(self._constant(f"lstm_{number}_bias", np.stack(biases)))
        ways = self._add(  # (T, 2, B, H)
            "LSTM",
            [states, *names, "lengths"],
            f"lstm_{number}_ways",
            hidden_size=self.shape.hidden_size,
            direction="bidirectional",
        )
        beside = self._add("Transpose", [ways], f"lstm_{number}_beside", perm=[0, 2, 1, 3])
        return self._add("Reshape", [beside, "joined"], f"lstm_{number}_states")

    def _gelu(self, states: str, place: str) -> str:
        if self.shape.projection_activation != place:
            return states
        return self._add("Gelu", [states], f"{place}_activated")

    def _head(self, projected: str) -> dict[str, list[Any]]:
        """Add the head; returns the outputs and their shapes."""
        if not hasattr(self.its, "classifier") and not hasattr(self.its, "qa_outputs"):
            self._add("Identity", [projected], "last_hidden_state")
            return {"last_hidden_state": [*FREE, self.shape.projection_size]}
        states = self._gelu(projected, "gelu_head")
        if hasattr(self.its, "qa_outputs"):
            self._linear(states, self.its.qa_outputs, "scores")
            ends = {}
            for number, name in enumerate(("start_logits", "end_logits")):
                at = self._constant(f"{name}_at", np.array(number))
                ends[self._add("Gather", ["scores", at], name, axis=2)] = FREE
            return ends
        rows: list[Any] = [*FREE]
        if type(self.its).__name__.endswith("SequenceClassification"):
            states, rows = self._pooled(states), ["batch"]
        self._linear(states, self.its.classifier, "logits")
        return {"logits": [*rows, self.its.classifier.out_features]}

    def _pooled(self, states: str) -> str:
        """(B, T, W) to (B, W), as `modeling_bilstm.pool` does."""
        self._constant("last_axis", np.array([2]))
        self._add("Cast", ["attention_mask"], "mask_float", to=FLOAT)
        self._add("Unsqueeze", ["mask_float", "last_axis"], "real")
        if self.shape.pooling == "mean":
            self._add("Mul", [states, "real"], "real_states")
            self._add("ReduceSum", ["real_states", "over_tokens"], "sums", keepdims=0)
            self._add("ReduceSum", ["real", "over_tokens"], "counts", keepdims=0)
            return self._add("Div", ["sums", "counts"], "pooled")
        if self.shape.pooling == "max":
            self._add("Cast", ["real"], "is_real", to=9)  # bool
            self._constant("lowest", np.array(np.finfo(np.float32).min))
            self._add("Where", ["is_real", states, "lowest"], "real_states")
            return self._add("ReduceMax", ["real_states", "over_tokens"], "pooled", keepdims=0)
        # the last real token's state and the first one's, averaged
        self._add("Cast", ["lengths"], "lengths_64", to=INT64)
        self._constant("one", np.array(1))
        self._add("Sub", ["lengths_64", "one"], "last_at")
        self._add("Unsqueeze", ["last_at", "over_tokens"], "last_index")
        self._add("GatherND", [states, "last_index"], "last_state", batch_dims=1)
        self._constant("first_at", np.array(0))
        self._add("Gather", [states, "first_at"], "first_state", axis=1)
        self._add("Add", ["last_state", "first_state"], "both")
        self._constant("half", np.array(0.5, dtype=np.float32))
        return self._add("Mul", ["both", "half"], "pooled")

    def _linear(self, states: str, layer: nn.Linear, name: str) -> str:
        weight = self._constant(f"{name}_weight", layer.weight.detach().T)
        bias = self._constant(f"{name}_bias", layer.bias)
        product = self._add("MatMul", [states, weight], f"{name}_product")
        return self._add("Add", [product, bias], name)

    def _constant(self, name: str, value: Tensor | NDArray[Any]) -> str:
        its = value.detach().float().numpy() if isinstance(value, Tensor) else value
        self.constants[name] = np.array(its, order="C")
        return name

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _gates(weight: Tensor) -> NDArray[np.float32]:
    """(4H, ...) in torch's order of gates, i f g o, to ONNX's, i o f g."""
    i, f, g, o = weight.detach().float().chunk(4)
    return torch.cat([i, o, f, g]).numpy()


class _Named(nn.Module):
    """A model whose inputs stand in a fixed order and whose outputs are a plain tuple."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        return outputs_of(self.model(**dict(zip(self.inputs, values, strict=True))))[1]


def outputs_of(output: Any) -> tuple[list[str], tuple[Tensor, ...]]:
    """Names and values of what a head gives; the last hidden states where there is none."""
    for names in (["start_logits", "end_logits"], ["logits"], ["last_hidden_state"]):
        if names[0] in output:
            return names, tuple(output[name] for name in names)
    raise AssertionError(f"no known output in {list(output)}")


def _trace(model: Any, path: Path) -> None:
    inputs = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs.append("token_type_ids")
    ids = torch.arange(5, 21).reshape(2, 8) % int(model.config.vocab_size)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    values = (ids, mask, torch.zeros_like(ids))[: len(inputs)]
    with torch.inference_mode():
        names = outputs_of(model(**dict(zip(inputs, values, strict=True))))[0]
    batch, length = (torch.export.Dim(name) for name in FREE)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            _Named(model, inputs).eval(),
            values,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=names,
            dynamic_shapes=(tuple({0: batch, 1: length} for _ in inputs),),
            verbose=False,
        )
        assert program is not None
        program.save(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what the exporter says of itself, deprecations and missing torchvision, off stderr."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
