"""Export: a finished student for other runtimes, each checked against PyTorch before it is kept."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from xdray.cluster import plan_resources
from xdray.config import Config
from xdray.console import Console
from xdray.corpus import plan_transfer, read_shard
from xdray.errors import ConfigError, ExportError
from xdray.evaluation import machine, measure_latency
from xdray.graphs import OPSET, write_onnx
from xdray.header import resolve_model
from xdray.learner import logits_of, quiet_transformers
from xdray.mirror import working_folder
from xdray.prediction import Predictor, task_of_model
from xdray.quantization import WAYS, quantize
from xdray.runtimes import GRAPHS, OnnxModel, require
from xdray.saving import load_student
from xdray.scoring import SplitScorer
from xdray.storage import write_bytes_atomic
from xdray.tokens import load_tokenizer
from xdray.workspace import check_kept

LARGEST_DIFFERENCE = 1e-3
"""Of logits between PyTorch and float32 ONNX, as a share of the largest logit."""
CARD_SECTION = "\n## Runtimes\n"
UNLABELLED = 512
"""Transfer sentences on which an encoder without a head is compared with itself."""

Facts = dict[str, Any]


def export(config: Config, model: str | None = None) -> Facts:
    """Write a model's other runtimes beside its weights, and what each scores and costs.

    model: a folder; None: the run's student. Raises ConfigError where there is none, ExportError
    where a float32 graph does not repeat the logits.
    """
    started = time.monotonic()
    asked = config.export.formats
    if asked != ["bfloat16"]:
        require("onnx", "onnxscript", "onnxruntime")
    with working_folder(config.run.folder) as (run, _), Console() as console:
        result = _export_all(config, run, Path(model) if model else run / "student", console)
    result |= {"run_dir": config.run.folder, "machine": machine()}
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _export_all(config: Config, run: Path, folder: Path, console: Console) -> Facts:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: no model to export; run distill first, or name one: --model")
    check_kept("--model", str(folder))
    threads = plan_resources(config, None).threads_per_worker
    torch.set_num_threads(threads)
    names = {"student": (folder, folder)}
    if config.export.teacher:
        own = config.teacher.model or str(run / "teacher")
        names["teacher"] = (Path(resolve_model(own)), run / "export" / "teacher")
    result: Facts = {"model": str(folder), "opset": OPSET}
    for name, (source, place) in names.items():
        console.say(f"{name}: {source}")
        exported = _Export(config, source, place, threads, console)
        result[name] = exported.write()
        console.show(_table(name, exported.metric, result[name]))
    return result


class _Export:
    """One model's folder, its runtimes written to a folder that gets its name when all are in."""

    def __init__(
        self, config: Config, source: Path, place: Path, threads: int, console: Console
    ) -> None:
        self.config, self.source, self.place = config, source, place
        self.threads, self.console = threads, console
        self.check = (_Likeness if config.task.kind == "encoding" else _Scores)(
            config, str(source), threads
        )
        self.metric = self.check.metric
        self.torch_model = load_student(source, self.check.task.model_class)
        self.partial = place / ".export.partial"
        self.models: dict[str, Any] = {"torch": self.torch_model}
        self.facts: Facts = {}

    def write(self) -> Facts:
        """Write, check, score and time; returns the facts by runtime."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        try:
            self.reference = self.check.outputs(self.torch_model)
            weights = sum(path.stat().st_size for path in self.source.glob("*.safetensors"))
            self.facts["torch"] = self._judged(self.torch_model, weights)
            steps = {"onnx": self._float_graph, "onnx-int8": self._int8_graph}
            for name in self.config.export.formats:
                self.console.say(f"  {name}")
                steps.get(name, self._bfloat16)()
            if "onnx" not in self.config.export.formats:
                self._graph("onnx").unlink(missing_ok=True)
            self._time()
            self._put_in_place()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)
        return self.facts

    def _graph(self, name: str) -> Path:
        return self.partial / GRAPHS[name]

    def _judged(self, model: Any, size: int) -> Facts:
        """Bytes, score on dev, and the largest difference of outputs to PyTorch's."""
        difference = np.abs(self.check.outputs(model) - self.reference)
        return {
            "bytes": size,
            "score": self.check.score(model),
            "difference": float(difference.max(initial=0.0)),
        }

    def _float_graph(self) -> None:
        graph = self._graph("onnx")
        if graph.is_file():  # int8 was asked for first
            return
        write_onnx(self.torch_model, graph)
        model = OnnxModel(self.source, graph, self.threads)
        self.models["onnx"] = model
        facts = self.facts["onnx"] = self._judged(model, graph.stat().st_size)
        most = LARGEST_DIFFERENCE * max(1.0, float(np.abs(self.reference).max(initial=0.0)))
        if not facts["difference"] <= most:
            raise ExportError(
                f"{self.source}: the ONNX graph's outputs differ from PyTorch's by "
                f"{facts['difference']:.2g}, expected at most {most:.2g}; use the PyTorch weights"
            )

    def _int8_graph(self) -> None:
        """The first way of WAYS that loses little enough; none is kept where all lose more."""
        self._float_graph()
        if "onnx" not in self.config.export.formats:
            self.models.pop("onnx", None)
            self.facts.pop("onnx", None)
        graph, most = self._graph("onnx-int8"), self.config.export.max_loss
        tried = []
        for way in WAYS:
            quantize(self._graph("onnx"), graph, way)
            model = OnnxModel(self.source, graph, self.threads)
            facts = self._judged(model, graph.stat().st_size)
            lost = 100 * (self.facts["torch"]["score"] - facts["score"])
            tried.append({"way": way, "loss": lost, "bytes": facts["bytes"]})
            if lost <= most:
                self.models["onnx-int8"] = model
                self.facts["onnx-int8"] = {**facts, "way": way, "tried": tried}
                return
            self.console.say(f"    {way} ({WAYS[way]}) loses {lost:.2f} points: too many")
        graph.unlink()
        least = min(its["loss"] for its in tried)
        reason = f"every way of int8 loses more than {most:g} points of {self.metric} on dev, the "
        reason += f"best {least:.2f} (export.max_loss)"
        self.facts["onnx-int8"] = {"refused": reason, "tried": tried}

    def _bfloat16(self) -> None:
        folder = self.partial / "bfloat16"
        model: Any = load_student(self.source, self.check.task.model_class)
        model.to(torch.bfloat16)
        with quiet_transformers():
            model.save_pretrained(folder)
        load_tokenizer(str(self.source)).save_pretrained(folder)
        loaded: Any = load_student(folder, self.check.task.model_class)
        if loaded.dtype != torch.bfloat16:
            raise ExportError(f"{folder}: saved as bfloat16, loaded as {loaded.dtype}")
        self.models["bfloat16"] = loaded
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        self.facts["bfloat16"] = self._judged(loaded, size)

    def _time(self) -> None:
        self.console.say("  latency")
        found = measure_latency(
            {name: _forward(model) for name, model in self.models.items()},
            dict.fromkeys(self.models, int(self.torch_model.config.vocab_size)),
            length=self.config.evaluation.latency_length,
            device="cpu",
            seed=self.config.run.seed,
        )
        for name, latency in found.items():
            self.facts[name]["latency_ms"] = latency

    def _put_in_place(self) -> None:
        """What was written takes the place of what an earlier export left."""
        self.models.clear()  # bfloat16 weights are mapped from the file
        for name in ("onnx", "bfloat16"):
            shutil.rmtree(self.place / name, ignore_errors=True)
            if (self.partial / name).is_dir():
                (self.partial / name).rename(self.place / name)
        facts = json.dumps({"opset": OPSET, "runtimes": self.facts}, indent=1)
        write_bytes_atomic(str(self.place / "export.json"), facts.encode())
        card = self.place / "README.md"
        if card.is_file():
            text = card.read_text(encoding="utf-8").partition(CARD_SECTION)[0]
            text += CARD_SECTION + _card_text(self.metric, self.facts, self._conditions())
            write_bytes_atomic(str(card), text.encode())

    def _conditions(self) -> str:
        here, length = machine(), self.config.evaluation.latency_length
        return f"{length} tokens a sentence; {here['processor']}, threads: {self.threads}"


