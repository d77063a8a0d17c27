"""What a run will do, before anything starts: the printed plan.

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

from xdray.checks import check_plan, label_names
from xdray.cluster import plan_resources
from xdray.config import Config
from xdray.config_data import TransferConfig
from xdray.corpus import TOKENS_A_SENTENCE, places_of_sources
from xdray.errors import ConfigError
from xdray.fleet import read_fleet, seats, unseen_labels
from xdray.header import ModelHeader, resolve_model
from xdray.hidden import token_bytes
from xdray.kinds import load_task
from xdray.parts import BLOCK
from xdray.places import Place, Span, open_place
from xdray.readers import read_rows
from xdray.recipes import plan_stages
from xdray.resources import THIS_MACHINE
from xdray.sentences import about_tokens, text_of
from xdray.stages import needed_layers
from xdray.storage import free_space, size
from xdray.tokenised import Signal

SAMPLE_SENTENCES = 1000
STREAM_BLOCKS = 4
"""Under way at once in a stream, at least: made, waiting, copied, learnt from."""


@dataclass(frozen=True)
class Estimate:
    """What the transfer text comes to, from file sizes and the first sentences of each file."""

    sentences: int
    shards: int
    shard_sentences: int
    """Of a full shard."""
    sample: list[str]
    """About 1,000 sentences."""


def estimate_transfer(transfer: TransferConfig, shard_sentences: int, max_length: int) -> Estimate:
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
    tokens = sum(about_tokens(text, max_length) for text in sample) / len(sample)
    full = min(shard_sentences, math.ceil(shard_sentences * TOKENS_A_SENTENCE / tokens))
    shards = sum(math.ceil(count / full) for count in kept)
    return Estimate(sentences, shards, full, sample)


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
    estimate = estimate_transfer(
        config.data.transfer, config.targets.shard_sentences, config.tokens.max_length
    )
    resources = plan_resources(config, estimate.shards)
    tokens = _tokens_per_sentence(config, header, estimate.sample)
    task = load_task(config)
    classes = len(task.labels or label_names(config.data.train, task) or header.tags)
    logits = classes * (1 if task.sentence_logits else tokens)
    bytes_each = _sentence_bytes(config, header, layers, logits, tokens)
    total = int(estimate.sentences * bytes_each)
    block = min(estimate.sentences, estimate.shard_sentences, BLOCK)
    block_bytes = int(bytes_each * block)
    passes = sum(stage.epochs for stage in stages if "transfer" in stage.splits)
    if config.targets.delivery == "stored":
        _check_disk(config, total)
    elif resources.available.source == THIS_MACHINE:
        _check_memory(config, block_bytes, block)
    per_step = max(1.0, config.training.batch_tokens / tokens)
    fleet, at_once = config.cluster.fleet, config.targets.delivery == "streamed"
    return {
        "devices": resources.as_dict(),
        "seats": seats(read_fleet(fleet), resources, at_once) if fleet else [],
        "labels_taken_as_met": unseen_labels(resources) if fleet else [],
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
        "deliveries": {
            "stored": {"bytes~": total, "teacher_passes": 1},
            "streamed": {
                "bytes~": 0,
                "teacher_passes_at_most": passes,
                "bytes_in_flight_a_block~": block_bytes,
            },
            "recommended": "stored" if passes > 1 and _fits(config, total) else "streamed",
            "chosen": config.targets.delivery,
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

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoded = tokenizer.encode_batch(sample)
    except Exception as error:  # of no kind of its own
        raise ConfigError(f"{path}: no tokenizer can be loaded from it: {error!s:.200}") from error
    return sum(min(longest, len(tokens.ids)) for tokens in encoded) / len(sample)


def _sentence_bytes(
    config: Config, header: ModelHeader, layers: tuple[Signal, ...], logits: float, tokens: float
) -> float:
    """Bytes of a sentence in the store (DESIGN: ids, word ids, logits, hidden states)."""
    widths = [header.width * (1 if isinstance(signal, int) else 3) for signal in layers]
    hidden = sum(token_bytes(config.targets.codec, width) for width in widths)
    return tokens * (4 + 4 + hidden) + 4 * logits + 64


def _fits(config: Config, needed: int) -> bool:
    """Whether the store's disk has room; what is there may be these very targets."""
    if config.cluster.fleet is not None:
        return True  # the store of a cluster that is not there is not on this machine's disk
    store = config.targets.store
    free = free_space(store)
    return free is None or needed <= free + size(store)  # None: an object store


def _check_disk(config: Config, needed: int) -> None:
    if _fits(config, needed):
        return
    free = free_space(config.targets.store) or 0
    raise ConfigError(
        f"targets.store: {config.targets.store} needs about {needed / 2**30:.1f} GiB, its disk "
        f"has {free / 2**30:.1f} GiB free; choose another store, targets.codec: pca<k>, "
        "data.transfer.cap, or targets.delivery: streamed"
    )


def _check_memory(config: Config, block_bytes: int, block: int) -> None:
    """Refuse a stream whose blocks do not go through the shared memory of a local Ray."""
    room = int(config.cluster.object_store_gib * 2**30)
    if block_bytes * STREAM_BLOCKS > room:
        most = block * room // (STREAM_BLOCKS * block_bytes)
        raise ConfigError(
            f"targets.delivery: streamed: a block of {block} sentences is "
            f"about {block_bytes / 2**20:.0f} MiB, and cluster.object_store_gib holds {room >> 20} "
            f"MiB for the {STREAM_BLOCKS} or more under way; set targets.shard_sentences, "
            f"{config.targets.shard_sentences} now, to {max(16, most)} or less, or raise it"
        )


def print_plan(plan: dict[str, Any]) -> None:
    """Print the plan for a person."""
    console = Console(highlight=False, soft_wrap=True)
    for section in ("devices", "teacher", "transfer", "targets", "deliveries"):
        console.print(f"[bold]{section}[/bold]")
        for key, value in plan[section].items():
            console.print(f"  {key} {value}", markup=False)
    if plan["seats"]:
        streamed = plan["deliveries"]["chosen"] == "streamed"
        order = "side by side" if streamed else "actors first, workers when they are done"
        seated = Table(*plan["seats"][0], title=f"who sits where: {order}", title_justify="left")
        for row in plan["seats"]:
            seated.add_row(*row.values())
        console.print(seated)
    for label in plan["labels_taken_as_met"]:
        console.print(f"label {label}: --cluster does not say it, taken as met", markup=False)
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
