"""The loop: exact resume, the best state, the schedule, freezing, and what ends in an error."""

import itertools
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_curves, tagging_task

from xdray.batch_plan import BatchPlan, Block
from xdray.config import Config, StudentConfig
from xdray.configfile import make_config
from xdray.console import Console
from xdray.errors import TrainingError
from xdray.exchange import Exchange
from xdray.labels import LabelSet
from xdray.loader import Loader
from xdray.recipes import plan_stages
from xdray.sessions import LocalSession
from xdray.signals import Terminated, leaving
from xdray.stages import chain_keys
from xdray.student import Student, build_student
from xdray.tokenised import Tokens
from xdray.training import CHECK_EVERY, Training, run_stages
from xdray.watching import Meters, Watch

LABELS = LabelSet(("O", "B-LOC", "I-LOC"))
VOCABULARY, WIDTH = 50, 8


class Rows:
    """Hidden states held as they are."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def take(self, index: np.ndarray) -> np.ndarray:
        return self.values[index]


class Text:
    """Two shards of random sentences; logits, labels and hidden states follow from the tokens."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.shards = [self._shard(rng, 40), self._shard(rng, 30)]

    def _shard(self, rng: np.random.Generator, sentences: int) -> Tokens:
        lengths = rng.integers(3, 9, sentences)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = rng.integers(4, VOCABULARY, offsets[-1]).astype(np.int32)
        word_ids = np.concatenate([np.arange(n) - 1 for n in lengths]).astype(np.int32)
        word_ids[offsets[1:] - 1] = -1
        logits = np.stack([ids % 3 == label for label in range(3)], 1).astype(np.float32)
        hidden = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)[ids]
        labels = np.where(word_ids >= 0, ids % 3, -100).astype(np.int64)
        return Tokens(ids, word_ids, offsets, logits, {1: Rows(hidden)}, labels)

    def shard_lengths(self) -> list[np.ndarray]:
        return [tokens.lengths for tokens in self.shards]

    def shard_ids(self) -> list[str]:
        return ["a", "b"]

    forwarded, block_rows = 0, 1000

    def read(self, blocks: Iterable[Block], layers: Sequence[Any]) -> Generator[Tokens]:
        yield from (self.shards[block.shard] for block in blocks)

    def read_rows(self, parts: Sequence[Any], layers: Sequence[Any]) -> Iterator[Any]:
        yield from ((self.shards[shard], rows) for shard, rows in parts)


def _config(**sections: Any) -> Config:
    values = {
        "run": {"folder": "x"},
        "data": {"train": "a", "dev": "b", "test": "c", "transfer": "t"},
        "teacher": {"model": "m"},
        "student": {"embedding": 6, "hidden": 5},
        "recipe": {"name": "staged_unfreezing", "layer": 1},
        "training": {"epochs": 2, "batch_tokens": 64, "autocast": "none"},
    }
    return make_config({**values, **sections}, "test")


def _student(config: Config) -> Student:
    return build_student(
        config.student,
        vocab_size=VOCABULARY,
        teacher_width=WIDTH,
        task=tagging_task(LABELS),
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
    )


def _accuracy(text: Text) -> Callable[[Any], dict[str, Any]]:
    def score(student: Any) -> dict[str, Any]:
        right = total = 0
        for batch in Loader(BatchPlan(text, 500, 10**6, seed=0), (), 0, None).batches(0):
            with torch.inference_mode():
                logits = student(batch.input_ids, batch.attention_mask)[1].flatten(0, 1)
            assert batch.labels is not None
            right += int((logits[batch.kept].argmax(-1) == batch.labels).sum())
            total += batch.num_labels
        return {"entity_f1": right / total}

    return score


def _training(config: Config, folder: Path, **changes: Any) -> Training:
    text = Text()
    stages = plan_stages(config, 2)
    session = LocalSession(folder, "cpu")

    def loaders(stage: Any) -> dict[str, Loader]:
        held_out = {"transfer": 0.1, "train": 0.0}
        return {
            split: Loader(
                BatchPlan(text, stage.batch_tokens, 10**6, seed=0, held_out=held_out[split]),
                stage.layers,
                0,
                None,
            )
            for split in stage.splits
        }

    values = {
        "stages": stages,
        "keys": chain_keys(stages, {"seed": 0}),
        "settings": config.training,
        "seed": 0,
        "task": tagging_task(LABELS),
        "loaders": loaders,
        "score": _accuracy(text),
        "folder": folder,
        "start_from": None,
        "session": session,
        "console": Console(quiet=True),
    }
    return Training(**{**values, **changes})


