"""teacher: every family, layers, label order, what is no teacher, memory that runs out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import tagging_task
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from xdray.errors import ClusterError, ConfigError
from xdray.finetuning import TeacherLearner, save_finetuned
from xdray.labels import LabelSet
from xdray.teacher import (
    DTYPES,
    Teacher,
    best_dtype,
    embedding_table,
    load_teacher,
)
from xdray.tokenised import layer_of
from xdray.tokens import load_tokenizer
from xdray.weights import teacher_fingerprint

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2")
MakeTeacher = Callable[..., Path]


def batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids, padded with 0, and their mask."""
    ids = torch.randint(10, 90, (len(lengths), max(lengths)), generator=torch.manual_seed(seed))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_neighbours_change_nothing(family: str, make_teacher: MakeTeacher) -> None:
    teacher = load_teacher(str(make_teacher(family)), tagging_task(), torch.float32)
    ids, mask = batch([9, 4, 1])
    logits, hidden = teacher.forward(ids, mask, (0, 1, 2))
    for row, length in enumerate([9, 4, 1]):
        alone = teacher.model(input_ids=ids[row : row + 1, :length], output_hidden_states=True)
        torch.testing.assert_close(logits[row, :length], alone.logits[0], atol=1e-5, rtol=1e-4)
        for layer in (0, 1, 2):
            expected = alone.hidden_states[layer][0]
            torch.testing.assert_close(hidden[layer][row, :length], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_what_its_own_module_puts_out(family: str, make_teacher: MakeTeacher) -> None:
    teacher = load_teacher(str(make_teacher(family)), tagging_task(), torch.float32)
    stacks: list[Any] = [m for m in teacher.model.modules() if isinstance(m, nn.ModuleList)]
    seen: dict[int, Any] = {}
    stacks[0][0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update({0: args[0] if args else kwargs["hidden_states"]}),
        with_kwargs=True,
    )
    for layer in (1, 2):
        stacks[0][layer - 1].register_forward_hook(
            lambda module, args, out, layer=layer: seen.update(
                {layer: out[0] if isinstance(out, tuple) else out}
            )
        )
    _, hidden = teacher.forward(*batch([7, 3]), (2, 0, 1))
    assert (teacher.width, teacher.num_layers, set(hidden)) == (32, 2, {0, 1, 2})
    for layer, states in hidden.items():
        assert states.shape == (2, 7, 32)
        assert torch.equal(states, seen[layer_of(layer)])


def test_logits_come_in_our_label_order(make_teacher: MakeTeacher, tmp_path: Path) -> None:
    theirs, ours = ["I-LOC", "O", "B-LOC"], LabelSet(("O", "B-LOC", "I-LOC"))
    folder = str(make_teacher("bert", tmp_path / "t", labels=theirs))
    own, _ = load_teacher(folder, tagging_task(), torch.float32).forward(*batch([5]))
    mapped, _ = load_teacher(folder, tagging_task(ours), torch.float32).forward(*batch([5]))
    assert torch.equal(mapped[..., 0], own[..., 1])
    assert torch.equal(mapped[..., 1], own[..., 2])
    assert torch.equal(mapped[..., 2], own[..., 0])
    with pytest.raises(ConfigError, match=r"only there: \['B-LOC', 'I-LOC'\]"):
        load_teacher(folder, tagging_task(LabelSet(("O", "B-PER", "I-PER"))), torch.float32)


def test_bfloat16_gives_float32_logits_close_to_those_of_float32(tiny_teacher: Path) -> None:
    exact, _ = load_teacher(str(tiny_teacher), tagging_task(), torch.float32).forward(
        *batch([5, 8])
    )
    rough, hidden = load_teacher(str(tiny_teacher), tagging_task(), torch.bfloat16).forward(
        *batch([5, 8]), (1,)
    )
    assert rough.dtype == torch.float32
    assert hidden[1].dtype == torch.bfloat16
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact[1], rough[1], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_the_teacher_lacks_is_refused(layer: int, tiny_teacher: Path) -> None:
    teacher = load_teacher(str(tiny_teacher), tagging_task(), torch.float32)
    with pytest.raises(ConfigError, match=rf"layer {layer}: the teacher has layers 1 to 2"):
        teacher.forward(*batch([3]), (1, layer))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "abacus"}')


