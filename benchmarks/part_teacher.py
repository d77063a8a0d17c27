"""The teacher's pass beside a bare loop and what people use instead."""

import functools
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import peers
from benchmarks.harness import (
    Found,
    Settings,
    pass_rate,
    run_config,
    scratch,
    take_turns,
    timed,
)
from xdray import annotation
from xdray.annotation import CPU_TOKENS, annotate
from xdray.checks import check_plan
from xdray.cluster import Cluster
from xdray.corpus import read_shard
from xdray.padding import pad, token_budget_batches
from xdray.recipes import plan_stages
from xdray.runs import open_run
from xdray.sentences import text_of
from xdray.splits import read_corpus
from xdray.stages import needed_layers
from xdray.teacher import DTYPES, best_dtype, load_teacher
from xdray.tokens import load_tokenizer

BARE_BATCHES = (768, 1024, 2048)
"""Tokens a batch of the bare teacher loop: it counts with the best of them."""


def measure_teacher(settings: Settings) -> Found:
    """The teacher's pass, start-up apart, beside a bare loop and transformers' pipeline."""
    model = str(run_config(settings, Path("none")).teacher.model)
    found, facts = Found(), list[dict[str, Any]]()
    dtype = best_dtype("cpu")
    with scratch() as folder:
        config = run_config(settings, folder, f"data.transfer.sentences={settings.sentences}")
        with open_run(config, True) as run:
            corpus = read_corpus(run)
        sentences = [s for shard in corpus.transfer.shards for s in read_shard(shard)]
        contents = [sentence.content for sentence in sentences]
        texts = [text_of(content) for content in contents]
        layers = needed_layers(plan_stages(config, check_plan(config).num_layers))

        def ours() -> float:
            shutil.rmtree(folder / "targets", ignore_errors=True)
            scored = {split: [] for split in ("dev", "test")}
            shards = corpus.transfer.shards
            with open_run(config, True) as run, Cluster(config.cluster) as cluster:
                its = annotate(run, cluster, model, corpus.task, layers, shards, scored).facts
            facts.append(its)
            return pass_rate(its)

        def alone() -> float:
            """The same in this process, as few sentences go."""
            with patch.object(annotation, "FEW_SENTENCES", len(contents)):
                rate = ours()
            facts.pop()
            return rate

        encoded = corpus.task.encode(load_tokenizer(model), contents)
        lengths = encoded.offsets[1:] - encoded.offsets[:-1]
        teacher = load_teacher(model, corpus.task, DTYPES[dtype])
        batches = {
            budget: [
                pad(encoded.ids, encoded.offsets, rows, 0)[:2]
                for rows in token_budget_batches(lengths, budget)
            ]
            for budget in BARE_BATCHES
        }

        one_thread = functools.partial(torch.set_num_threads, 1)
        pool = ThreadPoolExecutor(settings.threads, initializer=one_thread)

        def forward(batch: Any) -> None:
            ids, mask = batch
            teacher.forward(ids, mask, layers)

        def bare(budget: int, side_by_side: bool, share: int = 1) -> float:
            some = batches[budget][::share]
            each = pool.map if side_by_side else map
            seconds = timed(lambda: list(each(forward, some)))
            return sum(len(ids) for ids, _ in some) / seconds

        ways = {
            f"{budget} tokens a batch{', batches side by side' * side_by_side}": (
                budget,
                side_by_side,
            )
            for budget in BARE_BATCHES
            for side_by_side in (False, True)
        }
        tried = take_turns(
            {name: functools.partial(bare, way[0], way[1], 4) for name, way in ways.items()}, 2
        )
        fastest = {name: max(values) for name, values in tried.items()}
        best = max(fastest, key=lambda name: fastest[name])
        some = texts[: settings.pipeline_sentences]
        by_length = sorted(some, key=len)
        turns = take_turns(
            {
                "teacher pass, sentences/s": ours,
                "teacher pass without Ray, in one process, sentences/s": alone,
                f"bare loop, {best}, sentences/s": functools.partial(bare, *ways[best]),
                f"pipeline, batch 64, {dtype}, sentences/s": lambda: peers.pipeline_rate(
                    model, some, 64, DTYPES[dtype]
                ),
                f"pipeline, batch 64, sorted, {dtype}, sentences/s": lambda: peers.pipeline_rate(
                    model, by_length, 64, DTYPES[dtype]
                ),
                "pipeline, batch 1, float32, sentences/s": lambda: peers.pipeline_rate(
                    model, some[::4], 1, torch.float32
                ),
                f"sentence-transformers' encode, batch 64, {dtype}, sentences/s": lambda: (
                    peers.vectors_rate(model, some, DTYPES[dtype])
                ),
            },
            settings.repeats,
        )
        pool.shutdown()
    our_rate, here, bare_rate, same, in_order, default, vectors = found.take(turns).values()
    start = statistics.median(its["seconds"] - its["rows"] / pass_rate(its) for its in facts)
    tokens = facts[-1]["tokens"] / facts[-1]["rows"]
    found.figures |= {
        "teacher pass, real tokens/s": our_rate * tokens,
        "teacher pass, padding share": facts[-1]["padding"],
        "teacher pass, start-up of Ray and actor, s": start,
        "rows from which the pass, its start counted, beats": {
            name: _rows_to_repay(start, our_rate, rate)
            for name, rate in (
                ("the pass without Ray", here),
                ("pipeline, batch 64, sorted", max(same, in_order)),
                ("sentence-transformers' encode", vectors),
                ("pipeline, batch 1", default),
            )
        },
    }
    found.ratios = {
        "teacher_over_bare_loop": our_rate / bare_rate,
        "teacher_over_pipeline_same_dtype": our_rate / max(same, in_order),
        "teacher_over_pipeline_default": our_rate / default,
    }
    found.notes.append(
        f"teacher pass: {len(contents)} sentences of {tokens:.1f} tokens, batches of {CPU_TOKENS} "
        f"tokens, logits and layers {list(layers)} stored as {config.targets.codec}; its rate is "
        f"from the second shard on. Bare loop: {dtype}, tokenised before, sorted by length over "
        "all sentences, nothing kept, the fastest of "
        f"{', '.join(f'{name}: {rate:.0f}/s' for name, rate in fastest.items())} (a quarter of the "
        f"batches, the better of two turns). Pipelines read {len(some)} of the sentences ({dtype}) "
        f"and {len(some[::4])} (batch 1), the model loaded before, and end in entities; the "
        "same-dtype ratio is to the faster of both orders. Rows that repay Ray's start: null where "
        "it never is"
    )
    return found


def _rows_to_repay(start: float, rate: float, other: float) -> int | None:
    """Rows that a pass of so many seconds of start is through with as soon as another way."""
    return round(start / (1 / other - 1 / rate)) if rate > other else None
