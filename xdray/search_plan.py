"""What a search will do, before it starts: its size, its students' costs, how long it may take.

Beside the plan of a run it needs torch: students are built with random embeddings, timed on this
machine, and one of them takes a few training steps.
"""

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from xdray.batches import Batch
from xdray.checks import check_plan, check_student
from xdray.config import Config
from xdray.config_search import SearchConfig
from xdray.figures import count, ms, seconds
from xdray.header import ModelHeader
from xdray.kinds import load_task, with_labels
from xdray.labels import LabelSet
from xdray.planning import make_plan, print_plan
from xdray.recipes import plan_stages
from xdray.sessions import LocalSession
from xdray.space import Fields, Space, check_space, space_of, trial_config
from xdray.stages import Stage
from xdray.steps import Stepper
from xdray.student import Student, build_student
from xdray.teacher import best_dtype
from xdray.tokens import load_tokenizer
from xdray.trial_pool import SHAPES_AHEAD, concurrency, refusal, search_of, shown, timed_length
from xdray.trials import start_key, student_costs

STEPS = 4
"""Training steps of the calibration; the first is not counted."""


def make_search_plan(config: Config) -> dict[str, Any]:
    """Return the plan of a search as plain values; the plan of its runs under "run".

    The vocabulary is that of an earlier call's start, else the teacher's: then sizes are upper
    bounds (`vocabulary_is`).
    """
    space, header = space_of(config), check_plan(config)
    check_space(config, space, lambda its: check_student(its, header))
    search, run_plan = search_of(config), make_plan(config)
    vocabulary, source = _vocabulary(config, header)
    shapes = []
    for fields in _shapes(space, config.run.seed):
        its = trial_config(config, fields)
        costs = student_costs(_student(its, header, vocabulary), timed_length(its))
        shapes.append({"fields": fields, **costs, "refused": refusal(search, costs)})
    allowed = [shape for shape in shapes if shape["refused"] is None]
    total = _trials(search, space)
    plan: dict[str, Any] = {
        "combinations": space.size,
        "trials": total,
        "at_once": concurrency(config)[0],
        "vocabulary": vocabulary,
        "vocabulary_is": source,
        "shapes": shapes,
        "run": run_plan,
    }
    if allowed:
        middle = sorted(allowed, key=lambda shape: shape["parameters"])[len(allowed) // 2]
        each = _trial_seconds(config, middle["fields"], header, vocabulary, run_plan)
        plan["calibrated_on"] = middle["fields"]
        plan["seconds_a_trial~"] = round(each)
        plan["seconds_without_stopping~"] = round(each * total / min(plan["at_once"], total))
    return plan


def _trials(search: SearchConfig, space: Space) -> int:
    if space.size is None:
        return search.trials
    return space.size if search.algorithm == "grid" else min(search.trials, space.size)


def _shapes(space: Space, seed: int) -> list[Fields]:
    """All shapes of a small space, else as many drawn ones."""
    students = space.part("student.")
    if (students.size or 0) <= SHAPES_AHEAD:
        return list(students.combinations())
    rng = random.Random(seed)
    return [students.draw(rng) for _ in range(SHAPES_AHEAD)]


def _vocabulary(config: Config, header: ModelHeader) -> tuple[int, str]:
    start = Path(config.run.folder) / "starts" / start_key(config)
    others = sorted(Path(config.run.folder).glob("starts/*"))
    for folder in [start, *others]:
        if (folder / "start.json").is_file():
            return len(load_tokenizer(str(folder))), "the student's"
    if config.tokens.vocabulary == "full":
        return header.vocab_size, "the teacher's"
    return header.vocab_size, "the teacher's, before it is pruned: sizes are upper bounds"


def _student(config: Config, header: ModelHeader, vocabulary: int) -> Student:
    task = load_task(config)
    return build_student(
        config.student,
        vocab_size=vocabulary,
        teacher_width=header.width,
        task=task if task.labels else with_labels(task, LabelSet(header.tags)),
        pad_token_id=0,
        max_length=config.tokens.max_length,
        embeddings=None,
        seed=config.run.seed,
    )


def _trial_seconds(
    config: Config, fields: Fields, header: ModelHeader, vocabulary: int, run_plan: dict[str, Any]
) -> float:
    """Estimate a whole trial from a few steps of each of its losses, on a trial's threads."""
    its = trial_config(config, fields)
    threads = torch.get_num_threads()
    torch.set_num_threads(concurrency(config)[1])
    try:
        student = _student(its, header, vocabulary)
        total = 0.0
        for stage, row in zip(
            plan_stages(its, header.num_layers), run_plan["stages"], strict=False
        ):
            steps = row["steps_per_epoch~"] or 0
            total += stage.epochs * steps * _step_seconds(its, student, stage, header)
    finally:
        torch.set_num_threads(threads)
    return total


def _step_seconds(config: Config, student: Student, stage: Stage, header: ModelHeader) -> float:
    """Seconds of one step on random tokens, sentences of 24 tokens."""
    length = min(24, config.tokens.max_length)
    rows, shape = max(1, stage.batch_tokens // length), student.model.config
    task, vocabulary = load_task(config), int(shape.vocab_size)
    classes = int(shape.num_labels or 1)
    tokens = rows * length
    terms = [  # labels cost what logits do, and need no text
        replace(term, loss="logits", split="transfer") if term.loss == "labels" else term
        for term in stage.terms
    ]
    stage = replace(stage, terms=tuple(terms))
    session = LocalSession(None)
    student.to(session.device)
    batch = Batch(
        input_ids=torch.randint(vocabulary, (rows, length)),
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        token_types=None,
        kept=torch.arange(tokens),
        first=torch.arange(tokens),
        logits=torch.randn(rows if task.sentence_logits else tokens, classes),
        hidden={
            its: torch.randn(tokens, header.width * (1 if isinstance(its, int) else 3))
            for its in stage.layers
        },
        labels=None,
        num_labels=0,
    ).to(session.device)
    settings = config.training
    if settings.autocast == "auto":  # as it is on this machine
        autocast = "bfloat16" if best_dtype(session.device) == "bfloat16" else "none"
        settings = settings.model_copy(update={"autocast": autocast})
    stepper = Stepper(student.train(), stage, task, settings, session)
    window = [dict.fromkeys(stage.splits, batch)]
    started = 0.0
    for step in range(STEPS):
        if step == 1:
            started = time.perf_counter()
        stepper.step(window, stage.learning_rate, seed=step)
        stepper.check(step)  # waits for a GPU
    return (time.perf_counter() - started) / (STEPS - 1)


def print_search_plan(plan: dict[str, Any]) -> None:
    """Print the plan for a person."""
    print_plan(plan["run"])
    console = Console(highlight=False, soft_wrap=True)
    size = plan["combinations"] or "any number of"
    console.print(f"[bold]search[/bold]\n  {plan['trials']} trials of {size} combinations")
    console.print(f"  {plan['at_once']} at once")
    console.print(f"  vocabulary {plan['vocabulary']:,} ({plan['vocabulary_is']})", markup=False)
    table = Table("shape", "parameters", "ms at batch 1 / 32", "")
    for shape in plan["shapes"]:
        latency = "-"
        if shape["latency_ms"] is not None:
            latency = f"{ms(shape['latency_ms'])} / {ms(shape['latency_ms_32'])}"
        why = "" if shape["refused"] is None else f"never trained: {shape['refused']}"
        table.add_row(shown(shape["fields"]), count(shape["parameters"]), latency, why)
    console.print(table)
    if "seconds_a_trial~" in plan:
        each, total = plan["seconds_a_trial~"], plan["seconds_without_stopping~"]
        console.print(
            f"  a trial takes about {seconds(each)} ({shown(plan['calibrated_on'])}), all of them "
            f"{seconds(total)} if none is stopped; the teacher's pass and epochs of "
            "labels alone are not counted",
            markup=False,
        )
