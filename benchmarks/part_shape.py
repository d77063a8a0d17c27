"""Served latency: students of the paper's shape beside teachers of mBERT's."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import Found, Settings, scratch, take_turns
from xdray.modeling_bilstm import BiLstmConfig, BiLstmForTokenClassification


def measure_paper_shape(settings: Settings) -> Found:
    """An E 50 H 200 student of 88.5 k pieces beside a teacher of mBERT's shape, random weights."""
    from transformers import BertConfig, BertForTokenClassification

    from xdray.graphs import write_onnx
    from xdray.quantization import quantize
    from xdray.runtimes import OnnxModel

    labels = {number: str(number) for number in range(7)}
    teacher: Any = BertForTokenClassification(BertConfig(vocab_size=119_547, id2label=labels))
    shape = BiLstmConfig(
        vocab_size=88_500, embedding_size=50, hidden_size=200, id2label=labels, dropout=0.0
    )
    student: Any = BiLstmForTokenClassification(shape)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    found = Found(ratios={"paper_shape_parameters": sizes[0] / sizes[1]})
    with scratch() as folder:
        runtimes: dict[str, Any] = {}
        for name, its in (("teacher", teacher.eval()), ("student", student.eval())):
            its.save_pretrained(folder / name)
            for kind in ("onnx", "int8"):
                graph = folder / name / f"{kind}.onnx"
                if kind == "onnx":
                    write_onnx(its, graph)
                else:
                    quantize(graph.with_name("onnx.onnx"), graph, "dynamic")
                runtimes[f"{name} {kind}"] = OnnxModel(folder / name, graph, settings.threads)
        models: dict[str, Any] = {
            "teacher float32": teacher,
            "teacher bfloat16": BertForTokenClassification(teacher.config).bfloat16().eval(),
            "student torch": student,
            "student bfloat16": BiLstmForTokenClassification(shape).bfloat16().eval(),
            **runtimes,
        }
        for name in [its for its, model in models.items() if not _runs(model)]:
            del models[name]
            found.notes.append(f"{name}: this processor does not run it")
        for length in (32, 128):
            for batch in (1, 32, 128):
                turns = 1 if batch * length > 4096 else settings.repeats  # half a minute a call
                rates = _rates(models, batch, length, turns)
                found.figures[f"sentences/s, batch {batch}, length {length}"] = {
                    name: float(f"{rate:.4g}") for name, rate in rates.items()
                }
                if length == 32 and batch < 128:
                    best = max(rates["student torch"], rates["student onnx"])
                    key = f"paper_shape_float32_batch_{batch}"
                    found.ratios[key] = best / rates["teacher float32"]
                    key = f"paper_shape_int8_batch_{batch}"
                    found.ratios[key] = rates["student int8"] / rates["teacher float32"]
    found.notes.append(
        "paper shape: random weights; the teacher in float32 PyTorch, the student in the faster of "
        "PyTorch and ONNX float32, or in ONNX int8 with dynamic quantisation; bfloat16 in PyTorch "
        "alone and int8 in ONNX alone, as the export writes them; one turn of 128 x 128"
    )
    return found


def _runs(model: Any) -> bool:
    """Whether this processor has all products of a model in its dtype."""
    ids = torch.ones(1, 2, dtype=torch.int64)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=ids)
    except RuntimeError:
        return False
    return True


def _rates(models: dict[str, Any], batch: int, length: int, repeats: int) -> dict[str, float]:
    """Sentences a second of each, in turns."""
    ids = torch.randint(5, 80_000, (batch, length))
    mask = torch.ones_like(ids)

    def rate(model: Any) -> Callable[[], float]:
        def measure() -> float:
            with torch.inference_mode():
                model(input_ids=ids, attention_mask=mask)
                calls, started = 0, time.perf_counter()
                while (seconds := time.perf_counter() - started) < 0.5:
                    model(input_ids=ids, attention_mask=mask)
                    calls += 1
            return calls * batch / seconds

        return measure

    silent: Callable[[str], None] = lambda text: None  # noqa: E731
    turns = take_turns({k: rate(its) for k, its in models.items()}, repeats, silent)
    return {name: statistics.median(values) for name, values in turns.items()}
