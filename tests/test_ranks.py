"""Two processes take the steps that one takes, whichever layers the losses of a stage reach."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeTeacher
from torch import distributed, multiprocessing

from xdray.batches import collate
from xdray.config import Config
from xdray.configfile import make_config
from xdray.exchange import Exchange
from xdray.hidden import Hidden
from xdray.kinds import load_task
from xdray.recipes import plan_stages
from xdray.stages import compared_layers, needed_layers
from xdray.steps import Stepper
from xdray.student import build_student
from xdray.tokenised import Tokens

HIDDEN = {"loss": "hidden", "split": "transfer"}
LOGITS = {"loss": "logits", "split": "transfer"}
ENCODER = {"kind": "encoder", "layers": 2, "dropout": 0}
ELECTRA = {"kind": "transformer", "embedding": 8, "hidden": 16, "heads": 2, "layers": 2}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "an encoder with a pooler": (
        ENCODER,
        [{"name": "r", "terms": [HIDDEN]}, {"name": "l", "terms": [LOGITS]}],
    ),
    "relations alone": (
        ELECTRA,
        [{"name": "r", "terms": [{"loss": "relations", "split": "transfer"}]}],
    ),
    "layer by layer": (
        ELECTRA,
        [{"name": "r", "layerwise": True, "terms": [{**HIDDEN, "layers": "all"}]}],
    ),
    "all layers, then the last": (
        ELECTRA,
        [{"name": "a", "terms": [{**HIDDEN, "layers": "all"}]}, {"name": "b", "terms": [HIDDEN]}],
    ),
}


class Rank:
    """A session of a process group made here."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size, self.device, self.run_folder = rank, world_size, "cpu", ""

    def all_sum(self, values: torch.Tensor) -> None:
        if self.world_size > 1:
            distributed.all_reduce(values)


def config_of(student: dict[str, Any], stages: list[dict[str, Any]]) -> Config:
    values = {
        "run": {"folder": "x"},
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "data": {"train": "a.jsonl", "dev": "b.jsonl", "test": "c.jsonl", "transfer": "t.txt"},
        "teacher": {"model": "m"},
        "student": {"dropout": 0, **student},
        "recipe": {"name": "case", "stages": stages},
        "training": {"autocast": "none"},
        "evaluation": {"latency": False},
    }
    return make_config(values, "test")


def some_tokens(layers: Any) -> Tokens:
    rng = np.random.default_rng(0)
    words = np.tile(np.array([-1, 0, 1, 2, 3, -1], np.int32), 4)
    tokens = Tokens(rng.integers(5, 80, 24).astype(np.int32), words, np.arange(0, 25, 6))
    tokens.logits = rng.normal(size=(4, 2)).astype(np.float32)
    for its in layers:
        width = 32 if isinstance(its, int) else 96
        tokens.hidden[its] = Hidden(rng.normal(size=(24, width)).astype(np.float32))
    return tokens


def student_of(config: Config, task: Any, stages: Any, encoder: str) -> Any:
    return build_student(
        config.student,
        vocab_size=90,
        teacher_width=32,
        task=task,
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
        encoder=encoder,
        layers=compared_layers(stages),
        teacher_heads=2,
    ).train()


