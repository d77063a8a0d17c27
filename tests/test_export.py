"""Exported models: graphs repeat PyTorch, int8 passes its gate or is refused, runtimes agree."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import MakeConfig, MakeTeacher, tagging_task

from xdray.config import StudentConfig
from xdray.configfile import changed_fields
from xdray.corpus import Sentence
from xdray.errors import ConfigError, XdrayError
from xdray.export import export
from xdray.graphs import outputs_of, write_onnx
from xdray.labels import LabelSet
from xdray.modeling_bilstm import BiLstmConfig
from xdray.prediction import Predictor, predict_files, task_of_model
from xdray.quantization import WAYS, quantize
from xdray.runtimes import GRAPHS, OnnxModel, load_runtime
from xdray.saving import load_student, save_student
from xdray.scoring import FinishedModel, SplitScorer
from xdray.student import BILSTMS, build_student
from xdray.tokens import load_tokenizer

HEADS = {
    "AutoModel": {},
    "AutoModelForTokenClassification": {},
    "AutoModelForQuestionAnswering": {},
    "AutoModelForSequenceClassification": {},
}


def _batch(vocabulary: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Ids, and a mask that leaves each row another number of real tokens."""
    generator = torch.Generator().manual_seed(rows * length)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    lengths = torch.arange(rows) % length + 1
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }


def _differs(model: Any, graph: Any, batch: dict[str, torch.Tensor]) -> float:
    """Largest difference at real tokens."""
    with torch.inference_mode():
        names, expected = outputs_of(model(**batch))
    found = graph(**batch)
    assert set(names) <= set(found)
    real = batch["attention_mask"].bool()
    gaps = []
    for name, value in zip(names, expected, strict=True):
        assert found[name].shape == value.shape
        rows = real if value.shape[:2] == real.shape else slice(None)
        gaps.append(float((found[name][rows] - value[rows]).abs().max()))
    return max(gaps)


def _bilstm(head: str, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {"vocab_size": 50, "embedding_size": 6, "hidden_size": 5}
    values |= {"projection_size": 7, "id2label": {0: "a", 1: "b", 2: "c"}}
    shape = BiLstmConfig(**{**values, **settings})
    model = BILSTMS[head](shape).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "max"},
        {"pooling": "mean", "projection_activation": "gelu"},
        {"pooling": "last", "projection_activation": "linear", "num_layers": 2},
    ],
    ids=["max", "mean", "last"],
)
def test_a_bilstm_graph_repeats_the_model_on_padded_batches(
    head: str, settings: dict[str, Any], tmp_path: Path
):
    model = _bilstm(head, tmp_path, **settings)
    write_onnx(model, tmp_path / "model.onnx")
    graph = OnnxModel(tmp_path, tmp_path / "model.onnx", threads=1)
    for rows, length in ((1, 1), (4, 9), (7, 3)):
        assert _differs(model, graph, _batch(50, rows, length)) < 1e-5


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoders_graph_repeats_the_model_at_any_batch_and_length(
    family: str, make_teacher: MakeTeacher, tmp_path: Path
):
    folder = make_teacher(family)
    model: Any = load_student(folder, "AutoModelForTokenClassification")
    write_onnx(model, tmp_path / "model.onnx")
    graph = OnnxModel(folder, tmp_path / "model.onnx", threads=1)
    for rows, length in ((1, 1), (5, 12), (2, 40)):
        assert _differs(model, graph, _batch(300, rows, length)) < 1e-4
    types = _batch(300, 2, 6) | {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}
    if family == "bert":
        assert _differs(model, graph, types) < 1e-4
        assert "token_type_ids" in graph.inputs


