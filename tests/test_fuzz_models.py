"""Fuzzed models and trials: each folder is loaded as it stands, or refused in one message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import changes, damaged, fuzzed, nest, outcome, spoiled
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForTokenClassification

from xdray.config import TaskConfig
from xdray.kinds import task_class
from xdray.task import Task
from xdray.teacher import Teacher, load_teacher
from xdray.tokens import load_tokenizer
from xdray.trial_files import all_trials, read_costs

quiet = pytest.mark.usefixtures("nothing_is_printed")

TAGS = ["O", "B-X", "I-X"]
WORDPIECES = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "id": number,
            "content": content,
            "special": True,
        }
        for number, content in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    ],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "##b": 5, "c": 6},
    },
}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "model_max_length": 32,
}


@fuzzed
@given(
    which=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_tokenizer(tmp_path_factory, which, spoil, data, done):
    """Its library panics over some, and prints that before the message comes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    files: dict[str, Any] = {"tokenizer.json": WORDPIECES, "tokenizer_config.json": SETTINGS}
    for name, values in files.items():
        its = data.draw(spoiled(values)) if spoil and name == which else values
        raw = nest(json.dumps(its)).encode()
        (folder / name).write_bytes(damaged(raw, done) if name == which else raw)
    found = outcome("tokenizer", (folder,), lambda: load_tokenizer(str(folder)))
    assert found is not None or done or spoil
    if found is not None and not (done or spoil):
        assert found("ab c")["input_ids"] == [2, 4, 5, 6, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = BertConfig(
        vocab_size=7,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label=dict(enumerate(TAGS)),
    )
    BertForTokenClassification(shape).save_pretrained(folder)
    return folder


def tagging() -> Task:
    its = TaskConfig(kind="tagging", labels=TAGS)
    return task_class("tagging")(
        labels=task_class("tagging").given_labels(its),
        metric="entity_f1",
        settings=its,
        word_rule="punctuation",
        max_length=32,
        scheme="IOB2",
    )


@quiet
@fuzzed
@given(
    which=st.sampled_from(["config.json", "model.safetensors"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_model(tmp_path_factory, model, which, spoil, data, done):
    folder = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors"):
        raw = (model / name).read_bytes()
        if name == which == "config.json" and spoil:
            raw = nest(json.dumps(data.draw(spoiled(json.loads(raw))))).encode()
        (folder / name).write_bytes(damaged(raw, done) if name == which else raw)
    ids = torch.tensor([[2, 4, 3]])

    def load() -> Teacher:
        return load_teacher(str(folder), tagging(), torch.float32)

    teacher = outcome("model", (folder,), load)
    assert teacher is not None or done or spoil
    if teacher is not None:
        assert sorted(teacher.label_mapping) == [0, 1, 2]
        if not (done or spoil):
            assert teacher.forward(ids, torch.ones_like(ids), (1,))[0].shape == (1, 3, 3)


COSTS = {
    "parameters": 9,
    "embedding_parameters": 4,
    "bytes": 36,
    "latency_ms": 1.5,
    "latency_ms_32": None,
}


@quiet
@fuzzed
@given(
    which=st.sampled_from(["trial.json", "reports.jsonl", "costs.json"]),
    spoil=st.booleans(),
    data=st.data(),
    done=changes,
)
def test_trials(tmp_path_factory, which, spoil, data, done):
    folder = tmp_path_factory.mktemp("search")
    values: dict[str, Any] = {
        "trial.json": {
            "id": "a",
            "number": 0,
            "course": "c",
            "fields": {"student.hidden": 8},
            "costs": COSTS,
            "status": "finished",
            "score": 0.5,
            "again": False,
        },
        "reports.jsonl": {"stage": "s", "epoch": 1, "done": 0.5, "score": 0.25, "seconds": 1.0},
        "costs.json": {"k": COSTS},
    }
    places = {name: folder / "trials" / "a" / name for name in values}
    places["costs.json"] = folder / "costs.json"
    places["trial.json"].parent.mkdir(parents=True)
    for name, its in values.items():
        its = data.draw(spoiled(its)) if spoil and name == which else its
        raw = nest(json.dumps(its)).encode() + b"\n"
        places[name].write_bytes(damaged(raw, done) if name == which else raw)

    def read() -> tuple[Any, Any]:
        return all_trials(folder), read_costs(places["costs.json"])

    found = outcome("trials", (which,), read)
    assert found is not None or done or spoil
    if found is not None:
        (trial,), costs = found
        numbers = [
            trial["number"],
            *(its["parameters"] for its in (trial["costs"], *costs.values())),
        ]
        assert all(isinstance(its, int) for its in numbers)
        assert trial["score"] is None or np.isfinite(trial["score"])
        assert all(np.isfinite(line["score"]) for line in trial["reports"])
        if not (done or spoil):
            assert trial == {**values["trial.json"], "reports": [values["reports.jsonl"]]}
            assert costs == values["costs.json"]