def _forward(model: Any) -> Callable[[Tensor, Tensor], object]:
    return lambda ids, mask: logits_of(model(input_ids=ids, attention_mask=mask))


class _Scores:
    """Outputs and score on dev."""

    def __init__(self, config: Config, folder: str, threads: int) -> None:
        self._scorer = SplitScorer(config, folder, "dev", "cpu")
        self.task, self.metric = self._scorer.task, self._scorer.task.metric

    def outputs(self, model: Any) -> NDArray[Any]:
        return self._scorer.logits(model)

    def score(self, model: Any) -> float:
        return float(self._scorer(model)[self.metric])


class _Likeness:
    """Sentence vectors of an encoder without a head; its score is how alike they stay."""

    metric = "cosine"

    def __init__(self, config: Config, folder: str, threads: int) -> None:
        self.task = task_of_model(folder)
        self._predictor = Predictor(folder, self.task, threads, "cpu")
        shards = plan_transfer(config.data.transfer, frozenset(), UNLABELLED, 0).shards
        self._sentences = [its for shard in shards[:1] for its in read_shard(shard)]
        self._own = self.outputs(self._predictor.model)

    def outputs(self, model: Any) -> NDArray[Any]:
        self._predictor.model = model
        return np.array([its["vector"] for its in self._predictor.predict(self._sentences)])

    def score(self, model: Any) -> float:
        theirs = self.outputs(model)
        lengths = np.linalg.norm(self._own, axis=1) * np.linalg.norm(theirs, axis=1)
        return float(np.mean((self._own * theirs).sum(1) / np.maximum(lengths, 1e-12)))


HEAD = ("Runtime", "MB", "Difference", "Dev", "Batch 1, ms", "Batch 32, ms")


def _rows(facts: Mapping[str, Facts]) -> list[list[str]]:
    rows = []
    for name, its in facts.items():
        if "refused" in its:
            rows.append([name, "not kept", "", "", "", ""])
            continue
        times = [its["latency_ms"][batch] for batch in ("batch_1", "batch_32")]
        rows.append(
            [
                f"{name} ({its['way']})" if "way" in its else name,
                f"{its['bytes'] / 1e6:.2f}",
                f"{its['difference']:.2g}",
                f"{100 * its['score']:.2f}",
                *(f"{time['median']:.2f} / {time['p95']:.2f}" for time in times),
            ]
        )
    return rows


def _table(name: str, metric: str, facts: Mapping[str, Facts]) -> Table:
    table = Table(*HEAD, title=f"Runtimes of the {name}, {metric} on dev", title_justify="left")
    for row in _rows(facts):
        table.add_row(*row)
    return table


def _card_text(metric: str, facts: Mapping[str, Facts], conditions: str) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *_rows(facts)]
    text = "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
    refused = [its["refused"] for its in facts.values() if "refused" in its]
    text += (
        f"\n\nDev: {metric} in percent. Difference: the largest of any output to PyTorch's. ms: "
    )
    text += f"median / 95th percentile of a forward pass, {conditions}. ONNX opset {OPSET}."
    return text + "".join(f"\n\nint8 is not there: {reason}." for reason in refused) + "\n"
