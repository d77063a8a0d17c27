"""Text in, entities with character offsets out, streamed through a pool of predicting actors."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdray.batches import Tokens
from xdray.cluster import Cluster, available, map_shards
from xdray.config import ClusterConfig
from xdray.config_data import SourceConfig, TransferConfig
from xdray.console import Console
from xdray.corpus import Sentence, Shard, plan_transfer, read_shard
from xdray.errors import ConfigError
from xdray.labels import LabelSet
from xdray.resources import pool_plan
from xdray.student import load_student
from xdray.tasks.tagging import decode_tags, entities_of, first_tokens, predict_logits
from xdray.tokens import encode, load_tokenizer, pad_id_of, split_words

BATCH_TOKENS = 4096
"""Tokens of a forward pass, padding included."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("text", pa.string()),
        (
            "entities",
            pa.list_(
                pa.struct(
                    [
                        ("type", pa.string()),
                        ("start", pa.int32()),
                        ("end", pa.int32()),
                        ("text", pa.string()),
                        ("score", pa.float32()),
                    ]
                )
            ),
        ),
    ]
)


class Predictor:
    """A student in an actor: tags the sentences of a shard."""

    def __init__(self, model: str, rule: str, threads: int, device: str) -> None:
        """Load the model's folder. rule: how raw text is split into words."""
        torch.set_num_threads(threads)
        self.model: Any = load_student(model)
        self.model.to(device)
        self.tokenizer = load_tokenizer(model)
        self.labels = LabelSet(tuple(self.model.config.id2label.values()))
        self.max_length = int(min(self.tokenizer.model_max_length, 512))
        self.rule, self.device = rule, device

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Return the shard's rows, one record a sentence in their order."""
        return {"rows": shard.rows, "records": self.predict(read_shard(shard))}

    def predict(self, sentences: Sequence[Sentence]) -> list[dict[str, Any]]:
        """Records of some sentences: id, language, text, entities."""
        texts = [s.text if s.text is not None else " ".join(s.words or ()) for s in sentences]
        spans = [
            split_words(text, self.rule) if s.words is None else _joined_spans(s.words)
            for text, s in zip(texts, sentences, strict=True)
        ]
        words = [
            [text[start:stop] for start, stop in its]
            for text, its in zip(texts, spans, strict=True)
        ]
        tags, scores = self._tag(words)
        return [
            {
                "id": sentence.sentence_id,
                "language": sentence.language,
                "text": text,
                "entities": [
                    {
                        "type": kind,
                        "start": its[first][0],
                        "end": its[last][1],
                        "text": text[its[first][0] : its[last][1]],
                        "score": round(float(np.mean(score[first : last + 1])), 4),
                    }
                    for kind, first, last in entities_of(tag)
                ],
            }
            for sentence, text, its, tag, score in zip(
                sentences, texts, spans, tags, scores, strict=True
            )
        ]

    def _tag(self, words: list[list[str]]) -> tuple[list[list[str]], list[list[float]]]:
        """Tag and score of each word; a sentence too long for the model is read in windows."""
        tags: list[list[str]] = [[] for _ in words]
        scores: list[list[float]] = [[] for _ in words]
        left = [row for row, its in enumerate(words) if its]
        while left:
            rest = [words[row][len(tags[row]) :] for row in left]
            encoded = encode(self.tokenizer, rest, self.max_length)
            bounds = itertools.pairwise(encoded.offsets.tolist())
            kept = [  # up to the last word read; behind a cut the next window begins
                max(1, 1 + int(encoded.word_ids[start:stop].max())) if cut else len(its)
                for its, cut, (start, stop) in zip(rest, encoded.cut_words, bounds, strict=True)
            ]
            tokens = Tokens(encoded.ids, encoded.word_ids, encoded.offsets)
            logits = self._logits(tokens)
            decoded = decode_tags(logits, tokens, kept, self.labels)
            for row, its, score in zip(left, decoded, _scores(logits, tokens, kept), strict=True):
                tags[row] += its
                scores[row] += score
            left = [row for row in left if len(tags[row]) < len(words[row])]
        return tags, scores

    def _logits(self, tokens: Tokens) -> NDArray[np.float32]:
        def forward(input_ids: Tensor, mask: Tensor) -> Tensor:
            return self.model(
                input_ids=input_ids.to(self.device), attention_mask=mask.to(self.device)
            ).logits

        pad_id = pad_id_of(self.tokenizer)
        return predict_logits(forward, tokens, BATCH_TOKENS, pad_id, len(self.labels))


