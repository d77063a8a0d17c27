"""ONNX graphs with int8 weights: ways to quantise, from the fastest to the most careful.

Dynamic quantisation, with the scales of activations worked out as they come: no calibration text.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

WAYS = {
    "dynamic": "weights and activations in int8, one scale a matrix",
    "per_channel": "one scale a column",
    "without_ends": "one scale a column; embeddings and the last layer in float32",
    "weights": "int8 weights with a scale a row or column, float32 arithmetic",
}
"""In the order in which they are tried."""

CHANNEL_AXES = {"Gather": 0, "MatMul": -1, "LSTM": 1}
"""Axis of a weight with a scale for each index, by the node that reads it."""


def quantize(graph: Path, result: Path, way: str) -> None:
    """Write the int8 version of a float32 graph, in one of WAYS."""
    if way == "weights":
        _quantize_weights(graph, result)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            graph,
            result,
            weight_type=QuantType.QInt8,
            per_channel=way != "dynamic",
            reduce_range=True,  # 7 bits: CPUs without VNNI saturate on sums of two 8-bit products
            nodes_to_exclude=_ends(graph) if way == "without_ends" else [],
        )


def _ends(graph: Path) -> list[str]:
    """Names of the nodes that look up embeddings and of the last product with a weight."""
    import onnx

    its = onnx.load(graph).graph
    weights = {constant.name for constant in its.initializer if len(constant.dims) == 2}
    lookups = [n.name for n in its.node if n.op_type == "Gather" and n.input[0] in weights]
    products = [n.name for n in its.node if n.op_type in {"MatMul", "Gemm"}]
    return [*lookups, *products[-1:]]


def _quantize_weights(graph: Path, result: Path) -> None:
    """Each large weight as int8 with a DequantizeLinear node, which a runtime folds as it loads."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    its = model.graph
    axes = {
        name: CHANNEL_AXES[node.op_type]
        for node in its.node
        if node.op_type in CHANNEL_AXES
        for name in node.input
    }
    nodes: list[Any] = []
    for constant in [c for c in its.initializer if c.name in axes and len(c.dims) > 1]:
        values = numpy_helper.to_array(constant)
        if values.dtype != np.float32:
            continue
        axis = axes[constant.name] % values.ndim
        others = tuple(other for other in range(values.ndim) if other != axis)
        scale = np.maximum(np.abs(values).max(axis=others), 1e-12) / 127
        shape = [-1 if dim == axis else 1 for dim in range(values.ndim)]
        small = np.rint(values / scale.reshape(shape)).astype(np.int8)
        name = constant.name
        its.initializer.remove(constant)
        its.initializer.extend(
            [
                numpy_helper.from_array(small, f"{name}_int8"),
                numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            ]
        )
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], axis=axis
            )
        )
    for node in reversed(nodes):
        its.node.insert(0, node)
    onnx.save(model, result)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice on preparing graphs, and its guesses of types, off the log."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
