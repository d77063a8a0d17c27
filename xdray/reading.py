"""The transfer text as the student's tokens: a pass on CPUs, where the teacher's does not say them.

Needed where the student has a tokenizer of its own, and where the teacher's pass is streamed: the
batches of an epoch are planned from lengths.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xdray.cluster import Cluster, available, map_shards
from xdray.config import Config
from xdray.corpus import Shard, read_shard
from xdray.errors import TargetsError
from xdray.parts import LOGITS, tokens_part
from xdray.resources import READER_CPUS, pool_plan
from xdray.runs import Run
from xdray.targets import TargetStore, TargetView
from xdray.task import Task, own_tokens
from xdray.tokens import fingerprint, load_tokenizer


def own_tokenizer(config: Config, teacher: str) -> str | None:
    """Folder or name of the student's tokenizer where it is not the teacher's."""
    student = config.student
    own = config.tokens.tokenizer
    if own is None and student.kind == "encoder" and student.start != "teacher":
        own = student.start
    if own is None:
        return None
    same = fingerprint(load_tokenizer(own)) == fingerprint(load_tokenizer(teacher))
    return None if same else own


class TransferReader:
    """Tokenises shards for the student; one a process."""

    def __init__(
        self, teacher: str, own: str | None, task: Task, store: TargetStore | None
    ) -> None:
        """store: where tokens and matches are written; None: only lengths are wanted."""
        self.task, self.store = task, store
        self.teacher = load_tokenizer(teacher)
        self.own = None if own is None else load_tokenizer(own)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Return rows, lengths (S,), cut_words, and seen: ids that occur, bit by bit."""
        sentences = read_shard(shard)
        contents = [its.content for its in sentences]
        if self.store is not None:
            assert self.own is not None
            self._write(shard, [its.sentence_id for its in sentences], contents, self.store)
            return {"rows": shard.rows}
        tokenizer = self.own or self.teacher
        encoded = self.task.encode(tokenizer, contents)
        seen = np.zeros(len(tokenizer), bool)
        seen[encoded.ids] = True
        return {
            "shard_id": shard.shard_id,
            "rows": shard.rows,
            "lengths": np.diff(encoded.offsets).astype(np.uint16),
            "cut_words": int(encoded.cut_words.sum()),
            "seen": np.packbits(seen),
        }

    def _write(
        self, shard: Shard, names: list[str], contents: Sequence[Any], store: TargetStore
    ) -> None:
        assert self.own is not None
        tokens = own_tokens(self.task, self.own, self.teacher, contents)
        assert tokens.matches is not None
        flat = {"ids": tokens.ids, "word_ids": tokens.word_ids, "matches": tokens.matches}
        facts = {"cut_words": 0, "codec_error": None, "layer": None, "codec": None, "width": 0}
        file = store.file(shard.shard_id, tokens_part(fingerprint(self.own)), shard.rows)
        file.write({"sentence_id": names}, flat, tokens.offsets, facts)


def write_own_tokens(
    run: Run,
    cluster: Cluster,
    teacher: str,
    own: str,
    task: Task,
    store: TargetStore,
    shards: Sequence[Shard],
) -> str:
    """Add the student's tokens to the shards of a store that lack them; returns their part."""
    part = tokens_part(fingerprint(load_tokenizer(own)))
    missing = [shard for shard in shards if not store.is_done(shard, part)]
    if missing:
        store.prepare()
        run.console.say(f"tokens: {len(missing)} shards to read with the tokenizer of {own}")
        kwargs = {"teacher": teacher, "own": own, "task": task, "store": store}
        _read_all(run, cluster, kwargs, missing)
    return part


def read_lengths(
    run: Run,
    cluster: Cluster,
    teacher: str,
    own: str | None,
    task: Task,
    store: TargetStore,
    shards: Sequence[Shard],
) -> TargetView:
    """View of a stream: lengths and tokens that occur, of one pass over the text; kept in the run.

    `store` gives its identity alone.
    """
    part = LOGITS if own is None else tokens_part(fingerprint(load_tokenizer(own)))
    shard_ids = tuple(shard.shard_id for shard in shards)
    if Path(run.path("targets.json")).is_file():
        view = TargetView.load(run.path(), store.uri)
        if (view.key, view.shard_ids, view.text) == (store.key, shard_ids, part):
            return view
    run.console.say(f"tokens: {len(shards)} shards to read, for their lengths")
    kwargs = {"teacher": teacher, "own": own, "task": task, "store": None}
    receipts = {receipt["shard_id"]: receipt for receipt in _read_all(run, cluster, kwargs, shards)}
    seen = np.bitwise_or.reduce([receipt["seen"] for receipt in receipts.values()])
    view = TargetView(
        store_uri=store.uri,
        key=store.key,
        parts=(),
        shard_ids=shard_ids,
        lengths=[receipts[name]["lengths"] for name in shard_ids],
        cut_words=sum(receipts[name]["cut_words"] for name in shard_ids),
        num_bytes=0,
        codec_error={},
        text=part,
        seen=np.flatnonzero(np.unpackbits(seen)).tolist(),
    )
    view.save(run.path())
    return view


def _read_all(
    run: Run, cluster: Cluster, kwargs: dict[str, Any], shards: Sequence[Shard]
) -> list[dict[str, Any]]:
    there = dataclasses.replace(available(run.config.cluster), gpus=0)
    plan = pool_plan(there, max(1, there.logical_cpus - READER_CPUS), len(shards))
    total, receipts, done = sum(shard.rows for shard in shards), [], 0
    for receipt in map_shards(cluster, TransferReader, kwargs, shards, plan):
        receipts.append(receipt)
        done += receipt["rows"]
        run.console.progress("tokens", done, total, "sentences")
    run.console.end()
    if done != total:
        raise TargetsError(
            f"tokens: {done} sentences came back of {total} that were sent; run it again"
        )
    return receipts