def _weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_the_stages_teach_what_the_labels_say(tmp_path: Path):
    training = {"epochs": 12, "batch_tokens": 64, "autocast": "none", "learning_rate": 2e-2}
    config = _config(training=training)
    student = _student(config)
    before = _accuracy(Text())(student)["entity_f1"]
    rows = run_stages(student, _training(config, tmp_path))
    after = _accuracy(Text())(student.eval())["entity_f1"]
    assert before < 0.6
    assert after > 0.9
    assert [row["dev"] is None for row in rows] == [True] + [False] * 8


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("kill_at", [1, 2, 5, 11])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path, kill_at: int):
    settings = {"epochs": 2, "batch_tokens": 24, "autocast": "none", "checkpoint_seconds": 0}
    config = _config(training=settings)
    whole = _student(config)
    rows = run_stages(whole, _training(config, tmp_path / "whole"))

    class Dying(LocalSession):
        saves = 0

        def save(self, write: Any, metrics: dict[str, Any]) -> None:
            super().save(write, metrics)
            self.saves += 1
            if self.saves == kill_at:
                raise Killed

    dying = Dying(tmp_path / "killed", "cpu")
    with pytest.raises(Killed):
        run_stages(_student(config), _training(config, tmp_path / "killed", session=dying))
    student = _student(config)
    again = run_stages(student, _training(config, tmp_path / "killed"))
    for name, value in _weights(whole).items():
        assert torch.equal(value, student.state_dict()[name]), name
    assert _timeless(rows) == _timeless(again)


def _timeless(result: Any) -> Any:
    """Rows of stages, or their histories, without what a clock says."""
    if isinstance(result, dict):
        return {key: _timeless(value) for key, value in result.items() if key != "seconds"}
    return [_timeless(value) for value in result] if isinstance(result, list) else result


@pytest.mark.parametrize("told_at", [1, 8, 27])
def test_sigterm_saves_the_step_and_the_run_goes_on_to_the_same_weights(
    tmp_path: Path, told_at: int, monkeypatch: pytest.MonkeyPatch
):
    settings = {"epochs": 2, "batch_tokens": 24, "autocast": "none", "checkpoint_seconds": 3600}
    config = _config(training=settings, recipe={"name": "staged", "layer": 1})
    whole = _student(config)
    rows = run_stages(whole, _training(config, tmp_path / "whole"))
    steps = itertools.count(1)

    def exchange(*arguments: Any) -> Exchange:  # made once in each step, in its middle
        if next(steps) == told_at:
            signal.raise_signal(signal.SIGTERM)
        return Exchange(*arguments)

    told, said = LocalSession(tmp_path / "told", "cpu"), []
    monkeypatch.setattr("xdray.steps.Exchange", exchange)
    with pytest.raises(Terminated), leaving():
        run_stages(_student(config), _training(config, tmp_path / "told", session=told))
    monkeypatch.undo()
    state = torch.load(Path(told.latest_checkpoint() or "") / "state.pt", weights_only=True)
    console = Console(quiet=True)
    console.say = said.append  # type: ignore[method-assign]
    student = _student(config)
    again = run_stages(student, _training(config, tmp_path / "told", console=console))
    assert _timeless(rows) == _timeless(again)
    progress = state["progress"]
    assert progress["total_steps"] == told_at
    where = f"continued at epoch {progress['epoch'] + 1}, step {progress['step']}"
    assert next(line for line in said if "continued" in line).endswith(where)
    for name, value in _weights(whole).items():
        assert torch.equal(value, student.state_dict()[name]), name


def test_sigterm_while_an_epoch_is_scored_leaves_its_history_as_it_is(tmp_path: Path):
    settings = {"epochs": 2, "batch_tokens": 24, "autocast": "none", "checkpoint_seconds": 3600}
    config = _config(training=settings, recipe={"name": "staged", "layer": 1})
    rows = run_stages(_student(config), _training(config, tmp_path / "whole"))

    class Told(LocalSession):
        told = False

        def all_sum(self, values: torch.Tensor) -> None:
            if values.dtype == torch.float64 and not self.told:  # of the held-out sentences
                self.told = True
                signal.raise_signal(signal.SIGTERM)

    told = Told(tmp_path / "told", "cpu")
    with pytest.raises(Terminated), leaving():
        run_stages(_student(config), _training(config, tmp_path / "told", session=told))
    again = run_stages(_student(config), _training(config, tmp_path / "told"))
    assert _timeless(rows) == _timeless(again)
    assert rows[0]["history"][0]["learning_rate"] > 0