@pytest.mark.slow
@pytest.mark.parametrize("family", ["electra", "distilbert", "xlm-roberta", "deberta-v2"])
def test_other_families_have_graphs_too(family: str, make_teacher: MakeTeacher, tmp_path: Path):
    folder = make_teacher(family)
    model: Any = load_student(folder, "AutoModelForTokenClassification")
    write_onnx(model, tmp_path / "model.onnx")
    graph = OnnxModel(folder, tmp_path / "model.onnx", threads=1)
    for rows, length in ((1, 1), (5, 12), (2, 40)):
        assert _differs(model, graph, _batch(300, rows, length)) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_int8_is_near_and_smaller(way: str, tmp_path: Path):
    shape = {"vocab_size": 2000, "embedding_size": 32, "hidden_size": 24, "projection_size": 48}
    model = _bilstm("AutoModelForTokenClassification", tmp_path, **shape)
    write_onnx(model, tmp_path / "model.onnx")
    quantize(tmp_path / "model.onnx", tmp_path / "small.onnx", way)
    graph = OnnxModel(tmp_path, tmp_path / "small.onnx", threads=1)
    batch = _batch(2000, 6, 12)
    largest = float(model(**batch).logits.detach().abs().max())
    assert 0 < _differs(model, graph, batch) < 0.1 * largest
    size = (tmp_path / "small.onnx").stat().st_size / (tmp_path / "model.onnx").stat().st_size
    assert size < (0.9 if way == "without_ends" else 0.35)


@pytest.fixture
def student(tiny_teacher: Path, tiny_labels: LabelSet, tmp_path: Path) -> Path:
    """Folder of a random BiLSTM whose tags vary."""
    tokenizer: Any = load_tokenizer(str(tiny_teacher))
    model = build_student(
        StudentConfig(embedding=16, hidden=16),
        vocab_size=len(tokenizer),
        teacher_width=32,
        task=tagging_task(tiny_labels),
        pad_token_id=tokenizer.pad_token_id,
        max_length=48,
        embeddings=None,
        seed=1,
    )
    with torch.no_grad():
        for parameter in model.groups()["head"]:
            parameter.mul_(30)
    save_student(model, tokenizer, tmp_path / "student", card="# A student\n")
    return tmp_path / "student"


@pytest.fixture
def own_words(tiny: MakeConfig, student: Path, tmp_path: Path) -> Any:
    """A config whose dev tags are what the student says: it scores 1 there."""
    config = tiny("run")
    scorer = SplitScorer(config, str(student), "dev")
    model = load_student(student, scorer.task.model_class)
    said = scorer.scorer.predict(FinishedModel(model, scorer.mapping))
    sentences = scorer.task.read(config.data.dev, "dev").sentences
    lines = []
    for sentence, tags in zip(sentences, said, strict=True):
        assert isinstance(sentence.content, list | tuple)
        lines += [f"{word} {tag}" for word, tag in zip(sentence.content, tags, strict=True)]
        lines.append("")
    path = tmp_path / "own.conll"
    path.write_text("\n".join(lines), encoding="utf-8")

    def make(**settings: Any) -> Any:
        dev = {"path": str(path), "language": "en"}
        train = {"path": config.data.train[0].path, "language": "{stem}"}
        return tiny(
            "run",
            data={"dev": dev, "train": train},
            export=settings,
            evaluation={"metric": "entity_f1", "latency_length": 8},
        )

    return make


def test_export_writes_what_it_has_checked_and_says_it_in_the_card(
    own_words: Any, student: Path, tmp_path: Path
):
    result = export(own_words(max_loss=100), str(student))
    facts = result["student"]
    assert facts["torch"]["score"] == 1
    assert set(facts) == {"torch", "onnx", "onnx-int8", "bfloat16"}
    assert facts["onnx"]["difference"] < 1e-4 < facts["onnx-int8"]["difference"]
    assert facts["onnx-int8"]["way"] == "dynamic"
    for name, graph in GRAPHS.items():
        assert (student / graph).stat().st_size == facts[name]["bytes"]
    half: Any = load_student(student / "bfloat16", "AutoModelForTokenClassification")
    assert half.dtype == torch.bfloat16
    weights = sum(path.stat().st_size for path in student.glob("*.safetensors"))
    assert facts["bfloat16"]["bytes"] < 0.6 * weights
    assert json.loads((student / "export.json").read_text())["runtimes"] == facts
    card = (student / "README.md").read_text()
    assert card.startswith("# A student")
    assert card.count("## Runtimes") == 1
    export(own_words(formats=["bfloat16"]), str(student))  # what is no longer asked for goes
    assert not (student / "onnx").exists()
    again = (student / "README.md").read_text()
    assert again.count("## Runtimes") == 1
    assert "onnx" not in again.split("## Runtimes")[1].lower()[:99]
    assert not list(student.glob(".export*"))


