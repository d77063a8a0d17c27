"""What a folder says of its model, and what is no model."""

import json
from pathlib import Path
from typing import Any

import pytest

from xdray.errors import ConfigError
from xdray.header import read_header, resolve_model


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta"])
def test_the_header_is_what_transformers_reads(family: str, make_teacher):
    from transformers import AutoConfig

    folder = make_teacher(family)
    config: Any = AutoConfig.from_pretrained(folder)
    header = read_header(str(folder))
    assert (header.width, header.num_layers) == (config.hidden_size, config.num_hidden_layers)
    assert header.vocab_size == config.vocab_size
    assert header.tags == tuple(config.id2label[index] for index in range(len(config.id2label)))


def test_roberta_reads_fewer_tokens_than_it_has_positions(tmp_path: Path):
    values = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    values |= {"max_position_embeddings": 514, "pad_token_id": 1}
    for kind, tokens in (("xlm-roberta", 512), ("bert", 514)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **values}))
        assert read_header(str(tmp_path)).max_positions == tokens


def test_labels_come_in_the_order_of_their_ids(tmp_path: Path):
    values = {
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 9,
        "id2label": {str(index): f"T{index}" for index in (10, *range(10))},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_header(str(tmp_path)).tags == tuple(f"T{index}" for index in range(11))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": "bert"}'])
def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_header(str(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": ["bert"]},
        {"hidden_size": "8"},
        {"hidden_size": -8},
        {"hidden_size": True},
        {"num_attention_heads": "2"},
        {"embedding_size": [4]},
        {"max_position_embeddings": "x", "model_type": "roberta"},
        {"id2label": ["O"]},
        {"id2label": {"x": "O"}},
        {"id2label": {"0": 5}},
        {"id2label": {"0": "O", "00": "B-X"}},
        {"id2label": {"9" * 5000: "O"}},
    ],
)
def test_a_header_of_other_types_is_refused_by_name(tmp_path: Path, changed: dict[str, Any]):
    values = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_header(str(tmp_path)).width == 8
    (tmp_path / "config.json").write_text(json.dumps({**values, **changed}))
    with pytest.raises(ConfigError, match=r"config\.json: "):
        read_header(str(tmp_path))
    (tmp_path / "config.json").write_text("[" * 5000)
    with pytest.raises(ConfigError, match=r"config\.json: not a model's"):
        read_header(str(tmp_path))


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(ConfigError, match="no Python package 'no_such_package'"):
        resolve_model("package:no_such_package/model")