def test_a_finished_stage_of_another_run_serves_while_its_key_is_the_same(tmp_path: Path):
    config = _config(recipe={"name": "staged", "layer": 1})
    run_stages(_student(config), _training(config, tmp_path / "one"))
    recipe = {"name": "staged", "layer": 1, "overrides": {"labels": {"epochs": 1}}}
    other = _config(recipe=recipe)
    steps: list[str] = []
    console = Console(quiet=True)
    console.say = steps.append  # type: ignore[method-assign]
    run_stages(
        _student(other),
        _training(other, tmp_path / "two", start_from=tmp_path / "one", console=console),
    )
    taken = [line for line in steps if "finished before" in line]
    assert len(taken) == 2
    assert any("labels: epoch 1/1" in line for line in steps)
    folders = {path.parent.name for path in (tmp_path / "two").glob("*/stage.json")}
    assert folders == {"01-representation", "02-logits", "03-labels"}  # this run stands alone


def test_the_best_state_is_restored_and_a_tie_goes_to_the_later(tmp_path: Path):
    recipe = [{"name": "labels", "terms": [{"loss": "labels", "split": "train"}]}]
    config = _config(recipe=recipe, training={"epochs": 4, "patience": 2, "autocast": "none"})
    scores = iter([0.5, 0.5, 0.4, 0.4, 0.0])
    seen: list[dict[str, torch.Tensor]] = []

    def score(student: Any) -> dict[str, Any]:
        seen.append(_weights(student))
        return {"entity_f1": next(scores)}

    student = _student(config)
    (row,) = run_stages(student, _training(config, tmp_path, score=score))
    assert row["score"] == 0.5
    assert row["epochs"] == 4
    for name, value in student.state_dict().items():
        assert torch.equal(value, seen[1][name]), name


def test_only_the_groups_of_a_stage_move(tmp_path: Path):
    config = _config()
    for stage in plan_stages(config, 2)[:5]:
        student = _student(config)
        before = {
            group: [p.detach().clone() for p in its] for group, its in student.groups().items()
        }
        run_stages(
            student,
            _training(config, tmp_path / stage.name, stages=[stage], keys=["00000000" * 4]),
        )
        for group, parameters in student.groups().items():
            moved = any(
                not torch.equal(old, new)
                for old, new in zip(before[group], parameters, strict=True)
            )
            assert moved == (group in stage.trainable), (stage.name, group)


def test_a_loss_that_is_not_finite_ends_the_run_naming_stage_and_step(tmp_path: Path):
    config = _config()
    student = _student(config)
    with torch.no_grad():
        next(iter(student.groups()["encoder"]))[:] = float("nan")
    with pytest.raises(
        TrainingError, match=r"stage representation, step \d+: .* hidden loss is nan"
    ):
        run_stages(student, _training(config, tmp_path))