def test_int8_that_loses_too_much_goes_on_to_the_next_way(own_words: Any, student: Path):
    config = own_words(max_loss=20)
    # a unit that is always 0, with weights that leave one scale for all units nothing to tell
    model: Any = load_student(student, "AutoModelForTokenClassification")
    with torch.no_grad():
        model.projection.weight[0] = 1e4
        model.projection.bias[0] = -1e8
        model.classifier.weight[:, 0] = 0
    model.save_pretrained(student)
    facts = export(config, str(student))["student"]
    assert facts["torch"]["score"] > 0.5
    lost = {its["way"]: its["loss"] for its in facts["onnx-int8"]["tried"]}
    assert list(lost) == ["dynamic", "per_channel"]
    assert facts["onnx-int8"]["way"] == "per_channel"
    assert lost["dynamic"] > 20 >= lost["per_channel"]


def test_int8_is_refused_where_every_way_loses_too_much(own_words: Any, student: Path):
    facts = export(own_words(max_loss=0, formats=["onnx-int8"]), str(student))["student"]
    its = facts["onnx-int8"]
    assert [one["way"] for one in its["tried"]] == list(WAYS)
    assert all(one["loss"] > 0 for one in its["tried"])
    assert "export.max_loss" in its["refused"]
    assert not (student / GRAPHS["onnx-int8"]).exists()
    with pytest.raises(ConfigError, match="export refused it: every way of int8"):
        load_runtime(str(student), "AutoModelForTokenClassification", "onnx-int8", 1)


def test_predictions_are_the_same_in_onnx(own_words: Any, student: Path, tiny_text: Path):
    export(own_words(max_loss=100, formats=["onnx"]), str(student))
    lines = (tiny_text / "transfer" / "en.txt").read_text().splitlines()[:200]
    sentences = [Sentence(str(i), "en", line) for i, line in enumerate(lines)]
    task = task_of_model(str(student))
    torch_says, onnx_says = (
        Predictor(str(student), task, 1, "cpu", runtime).predict(sentences)
        for runtime in ("torch", "onnx")
    )
    assert sum(len(record["entities"]) for record in torch_says) > 50
    scores = [
        [entity.pop("score") for record in said for entity in record["entities"]]
        for said in (torch_says, onnx_says)
    ]
    assert torch_says == onnx_says
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_a_runtime_that_was_not_exported_ends_before_ray_starts(student: Path, tmp_path: Path):
    (tmp_path / "in.txt").write_text("Anna\n")
    with pytest.raises(XdrayError, match=r"no onnx/model.onnx in it; `xdray export CONFIG`"):
        predict_files(
            str(student), [str(tmp_path / "in.txt")], str(tmp_path / "o.jsonl"), runtime="onnx"
        )
    assert not (tmp_path / "o.jsonl").exists()


def test_a_run_without_a_student_is_refused(tiny: MakeConfig):
    with pytest.raises(ConfigError, match="run distill first"):
        export(tiny("nowhere"))


def test_export_settings_may_change_in_a_run_folder(tiny: MakeConfig):
    changed = changed_fields(tiny("a"), tiny("a", export={"max_loss": 2}))
    assert changed
    assert all(its.startswith("export.") for its in changed)


def test_an_encoder_without_a_head_is_judged_by_its_vectors(
    tiny: MakeConfig, tmp_path: Path, tiny_teacher: Path
):
    model = transformers.AutoModel.from_pretrained(tiny_teacher)
    model.save_pretrained(tmp_path / "encoder")
    load_tokenizer(str(tiny_teacher)).save_pretrained(tmp_path / "encoder")
    config = tiny("run")
    splits: dict[str, Any] = {"train": [], "dev": [], "test": []}
    encoding = config.model_copy(
        update={
            "task": config.task.model_copy(update={"kind": "encoding"}),
            "data": config.data.model_copy(update=splits),
        }
    )
    facts = export(encoding, str(tmp_path / "encoder"))["student"]
    assert facts["onnx"]["score"] == pytest.approx(1, abs=1e-5)
    assert 0.9 < facts["onnx-int8"]["score"] < 1
    graph = load_runtime(str(tmp_path / "encoder"), "AutoModel", "onnx", 1)
    assert torch.isfinite(graph(**_batch(300, 2, 5)).last_hidden_state).all()
