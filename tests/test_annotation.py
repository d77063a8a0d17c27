"""annotation: few sentences are forwarded without an actor, and come to the same files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xdray import annotation
from xdray.cluster import Cluster
from xdray.config import Config
from xdray.distillation import annotate_only
from xdray.errors import ClusterError
from xdray.resources import Resources, fit_plan

MakeConfig = Callable[..., Config]


def _files(store: Path) -> dict[str, bytes]:
    files = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def test_few_sentences_are_forwarded_in_this_process(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(self: Cluster) -> None:
        raise ClusterError("started")

    monkeypatch.setattr(Cluster, "start", start)
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    torch.set_num_threads(2)
    monkeypatch.setattr(torch, "set_num_threads", counted := _Counted(torch.set_num_threads))
    settings = {"teacher": {"replicas": "auto"}, "targets": {"store": str(tmp_path / "targets")}}
    config = tiny("run", **settings)
    facts = annotate_only(config)["targets"]
    assert facts["teacher_forward_rows"] == facts["rows"] > 0
    assert "in this process" in (tmp_path / "run" / "log.txt").read_text()
    assert counted.calls[-1] == torch.get_num_threads() == 2
    assert "LRU_CACHE_CAPACITY" not in os.environ  # a student that trains here goes slower with it

    monkeypatch.setattr(annotation, "FEW_SENTENCES", facts["rows"] - 1)
    more = tiny("more", **settings | {"targets": {"store": str(tmp_path / "other")}})
    with pytest.raises(ClusterError, match="started"):
        annotate_only(more)


class _Counted:
    """Remembers what a function was called with."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function, self.calls = function, list[int]()

    def __call__(self, value: int) -> None:
        self.calls.append(value)
        self.function(value)


@pytest.mark.parametrize(
    ("there", "replicas", "here"),
    [
        (Resources(2, 0, "this machine"), "auto", True),
        (Resources(2, 0, "this machine"), 1, False),
        (Resources(64, 0, "this machine"), "auto", False),
        (Resources(8, 1, "this machine"), "auto", True),
        (Resources(8, 2, "this machine"), "auto", False),
        (Resources(2, 0, "the cluster at head:6379"), "auto", False),
    ],
)
def test_an_actor_that_was_asked_for_or_is_one_of_several_is_started(
    tiny: MakeConfig, there: Resources, replicas: int | str, here: bool
):
    config = tiny("run", teacher={"replicas": replicas}, cluster={"threads": None})
    plan = fit_plan(config, 20, there)
    assert annotation._goes_here(config, plan, annotation.FEW_SENTENCES) is here
    assert not annotation._goes_here(config, plan, annotation.FEW_SENTENCES + 1)


@pytest.mark.cluster
def test_an_actor_and_this_process_write_the_same_files(
    tiny: MakeConfig, tmp_path: Path, ray_session: None
):
    for name, replicas in (("actor", 1), ("here", "auto")):
        store = {"store": str(tmp_path / f"store-{name}")}
        annotate_only(tiny(name, teacher={"replicas": replicas}, targets=store))
        said = (tmp_path / name / "log.txt").read_text()
        assert ("in this process" in said) == (name == "here")
    assert _files(tmp_path / "store-actor") == _files(tmp_path / "store-here") != {}
