"""Predicted entities: offsets, windows, order, and the same as transformers' own pipeline."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeTeacher, tagging_task
from transformers import AutoTokenizer, pipeline

from xdray.config import StudentConfig
from xdray.corpus import Sentence
from xdray.errors import XdrayError
from xdray.labels import LabelSet
from xdray.prediction import Predictor, predict_files, task_of_model
from xdray.saving import load_student, save_student
from xdray.student import build_student
from xdray.tokens import encode, load_tokenizer
from xdray.words import split_words


@pytest.fixture(scope="module")
def student(
    tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_labels: LabelSet
) -> str:
    """Folder of a random BiLSTM student that reads 16 tokens at once."""
    tokenizer: Any = load_tokenizer(str(tiny_teacher))
    model = build_student(
        StudentConfig(embedding=16, hidden=16),
        vocab_size=len(tokenizer),
        teacher_width=32,
        task=tagging_task(tiny_labels),
        pad_token_id=tokenizer.pad_token_id,
        max_length=16,
        embeddings=None,
        seed=1,
    )
    with torch.no_grad():  # far from uniform, so that all tags come up
        for parameter in model.groups()["head"]:
            parameter.mul_(30)
        next(iter(model.groups()["embedding"])).mul_(30)
    folder = tmp_path_factory.mktemp("predict") / "student"
    save_student(model, tokenizer, folder)
    return str(folder)


def _text(tiny_text: Path) -> list[str]:
    return (tiny_text / "transfer" / "en.txt").read_text().splitlines()


def test_offsets_cut_the_entity_out_of_the_text(student: str, tiny_text: Path):
    lines = [f"  {line}\tend..." for line in _text(tiny_text)[:50]]
    records = Predictor(student, task_of_model(student), 1, "cpu").predict(
        [Sentence(str(i), "en", line) for i, line in enumerate(lines)]
    )
    entities = [(line, e) for line, r in zip(lines, records, strict=True) for e in r["entities"]]
    assert entities
    for line, entity in entities:
        assert line[entity["start"] : entity["end"]] == entity["text"] == entity["text"].strip()


def test_the_same_entities_as_the_pipeline_given_words(student: str, tiny_text: Path):
    # the pipeline reads one window, so texts are kept to the words that fit into it
    predictor = Predictor(student, task_of_model(student), 1, "cpu")
    texts = [" ".join(line.split()[:3]) for line in _text(tiny_text)[:100]]
    tagger: Any = pipeline(
        "token-classification",
        model=load_student(student, "AutoModelForTokenClassification"),
        tokenizer=AutoTokenizer.from_pretrained(student),
        aggregation_strategy="first",
    )
    records = predictor.predict([Sentence("x", "en", text) for text in texts])
    for text, record in zip(texts, records, strict=True):
        words = [text[a:b] for a, b in split_words(text, "punctuation")]
        theirs = [
            (entity["entity_group"], entity["start"], entity["end"])
            for entity in tagger([words], is_split_into_words=True, delimiter=" ")[0]
        ]
        joined = " ".join(words)
        mine = []
        for entity in record["entities"]:
            start = len(" ".join(split(text[: entity["start"]])))
            start += 1 if start else 0
            inner = " ".join(split(entity["text"]))
            mine.append((entity["type"], start, start + len(inner)))
            assert joined[start : start + len(inner)] == inner
        assert mine == theirs


def split(text: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text, "punctuation")]


def test_a_sentence_longer_than_the_model_reads_is_tagged_to_its_end(student: str):
    words = ("Anna met Bob in Rome , " * 20).split()
    predictor = Predictor(student, task_of_model(student), 1, "cpu")
    (record,) = predictor.predict([Sentence("1", "en", " ".join(words))])
    assert record["entities"][-1]["end"] > len(" ".join(words)) / 2


def test_words_without_tokens_behind_a_cut_do_not_shift_the_next_window(student: str):
    words = ["Anna", "met", "Bob", "in", "Rome", ","] * 8
    words[30:30] = ["\u200b"] * 4
    predictor: Any = Predictor(student, task_of_model(student), 1, "cpu")
    encoded = encode(predictor.tokenizer, [words], predictor.task.max_length)
    last = int(encoded.word_ids.max())  # the window ends there
    tags, scores = predictor.task._tag(predictor._logits, predictor.tokenizer, [words])
    assert len(tags[0]) == len(scores[0]) == len(words)
    rest, _ = predictor.task._tag(predictor._logits, predictor.tokenizer, [words[last + 1 :]])
    assert tags[0][last + 1 :] == rest[0]


def test_a_student_is_asked_with_the_word_rule_of_its_run(student: str, tmp_path: Path):
    assert task_of_model(student).word_rule == "punctuation"
    values = json.loads((Path(student) / "config.json").read_text())
    shutil.copytree(student, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps({**values, "word_rule": "whitespace"}))
    assert task_of_model(str(tmp_path)).word_rule == "whitespace"


def test_a_classifier_of_one_label_is_a_regressor_but_for_several_labels(
    make_teacher: MakeTeacher, tmp_path: Path
):
    folder = make_teacher("bert", tmp_path / "one")
    values = json.loads((folder / "config.json").read_text())
    values |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    for problem, kind in ((None, "regression"), ("multi_label_classification", "classification")):
        (folder / "config.json").write_text(json.dumps(values | {"problem_type": problem}))
        assert task_of_model(str(folder)).kind == kind


@pytest.mark.cluster
def test_files_come_out_in_the_order_they_went_in(
    student: str, tiny_text: Path, tmp_path: Path, ray_session: None
):
    lines = _text(tiny_text)[:90]
    source = tmp_path / "in.txt"
    source.write_text("\n".join([*lines[:40], "", *lines[40:]]))
    result = predict_files(student, [str(source)], str(tmp_path / "o.jsonl"), shard_sentences=20)
    records = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [record["text"] for record in records] == lines
    assert result["sentences"] == 90
    assert result["empty"] == 1
    assert result["entities"] == sum(len(record["entities"]) for record in records)
    predict_files(student, [str(source)], str(tmp_path / "o.parquet"), shard_sentences=50)
    table = pq.read_table(tmp_path / "o.parquet")
    assert table.column("text").to_pylist() == lines
    for row, record in zip(table.column("entities").to_pylist(), records, strict=True):
        assert [(e["type"], e["start"]) for e in row] == [
            (e["type"], e["start"]) for e in record["entities"]
        ]


@pytest.mark.parametrize(
    ("model", "source", "output", "message"),
    [
        (None, "in.txt", "out.csv", "expected .jsonl or .parquet"),
        (None, "missing.txt", "out.jsonl", "no such file"),
        ("./no-model", "in.txt", "out.jsonl", "no such folder"),
    ],
)
def test_wrong_arguments_leave_no_output(
    student: str, tmp_path: Path, model: str | None, source: str, output: str, message: str
):
    (tmp_path / "in.txt").write_text("Anna\n")
    with pytest.raises(XdrayError, match=message):
        predict_files(model or student, [str(tmp_path / source)], str(tmp_path / output))
    assert not (tmp_path / output).exists()
