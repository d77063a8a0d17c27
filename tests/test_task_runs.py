"""Each kind of task on real Ray, from text to a scored student and its predictions."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTeacher
from safetensors.torch import load_file
from transformers import AutoModel

from xdray.config import Config
from xdray.config_recipe import RecipeConfig
from xdray.distillation import distill
from xdray.errors import ConfigError
from xdray.prediction import Predictor, predict_files, task_of_model
from xdray.scoring import evaluate_model
from xdray.sentences import Sentence, TextPair
from xdray.tokens import load_tokenizer

pytestmark = pytest.mark.cluster
MakeConfig = Callable[..., Config]
SPLITS = {"train": 60, "dev": 30, "test": 30, "transfer": 80}


@pytest.fixture
def running(
    tmp_path: Path, tiny: MakeConfig, tiny_text: Path, tiny_teacher: Path
) -> Callable[..., Config]:
    """Return a maker of small runs on pairs: running(folder, kind, label of a pair, ...)."""
    lines = [
        (language, line)
        for language in ("en", "de")
        for line in (tiny_text / "transfer" / f"{language}.txt").read_text().splitlines()
    ]

    def make(folder: str, task: dict[str, Any], label: Callable[..., Any], **sections: Any) -> Any:
        rng = random.Random(1)
        sources = {}
        for split, count in SPLITS.items():
            rows = []
            for _ in range(count):
                one, other = rng.choice(lines), rng.choice(lines)
                value = label(one, other)
                rows.append({"a": one[1], "b": other[1], "gold": value, "language": one[0]})
            path = tmp_path / f"{folder}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            sources[split] = {"path": str(path), "text": "a", "pair": "b", "label": "gold"}
        config = {
            "task": task,
            "data": sources,
            "tokens": {"max_length": 64},
            "teacher": {
                "model": None,
                "finetune": {"encoder": str(tiny_teacher), "epochs": 2, "learning_rate": 1e-3},
            },
            "recipe": {"name": "staged", "layer": 1},
            "evaluation": {"bootstrap": 50, "latency": False},
            "training": {"epochs": 1, "batch_tokens": 512},
        }
        return tiny(folder, **{**config, **sections})

    return make


def same_language(one: tuple[str, str], other: tuple[str, str]) -> str:
    return "same" if one[0] == other[0] else "other"


def answer(_: Any, other: tuple[str, str]) -> dict[str, Any]:
    word = other[1].split()[0]
    return {"text": [word], "answer_start": [other[1].index(word)]}


def test_pairs_are_classified_by_a_bilstm(
    running: Callable[..., Config],
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    labels = ["other", "same"]
    config = running(
        "pairs",
        {"kind": "classification", "labels": labels},
        same_language,
        evaluation={"bootstrap": 50, "latency": False, "hard_labels": True, "metric": "macro_f1"},
    )
    report = distill(config)
    _, mark, example = capsys.readouterr().out.partition("from transformers import pipeline")
    exec(mark + example, {})
    targets = report["targets"]
    assert targets["rows"] == targets["teacher_forward_rows"] > 60
    assert report["task"]["labels"] == labels
    assert {"teacher", "student", "baseline", "hard_labels"} <= report.keys()
    assert report["retention"] is None or report["retention_interval"]
    assert evaluate_model(config, None, "test")["test"] == report["student"]["test"]
    card = (Path(config.run.folder) / "student" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    out = tmp_path / "said.jsonl"
    source = str(config.data.test[0].path)
    found = predict_files(
        f"{config.run.folder}/student", [source], str(out), columns={"text": "a", "pair": "b"}
    )
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["sentences"] == found["labels"] == len(records) == SPLITS["test"]
    gold = [json.loads(line)["gold"] for line in Path(source).read_text().splitlines()]
    right = [r["labels"][0]["label"] == g for r, g in zip(records, gold, strict=True)]
    assert sum(right) / len(right) == pytest.approx(report["student"]["test"]["accuracy"])


def test_a_number_is_learnt_by_some_layers_of_the_teacher(
    running: Callable[..., Config], ray_session: None
):
    def length(one: tuple[str, str], other: tuple[str, str]) -> float:
        return len(one[1]) / len(other[1])

    config = running(
        "number",
        {"kind": "regression"},
        length,
        student={"kind": "encoder", "layers": 1, "start_layers": [2]},
    )
    report = distill(config)
    assert set(report["task"]["metrics"]) == {"spearman", "pearson"}
    assert report["student"]["shape"] == {"start": "teacher", "layers": 1}
    assert report["student"]["parameters"] < report["teacher"]["parameters"]
    again = evaluate_model(config, None, "test")["test"]["spearman"]
    assert again == pytest.approx(report["student"]["test"]["spearman"], abs=0.05)  # of ties
    with pytest.raises(ConfigError, match="by kl needs classes"):
        distill(
            running(
                "kl",
                {"kind": "regression"},
                length,
                recipe={"name": "staged", "distance": "kl", "layer": 1},
            )
        )


def test_an_encoder_of_another_start_takes_the_teachers_embeddings_in_its_basis(
    running: Callable[..., Config],
    ray_session: None,
    make_teacher: MakeTeacher,
    tiny_teacher: Path,
    tmp_path: Path,
):
    other = make_teacher("bert", tmp_path / "other", seed=7)
    load_tokenizer(str(tiny_teacher)).save_pretrained(other)
    student = {"kind": "encoder", "layers": 1, "start": str(other), "embedding_init": "aligned"}
    labels = {"kind": "classification", "labels": ["other", "same"]}
    stages = [{"name": "l", "epochs": 1, "terms": [{"loss": "logits", "split": "transfer"}]}]
    quick: dict[str, Any] = {
        "evaluation": {"bootstrap": 0, "latency": False, "baseline": False},
        "recipe": {"name": "l", "stages": stages},
    }
    own = {"kind": "encoder", "layers": 1, "embedding_init": "aligned"}
    config = running("own-basis", labels, same_language, student=own, **quick)
    with pytest.raises(ConfigError, match="aligned brings the teacher's embeddings into"):
        distill(config)
    report = distill(running("aligned", labels, same_language, student=student, **quick))
    rows = load_file(f"{report['run_dir']}/start/encoder/model.safetensors")
    table = rows["embeddings.word_embeddings.weight"]
    theirs = load_file(other / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert table.shape[1] == theirs.shape[1]
    assert not any((table == row).all(-1).any() for row in theirs[10:12])


def test_answers_are_found_in_windows(running: Callable[..., Config], ray_session: None):
    def answer_or_none(one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
        none = {"text": [], "answer_start": []}
        return none if len(other[1]) % 2 else answer(one, other)

    config = running(
        "answers",
        {"kind": "answering", "window": 6, "overlap": 2, "null_answers": True},
        answer_or_none,
        student={"kind": "transformer", "embedding": 8, "hidden": 16, "heads": 2, "layers": 1},
        recipe={"name": "staged", "distance": "kl", "layer": 1},
    )
    report = distill(config)
    assert report["corpus"]["test"]["questions"] == SPLITS["test"]
    assert report["corpus"]["test"]["sentences"] > SPLITS["test"]  # windows
    assert report["targets"]["rows"] == report["targets"]["teacher_forward_rows"]
    # with the margin that was chosen on dev and saved
    assert evaluate_model(config, None, "test")["test"] == report["student"]["test"]
    folder = f"{config.run.folder}/student"
    (record,) = Predictor(folder, task_of_model(folder), 1, "cpu").predict(
        [Sentence("1", "en", TextPair("Who?", "Anna lives in Lyon."))]
    )
    if record["answer"]:  # else the margin says that there is none
        assert record["pair"][record["start"] :].startswith(record["answer"])


def test_a_byte_pair_teacher_teaches_word_piece_students(
    running: Callable[..., Config],
    ray_session: None,
    make_teacher: MakeTeacher,
    tiny_teacher: Path,
):
    teacher = {"model": None, "finetune": {"encoder": str(make_teacher("roberta")), "epochs": 1}}
    shared: dict[str, Any] = {
        "teacher": teacher,
        "tokens": {"max_length": 64, "tokenizer": str(tiny_teacher)},
        "student": {"embedding": 8, "hidden": 8, "embedding_init": "random"},
        "recipe": {"name": "staged", "layer": 1, "distance": "kl"},
        "evaluation": {"bootstrap": 0, "latency": False, "baseline": False},
    }
    kind = {"kind": "classification", "labels": ["other", "same"]}
    pieces = {"tokens": {**shared["tokens"], "pieces": "mean"}}
    classes = distill(running("own-classes", kind, same_language, **{**shared, **pieces}))
    answers = distill(
        running("own-answers", {"kind": "answering", "window": 6, "overlap": 2}, answer, **shared)
    )
    for report in (classes, answers):
        hidden, logits = report["stages"][:2]
        assert hidden["name"] == "representation"
        for row in (hidden, logits):
            assert all(value > 0 for value in row["history"][-1]["terms"].values())
        assert report["student"]["vocabulary"] != report["teacher"]["vocabulary"]
        assert report["targets"]["rows"] == report["targets"]["teacher_forward_rows"]
        folder = f"{report['run_dir']}/student"
        assert type(load_tokenizer(folder).backend_tokenizer.model).__name__ == "WordPiece"


def test_an_encoder_is_distilled_without_labels_and_loads_as_one(
    tiny: MakeConfig, tiny_teacher: Path, ray_session: None
):
    config = tiny(
        "encoder",
        task={"kind": "encoding"},
        data={"train": [], "dev": [], "test": []},
        student={"kind": "transformer", "embedding": 32, "hidden": 16, "layers": 2, "heads": 2},
        recipe={"name": "universal", "overrides": {"representation": {"epochs": 2}}},
        training={"epochs": 2},
    )
    terms = [
        {"loss": "hidden", "layers": "all", "split": "transfer"},
        {"loss": "relations", "split": "transfer"},
    ]
    stages = {"name": "universal", "stages": [{"name": "representation", "terms": terms}]}
    report = distill(config.model_copy(update={"recipe": RecipeConfig.model_validate(stages)}))
    assert report["retention"] is None
    assert report["targets"]["layers"] == [0, 1, 2, "qkv-2"]
    assert report["targets"]["rows"] == report["targets"]["teacher_forward_rows"] > 0
    (row,) = report["stages"]
    first, last = (row["history"][at]["terms"] for at in (0, -1))
    assert set(first) == {"hidden 0:0", "hidden 1:1", "hidden 2", "relations 2"}
    assert sum(last.values()) < sum(first.values())
    folder = Path(config.run.folder) / "student"
    model: Any = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "ElectraModel"
    assert not any("classifier" in name or "projection" in name for name, _ in _weights(folder))
    assert "Parameters" in (Path(config.run.folder) / "report.html").read_text()
    sentences = [Sentence("1", "en", "Anna lives in Lyon."), Sentence("2", "en", "Anna")]
    predictor = Predictor(str(folder), task_of_model(str(folder)), 1, "cpu")
    one, other = (record["vector"] for record in predictor.predict(sentences))
    assert len(one) == 16
    tokenizer = load_tokenizer(str(folder))
    output = model.eval()(**tokenizer("Anna lives in Lyon.", return_tensors="pt"))
    assert one == pytest.approx(output.last_hidden_state[0].mean(0).tolist(), abs=1e-5)
    assert one != other


def _weights(folder: Path) -> Any:
    return load_file(folder / "model.safetensors").items()
