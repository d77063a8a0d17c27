"""What a run will do, before anything starts: checks that need headers, and the printed plan.

No torch, and ray only when RAY_ADDRESS names a cluster. Estimates come from file sizes and about
1,000 tokenised sentences, and are marked ~.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from xdray.cluster import plan_resources
from xdray.config import Config
from xdray.config_data import DataConfig, SourceConfig, TransferConfig
from xdray.corpus import places_of_sources
from xdray.errors import ConfigError
from xdray.header import ModelHeader, read_header, resolve_model
from xdray.labels import LabelSet, label_set_of
from xdray.places import Place, Span, open_place
from xdray.readers import class_names, read_rows
from xdray.recipes import plan_stages
from xdray.sentences import text_of
from xdray.stages import Stage, needed_layers
from xdray.storage import free_space, size
from xdray.task import Task, load_task
from xdray.tokenised import Signal

BYTES_PER_VALUE = {"float32": 4, "float16": 2, "int8": 1}
SCALE_BYTES = 4
SAMPLE_SENTENCES = 1000


def check_plan(config: Config) -> ModelHeader:
    """Check what needs the teacher's header or the data's; returns the header.

    Raises ConfigError: a layer that the teacher lacks, an embedding wider than its own, sentences
    longer than it can read, labels that differ from the data's, files that are missing or are of
    two splits, more actors or workers than there is room for.
    """
    name = config.teacher.model or (config.teacher.finetune and config.teacher.finetune.encoder)
    header = read_header(str(name))
    check_student(config, header)
    if header.max_positions is not None and config.tokens.max_length > header.max_positions:
        raise ConfigError(
            f"tokens.max_length = {config.tokens.max_length}: the teacher reads at most "
            f"{header.max_positions} tokens"
        )
    task = load_task(config)
    check_losses(config, task, header)
    _check_labels(config, task, header)
    _check_files(config.data)
    plan_resources(config, None)
    return header


def check_student(config: Config, header: ModelHeader) -> None:
    """Raise ConfigError for stages and embeddings that this teacher cannot serve."""
    stages = plan_stages(config, header.num_layers)
    _check_heads(config, header, stages)
    if config.student.kind == "encoder":
        _check_encoder(config, header)
    elif (
        config.student.embedding_init == "svd" and config.student.embedding > header.embedding_width
    ):
        raise ConfigError(
            f"student.embedding = {config.student.embedding} is wider than the teacher's own "
            f"embeddings ({header.embedding_width}), whose SVD it starts from; narrow it, or set "
            "student.embedding_init: random"
        )


def _check_heads(config: Config, header: ModelHeader, stages: Sequence[Stage]) -> None:
    """Compare the heads of attention and relation terms with both sides'."""
    student = config.student
    terms = [term for stage in stages for term in stage.terms]
    losses = {term.loss for term in terms} & {"attention", "relations"}
    if not losses:
        return
    if student.kind == "bilstm":
        raise ConfigError(f"recipe: {losses} losses need a student with attention, not a bilstm")
    width, heads = student.hidden, student.num_heads
    if student.kind == "encoder":
        its = header if student.start == "teacher" else read_header(student.start)
        width, heads = its.width, its.num_heads
    for term in terms:
        same = term.heads == "same" and heads != header.num_heads
        if term.loss == "attention" and same:
            raise ConfigError(
                f"recipe: an attention term compares {heads} heads of the student with "
                f"{header.num_heads} of the teacher; set heads: average in it, give the student as "
                "many (student.heads), or use a relations term"
            )
        wrong = width % term.relation_heads or header.width % term.relation_heads
        if term.loss == "relations" and wrong:
            raise ConfigError(
                f"recipe: relation_heads = {term.relation_heads} does not divide both widths, "
                f"{width} of the student and {header.width} of the teacher"
            )


def _check_encoder(config: Config, header: ModelHeader) -> None:
    student = config.student
    there = header if student.start == "teacher" else read_header(student.start)
    asked = student.start_layers or [student.layers]
    if not all(1 <= layer <= there.num_layers for layer in asked):
        raise ConfigError(
            f"student.layers = {student.layers}, start_layers = {student.start_layers}: "
            f"{there.model} has layers 1 to {there.num_layers}"
        )


