"""The suite: cells over encoders, tasks and seeds; what is done is not done again; its averages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xdray.configfile import to_yaml
from xdray.errors import ConfigError
from xdray.suite import evaluate_suite, summarise_suite

MakeTeacher = Callable[..., Path]


def test_averages_are_means_of_means_and_the_second_leaves_out_mnli_and_rte():
    scores = {"mnli": [0.5, 0.7], "rte": [0.4, 0.4], "sst-2": [0.8, 1.0]}
    results = [
        {"encoder": "a", "task": task, "seed": seed, "test": value}
        for task, values in scores.items()
        for seed, value in enumerate(values)
    ]
    (row,) = summarise_suite(results, ["a"], list(scores))
    assert row["tasks"]["mnli"] == pytest.approx({"mean": 0.6, "std": 0.1, "seeds": 2})
    assert row["average"] == pytest.approx((0.6 + 0.4 + 0.9) / 3)
    assert row["average_without_mnli_rte"] == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ""])
def test_an_encoders_name_names_no_folder_elsewhere(name: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="it names a folder"):
        evaluate_suite({name: "m"}, ["x.yaml"], 1, str(tmp_path))


def test_an_encoder_that_reads_less_than_a_task_asks_is_refused(
    tmp_path: Path, make_teacher: MakeTeacher
):
    rows = "".join(json.dumps({"text": f"word {n % 2}", "label": n % 2}) + "\n" for n in range(8))
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    data = {
        split: {"path": f"{tmp_path}/{split}.jsonl", "text": "text", "label": "label"}
        for split in ("train", "dev", "test")
    }
    task = tmp_path / "task.yaml"
    values = {
        "run": {"folder": str(tmp_path / "run")},
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "data": {**data, "transfer": data["train"]["path"]},
        "tokens": {"max_length": 500},
        "teacher": {"finetune": {"encoder": "x"}},
    }
    task.write_text(to_yaml(values))
    with pytest.raises(ConfigError, match=r"tokens.max_length = 500: .* reads at most 160"):
        evaluate_suite({"e": str(make_teacher("bert"))}, [str(task)], 1, str(tmp_path / "out"))


@pytest.mark.cluster
def test_each_cell_is_done_once_and_again_where_its_text_changed(
    tmp_path: Path, make_teacher: MakeTeacher, ray_session: None
):
    for split, count in (("train", 40), ("dev", 12), ("test", 12)):
        rows = [{"text": f"word {n} {n % 2}", "label": n % 2} for n in range(count)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    encoder = make_teacher("bert", tmp_path / "encoder")
    values = {
        "run": {"folder": "unused"},
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "data": {
            **{split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test")},
            "transfer": str(tmp_path / "train.jsonl"),
        },
        "tokens": {"max_length": 16},
        "teacher": {"finetune": {"encoder": str(encoder), "epochs": 1}},
        "cluster": {"num_cpus": 2, "threads": 1},
    }
    config = tmp_path / "even.yaml"
    config.write_text(to_yaml(values), encoding="utf-8")
    encoders = {"kept": str(encoder), "random": f"fresh:{encoder}"}
    first = evaluate_suite(encoders, [str(config)], 2, str(tmp_path / "suite"))
    assert [row["encoder"] for row in first["rows"]] == ["kept", "random"]
    assert all(row["tasks"]["even"]["seeds"] == 2 for row in first["rows"])
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("suite/even/*/*/cell.json")}
    assert len(stamps) == 4
    again = evaluate_suite(encoders, [str(config)], 2, str(tmp_path / "suite"))
    assert again["rows"] == first["rows"]
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    values["teacher"]["finetune"]["epochs"] = 2
    config.write_text(to_yaml(values), encoding="utf-8")
    evaluate_suite({"kept": str(encoder)}, [str(config)], 1, str(tmp_path / "suite"))
    changed = {p for p in stamps if p.stat().st_mtime_ns != stamps[p]}
    assert {str(p.relative_to(tmp_path / "suite" / "even")) for p in changed} == {
        "kept/0/cell.json"
    }
    values["teacher"] = {"model": str(encoder)}
    config.write_text(to_yaml(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has no teacher\.finetune"):
        evaluate_suite(encoders, [str(config)], 1, str(tmp_path / "suite"))
