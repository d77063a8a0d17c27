"""An encoder's worth: fine-tuned on several tasks over seeds, beside others, in one table (P2).

A cell is one fine-tuning of one encoder on one task with one seed: a folder with cell.json, so the
same command goes on after a kill. Cells run in a pool of actors.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from rich.table import Table

from xdray.batch_plan import PLAN_VERSION
from xdray.cluster import Cluster, available, map_shards
from xdray.config import Config
from xdray.configfile import load_config, with_fields
from xdray.console import Console
from xdray.errors import ConfigError
from xdray.finetuning import TeacherLearner
from xdray.header import check_length, read_header
from xdray.kinds import load_task, with_labels
from xdray.learning import Scorer, finetune
from xdray.lessons import Lesson
from xdray.recipes import finetune_stage
from xdray.resources import pool_plan
from xdray.sessions import LocalSession
from xdray.stage_files import load_last
from xdray.storage import NUMBER, fingerprint, read_object, write_bytes_atomic
from xdray.teacher import best_dtype
from xdray.tokens import fingerprint as tokenizer_fingerprint
from xdray.tokens import load_tokenizer
from xdray.weights import model_folder, teacher_fingerprint
from xdray.workers import enter, keep_few_shapes, trim_memory

NEAR_MNLI = ("mnli", "rte")
"""Left out of the second average: their gain is partly direct supervision (METHOD.md 3.4)."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuning."""

    encoder: str
    """Its name in the table."""
    model: str
    fresh: bool
    """Random weights in the model's shape."""
    task: str
    """Name of the task's config file."""
    config: Config
    folder: str
    text: str
    """Fingerprint of the labelled text."""

    def __str__(self) -> str:
        """As errors name it."""
        return f"{self.encoder} on {self.task}, seed {self.config.run.seed}"

    @property
    def key(self) -> str:
        """32 hex characters: of all that decides the cell's score."""
        sections = {"task", "data", "tokens", "teacher", "training"}
        config = self.config.model_dump(mode="json", include=sections)
        model = teacher_fingerprint(self.model)
        metric = self.config.evaluation.metric
        rest = [self.config.run.seed, model, self.fresh, metric, PLAN_VERSION]
        return fingerprint([config, self.text, *rest])


class SuiteWorker:
    """An actor that fine-tunes and scores."""

    def __init__(self, threads: int, folder: str) -> None:
        """Work in the folder where the command was typed."""
        torch.set_num_threads(threads)
        enter(folder)
        keep_few_shapes(training=True)
        self.threads = threads

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Fine-tune, choose by dev, score test; returns what cell.json holds."""
        started = time.monotonic()
        scores = score_cell(cell, self.threads)
        trim_memory()
        result = {
            "key": cell.key,
            "encoder": cell.encoder,
            "task": cell.task,
            "seed": cell.config.run.seed,
            **scores,
            "seconds": round(time.monotonic() - started, 2),
        }
        write_bytes_atomic(str(Path(cell.folder) / "cell.json"), json.dumps(result).encode())
        return result


def score_cell(cell: Cell, threads: int) -> dict[str, Any]:
    """Fine-tune an encoder as a teacher is, the best epoch by dev; metric and its dev and test."""
    config, task = cell.config, load_task(cell.config)
    task = with_labels(task, task.read(config.data.train, "train").labels)
    folder = Path(cell.folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(cell.model)
    lesson = Lesson(
        config=config,
        task=task,
        stages=(finetune_stage(config),),
        base={"cell": cell.key, "tokenizer": tokenizer_fingerprint(tokenizer)},
        start=cell.model,
        view=None,
        teacher_width=read_header(cell.model).width,
        teacher_heads=0,
        folder=str(folder),
        start_from=None,
        threads=threads,
        quiet=True,
    )
    finetune(lesson, LocalSession(folder))
    learner = TeacherLearner.from_encoder(cell.model, task, config.run.seed, cell.fresh)
    load_last(learner, folder, 1)
    found: dict[str, float] = {}
    chosen: Any = None
    for split in ("dev", "test"):
        sentences = task.read(getattr(config.data, split), split).sentences
        scorer = Scorer(sentences, tokenizer, task, LocalSession(None))
        said = scorer.predict(learner)
        chosen = task.choose(scorer.golds, said) if split == "dev" else chosen
        decided = task.decide(said, chosen)
        found[split] = task.scores(scorer.golds, decided, scorer.languages)[task.metric]
    return {"metric": task.metric, **found}


def evaluate_suite(
    encoders: Mapping[str, str],
    tasks: Sequence[str],
    seeds: int,
    output: str,
    replicas: int = 1,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Fine-tune each encoder on each task's config over seeds; returns and prints the table.

    encoders: name to a folder, a Hub name or "package:NAME/FOLDER"; with "fresh:" before it, random
    weights in that shape. tasks: config files; their `teacher.finetune` says how. overrides: of all
    of them.
    """
    started = time.monotonic()
    stems = [Path(path).stem for path in tasks]
    if wrong := [name for name in encoders if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name)]:
        raise ConfigError(
            f"evaluate_suite: an encoder named '{wrong[0]}', expected letters, digits, `._+-`: it "
            "names a folder"
        )
    if not stems or len(set(stems)) < len(stems):
        raise ConfigError(f"evaluate_suite: tasks {stems}, expected config files of unlike names")
    cells: list[Cell] = []
    for path in tasks:
        its = _settled(load_config(path, overrides))
        text = _text_of(its)
        for name, model in encoders.items():
            cells += _cells(its, path, name, model, seeds, output, text)
    config = cells[0].config.cluster
    known = {cell.folder: found for cell in cells if (found := _known(cell)) is not None}
    missing = [cell for cell in cells if cell.folder not in known]
    results = list(known.values())
    there = available(config)
    pool = pool_plan(there, replicas, max(1, len(missing)))
    threads = config.threads or pool.threads_per_replica
    kwargs = {"threads": threads, "folder": str(Path.cwd())}
    Path(output).mkdir(parents=True, exist_ok=True)
    with Console(Path(output) / "log.txt") as console, Cluster(config) as cluster:
        console.say(f"suite: {len(missing)} of {len(cells)} fine-tunings to do")
        for number, found in enumerate(map_shards(cluster, SuiteWorker, kwargs, missing, pool)):
            found.pop("index", None)
            results.append(found)
            console.say(
                f"suite: {number + 1} of {len(missing)}: {found['encoder']} on {found['task']}, "
                f"seed {found['seed']}: {found['metric']} {found['test']:.4f}, "
                f"{found['seconds']:.0f} s"
            )
        rows = summarise_suite(results, list(encoders), stems)
        console.show(suite_table(rows, stems))
    report = {
        "run_dir": output,
        "seconds": round(time.monotonic() - started, 2),
        "seeds": seeds,
        "rows": rows,
        "cells": sorted(results, key=lambda its: (its["task"], its["encoder"], its["seed"])),
    }
    write_bytes_atomic(str(Path(output) / "suite.json"), json.dumps(report, indent=1).encode())
    return {key: report[key] for key in ("run_dir", "seconds", "seeds", "rows")}


