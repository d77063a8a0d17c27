"""What a saved model runs on: PyTorch, or the ONNX graphs beside it that `export` wrote."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from xdray.errors import ConfigError, ExportError
from xdray.saving import load_student
from xdray.storage import read_object
from xdray.weights import trusted

GRAPHS = {"onnx": "onnx/model.onnx", "onnx-int8": "onnx/model_qint8.onnx"}
"""Files beside a model's weights, named as sentence-transformers names them."""
RUNTIMES = ("torch", *GRAPHS)


class _Output(dict[str, Tensor]):
    """Outputs by name, also as attributes, as transformers gives them."""

    __getattr__ = dict.__getitem__


class OnnxModel:
    """An ONNX graph that is called as the model it was made from. On CPUs."""

    def __init__(self, folder: str | Path, graph: str | Path, threads: int) -> None:
        """folder: of the model, for its config. graph: the file. threads: of its own pool."""
        (runtime,) = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trusted("remote_code")
        )
        try:
            self.session = runtime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own kinds, one for each status
            raise ExportError(
                f"{graph}: onnxruntime cannot load it: {' '.join(str(error).split())}; export again"
            ) from error
        self.inputs = [its.name for its in self.session.get_inputs()]
        self.outputs = [its.name for its in self.session.get_outputs()]

    def __call__(self, **inputs: Tensor) -> _Output:
        """(B, T) int64 each, as transformers names them; token types may be missing: all 0."""
        ids = inputs["input_ids"]
        feeds = {
            name: inputs.get(name, torch.zeros_like(ids)).to("cpu", torch.int64).numpy()
            for name in self.inputs
        }
        found = self.session.run(None, feeds)
        values = [torch.from_numpy(np.asarray(its)) for its in found]
        return _Output(zip(self.outputs, values, strict=True))


def require(*packages: str) -> list[Any]:
    """Return these packages of the extra `onnx`. Raises ConfigError for one that is missing."""
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {error.name}: pip install 'xdray[onnx]'"
        ) from error


def load_runtime(folder: str, model_class: str, runtime: str, threads: int) -> Any:
    """Load a saved model in one of RUNTIMES: a transformers model, or what is called like one.

    Raises ConfigError where the folder has no such graph.
    """
    if runtime == "torch":
        return load_student(folder, model_class)
    check_runtime(folder, runtime)
    return OnnxModel(folder, Path(folder) / GRAPHS[runtime], threads)


def check_runtime(folder: str, runtime: str) -> None:
    """Raise ConfigError where a folder has no such graph, or the extra is not installed."""
    if runtime == "torch":
        return
    require("onnxruntime")
    if not (Path(folder) / GRAPHS[runtime]).is_file():
        raise ConfigError(f"{folder}: no {GRAPHS[runtime]} in it; {_reason(Path(folder), runtime)}")


def _reason(folder: Path, runtime: str) -> str:
    """Why there is no graph: never asked for, or not good enough."""
    said = folder / "export.json"
    if said.is_file():
        its = read_object(str(said), runtimes=dict)["runtimes"].get(runtime)
        if isinstance(its, dict) and its.get("refused"):
            return f"export refused it: {its['refused']}"
    return "`xdray export CONFIG` writes it"