def _without_head(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, "a folder that is no model: it holds no config.json"),
        (_without_weights, "it holds no weights, expected model.safetensors"),
        (_pickled, "its weights are pytorch_model.bin, a pickle, expected model.safetensors"),
        (_cut_weights, "no model for tagging can be loaded"),
        (_bad_config, "not a model's config.json"),
        (_unknown_type, "no model for tagging can be loaded"),
        (_without_head, "its weights lack classifier.bias, classifier.weight"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused(
    spoil: Callable[[Path], None], message: str, make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    folder = make_teacher("bert", tmp_path / "t")
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        load_teacher(str(folder), tagging_task(), torch.float32)


def test_loading_prints_nothing(tiny_teacher: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_teacher(str(tiny_teacher), tagging_task(), torch.float32)
    assert capfd.readouterr() == ("", "")


def test_fingerprint_follows_weights_and_config_and_not_the_place(
    make_teacher: MakeTeacher, tmp_path: Path
) -> None:
    folder = make_teacher("bert", tmp_path / "t")
    first = teacher_fingerprint(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert teacher_fingerprint(str(tmp_path / "copy")) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    assert teacher_fingerprint(str(folder)) != first
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] += 1e-3
    save_file(weights, path, {"format": "pt"})
    assert teacher_fingerprint(str(tmp_path / "copy")) != first


class SmallMemory(nn.Module):
    """A model of which only batches of so many tokens fit the memory; notes those it is given."""

    def __init__(self, model: nn.Module, tokens: int) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens
        self.config = model.config
        self.asked: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        self.asked.append(tuple(input_ids.shape))
        if input_ids.numel() > self.tokens:
            raise torch.OutOfMemoryError("tried to allocate")
        return self.model(input_ids=input_ids, **kwargs)


def test_a_batch_beyond_the_memory_goes_on_in_halves_and_is_counted(tiny_teacher: Path) -> None:
    whole = load_teacher(str(tiny_teacher), tagging_task(), torch.float32)
    small = SmallMemory(whole.model, tokens=24)
    teacher = Teacher(cast("Any", small), whole.label_mapping, "cpu")
    ids, mask = batch([6, 8, 8, 5, 8, 7, 2])
    expected, states = whole.forward(ids, mask, (1,))
    for _ in range(2):
        logits, hidden = teacher.forward(ids, mask, (1,))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(hidden[1], states[1], atol=1e-5, rtol=1e-4)
    # 56 tokens fail, once: from then on no batch above 28 is tried
    halves = [(3, 8), (2, 8), (2, 8)]
    assert small.asked == [(7, 8), *halves, *halves]
    assert teacher.oom_halvings == 4
    small.tokens = 7
    with pytest.raises(ClusterError, match="one sentence of 8 tokens does not fit"):
        teacher.forward(ids, mask)


@pytest.mark.parametrize(("bfloat16", "best"), [(0.5, "bfloat16"), (0.95, "float32")])
def test_the_best_dtype_is_the_one_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, best: str
) -> None:
    assert best_dtype("cpu", 64) in DTYPES  # measured here
    monkeypatch.setattr(
        "xdray.teacher._layer_seconds", lambda width: {"float32": 1.0, "bfloat16": bfloat16}
    )
    assert best_dtype("cpu", 64) == best


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of a driver without a GPU")
def test_a_driver_without_a_gpu_can_plan_for_a_cluster_with_some() -> None:
    assert best_dtype("cuda") == "bfloat16"


def test_embedding_table_is_the_one_in_the_file(make_teacher: MakeTeacher) -> None:
    folder = make_teacher("electra", embedding_size=16)
    table = load_file(folder / "model.safetensors")["electra.embeddings.word_embeddings.weight"]
    assert table.shape[1] == 16
    assert torch.equal(embedding_table(str(folder), tagging_task()), table)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learner_has_each_parameter_in_one_group(family: str, make_teacher: MakeTeacher) -> None:
    learner = TeacherLearner.from_encoder(
        str(make_teacher(family)), tagging_task(LabelSet(("O", "B-X", "I-X"))), seed=1
    )
    groups = learner.groups()
    assert list(groups) == ["head", "encoder", "embedding"]
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in learner.parameters())
    assert [tuple(p.shape) for p in groups["head"]] == [(3, 32), (3,)]
    assert len(groups["embedding"]) == 1
    ids, mask = batch([4, 2])
    hidden, logits = learner(ids, mask)
    assert (hidden.shape, logits.shape) == ((2, 4, 32), (2, 4, 3))


def test_a_fresh_head_follows_from_its_seed(tiny_teacher: Path) -> None:
    task = tagging_task(LabelSet(("O", "B-X", "I-X")))
    first, again, other = (
        TeacherLearner.from_encoder(str(tiny_teacher), task, seed).groups()["head"][0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std() < 0.1


def test_a_finetuned_teacher_is_saved_with_its_weights_labels_and_tokenizer(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    task = tagging_task(LabelSet(("O", "B-X", "I-X")))
    learner = TeacherLearner.from_encoder(str(tiny_teacher), task, seed=5)
    stage = tmp_path / "finetuning" / "01-finetune"
    stage.mkdir(parents=True)
    save_file(learner.state_dict(), stage / "student.safetensors")
    (stage / "stage.json").write_text("{}")
    save_finetuned(str(tiny_teacher), task, tmp_path / "finetuning", tmp_path / "teacher")
    teacher = load_teacher(str(tmp_path / "teacher"), task, torch.float32)
    learner.eval()
    torch.testing.assert_close(teacher.forward(*batch([6]))[0], learner(*batch([6]))[1])
    saved, original = load_tokenizer(str(tmp_path / "teacher")), load_tokenizer(str(tiny_teacher))
    assert saved.get_vocab() == original.get_vocab()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finetuning", "teacher"]