def test_an_accumulated_step_equals_one_on_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three batches of other sizes: only division by the count of the window makes these equal.

    Adam's first step hides the size of a gradient, so plain gradient descent takes it here.
    """
    monkeypatch.setattr(
        "xdray.steps._optimiser",
        lambda trainable, stage, settings: torch.optim.SGD([p for _, p in trainable]),
    )
    recipe = [{"name": "logits", "terms": [{"loss": "logits", "split": "transfer"}]}]
    student_settings = {"embedding": 6, "hidden": 5, "dropout": 0.0}
    results, weights = [], []
    for batch_tokens, accumulation in ((10_000, 1), (150, 1000)):
        training = {
            "epochs": 1,
            "batch_tokens": batch_tokens,
            "accumulation": accumulation,
            "autocast": "none",
            "warmup": 0.0,
            "clip": None,
            "learning_rate": 0.5,
        }
        config = _config(recipe=recipe, training=training, student=student_settings)
        student = _student(config)
        start = student.state_dict()["model.classifier.weight"].clone()
        (row,) = run_stages(student, _training(config, tmp_path / str(batch_tokens)))
        results.append((row["history"][0]["terms"]["logits"], row["steps"]))
        weights.append(student.state_dict())
    assert results[0][1] == results[1][1] == 1
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(weights[0]["model.classifier.weight"], start)


@pytest.mark.parametrize("kind", ["bilstm", "transformer"])
def test_groups_of_the_student_are_those_of_the_plan(kind: str):
    from xdray.stages import layer_groups

    values = {"kind": kind, "embedding": 6, "hidden": 8, "layers": 2}
    config = StudentConfig.model_validate(values)
    student = build_student(
        config,
        vocab_size=VOCABULARY,
        teacher_width=WIDTH,
        task=tagging_task(LABELS),
        pad_token_id=0,
        max_length=16,
        embeddings=None,
        seed=0,
    )
    assert tuple(student.groups()) == layer_groups(config)


def _curves(folder: Path) -> list[dict[str, Any]]:
    return [read_curves(stage) for stage in sorted((folder / "tensorboard/student").iterdir())]


def test_tensorboard_has_the_history_of_each_stage_and_the_losses_between(tmp_path: Path):
    settings = {"epochs": 3, "batch_tokens": 24, "autocast": "none"}
    settings |= {"schedule": "constant", "warmup": 0}
    config = _config(training=settings, recipe={"name": "staged", "layer": 1})
    rows = run_stages(_student(config), _training(config, tmp_path, watch=Watch(tmp_path)))
    assert len(rows) == 3
    for row, curves in zip(rows, _curves(tmp_path), strict=True):
        history = row["history"]
        steps = list(range(CHECK_EVERY, row["steps"] + 1, CHECK_EVERY))
        assert len(steps) > 1
        name = row["score_name"].replace(" ", "_")
        expected = {f"score/{name}": [(epoch["step"], epoch["score"]) for epoch in history]}
        for term in history[0]["terms"]:
            means = [(epoch["step"], epoch["terms"][term]) for epoch in history]
            expected[f"epoch_loss/{term}"] = means
            assert [step for step, _ in curves.pop(f"loss/{term}")] == steps
        expected["learning_rate"] = [(step, history[0]["learning_rate"]) for step in steps]
        if row["dev"]:
            expected["best/dev_entity_f1"] = [(row["steps"], row["dev"]["entity_f1"])]
        assert curves.keys() == expected.keys()
        for curve, points in expected.items():
            assert curves[curve] == [pytest.approx(point, rel=1e-6) for point in points], curve


@pytest.mark.parametrize("kill_at", [1, 3])
def test_a_run_killed_after_its_checkpoint_draws_no_point_twice(tmp_path: Path, kill_at: int):
    settings = {"epochs": 2, "batch_tokens": 12, "autocast": "none", "checkpoint_seconds": 0}
    config = _config(training=settings, recipe={"name": "staged", "layer": 1})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_stages(_student(config), _training(config, whole, watch=Watch(whole)))

    class Dying(LocalSession):
        saves = 0

        def save(self, write: Any, metrics: dict[str, Any]) -> None:
            self.saves += 1
            if self.saves > kill_at:  # what was drawn since the last one is in the file alone
                raise Killed
            super().save(write, metrics)

    changes: dict[str, Any] = {"watch": Watch(killed), "session": Dying(killed, "cpu")}
    with pytest.raises(Killed):
        run_stages(_student(config), _training(config, killed, **changes))
    (cut_off,) = _curves(killed)
    assert len(cut_off["learning_rate"]) >= kill_at
    run_stages(_student(config), _training(config, killed, watch=Watch(killed)))
    assert _curves(killed) == _curves(whole)


def test_meters_are_told_each_step_once_and_the_last_score(tmp_path: Path):
    steps: dict[str, float] = {}
    scores: dict[str, float] = {}

    class Kept(Meters):
        def add(self, name: str, value: float, tags: Any) -> None:
            assert (tags["run"], tags["part"]) == (tmp_path.name, "student")
            if name == "steps":
                steps[tags["stage"]] = steps.get(tags["stage"], 0) + value

        def set(self, name: str, value: float, tags: Any) -> None:
            assert name != "step_seconds" or 0 < value < 1
            if name == "score":
                scores[tags["stage"]] = value

    training = {"epochs": 3, "batch_tokens": 24, "autocast": "none"}
    config = _config(training=training, recipe={"name": "staged", "layer": 1})
    watch = Watch(tmp_path, tmp_path.name, meters=Kept())
    rows = run_stages(_student(config), _training(config, tmp_path, watch=watch))
    assert list(steps.values()) == [row["steps"] for row in rows]
    assert list(scores.values()) == [row["history"][-1]["score"] for row in rows]
    assert list(steps) == ["01-representation", "02-logits", "03-labels"]
