"""The teacher's pass over a shard: read, tokenise, forward, write what is missing in the store.

A shard is the unit of work. Its batches depend on its own sentences alone, so its files are equal
to the bit whatever runs beside it and whichever parts are asked for (a GPU short of memory apart:
halves of a batch may round otherwise).

n tokens of a batch, N of a shard, end to end; W teacher width, C classes.
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdray.alignment import under_own_tokens
from xdray.corpus import Sentence, Shard, read_shard
from xdray.errors import ClusterError, TargetsError
from xdray.hidden import Hidden
from xdray.padding import pad, padded, token_budget_batches
from xdray.parts import LOGITS, PartFile, hidden_part, signal_and_codec
from xdray.recording import new_record
from xdray.targets import AnnotateTask, TargetStore
from xdray.task import Task, own_tokens
from xdray.teacher import DTYPES, load_teacher
from xdray.tokenised import Signal, Tokens, token_types
from xdray.tokens import Encoded, fingerprint, load_tokenizer
from xdray.weights import teacher_fingerprint
from xdray.workers import keep_few_shapes, trim_memory

TRIM_EVERY = 32
"""Batches between which freed memory is handed back on CPUs: every 16 cost 5 % of a pass."""


@dataclass
class Said:
    """What the teacher said of a shard."""

    logits: NDArray[np.float32]
    """(N, C); (S, C) where a sentence has one row."""
    hidden: dict[Signal, Hidden]
    errors: dict[Signal, float]
    """||decoded - exact|| / ||exact|| of each."""
    padded_tokens: int
    oom_halvings: int


class Annotator:
    """Runs the teacher over shards and writes their missing parts; one a process, built there.

    Shards may come from several threads.
    Raises TargetsError where the model found here is not the one that the store is of.
    """

    def __init__(
        self,
        model: str,
        task: Task,
        store: TargetStore,
        *,
        batch_tokens: int,
        codec: str,
        threads: int | None = None,
        device: str = "cpu",
        alone: bool = True,
    ) -> None:
        """alone: nothing else goes on in this process."""
        self.store, self.codec = store, codec
        self.task, self.batch_tokens = task, batch_tokens
        keep_few_shapes(training=not alone)
        self.tokenizer = load_tokenizer(model)
        self._check("teacher", teacher_fingerprint(model))
        self._check("tokenizer", fingerprint(self.tokenizer))
        self.teacher = load_teacher(model, task, DTYPES[store.identity["dtype"]], device)
        # one shard is tokenised or written while another is forwarded
        self._tokenising, self._forwarding = threading.Lock(), threading.Lock()
        # batches side by side, each on one thread, go 10 to 20 % faster than one after the other
        # on all: no thread waits for another at the end of each product. On a GPU they take turns
        self._one_thread = threads is not None
        limit = functools.partial(torch.set_num_threads, 1) if self._one_thread else None
        self._side_by_side = (threads or 1) if device == "cpu" else 1
        self._forwards = ThreadPoolExecutor(self._side_by_side, initializer=limit)

    def __call__(self, task: AnnotateTask) -> dict[str, Any]:
        """Annotate a shard; returns a receipt, small and picklable.

        shard_id, rows, forwarded (rows), tokens, padded_tokens, cut_words, bytes (written),
        seconds, lengths (S,) uint16, codec_error by part, oom_halvings.
        """
        started = time.perf_counter()
        shard = task.shard
        missing = self.store.missing_parts(task, self.codec)
        receipt = self._annotate(task, missing) if missing else self._served(task)
        trim_memory()
        seconds = time.perf_counter() - started
        return {"shard_id": shard.shard_id, "rows": shard.rows, **receipt, "seconds": seconds}

    def _check(self, name: str, found: str) -> None:
        expected = self.store.identity[name]
        if found != expected:
            raise TargetsError(
                f"{self.store.folder}: its {name} is {expected}, that found here is {found}; put "
                "the same model on all machines, or run the command again if it changed meanwhile"
            )

    def _served(self, task: AnnotateTask) -> dict[str, Any]:
        view = self.store.view([(task.shard.shard_id, task.shard.rows)], task.parts(self.codec))
        lengths = view.lengths[0]
        return {
            "forwarded": 0,
            "tokens": int(lengths.sum(dtype=np.int64)),
            "padded_tokens": 0,
            "cut_words": view.cut_words,
            "bytes": 0,
            "lengths": lengths,
            "codec_error": view.codec_error,
            "oom_halvings": 0,
        }

    def _annotate(self, task: AnnotateTask, missing: Sequence[str]) -> dict[str, Any]:
        """Forward a shard once for all parts that are missing, and write these."""
        shard = task.shard
        sentences = read_shard(shard)
        encoded, said, errors = self._say(shard, sentences, missing)
        num_bytes = 0
        for part in missing:
            file = self.store.file(shard.shard_id, part, shard.rows)
            num_bytes += self._write(file, sentences, encoded, said, errors.get(part))
        return {
            "forwarded": shard.rows,
            "tokens": len(encoded.ids),
            "padded_tokens": said.padded_tokens,
            "cut_words": int(encoded.cut_words.sum()),
            "bytes": num_bytes,
            "lengths": np.diff(encoded.offsets).astype(np.uint16),
            "codec_error": errors,
            "oom_halvings": said.oom_halvings,
        }

    def _say(
        self, shard: Shard, sentences: Sequence[Sentence], parts: Sequence[str]
    ) -> tuple[Encoded, Said, dict[str, float]]:
        """Tokenise and forward sentences of a shard; the codec's error of each hidden part."""
        with self._tokenising:
            encoded = self.task.encode(self.tokenizer, [its.content for its in sentences])
        layers = {part: signal_and_codec(part)[0] for part in parts if part != LOGITS}
        what = f"shard {shard.shard_id}"
        with self._forwarding:
            halvings = self.teacher.oom_halvings
            while (said := self._forward_if_it_fits(encoded, list(layers.values()), what)) is None:
                self._take_less(encoded)
            said.oom_halvings = self.teacher.oom_halvings - halvings
        if not np.isfinite(said.logits).all():
            raise TargetsError(f"{what}: the teacher's logits are not finite")
        errors = {part: said.errors[layer] for part, layer in layers.items()}
        return encoded, said, errors

    def _forward_if_it_fits(
        self, encoded: Encoded, layers: Sequence[Signal], what: str
    ) -> Said | None:
        """None where memory ran short beside the teacher's own forward pass, which halves."""
        try:
            return self._forward(encoded, layers, what)
        except torch.OutOfMemoryError:
            return None

    def _take_less(self, encoded: Encoded) -> None:
        """Halve batches from now on. Raises ClusterError where one sentence fills one."""
        if self.batch_tokens <= np.diff(encoded.offsets).max():
            raise ClusterError(
                f"the teacher on {self.teacher.device}: what it says of one sentence does not fit "
                "the memory; lower tokens.max_length, or take a larger GPU"
            )
        self.batch_tokens //= 2
        self.teacher.oom_halvings += 1
        if self.teacher.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _forward(self, encoded: Encoded, layers: Sequence[Signal], what: str) -> Said:
        """Forward in length-sorted batches, the longest first; results in the shard's order.

        what: the shard, as errors name it.
        """
        if self._one_thread:  # this one encodes what the others bring; a second would only wait
            torch.set_num_threads(1)
        tokens, teacher = len(encoded.ids), self.teacher
        by_sentence = self.task.sentence_logits
        rows_out = len(encoded.cut_words) if by_sentence else tokens
        types = token_types(encoded.word_ids, encoded.offsets)
        records = {n: new_record(tokens, teacher.width_of(n), self.codec) for n in layers}
        said = Said(
            logits=np.empty((rows_out, len(self.task.labels)), np.float32),
            hidden={},
            errors={},
            padded_tokens=0,
            oom_halvings=0,
        )
        pad_id: Any = self.tokenizer.pad_token_id or 0
        batches = token_budget_batches(np.diff(encoded.offsets), self.batch_tokens)

        def forward(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, Any, Any]:
            ids, mask, index = pad(encoded.ids, encoded.offsets, rows, pad_id)
            real = mask.bool()
            its_types = None if types is None else padded(types[index], real.numpy())
            logits, hidden = teacher.forward(ids, mask, layers, its_types)
            kept = real.to(logits.device)
            logits = logits if by_sentence else logits[kept]
            states = {layer: values[kept] for layer, values in hidden.items()}
            return index, ids.numel(), logits.cpu().numpy(), states

        longest_first = batches[::-1]
        results = self._in_order(forward, longest_first)
        for number, (rows, result) in enumerate(zip(longest_first, results, strict=True)):
            index, size, logits, states = result
            said.logits[rows if by_sentence else index] = logits
            for layer, record in records.items():
                record.put(index, states[layer])
            said.padded_tokens += size
            if teacher.device == "cpu" and (number + 1) % TRIM_EVERY == 0:
                trim_memory()
        for layer, record in records.items():
            said.hidden[layer] = record.finish()
            said.errors[layer] = record.error(f"{what}, {hidden_part(layer, self.codec)}")
        return said

    def _in_order(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Results in order; not far ahead of who takes them, since they are on the device."""
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                waiting.append(self._forwards.submit(work, item))
                if len(waiting) > 2 * self._side_by_side:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            futures.wait([its for its in waiting if not its.cancel()])  # they hold memory

    def _write(
        self,
        file: PartFile,
        sentences: Sequence[Sentence],
        encoded: Encoded,
        said: Said,
        codec_error: float | None,
    ) -> int:
        """Write a part; returns its bytes."""
        texts = {"sentence_id": [sentence.sentence_id for sentence in sentences]}
        flat: dict[str, NDArray[Any]] = {}
        basis = None
        facts: dict[str, Any] = {"cut_words": int(encoded.cut_words.sum())}
        facts["codec_error"] = codec_error
        if file.part == LOGITS:
            texts["language"] = [sentence.language for sentence in sentences]
            flat |= {"ids": encoded.ids, "word_ids": encoded.word_ids}
            if len(self.task.labels):  # an encoder has none
                flat[LOGITS] = said.logits
            facts |= {"layer": None, "codec": None, "width": len(self.task.labels)}
            facts["by_sentence"] = self.task.sentence_logits
        else:
            layer, codec = signal_and_codec(file.part)
            hidden = said.hidden[layer]
            flat["hidden"], basis = hidden.values, hidden.basis
            if hidden.scales is not None:
                flat["scales"] = hidden.scales
            facts |= {"layer": layer, "codec": codec, "width": hidden.values.shape[1]}
        return file.write(texts, flat, encoded.offsets, facts, basis)


class StreamingAnnotator(Annotator):
    """Runs the teacher over shards and hands on what it says; nothing is written.

    In the same codec as if it were stored; in the same batches, where a shard is not cut in blocks.
    """

    def __init__(self, model: str, task: Task, store: TargetStore, **options: Any) -> None:
        """As `Annotator`. own: folder of the student's own tokenizer or None; pieces: as config."""
        own, self.pieces = options.pop("own"), options.pop("pieces")
        super().__init__(model, task, store, **options)
        self.own = None if own is None else load_tokenizer(own)

    def __call__(self, task: AnnotateTask) -> dict[str, Any]:
        """Return {"tokens": Tokens} of a shard, or of some rows of it; in the student's tokens."""
        sentences = read_shard(task.shard)
        if task.rows is not None:
            sentences = [sentences[row] for row in task.rows]
        encoded, said, _ = self._say(task.shard, sentences, task.parts(self.codec))
        tokens = Tokens(encoded.ids, encoded.word_ids, encoded.offsets, said.logits)
        tokens.hidden = dict(said.hidden)
        self.task.mark(tokens)
        if self.own is not None:
            contents = [its.content for its in sentences]
            own = own_tokens(self.task, self.own, self.tokenizer, contents)
            how = self.task.stretch_logits
            tokens = under_own_tokens(own, tokens, how, self.pieces)
        trim_memory()
        return {"tokens": tokens}