def _check_files(data: DataConfig) -> None:
    """Refuse text that is missing, and text that two labelled splits read."""
    owners: dict[tuple[str, str | None, str | None], list[tuple[str, Place]]] = {}
    for split in ("train", "dev", "test"):
        for _, place in places_of_sources(getattr(data, split), f"data.{split}"):
            path = place.path if "://" in place.path else str(Path(place.path).resolve())
            known = owners.setdefault((path, place.subset, place.split), [])
            for owner, other in known:
                if owner != split and _overlap(place, other):
                    raise ConfigError(
                        f"data.{owner} and data.{split} both read {place}; scores would be of text "
                        "that was learnt from or chosen by"
                    )
            known.append((split, place))
    places_of_sources(data.transfer.sources, "data.transfer")


def _overlap(place: Place, other: Place) -> bool:
    """Whether two sources read some of the same rows of a file."""
    (first, stop), (start, end) = (its.rows or (0, None) for its in (place, other))
    return (end is None or first < end) and (stop is None or start < stop)


def check_losses(config: Config, task: Task, header: ModelHeader) -> None:
    """Raise ConfigError for terms that a task without classes has not."""
    if task.has_classes:
        return
    terms = [term for stage in plan_stages(config, header.num_layers) for term in stage.terms]
    for term in terms:
        if term.loss == "hard_labels" or (term.loss, term.distance) == ("logits", "kl"):
            raise ConfigError(
                f"recipe: a {term.loss} term by {term.distance} needs classes, task.kind is "
                f"'{task.kind}'; use logits with distance: mse"
            )
    if config.evaluation.hard_labels:
        raise ConfigError(f"evaluation.hard_labels needs classes, task.kind is '{task.kind}'")


def _check_labels(config: Config, task: Task, header: ModelHeader) -> None:
    """Compare the label sets that are known without reading text."""
    if not task.named_labels or config.teacher.model is None:
        return
    theirs = config.teacher.labels or header.tags
    known = list(task.labels.names) or label_names(config.data.train, task)
    if not known or not theirs:
        return
    labels = LabelSet(tuple(known))
    if task.gold == "tags" and config.data.scheme != "IOB2" and not task.labels:
        labels = label_set_of(set(known))  # ClassLabel names in the files' scheme, read into IOB2
    labels.mapping_from(theirs, f"teacher.model: {config.teacher.model}")


def label_names(sources: Sequence[SourceConfig], task: Task) -> list[str] | None:
    """Return the ClassLabel names of labelled sources, None where they carry none."""
    places = (place for _, place in places_of_sources(sources, "data.train"))
    found = (class_names(place, task.gold) for place in places)
    return next((names for names in found if names), None)


@dataclass(frozen=True)
class Estimate:
    """What the transfer text comes to, from file sizes and the first sentences of each file."""

    sentences: int
    shards: int
    sample: list[str]
    """About 1,000 sentences."""


