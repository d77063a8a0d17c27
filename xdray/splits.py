"""The text of a run: labelled splits in memory, unlabelled text as shards to read."""

from dataclasses import dataclass
from typing import Any

from xdray.corpus import Labelled, TransferPlan, plan_transfer, text_keys
from xdray.kinds import load_task, with_labels
from xdray.runs import Run
from xdray.storage import fingerprint
from xdray.task import Task


@dataclass(frozen=True)
class Corpus:
    """All text of a run."""

    task: Task
    """With its labels."""
    splits: dict[str, Labelled]
    transfer: TransferPlan
    fingerprint: str
    """Of train and dev, which decide the weights."""


def read_corpus(run: Run) -> Corpus:
    """Read the labelled splits, and cut the transfer text into shards without dev and test text.

    Test labels are only checked to be of the label set; they are scored at the very end.
    """
    data, task = run.config.data, load_task(run.config)
    train = task.read(data.train, "train")
    task = with_labels(task, train.labels)
    splits = {"train": train}
    splits |= {split: task.read(getattr(data, split), split) for split in ("dev", "test")}
    keys = text_keys(splits["dev"].sentences) | text_keys(splits["test"].sentences)
    transfer = plan_transfer(
        data.transfer,
        keys,
        run.config.targets.shard_sentences,
        run.config.run.seed,
        task.windows,
        max_length=run.config.tokens.max_length,
    )
    for split, labelled in splits.items():
        run.console.say(f"{split}: {_counts(labelled.counts)}")
    run.console.say(f"transfer: {_counts(transfer.counts)}")
    decisive = [
        [str(its.content), str(its.gold)]
        for name in ("train", "dev")
        for its in splits[name].sentences
    ]
    return Corpus(task, splits, transfer, fingerprint(decisive))


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{value} {key}" for key, value in counts.items() if isinstance(value, int))