def _settled(config: Config) -> Config:
    """Config with `training.autocast` worked out."""
    if config.training.autocast != "auto":
        return config
    dtype = best_dtype("cuda" if available(config.cluster).gpus else "cpu")
    autocast = "bfloat16" if dtype == "bfloat16" else "none"
    return with_fields(config, {"training.autocast": autocast})


def _text_of(config: Config) -> str:
    """Fingerprint of all labelled text."""
    task = load_task(config)
    task = with_labels(task, task.read(config.data.train, "train").labels)
    splits = ("train", "dev", "test")
    sentences = [task.read(getattr(config.data, split), split).sentences for split in splits]
    return fingerprint([[[str(s.content), str(s.gold)] for s in its] for its in sentences])


def _cells(
    config: Config, path: str, name: str, model: str, seeds: int, output: str, text: str
) -> list[Cell]:
    if (how := config.teacher.finetune) is None:
        raise ConfigError(f"{path}: has no teacher.finetune, which says how to fine-tune")
    fresh = model.startswith("fresh:")
    origin = str(model_folder(model.removeprefix("fresh:")))
    check_length(read_header(origin), config.tokens.max_length)
    fields: dict[str, Any] = {"teacher.finetune.encoder": origin, "teacher.finetune.fresh": fresh}
    # students keep the dropout that they were distilled with: all are to have the same
    fields["teacher.finetune.dropout"] = 0.1 if how.dropout is None else how.dropout
    if fresh:  # random embeddings that stay so would tell nothing
        fields["teacher.finetune.freeze_embeddings"] = False
    task, cells = Path(path).stem, []
    for seed in range(seeds):
        folder = str(Path(output, task, name, str(seed)))
        its = with_fields(config, {**fields, "run.seed": seed, "run.folder": folder})
        cells.append(Cell(name, origin, fresh, task, its, folder, text))
    return cells


def _known(cell: Cell) -> dict[str, Any] | None:
    """Return what an earlier call found, if of the same encoder, task and text."""
    path = Path(cell.folder) / "cell.json"
    if not path.is_file():
        return None
    found = read_object(str(path), key=str, encoder=str, task=str, dev=NUMBER, test=NUMBER)
    return found if found["key"] == cell.key else None


def summarise_suite(
    results: Sequence[Mapping[str, Any]], encoders: Sequence[str], tasks: Sequence[str]
) -> list[dict[str, Any]]:
    """Mean and spread of each encoder on each task, and the averages over tasks."""
    rows = []
    for encoder in encoders:
        row: dict[str, Any] = {"encoder": encoder, "tasks": {}}
        for task in tasks:
            scores = [
                its["test"] for its in results if (its["encoder"], its["task"]) == (encoder, task)
            ]
            row["tasks"][task] = {"mean": mean(scores), "std": pstdev(scores), "seeds": len(scores)}
        means = {task: its["mean"] for task, its in row["tasks"].items()}
        others = [value for task, value in means.items() if task not in NEAR_MNLI]
        row["average"] = mean(means.values())
        row["average_without_mnli_rte"] = mean(others) if others else None
        rows.append(row)
    return rows


def suite_table(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Table:
    """P2's table: a row an encoder, a column a task, two averages."""
    table = Table(
        "Encoder", *tasks, "average", "without MNLI, RTE", title="Test, each task's metric"
    )
    for row in rows:
        cells = [
            f"{100 * its['mean']:.1f} ± {100 * its['std']:.1f}" for its in row["tasks"].values()
        ]
        second = row["average_without_mnli_rte"]
        averages = [f"{100 * row['average']:.1f}", "–" if second is None else f"{100 * second:.1f}"]
        table.add_row(str(row["encoder"]), *cells, *averages)
    return table
