"""The teacher over the text, once: what the store lacks is forwarded, the rest is served."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from xdray.annotator import Annotator
from xdray.cluster import Cluster, map_shards, plan_resources
from xdray.config import Config
from xdray.corpus import Sentence, Shard, inline_shards
from xdray.errors import ConfigError, TargetsError
from xdray.reading import own_tokenizer, read_lengths, write_own_tokens
from xdray.resources import THIS_MACHINE, ResourcePlan
from xdray.runs import Run
from xdray.sources import Stream
from xdray.storage import NUMBER
from xdray.targets import AnnotateTask, TargetStore, TargetView, hidden_part
from xdray.task import Task
from xdray.teacher import best_dtype
from xdray.tokenised import Signal
from xdray.tokens import fingerprint, load_tokenizer
from xdray.watching import counted, run_name
from xdray.weights import teacher_fingerprint

TELL_SECONDS = 30.0
CPU_TOKENS = 768
"""A forward pass: as fast as more of them, or faster, and padding and memory are less."""
GPU_TOKENS = 16384
FEW_SENTENCES = 2000
"""Forwarded in this process where it would have one actor: Ray and it take 11 s to start."""


@dataclass(frozen=True)
class Annotated:
    """Views of what the teacher said, and what it cost."""

    transfer: TargetView
    """Of lengths alone where it is streamed."""
    stream: Stream | None
    """The teacher's actors, where they work while students learn."""
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
    Where delivery is streamed only dev and test are forwarded here.
    """
    started = time.monotonic()
    config = run.config
    store = open_store(run, teacher, task)
    own = own_tokenizer(config, teacher)
    streamed = config.targets.delivery == "streamed"
    parts = ["logits", *(hidden_part(layer, config.targets.codec) for layer in layers)]
    tasks = [] if streamed else [AnnotateTask(shard, layers) for shard in transfer]
    inline = {
        split: inline_shards(list(s), config.targets.shard_sentences) for split, s in scored.items()
    }
    tasks += [AnnotateTask(shard, ()) for shards in inline.values() for shard in shards]
    with Spent(run) as spent:
        receipts, rate = _forward_missing(run, cluster, teacher, task, store, tasks, spent)
    seconds = time.monotonic() - started
    views = {
        split: _view(run, store, split, shards, ["logits"]) for split, shards in inline.items()
    }
    stream = None
    if streamed:
        views["transfer"] = read_lengths(run, cluster, teacher, own, task, store, transfer)
        stream = make_stream(run, teacher, own, task, store, transfer)
    else:
        text = "logits"
        if own is not None:
            text = write_own_tokens(run, cluster, teacher, own, task, store, transfer)
        views["transfer"] = _view(run, store, "transfer", transfer, parts, text)
    transfer_ids = {shard.shard_id for shard in transfer}
    mine = [r for r in receipts if r["shard_id"] in transfer_ids]
    rows = sum(shard.rows for shard in transfer)
    facts = {
        "store": config.targets.store,
        "delivery": config.targets.delivery,
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
        "spent": spent.facts,
        "sentences_per_second": rate,
        "shards": len(transfer),
    }
    others = sum(r["forwarded"] for r in receipts if r["shard_id"] not in transfer_ids)
    return Annotated(views["transfer"], stream, views["dev"], views["test"], facts, others)


class Spent:
    """Seconds and sentences of a run's pass over all its calls, in pass.json: the report's costs.

    A call that is killed has told of all but its last half minute.
    """

    def __init__(self, run: Run) -> None:
        """Read what earlier calls spent. Raises XdrayError where that is damaged."""
        kinds = {"seconds": NUMBER, "sentences": NUMBER}
        self.facts: dict[str, Any] = run.read_json("pass.json", **kinds) or {}
        self._run, self._before = run, dict(self.facts)
        self._forwarded, self._started = 0, time.monotonic()
        self._told = self._started

    def __enter__(self) -> "Spent":
        """The clock runs."""
        return self

    def __exit__(self, *_: object) -> None:
        """Tell of the rest."""
        if self._forwarded:
            self._tell()

    def add(self, forwarded: int) -> None:
        """Count the sentences of a shard."""
        self._forwarded += forwarded
        if self._forwarded and time.monotonic() - self._told > TELL_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self.facts = {
            "seconds": self._before.get("seconds", 0.0) + self._told - self._started,
            "sentences": self._before.get("sentences", 0) + self._forwarded,
        }
        self._run.write_json("pass.json", self.facts)


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
    if task.teacher_labels:  # the order in which its scores are read
        identity["teacher_labels"] = list(task.teacher_labels)
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
    spent: Spent,
) -> tuple[list[dict[str, Any]], float | None]:
    """Receipts, and the sentences a second once each actor has done its first shard."""
    config = run.config
    missing = store.missing(tasks, config.targets.codec)
    if not missing:
        run.console.say(f"targets: all {len(tasks)} shards are in {store.folder}")
        return [], None
    plan = plan_resources(config, len(missing))
    total = sum(task.shard.rows for task in missing)
    here = _goes_here(config, plan, total)
    where = "in this process" if here else f"{plan.replicas} teacher actor(s)"
    run.console.say(
        f"targets: {total} sentences in {len(missing)} of {len(tasks)} shards to forward, "
        f"{where}, {store.identity['dtype']}"
    )
    store.prepare()
    kwargs = _actor_kwargs(config, teacher, task, store, plan)
    receipts, done, warm = [], 0, (0.0, 0)
    run.console.progress("targets", 0, total, "sentences")
    if here:
        pool = _annotate_here(kwargs, missing)
    else:
        cluster.start()
        pool = map_shards(cluster, Annotator, kwargs, missing, plan, threads=2)
    for receipt in counted(pool, cluster.meters, run_name(run.place)):
        receipts.append(receipt)
        done += receipt["rows"]
        spent.add(receipt["forwarded"])
        if len(receipts) == plan.replicas:
            warm = (time.monotonic(), done)
        run.console.progress("targets", done, total, "sentences")
    run.console.end()
    if done != total:
        raise TargetsError(
            f"{store.folder}: {done} sentences came back of {total} that were sent; run it again"
        )
    rate = (done - warm[1]) / (time.monotonic() - warm[0]) if done > warm[1] else None
    return receipts, rate and round(rate, 1)


def _goes_here(config: Config, plan: ResourcePlan, sentences: int) -> bool:
    """Whether so few sentences have no actor: one of this machine, that nobody asked for."""
    alone = plan.replicas == 1 and plan.available.source == THIS_MACHINE
    return alone and config.teacher.replicas == "auto" and sentences <= FEW_SENTENCES


def _annotate_here(kwargs: dict[str, Any], tasks: Sequence[AnnotateTask]) -> Iterator[Any]:
    """Yield the receipts of an actor, without one."""
    threads = torch.get_num_threads()
    try:
        annotator = Annotator(**kwargs, alone=False)
        for task in tasks:
            yield {**annotator(task), "tries": 1}
    finally:
        torch.set_num_threads(threads)  # the annotator set it


def _actor_kwargs(
    config: Config, teacher: str, task: Task, store: TargetStore, plan: ResourcePlan
) -> dict[str, Any]:
    gpus, budget = plan.gpus_per_replica, config.teacher.batch_tokens
    if gpus > 1 and find_spec("accelerate") is None:
        raise ConfigError(
            f"teacher.gpus_per_replica: {gpus}: a teacher over several GPUs needs accelerate, "
            "which is not installed; pip install 'xdray[spread]' on all nodes"
        )
    return {
        "model": teacher,
        "task": task,
        "store": store,
        "batch_tokens": (GPU_TOKENS if gpus else CPU_TOKENS) if budget == "auto" else budget,
        "codec": config.targets.codec,
        "threads": plan.threads_per_replica,
        "device": "cpu" if not gpus else "cuda" if gpus == 1 else "auto",
    }


def make_stream(
    run: Run, teacher: str, own: str | None, task: Task, store: TargetStore, shards: Sequence[Shard]
) -> Stream:
    """Name what the actors of a stream are made from; starts none."""
    config = run.config
    plan = plan_resources(config, None)
    if len(shards) < plan.workers:
        rows = sum(shard.rows for shard in shards)
        raise ConfigError(
            f"targets.delivery: streamed: {plan.workers} training workers, each with shards of its "
            f"own, and {rows} sentences make {len(shards)} shards; set targets.shard_sentences to "
            f"{max(16, rows // plan.workers)} or less, or fewer training.workers"
        )
    kwargs = _actor_kwargs(config, teacher, task, store, plan)
    kwargs |= {"own": own, "pieces": config.tokens.pieces}
    return Stream(tuple(shards), kwargs, plan, config.cluster)


def _view(
    run: Run,
    store: TargetStore,
    name: str,
    shards: Sequence[Shard],
    parts: list[str],
    text: str = "logits",
) -> TargetView:
    """Look at these shards of the store; the file in the run folder is written last."""
    view = store.view([(shard.shard_id, shard.rows) for shard in shards], parts, text)
    folder = run.path() if name == "transfer" else run.path("evaluation", name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    view.save(folder)
    return view


def _padding(receipts: list[dict[str, Any]]) -> float | None:
    """Share of the forwarded positions that were padding."""
    padded = sum(r["padded_tokens"] for r in receipts)
    return round(1 - sum(r["tokens"] for r in receipts) / padded, 4) if padded else None
