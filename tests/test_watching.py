"""Meters as Prometheus reads them, curves as TensorBoard reads them, the dashboard's names."""

import itertools
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeConfig, read_curves

from xdray.distillation import annotate_only, distill
from xdray.errors import ClusterError
from xdray.watching import MAX_POINTS, METERS, Meters, Watch, counted, run_name, watch_training

DASHBOARD = Path(__file__).resolve().parent.parent / "deploy" / "grafana.json"
EXPORTED = {
    f"ray_xdray_{name}" + ("_total" if meter.kind == "Counter" else "")
    for name, meter in METERS.items()
}


class Recorded:
    """Takes the place of ray.util.metrics: as strict, and tells what it was told."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], list[float]] = {}

    def Counter(self, name: str, about: str, tag_keys: tuple[str, ...]) -> Any:
        return self._meter(name, about, tag_keys, least=0.0)

    def Gauge(self, name: str, about: str, tag_keys: tuple[str, ...]) -> Any:
        return self._meter(name, about, tag_keys, least=None)

    def _meter(self, name: str, about: str, keys: tuple[str, ...], least: float | None) -> Any:
        def record(value: float, tags: dict[str, str]) -> None:
            assert about
            assert tuple(tags) == keys
            assert least is None or value > least  # Ray refuses others
            self.values.setdefault((name, *tags.values()), []).append(value)

        return type("Meter", (), {"inc": staticmethod(record), "set": staticmethod(record)})


def receipt(tries: int, forwarded: int) -> dict[str, Any]:
    counts = {"tokens": 70, "padded_tokens": 100 if forwarded else 0}
    return {"tries": tries, "forwarded": forwarded, "bytes": 9 * forwarded, **counts}


def test_shards_are_counted_as_they_come_home_retries_and_the_failed_one_apart():
    def pool() -> Iterator[dict[str, Any]]:
        yield from (receipt(1, 8), receipt(3, 2), receipt(1, 0))  # the last: found in the store
        raise ClusterError("shard 3: killed its Annotator 3 times")

    found = Recorded()
    with pytest.raises(ClusterError, match=r"^shard 3"):
        list(counted(pool(), Meters(found), "mine"))
    totals = {name.removeprefix("xdray_"): sum(v) for (name, *_), v in found.values.items()}
    assert totals == {
        "shards_done": 3,
        "shards_retried": 2,
        "shards_failed": 1,
        "sentences": 10,
        "tokens": 140,
        "positions": 200,
        "bytes": 90,
    }
    assert {key[1:] for key in found.values} == {("mine", "targets")}


@pytest.mark.parametrize(
    "folder",
    [
        "runs/mine",
        "s3://key:secret@bucket/mine",
        "s3://key:secret@mine",
        "s3://b/mine?key=a/secret",
    ],
)
def test_a_tag_has_the_name_of_the_folder_and_no_secret_of_its_uri(folder: str):
    assert run_name(folder) == "mine"


def test_without_ray_and_without_a_folder_nothing_is_said(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    points: list[dict[str, Any]] = []
    watch = Watch().stage("01-labels")
    with watch.drawing(points):
        watch.begin(0)
        watch.look(20, 40, 0.1, {"labels": 1.0})
        watch.best(20, {"entity_f1": 0.5})
    assert points == []
    assert list(tmp_path.iterdir()) == []


def test_a_long_stage_has_at_most_a_thousand_points_beside_its_epochs(tmp_path: Path):
    training = watch_training(tmp_path, "", tmp_path / "baseline" / "stages", Meters())
    watch, planned, points = training.stage("01-labels"), 50_010, []
    with watch.drawing(points):
        watch.begin(0)
        for step in range(20, planned, 20):
            watch.look(step, planned, 0.1, {"labels": 1.0 / step})
    curves = read_curves(tmp_path / "tensorboard" / "baseline" / "01-labels")
    steps = [step for step, _ in curves["loss/labels"]]
    assert 0.95 * MAX_POINTS <= len(steps) == len(points) <= MAX_POINTS
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 80


def test_the_dashboard_shows_every_meter_and_no_other():
    text = DASHBOARD.read_text(encoding="utf-8")
    assert set(re.findall(r"ray_xdray_[a-z_]+", text)) == EXPORTED
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(corners) == len(panels)
    for target in (target for panel in panels for target in panel["targets"]):
        names = re.findall(r"ray_xdray_[a-z_]+(\{[^}]*\})?", target["expr"])
        assert names == ['{run=~"$run"}'] * len(names)
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        (meter,) = {
            METERS[name.removesuffix("_total")].tags
            for name in re.findall(r"ray_xdray_([a-z_]+)", target["expr"])
        }
        assert shown <= set(meter)


def scraped(run: str, enough: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Sums by name of the meters of a run, from the node's own endpoint, once there is enough."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    sums: dict[str, float] = {}
    while time.monotonic() < until:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        sums = {}
        for name, labels, value in re.findall(r"^(ray_xdray_\w+)\{(.*)\} (\S+)$", text, re.M):
            if f'run="{run}"' in labels:
                sums[name] = sums.get(name, 0.0) + float(value)
        if enough(sums):
            return sums
        time.sleep(0.5)
    raise AssertionError(f"after a minute: {sums}")


@pytest.mark.cluster
def test_prometheus_reads_what_the_pass_reports(
    tiny: MakeConfig, ray_session: None, tmp_path: Path
):
    store = tmp_path / "store"
    config = tiny("pass", targets={"store": str(store)})
    targets = annotate_only(config)["targets"]
    files = list(store.glob("*/shards/*/*.parquet"))
    written = sum(file.stat().st_size for file in files)
    # Ray exports every few seconds, so a slow pass is first seen half-way; bytes are counted last
    found = scraped("pass", lambda sums: sums.get("ray_xdray_bytes_total", 0) >= written)
    assert found.pop("ray_xdray_bytes_total") == written
    assert found.pop("ray_xdray_shards_done_total") == len(
        {file.name.partition(".")[0] for file in files}
    )
    assert found.pop("ray_xdray_sentences_total") > targets["teacher_forward_rows"]  # dev, test
    assert found.keys() == {"ray_xdray_tokens_total", "ray_xdray_positions_total"}
    assert targets["tokens"] < found["ray_xdray_tokens_total"] < found["ray_xdray_positions_total"]


@pytest.mark.cluster
@pytest.mark.slow
def test_prometheus_reads_what_a_worker_trains(tiny: MakeConfig, ray_session: None):
    config = tiny(
        "trained",
        recipe={"name": "joint_logits"},
        training={"workers": 1, "epochs": 40},
        evaluation={"baseline": False, "latency": False},
    )
    (row,) = distill(config)["stages"]
    found = scraped("trained", lambda sums: sums.get("ray_xdray_steps_total", 0) >= row["steps"])
    assert found["ray_xdray_steps_total"] == row["steps"]
    assert (
        EXPORTED
        >= found.keys()
        >= {f"ray_xdray_{n}" for n, m in METERS.items() if m.kind == "Gauge"}
    )
    assert found["ray_xdray_score"] == row["history"][-1]["score"]
    assert found["ray_xdray_learning_rate"] > 0
    losses = row["history"][-1]["terms"].values()  # a series for each term
    assert found["ray_xdray_loss"] == pytest.approx(sum(losses), rel=0.5)
    assert (Path(config.run.folder) / "tensorboard" / "student" / "01-joint").is_dir()
