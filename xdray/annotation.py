"""The teacher over the text, once: what the store lacks is forwarded, the rest is served."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdray.annotator import Annotator
from xdray.cluster import Cluster, map_shards, plan_resources
from xdray.corpus import Sentence, Shard, inline_shards
from xdray.errors import TargetsError
from xdray.runs import Run
from xdray.targets import AnnotateTask, TargetStore, TargetView, hidden_part
from xdray.task import Task
from xdray.teacher import best_dtype, teacher_fingerprint
from xdray.tokenised import Signal
from xdray.tokens import fingerprint, load_tokenizer


@dataclass(frozen=True)
class Annotated:
    """Views of what the teacher said, and what it cost."""

    transfer: TargetView
    dev: TargetView
    test: TargetView
    facts: dict[str, Any]
    """The report's `targets`."""
    evaluation_forward_rows: int
    """Sentences of dev and test that were forwarded, counted apart."""


def annotate(
    run: Run,
    cluster: Cluster,
    teacher: str,
    task: Task,
    layers: tuple[Signal, ...],
    transfer: Sequence[Shard],
    scored: Mapping[str, Sequence[Sentence]],
) -> Annotated:
    """Forward all shards that the store lacks, in one pool of teacher actors.

    layers: hidden layers that the stages imitate; of dev and test (`scored`) only logits are kept.
    """
    started = time.monotonic()
    config = run.config
    store = open_store(run, teacher, task)
    parts = ["logits", *(hidden_part(layer, config.targets.codec) for layer in layers)]
    tasks = [AnnotateTask(shard, layers) for shard in transfer]
    inline = {
        split: inline_shards(list(s), config.targets.shard_sentences) for split, s in scored.items()
    }
    tasks += [AnnotateTask(shard, ()) for shards in inline.values() for shard in shards]
    receipts = _forward_missing(run, cluster, teacher, task, store, tasks)
    seconds = time.monotonic() - started
    views = {
        "transfer": _view(run, store, "transfer", transfer, parts),
        **{split: _view(run, store, split, shards, ["logits"]) for split, shards in inline.items()},
    }
    transfer_ids = {shard.shard_id for shard in transfer}
    mine = [r for r in receipts if r["shard_id"] in transfer_ids]
    rows = sum(shard.rows for shard in transfer)
    facts = {
        "store": config.targets.store,
        "key": store.key,
        "layers": list(layers),
        "codec": config.targets.codec,
        "dtype": store.identity["dtype"],
        "rows": rows,
        "teacher_forward_rows": sum(r["forwarded"] for r in mine),
        "cut_words": views["transfer"].cut_words,
        "tokens": int(sum(int(lengths.sum()) for lengths in views["transfer"].lengths)),
        "padding": _padding(mine),
        "bytes": views["transfer"].num_bytes,
        "codec_error": views["transfer"].codec_error,
        "oom_halvings": sum(r["oom_halvings"] for r in mine),
        "seconds": round(seconds, 2),
        "shards": len(transfer),
    }
    others = sum(r["forwarded"] for r in receipts if r["shard_id"] not in transfer_ids)
    return Annotated(views["transfer"], views["dev"], views["test"], facts, others)


def open_store(run: Run, teacher: str, task: Task) -> TargetStore:
    """Return the store of this teacher, tokenisation and dtype."""
    config = run.config
    dtype = config.teacher.dtype
    if dtype == "auto":
        dtype = run.remembered("dtype", lambda: best_dtype(_device(run)))
    identity = {
        "teacher": teacher_fingerprint(teacher),
        "tokenizer": fingerprint(load_tokenizer(teacher)),
        "task": task.kind,
        "words": config.tokens.words,
        "max_length": config.tokens.max_length,
        "dtype": dtype,
        "labels": list(task.labels.names),
    }
    return TargetStore(config.targets.store, identity)


def _device(run: Run) -> str:
    resources = plan_resources(run.config, None)
    return "cuda" if resources.gpus_per_replica else "cpu"


def _forward_missing(
    run: Run,
    cluster: Cluster,
    teacher: str,
    task: Task,
    store: TargetStore,
    tasks: list[AnnotateTask],
) -> list[dict[str, Any]]:
    config = run.config
    missing = store.missing(tasks, config.targets.codec)
    if not missing:
        run.console.say(f"targets: all {len(tasks)} shards are in {store.folder}")
        return []
    plan = plan_resources(config, len(missing))
    total = sum(task.shard.rows for task in missing)
    run.console.say(
        f"targets: {total} sentences in {len(missing)} of {len(tasks)} shards to forward, "
        f"{plan.replicas} teacher actor(s), {store.identity['dtype']}"
    )
    kwargs = {
        "model": str(teacher),
        "task": task,
        "store": store,
        "batch_tokens": config.teacher.batch_tokens,
        "codec": config.targets.codec,
        "threads": plan.threads_per_replica,
        "device": "cuda" if plan.gpus_per_replica else "cpu",
    }
    receipts, done = [], 0
    run.console.progress("targets", 0, total, "sentences")
    for receipt in map_shards(cluster, Annotator, kwargs, missing, plan):
        receipts.append(receipt)
        done += receipt["rows"]
        run.console.progress("targets", done, total, "sentences")
    run.console.end()
    if done != total:
        raise TargetsError(
            f"{store.folder}: {done} sentences came back of {total} that were sent; run it again"
        )
    return receipts


def _view(
    run: Run, store: TargetStore, name: str, shards: Sequence[Shard], parts: list[str]
) -> TargetView:
    """Look at these shards of the store; the file in the run folder is written last."""
    view = store.view([(shard.shard_id, shard.rows) for shard in shards], parts)
    folder = run.path() if name == "transfer" else run.path("evaluation", name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    view.save(folder)
    return view


def _padding(receipts: list[dict[str, Any]]) -> float | None:
    """Share of the forwarded positions that were padding."""
    padded = sum(r["padded_tokens"] for r in receipts)
    return round(1 - sum(r["tokens"] for r in receipts) / padded, 4) if padded else None