def estimate_transfer(transfer: TransferConfig, shard_sentences: int) -> Estimate:
    """Estimate the number of sentences and shards after the caps, reading about 1,000 sentences."""
    all_places = [place for _, place in places_of_sources(transfer.sources, "data.transfer")]
    each = max(10, SAMPLE_SENTENCES // len(all_places))
    counts: Counter[str | None] = Counter()
    sample: list[str] = []
    for place in all_places:
        rows = list(itertools.islice(read_rows(Span(place)), each))
        contents = [text_of(row.content) for row in rows]
        sample += contents
        counts[place.language] += _rows_of(place, contents)
    caps = {name: transfer.caps.get(name or "", transfer.cap) for name in counts}
    kept = [min(count, caps[name] or count) for name, count in counts.items()]
    if not sample:
        raise ConfigError("data.transfer: the sources hold no sentence")
    sentences = min(sum(kept), transfer.sentences or sum(kept))
    shards = sum(math.ceil(count / shard_sentences) for count in kept)
    return Estimate(sentences, shards, sample)


def _rows_of(place: Place, sample: Sequence[str]) -> int:
    """Rows of a file: its size over the bytes of the rows looked at."""
    if place.format == "parquet":
        with open_place(place.path) as file:
            return pq.read_metadata(file).num_rows
    if place.format == "squad":  # held whole in any case
        return sum(1 for _ in read_rows(Span(place)))
    if place.format == "hub" or not sample:
        return len(sample)
    rows = int(size(place.path) / (sum(len(text.encode()) + 1 for text in sample) / len(sample)))
    if place.rows is None:
        return rows
    first, stop = place.rows
    return max(0, min(rows, stop or rows) - first)


def make_plan(config: Config) -> dict[str, Any]:
    """Return the plan as plain values: devices, shards, steps, bytes. Starts nothing."""
    header = check_plan(config)
    stages = plan_stages(config, header.num_layers)
    layers = needed_layers(stages)
    estimate = estimate_transfer(config.data.transfer, config.targets.shard_sentences)
    resources = plan_resources(config, estimate.shards)
    tokens = _tokens_per_sentence(config, header, estimate.sample)
    task = load_task(config)
    classes = len(task.labels or label_names(config.data.train, task) or header.tags)
    logits = classes * (1 if task.sentence_logits else tokens)
    bytes_each = _sentence_bytes(config, header, layers, logits, tokens)
    total = int(estimate.sentences * bytes_each)
    _check_disk(config, total)
    per_step = max(1.0, config.training.batch_tokens / tokens)
    return {
        "devices": resources.as_dict(),
        "teacher": {"model": header.model, "layers": list(layers), "width": header.width},
        "transfer": {
            "sentences~": estimate.sentences,
            "shards~": estimate.shards,
            "tokens_per_sentence~": round(tokens, 1),
        },
        "targets": {
            "store": config.targets.store,
            "codec": config.targets.codec,
            "bytes_per_sentence~": int(bytes_each),
            "bytes~": total,
        },
        "stages": [
            {
                "name": stage.name,
                "trainable": list(stage.trainable),
                "losses": [f"{term.loss} on {term.split}" for term in stage.terms],
                "epochs": stage.epochs,
                "steps_per_epoch~": int(estimate.sentences / per_step)
                if "transfer" in stage.splits
                else None,
            }
            for stage in stages
        ],
    }


def _tokens_per_sentence(config: Config, header: ModelHeader, sample: list[str]) -> float:
    """Tokens of a sentence, special ones included; 1.4 a word where no tokenizer is at hand."""
    path = Path(resolve_model(header.model)) / "tokenizer.json"
    longest = config.tokens.max_length
    if not path.is_file():
        return sum(min(longest, 2 + 1.4 * len(text.split())) for text in sample) / len(sample)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch(sample)
    return sum(min(longest, len(tokens.ids)) for tokens in encoded) / len(sample)


def _sentence_bytes(
    config: Config, header: ModelHeader, layers: tuple[Signal, ...], logits: float, tokens: float
) -> float:
    """Bytes of a sentence in the store (DESIGN: ids, word ids, logits, hidden states)."""
    value = BYTES_PER_VALUE[config.targets.codec]
    scale = SCALE_BYTES if config.targets.codec == "int8" else 0
    widths = [header.width * (1 if isinstance(signal, int) else 3) for signal in layers]
    hidden = sum(width * value + scale for width in widths)
    return tokens * (4 + 4 + hidden) + 4 * logits + 64


def _check_disk(config: Config, needed: int) -> None:
    store = config.targets.store
    free = free_space(store)
    if free is None:  # an object store
        return
    there = size(store)  # may hold these very targets
    if needed > free + there:
        raise ConfigError(
            f"targets.store: {config.targets.store} needs about {needed / 2**30:.1f} GiB, its disk "
            f"has {free / 2**30:.1f} GiB free; choose another store, targets.codec: int8, or "
            "data.transfer.cap"
        )


def print_plan(plan: dict[str, Any]) -> None:
    """Print the plan for a person."""
    console = Console(highlight=False, soft_wrap=True)
    for section in ("devices", "teacher", "transfer", "targets"):
        console.print(f"[bold]{section}[/bold]")
        for key, value in plan[section].items():
            console.print(f"  {key} {value}", markup=False)
    table = Table("stage", "trains", "losses", "epochs", "steps an epoch ~")
    for stage in plan["stages"]:
        table.add_row(
            stage["name"],
            ", ".join(stage["trainable"]),
            ", ".join(stage["losses"]),
            str(stage["epochs"]),
            str(stage["steps_per_epoch~"] or "-"),
        )
    console.print(table)
