"""Wall time from unlabelled text to a student of some score, beside peers' training alone."""

import gc
import json
from collections.abc import Sequence
from typing import Any

from benchmarks import peers
from benchmarks.harness import Found, Settings, own_places, scratch, seconds_of
from benchmarks.part_student import ONE_STAGE
from benchmarks.prepared import Prepared, imitated_layer, prepared
from xdray.learning import Scorer
from xdray.sessions import LocalSession
from xdray.tokens import load_tokenizer

RUN_RATE = 2e-3
TWO_STAGES = (
    "recipe={name: representation and logits, layer: %d, stages: [{name: representation, "
    "epochs: 1, terms: [{loss: hidden, split: transfer}]}, {name: logits, epochs: 3, "
    "terms: [{loss: logits, split: transfer, distance: kl}]}]}"
)


def measure_run(settings: Settings) -> Found:
    """Wall time to a dev score, from unlabelled text alone: all of ours, peers' training alone."""
    layer, found = imitated_layer(settings), Found()
    changes = (
        f"data.transfer.sentences={settings.run_sentences}",
        "tokens.vocabulary=full",
        f"training.learning_rate={RUN_RATE}",
    )
    times: dict[str, list[float]] = {}
    targets: list[float] = []
    with prepared(settings, settings.run_sentences, *changes[1:], ONE_STAGE % layer) as its:
        for _ in range(settings.repeats):
            gc.collect()
            seconds, reached = _our_run(settings, [*changes, TWO_STAGES % layer])
            targets.append(min(settings.dev_score, reached))
            print(f"  ours: dev {reached:.4f} after {seconds:.0f} s", flush=True)
            times.setdefault("xdray", []).append(seconds)
            for name in ("trainer", "textbrewer"):
                peer_s, epochs = _peer_run(its, name, layer, settings.peer_epochs, targets[-1])
                print(f"  {name}: {peer_s:.0f} s, {epochs}", flush=True)
                times.setdefault(name, []).append(peer_s)
                found.figures.setdefault(f"{name}, dev after each epoch", []).append(epochs)
            found.figures.setdefault("dev score of ours", []).append(round(reached, 4))
    found.figures["dev score that peers train to"] = [round(target, 4) for target in targets]
    medians = found.take({f"{name}, s to the score": seconds for name, seconds in times.items()})
    ours, *theirs = medians.values()
    for name, peer_s in zip(("trainer", "textbrewer"), theirs, strict=True):
        found.ratios[f"run_over_{name}"] = peer_s / ours
    found.notes.append(
        f"run: {settings.run_sentences} sentences without labels to dev "
        f"{settings.dev_score}, or ours where that is less; ours from the start of the process to "
        "the report, its representation and logit stages (1 and 3 epochs); of peers the training "
        f"alone, hidden and logit losses together, a cosine over each of {settings.peer_epochs} "
        "epochs, the one that is there first (none: all of the longest, a lower bound); their "
        "tokenising, scoring and loading of the teacher left out"
    )
    return found


def _our_run(settings: Settings, changes: Sequence[str]) -> tuple[float, float]:
    """Seconds of `jobs/distill.py` in a process of its own, and the student's dev score."""
    with scratch() as folder:
        own = [*settings.overrides, *own_places(settings, folder), *changes]
        seconds = seconds_of(["jobs/distill.py", settings.config, *own])
        report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    return seconds, report["student"]["dev"][report["evaluation"]["metric"]]


def _peer_run(
    its: Prepared, name: str, layer: int, lengths: Sequence[int], target: float
) -> tuple[float, dict[int, list[float]]]:
    """Seconds until a peer's dev score is the target, the best of some schedules; the scores."""
    corpus, tokenizer = its.corpus, load_tokenizer(its.teacher)
    ids, teacher = its.peer_ids(), its.peer_teacher()
    scorer = Scorer(corpus.splits["dev"].sentences, tokenizer, corpus.task, LocalSession(None))
    train_with = getattr(peers, f"train_with_{name}")
    found: dict[int, list[float]] = {}
    seconds: dict[int, float] = {}
    for epochs in lengths:
        student = its.student()
        scores = found.setdefault(epochs, [])

        def score(student: Any = student, scores: list[float] = scores) -> bool:
            scores.append(round(float(scorer(student)[corpus.task.metric]), 4))
            return scores[-1] >= target

        seconds[epochs] = train_with(
            student.model, teacher, layer, tokenizer, ids, RUN_RATE, epochs, its.bfloat16, score
        )
    there = [seconds[epochs] for epochs in seconds if found[epochs][-1] >= target]
    return min(there, default=max(seconds.values())), found