def _joined_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word stands in the words joined by single spaces."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def _scores(
    logits: NDArray[np.float32], tokens: Tokens, num_words: Sequence[int]
) -> list[list[float]]:
    """Probability of the best tag on each word's first token; 0 for a word without a token."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    best = 1 / shifted.sum(-1)
    first = first_tokens(tokens)
    sentences = np.repeat(np.arange(len(num_words)), tokens.lengths)[first]
    result = [[0.0] * count for count in num_words]
    for sentence, word, score in zip(
        sentences.tolist(), tokens.word_ids[first].tolist(), best[first].tolist(), strict=True
    ):
        result[sentence][word] = score
    return result


def predict_files(
    model: str,
    inputs: Sequence[str],
    output: str,
    replicas: int = 1,
    shard_sentences: int = 4096,
    rule: str | None = None,
) -> dict[str, Any]:
    """Tag text files; writes one .jsonl or .parquet in the input's order, whole or not at all.

    rule: how raw text is split into words; None: as the student's own run did. Empty lines are left
    out and counted. Memory does not grow with the text.
    """
    started = time.monotonic()
    path = Path(output)
    if path.suffix not in {".jsonl", ".parquet"}:
        raise ConfigError(
            f"--output {output}: ends in '{path.suffix}', expected .jsonl or .parquet"
        )
    load_tokenizer(model)  # a folder that is no model ends here, before Ray starts
    sources = TransferConfig(sources=[SourceConfig(path=name) for name in inputs])
    plan = plan_transfer(sources, frozenset(), shard_sentences, seed=0)
    config = ClusterConfig()
    pool = pool_plan(available(config), replicas, len(plan.shards))
    kwargs = {
        "model": str(Path(model).resolve()),
        "rule": rule or word_rule_of(model),
        "threads": pool.threads_per_replica,
        "device": "cuda" if pool.gpus_per_replica else "cpu",
    }
    total, sentences, entities = sum(shard.rows for shard in plan.shards), 0, 0
    with Console() as console, Cluster(config) as cluster, _Writer(path) as writer:
        console.progress("predict", 0, total, "sentences")
        for records in _in_order(map_shards(cluster, Predictor, kwargs, plan.shards, pool)):
            writer.write(records)
            sentences += len(records)
            entities += sum(len(record["entities"]) for record in records)
            console.progress("predict", sentences, total, "sentences")
    seconds = round(time.monotonic() - started, 2)
    return {
        "run_dir": str(path.parent),
        "seconds": seconds,
        "output": str(path),
        "sentences": sentences,
        "entities": entities,
        "empty": plan.counts["empty"],
    }


def word_rule_of(model: str) -> str:
    """Return how a student's own run split raw text into words; another model's is unknown."""
    values = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    return values.get("word_rule", "punctuation")


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

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self._parquet = path.suffix == ".parquet"

    def __enter__(self) -> "_Writer":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = (
                pq.ParquetWriter(self.partial, SCHEMA)
                if self._parquet
                else self.partial.open("w", encoding="utf-8")
            )
        except OSError as error:
            raise ConfigError(f"--output {self.path}: cannot be written: {error}") from error
        return self

    def write(self, records: list[dict[str, Any]]) -> None:
        if self._parquet:
            self._file.write_table(pa.Table.from_pylist(records, schema=SCHEMA))
        else:
            for record in records:
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink(missing_ok=True)