def train(
    rank: int, world_size: int, name: str, encoder: str, folder: str, short: int | None = None
) -> None:
    """Two steps of each stage; rank 0 writes the weights.

    short: rank whose memory holds one sentence and no more.
    """
    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{folder}/store-{name.replace(' ', '-')}"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    config = config_of(*CASES[name])
    task, stages = load_task(config), plan_stages(config, 2)
    student = student_of(config, task, stages, encoder)
    tokens = task.mark(some_tokens(needed_layers(stages)))
    if short == rank:
        student.observe = short_of_memory(student.observe)
    for stage in stages:
        session: Any = Rank(rank, world_size)
        stepper = Stepper(student, stage, task, config.training, session)
        rows = np.arange(4)[rank::world_size]
        batch = collate([(tokens, rows)], 0, None)
        if any(term.normalise for term in stage.terms):
            stepper.normalise([batch] if rank == 0 else [])  # a rank without held-out sentences
            stepper.variances.fill_(2.0)
        for step in range(2):
            stepper.step([dict.fromkeys(stage.splits, batch)], 1e-3, step)
        assert stepper.parts == (1 if short is None else 4 // world_size)
    if rank == 0:
        torch.save(student.state_dict(), Path(folder) / f"{world_size}.pt")
    if world_size > 1:
        distributed.barrier()
        os._exit(0)


def short_of_memory(observe: Any, after: bool = False) -> Any:
    """Let more than one sentence raise; after: when dropout was drawn for them."""

    def observe_one(input_ids: torch.Tensor, *others: Any) -> Any:
        if len(input_ids) > 1:
            if after:
                observe(input_ids, *others)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return observe(input_ids, *others)

    return observe_one


def exchange_rows(rank: int, folder: str, rows: int) -> None:
    store, limit = f"file://{folder}/store-{rows}", timedelta(seconds=20)
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=limit
    )
    ids = [torch.tensor([[1, 2], [2, 0]]), torch.tensor([[3]])] if rank else [torch.tensor([[2]])]
    gradient = torch.zeros(rows, 3)
    for seen in ids:
        gradient.index_add_(0, seen.flatten(), torch.full((seen.numel(), 3), 1.0 + rank))
    counts, other = torch.tensor([1.0, 10.0 * rank]), torch.tensor([[2.0 + rank]])
    time.sleep(rank / 2)
    exchange = Exchange(2, counts, ids)
    if rank:  # the other is short of memory before it asks, and earlier
        assert exchange.counts().tolist() == [2, 10]
    (total,) = exchange.add_up([other], gradient)
    assert total.tolist() == [[5]]
    torch.save(gradient, Path(folder) / f"{rank}-{rows}.pt")
    distributed.barrier()
    os._exit(0)


@pytest.mark.parametrize("rows", [5, 1000])  # all of them travel, or those that were looked up
def test_gradients_of_rows_are_added_up(rows: int, tmp_path: Path):
    multiprocessing.spawn(exchange_rows, args=(str(tmp_path), rows), nprocs=2)
    expected = torch.zeros(rows, 3)
    expected[:4] = torch.tensor([[2.0], [2.0], [5.0], [2.0]])
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}-{rows}.pt").equal(expected)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_end_with_the_weights_of_one(
    name: str, make_teacher: MakeTeacher, tmp_path: Path
):
    encoder = str(make_teacher("bert"))
    train(0, 1, name, encoder, str(tmp_path))
    multiprocessing.spawn(train, args=(2, name, encoder, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_that_memory_does_not_hold_is_taken_in_parts(
    name: str, make_teacher: MakeTeacher, tmp_path: Path
):
    encoder = str(make_teacher("bert"))
    for place, arguments in (("whole", (None,)), ("parts", (0,))):
        (tmp_path / place).mkdir()
        train(0, 1, name, encoder, str(tmp_path / place), *arguments)
    whole, parts = (torch.load(tmp_path / place / "1.pt") for place in ("whole", "parts"))
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-4)


def test_where_one_rank_is_short_of_memory_all_take_the_step_again(
    make_teacher: MakeTeacher, tmp_path: Path
):
    name, encoder = "an encoder with a pooler", str(make_teacher("bert"))
    train(0, 1, name, encoder, str(tmp_path))
    multiprocessing.spawn(train, args=(2, name, encoder, str(tmp_path), 1), nprocs=2)
    one, two = (torch.load(tmp_path / f"{size}.pt") for size in (1, 2))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4)


def test_a_step_taken_again_draws_the_dropout_of_the_parts_and_a_resumed_one_too(
    make_teacher: MakeTeacher,
):
    config = config_of({**ENCODER, "dropout": 0.5}, CASES["an encoder with a pooler"][1])
    task, stage = load_task(config), plan_stages(config, 2)[1]
    encoder = str(make_teacher("bert"))
    batch = collate([(task.mark(some_tokens(needed_layers([stage]))), np.arange(4))], 0, None)

    def weights(short: bool, state: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        student = student_of(config, task, [stage], encoder)
        session: Any = Rank(0, 1)
        stepper = Stepper(student, stage, task, config.training, session)
        if short:
            student.observe = short_of_memory(student.observe, after=True)
        if state is not None:
            stepper.load_state(state)
        stepper.step([dict.fromkeys(stage.splits, batch)], 1e-2, 7)
        return student.state_dict(), stepper.state()

    again, state = weights(True, None)
    fresh = {**state, "optimiser": {**state["optimiser"], "state": {}}}
    at_once, _ = weights(False, fresh)  # begins in parts, as a resumed run does
    assert state["parts"] == 4
    for key, value in again.items():
        assert torch.equal(at_once[key], value), key
