"""Text in, what a student says of it out, streamed through a pool of predicting actors."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray.cluster import Cluster, available, map_shards
from xdray.config import TaskConfig
from xdray.config_cluster import ClusterConfig
from xdray.config_data import SourceConfig, TransferConfig
from xdray.console import Console
from xdray.corpus import Sentence, Shard, plan_transfer, read_shard
from xdray.errors import ConfigError, ExportError
from xdray.forwarding import predict_logits
from xdray.header import absolute_model, read_header, resolve_model
from xdray.kinds import task_class
from xdray.labels import LabelSet, tag_set
from xdray.learner import logits_of, mean_state, model_inputs
from xdray.resources import pool_plan
from xdray.runtimes import check_runtime, load_runtime
from xdray.task import Task
from xdray.tokenised import Tokens
from xdray.tokens import load_tokenizer, pad_id_of
from xdray.words import WORD_RULES

BATCH_TOKENS = 4096
"""Tokens of a forward pass, padding included."""

HEAD = [("id", pa.string()), ("language", pa.string()), ("text", pa.string())]


class Predictor:
    """A student in an actor: reads the sentences of a shard."""

    def __init__(
        self, model: str, task: Task, threads: int, device: str, runtime: str = "torch"
    ) -> None:
        """Load the model's folder, in one of `runtimes.RUNTIMES`; all but torch are on CPUs."""
        torch.set_num_threads(threads)
        model = resolve_model(model)
        self.model: Any = load_runtime(model, task.model_class, runtime, threads)
        if runtime == "torch":
            self.model.to(device)
        self.tokenizer = load_tokenizer(model)
        self.task, self.device = task, device

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Return the shard's rows, one record a sentence in their order."""
        return {"rows": shard.rows, "records": self.predict(read_shard(shard))}

    def predict(self, sentences: Sequence[Sentence]) -> list[dict[str, Any]]:
        """Records of some sentences: id, language, text, and what the task says."""
        return self.task.records(self._logits, self.tokenizer, sentences)

    def _logits(self, tokens: Tokens) -> NDArray[np.float32]:
        has_head = self.task.has_gold
        width = len(self.task.labels) if has_head else int(self.model.config.hidden_size)

        def forward(input_ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
            inputs = model_inputs(self.model, input_ids, mask, types)
            output = self.model(**{k: v.to(self.device) for k, v in inputs.items()})
            return logits_of(output) if has_head else mean_state(output, mask.to(self.device))

        logits = predict_logits(forward, tokens, BATCH_TOKENS, pad_id_of(self.tokenizer), width)
        if not np.isfinite(logits).all():
            raise ExportError("the model's scores are not finite; its weights are damaged")
        return logits


def predict_files(
    model: str,
    inputs: Sequence[str],
    output: str,
    replicas: int = 1,
    shard_sentences: int = 4096,
    columns: Mapping[str, Any] | None = None,
    runtime: str = "torch",
) -> dict[str, Any]:
    """Read text files; writes one .jsonl or .parquet in the input's order, whole or not at all.

    columns: `text`, `pair`, `format`, `header` of the files, as a config's sources have them. Empty
    lines are left out and counted. Memory does not grow with the text. runtime: of `RUNTIMES`.
    """
    started = time.monotonic()
    path = Path(output)
    if path.suffix not in {".jsonl", ".parquet"}:
        raise ConfigError(
            f"--output {output}: ends in '{path.suffix}', expected .jsonl or .parquet"
        )
    model = absolute_model(model)
    task = task_of_model(model)  # a folder that is no model ends here, before Ray starts
    check_runtime(resolve_model(model), runtime)
    sources = TransferConfig(
        sources=[SourceConfig(path=name, **(columns or {})) for name in inputs]
    )
    plan = plan_transfer(sources, frozenset(), shard_sentences, 0, in_order=True)
    config = ClusterConfig()
    there = available(config)
    if runtime != "torch":  # the others compute on CPUs
        there = replace(there, gpus=0)
    pool = pool_plan(there, replicas, len(plan.shards))
    kwargs = {
        "model": model,
        "task": task,
        "threads": pool.threads_per_replica,
        "device": "cuda" if pool.gpus_per_replica else "cpu",
        "runtime": runtime,
    }
    total, sentences = sum(shard.rows for shard in plan.shards), 0
    kinds, found = task.schema[0][0], 0
    with Console() as console, Cluster(config) as cluster, _Writer(path, schema_of(task)) as writer:
        console.progress("predict", 0, total, "sentences")
        for records in _in_order(map_shards(cluster, Predictor, kwargs, plan.shards, pool)):
            writer.write(records)
            sentences += len(records)
            found += sum(_size(record[kinds]) for record in records)
            console.progress("predict", sentences, total, "sentences")
    seconds = round(time.monotonic() - started, 2)
    return {
        "run_dir": str(path.parent),
        "seconds": seconds,
        "output": str(path),
        "sentences": sentences,
        kinds: found,
        "empty": plan.counts["empty"],
    }


def _size(said: Any) -> int:
    """How many things a record says."""
    return len(said) if isinstance(said, list) else int(said not in ("", None))


def schema_of(task: Task) -> pa.Schema:
    """Columns of a file of records."""
    return pa.schema([*HEAD, ("pair", pa.string()), *task.schema])


def task_of_model(model: str) -> Task:
    """Return the task of a saved student or teacher, as its config.json says.

    Raises ConfigError for a model without a head that xdray knows.
    """
    header = read_header(model)
    path = Path(resolve_model(model)) / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kind = values.get("task_kind") or _kind_of(values)
    found = task_class(kind)
    several = values.get("problem_type") == "multi_label_classification"
    settings = TaskConfig(kind=kind, multi_label=several)
    labels = found.given_labels(settings)
    if found.named_labels:
        labels = tag_set(header.tags) if kind == "tagging" else LabelSet(header.tags)
    rule, longest = values.get("word_rule", "punctuation"), load_tokenizer(model).model_max_length
    if rule not in WORD_RULES or not isinstance(longest, int | float) or longest < 1:
        raise ConfigError(
            f"{model}: its word_rule is {rule!r:.60}, its model_max_length {longest!r:.60}; "
            f"expected one of {', '.join(WORD_RULES)}, and a number of tokens"
        )
    task = found(
        labels=labels,
        metric=next(iter(found.metrics)),
        settings=settings,
        word_rule=rule,
        max_length=int(min(longest, header.max_positions or 512)),
        scheme="IOB2",
    )
    return task.as_saved(values)


def _kind_of(values: Mapping[str, Any]) -> str:
    """Kind of task of a model that xdray has not saved, by its head."""
    names = values.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "no architecture"
    if name.endswith("Model"):
        return "encoding"
    heads = {
        "ForTokenClassification": "tagging",
        "ForQuestionAnswering": "answering",
        "ForSequenceClassification": "classification",
    }
    kind = next((kind for ending, kind in heads.items() if name.endswith(ending)), None)
    if kind is None:
        raise ConfigError(
            f"{name}: a model without a head to predict with; {', '.join(heads)} have"
        )
    problem = values.get("problem_type")
    if problem is None and len(values.get("id2label") or ()) == 1:  # as transformers takes it
        problem = "regression"
    return "regression" if (kind, problem) == ("classification", "regression") else kind


def _in_order(receipts: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield records in the order of the input; what comes early waits, at most a pool's worth."""
    waiting: dict[int, list[dict[str, Any]]] = {}
    expected = 0
    for receipt in receipts:
        waiting[receipt["index"]] = receipt["records"]
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


class _Writer:
    """Writes records to a temporary file; it gets its name when the last one is in."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.partial = path.with_name(f".{path.name}.partial")
        self._parquet = path.suffix == ".parquet"

    def __enter__(self) -> "_Writer":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = (
                pq.ParquetWriter(self.partial, self.schema)
                if self._parquet
                else self.partial.open("w", encoding="utf-8")
            )
        except OSError as error:
            raise ConfigError(f"--output {self.path}: cannot be written: {error}") from error
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        if self._parquet:
            self._file.write_table(pa.Table.from_pylist(records, schema=self.schema))
        else:
            for record in records:
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
