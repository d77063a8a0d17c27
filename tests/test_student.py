import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tagging_task
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from xdray.config import StudentConfig
from xdray.embeddings import SVD_ROWS, aligned_embeddings, svd_embeddings
from xdray.errors import ConfigError, ExportError
from xdray.labels import LabelSet
from xdray.modeling_bilstm import (
    BiLstmConfig,
    BiLstmForTokenClassification,
    FastDropout,
    reversed_positions,
)
from xdray.saving import load_student, save_student
from xdray.student import Student, build_student

LABELS = LabelSet(("O", "B-LOC", "I-LOC"))
TAGGER = "AutoModelForTokenClassification"
WORDS = ["Anna", "lives", "in", "New", "York", ".", "paris", "##s"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
WIDTH = 12
SHAPES: dict[str, dict[str, Any]] = {
    "bilstm": {"embedding": 6, "hidden": 5, "layers": 2},
    "transformer": {"embedding": 6, "hidden": 8, "layers": 3, "heads": 2, "intermediate": 10},
}


def make(
    kind: str = "bilstm", *, seed: int = 0, embeddings: Tensor | None = None, **shape: Any
) -> Student:
    return build_student(
        StudentConfig.model_validate({"kind": kind, **SHAPES[kind], **shape}),
        vocab_size=len(VOCABULARY),
        teacher_width=WIDTH,
        task=tagging_task(LABELS),
        pad_token_id=0,
        max_length=16,
        embeddings=embeddings,
        seed=seed,
    )


def inside(student: Student) -> Any:
    return student.model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    raw = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=False)  # type: ignore[assignment]
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        padding_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )


def ragged() -> tuple[Tensor, Tensor, list[int]]:
    lengths = [7, 3, 1, 5]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, len(VOCABULARY), mask.shape, generator=generator) * mask
    return ids, mask.long(), lengths


# ---- the BiLSTM


@pytest.mark.parametrize("lengths", [[7, 3, 1, 5], [7, 7, 7, 7]])
def test_bilstm_repeats_torchs_packed_lstm_in_states_and_gradients(lengths: list[int]):
    model: Any = BiLstmForTokenClassification(
        BiLstmConfig(
            vocab_size=30,
            embedding_size=6,
            hidden_size=5,
            num_layers=2,
            projection_size=WIDTH,
            dropout=0.0,
        )
    )
    packed = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True)
    ours, theirs = [], []
    for number, layer in enumerate(model.encoder):
        for lstm, suffix in ((layer.ahead, ""), (layer.back, "_reverse")):
            for name, parameter in lstm.named_parameters():
                with torch.no_grad():
                    parameter.normal_()
                ours.append(parameter)
                theirs.append(getattr(packed, name.replace("l0", f"l{number}{suffix}")))
                theirs[-1].data.copy_(parameter)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 30, mask.shape)
    table = model.embeddings.weight.detach().clone().requires_grad_()

    rows = pack_padded_sequence(
        nn.functional.embedding(ids, table), lengths, batch_first=True, enforce_sorted=False
    )
    states, _ = pad_packed_sequence(packed(rows)[0], batch_first=True)
    expected = model.projection(states)[mask]
    expected.sin().sum().backward()
    projection_gradient = model.projection.weight.grad.clone()
    model.zero_grad()
    found = model.encode(ids, mask)[mask]
    found.sin().sum().backward()

    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.embeddings.weight.grad, table.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        model.projection.weight.grad, projection_gradient, atol=1e-6, rtol=1e-4
    )
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one.grad, theirs_one.grad, atol=1e-6, rtol=1e-4)


def test_reversal_of_a_time_major_batch_leaves_padding_last():
    # sentences a b c and x, as rows a x b - c -; reversed: c x b - a -
    rows = reversed_positions(torch.tensor([[1, 1, 1], [1, 0, 0]])).tolist()
    assert ["axb-c-"[row] for row in rows] == list("cxb-a-")
    assert sorted(rows) == list(range(6))
    assert [rows[row] for row in rows] == list(range(6))


def test_bilstm_scores_a_batch_without_mask_as_all_real():
    model = inside(make().eval())
    ids, _, _ = ragged()
    whole = model(ids).logits
    torch.testing.assert_close(whole, model(ids, torch.ones_like(ids)).logits)
    assert not torch.allclose(whole[1, 0], model(ids, ids.ne(0)).logits[1, 0])


def test_bilstm_loss_is_the_mean_over_labelled_tokens():
    model = inside(make().eval())
    ids, mask, _ = ragged()
    labels = torch.where(mask.bool(), ids % 3, -100)
    output = model(ids, mask, labels=labels)
    picked = [
        -output.logits[b, t].log_softmax(-1)[labels[b, t]].item()
        for b in range(4)
        for t in range(7)
        if mask[b, t]
    ]
    assert output.loss.item() == pytest.approx(sum(picked) / len(picked), rel=1e-5)
    as_tuple = model(ids, mask, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[1], output.logits)


def test_bilstm_opens_forget_gates_and_keeps_recurrence_orthogonal():
    encoder = inside(make()).encoder
    for parameters in encoder[0].ahead, encoder[1].back:
        assert parameters.bias_ih_l0.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10
        recurrence = parameters.weight_hh_l0
        torch.testing.assert_close(recurrence.T @ recurrence, torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SHAPES)
def test_gelu_projection_never_falls_below_gelus_floor(kind: str):
    student = make(kind, projection="gelu")
    projection: Any = inside(student).projection if kind == "bilstm" else student.projection
    layer = projection if kind == "bilstm" else projection[0]
    with torch.no_grad():
        layer.bias.fill_(-3.0)
    hidden, _ = student.eval()(*ragged()[:2])
    assert -0.17 < hidden.min() < 0
    assert hidden.max() < 0


def test_gelu_head_stands_between_the_projection_and_the_head():
    student = make(projection="gelu_head").eval()
    model = inside(student)
    with torch.no_grad():
        model.projection.bias.fill_(-3.0)
    hidden, logits = student(*ragged()[:2])
    assert hidden.max() < -0.17
    torch.testing.assert_close(logits, model.classifier(nn.functional.gelu(hidden)))


def test_dropout_drops_the_share_asked_for_and_keeps_the_mean():
    dropout = FastDropout(0.3)
    torch.manual_seed(0)
    entries = torch.full((1001, 999), 2.0, requires_grad=True)
    dropped = dropout(entries)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.002)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 2 / 0.7])
    neighbours = (dropped[:, 1:] == 0) & (dropped[:, :-1] == 0)
    assert neighbours.float().mean().item() == pytest.approx(0.09, abs=0.002)
    assert not torch.equal(dropped, dropout(entries))
    dropped.sum().backward()
    torch.testing.assert_close(entries.grad, dropped.detach() / 2.0)
    assert torch.equal(dropout.eval()(entries), entries)


# ---- both kinds


@pytest.mark.parametrize("kind", SHAPES)
def test_tokens_under_the_mask_change_nothing(kind: str):
    student = make(kind).eval()
    ids, mask, _ = ragged()
    hidden, logits = student(ids, mask)
    garbage = torch.where(mask.bool(), ids, 9)
    longer = nn.functional.pad(garbage, (0, 4), value=8), nn.functional.pad(mask, (0, 4))
    other_hidden, other_logits = student(*longer)
    real = mask.bool()
    assert hidden.shape == (4, 7, WIDTH)
    assert logits.shape == (4, 7, 3)
    torch.testing.assert_close(other_hidden[:, :7][real], hidden[real], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(other_logits[:, :7][real], logits[real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", SHAPES)
def test_student_in_training_and_its_hugging_face_model_give_the_same_logits(kind: str):
    student = make(kind, projection="linear").eval()
    ids, mask, _ = ragged()
    hidden, logits = student(ids, mask)
    types = torch.zeros_like(ids)
    output = inside(student)(ids, mask, token_type_ids=types, output_hidden_states=True)
    assert torch.equal(output.logits, logits)
    if kind == "bilstm":
        assert torch.equal(output.hidden_states[0], hidden)
        torch.testing.assert_close(inside(student).classifier(hidden), logits)
    else:
        assert student.projection is not None
        torch.testing.assert_close(student.projection(output.hidden_states[-1]), hidden)


def test_groups_run_from_the_top_down():
    assert list(make("bilstm").groups()) == ["head", "projection", "encoder", "embedding"]
    expected = ["head", "projection", "layer_3", "layer_2", "layer_1", "embedding"]
    student = make("transformer")
    assert list(student.groups()) == expected
    lowest = inside(student).electra.encoder.layer[0].attention.self.query.weight
    assert any(parameter is lowest for parameter in student.groups()["layer_1"])
    widening = inside(student).electra.embeddings_project.weight
    assert any(parameter is widening for parameter in student.groups()["embedding"])


@pytest.mark.parametrize("kind", SHAPES)
def test_each_parameter_is_in_exactly_one_group(kind: str):
    student = make(kind)
    grouped = [id(parameter) for group in student.groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in student.parameters())


def test_transformer_as_wide_as_its_embeddings_has_no_widening_to_group():
    student = make("transformer", embedding=8)
    grouped = sum(len(group) for group in student.groups().values())
    assert grouped == len(list(student.parameters()))


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_follow_the_seed_and_nothing_drawn_before(kind: str):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(kind, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = make(kind, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = make(kind, seed=6).state_dict()
    assert not torch.equal(first["model.classifier.weight"], other["model.classifier.weight"])


@pytest.mark.parametrize("kind", SHAPES)
def test_reset_head_renews_the_head_in_place_and_nothing_else(kind: str):
    student = make(kind)
    head = inside(student).classifier.weight
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.reset_head(7)
    first = head.detach().clone()
    assert inside(student).classifier.weight is head
    changed = {n for n, v in student.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"model.classifier.weight"}  # its bias starts from zero
    student.reset_head(8)
    assert not torch.equal(head, first)
    student.reset_head(7)
    assert torch.equal(head, first)


def test_transformer_starts_from_the_embeddings_given():
    table = torch.arange(len(VOCABULARY) * 6.0).view(-1, 6)
    student = make("transformer", embeddings=table)
    assert torch.equal(inside(student).get_input_embeddings().weight, table)


def test_bilstm_starts_from_the_embeddings_given_at_size_one():
    table = 0.01 * torch.arange(len(VOCABULARY) * 6.0).view(-1, 6)
    weight = inside(make(embeddings=table)).get_input_embeddings().weight.detach()
    assert weight.square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(weight / weight[1, 0], table / table[1, 0])


# ---- SVD


def test_svd_embeddings_are_u_times_s_of_the_kept_rows_in_the_students_order():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 8, generator=generator) + 1.0  # off centre: PCA would differ
    kept = torch.tensor([31, 2, 17, 5, 39, 0, 21, 8, 12, 30])
    found = svd_embeddings(table, 3, kept)
    u, s, _ = torch.linalg.svd(table[kept].double(), full_matrices=False)
    expected = u[:, :3] * s[:3]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.abs().double(), expected.abs(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        (found.double() @ found.double().T), expected @ expected.T, atol=1e-4, rtol=1e-5
    )


def test_svd_of_a_table_of_several_chunks_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(SVD_ROWS + 10, 4, generator=generator)
    found = svd_embeddings(table, 2, torch.arange(SVD_ROWS + 10)).double()
    u, s, _ = torch.linalg.svd(table.double(), full_matrices=False)
    ends = torch.tensor([0, 1, SVD_ROWS - 1, SVD_ROWS, SVD_ROWS + 9])
    expected = (u[:, :2] * s[:2])[ends]
    torch.testing.assert_close(
        found[ends] @ found[ends].T, expected @ expected.T, atol=1e-4, rtol=1e-5
    )


def test_largest_entry_of_each_singular_vector_of_an_svd_is_positive():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 8, generator=generator)
    found = svd_embeddings(table, 8, torch.arange(50))
    vectors = torch.linalg.lstsq(table, found).solution
    assert all(column[column.abs().argmax()] > 0 for column in vectors.T)


def test_svd_wider_than_the_teacher_is_refused():
    with pytest.raises(ConfigError, match="9, but the teacher's token embeddings are 8 wide"):
        svd_embeddings(torch.zeros(20, 8), 9, torch.arange(20))


# ---- folders


@pytest.mark.parametrize("kind", SHAPES)
def test_reloaded_student_repeats_its_logits(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    student = make(kind).eval()
    save_student(student, tokenizer, tmp_path / "deep" / "student", "# A card\n")
    folder = tmp_path / "deep" / "student"
    loaded = load_student(folder, TAGGER)
    ids, mask, _ = ragged()
    assert not loaded.training
    assert torch.equal(loaded(ids, mask).logits, inside(student)(ids, mask).logits)
    assert loaded.config.id2label == LABELS.id2label
    assert (folder / "README.md").read_text() == "# A card\n"
    assert (folder / "model.safetensors").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["student"]
    reread = AutoTokenizer.from_pretrained(folder)
    assert reread("Anna lives in York").input_ids == [2, 5, 6, 7, 9, 3]
    assert (reread.padding_side, reread.model_max_length) == ("right", 16)
    assert tokenizer.padding_side == "left"  # the caller's own is not touched


def test_save_replaces_a_student_and_a_failed_save_leaves_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    ids, mask, _ = ragged()
    for stray in ("0" * 32, f"{'f' * 32}.old"):  # of saves that were killed
        (tmp_path / f".student.{stray}").mkdir()
    for seed in (0, 1):
        save_student(make(seed=seed), tokenizer, tmp_path / "student")
    with pytest.raises(UnicodeEncodeError):
        save_student(make(seed=2), tokenizer, tmp_path / "student", "\ud800")
    expected = inside(make(seed=1).eval())(ids, mask).logits
    assert torch.equal(load_student(tmp_path / "student", TAGGER)(ids, mask).logits, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_folder_with_missing_weights_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    folder = tmp_path / "student"
    save_student(make("transformer"), tokenizer, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ExportError, match=r"weights are missing: .*layer\.3"):
        load_student(folder, TAGGER)


def test_folder_without_a_student_is_named(tmp_path: Path):
    with pytest.raises(ExportError, match="no student can be loaded"):
        load_student(tmp_path, TAGGER)
    with pytest.raises(ExportError, match="nowhere: no student can be loaded"):
        load_student(tmp_path / "nowhere", TAGGER)


PIPELINES = """
import json, sys
from transformers import pipeline
answers = {}
for kind in ("bilstm", "transformer"):
    trust = {"trust_remote_code": True} if kind == "bilstm" else {}
    tagger = pipeline("token-classification", model=sys.argv[1] + "/" + kind, **trust)
    batch = tagger(["Anna lives in New York .", "York"], batch_size=2)
    answers[kind] = [[(t["entity"], t["index"], float(t["score"])) for t in s] for s in batch]
    tagger("York " * 40)  # longer than max_length: cut, not refused
assert not [name for name in sys.modules if name.split(".")[0] == "xdray"]
print(json.dumps(answers))
"""


def test_pipeline_runs_both_kinds_in_a_process_that_never_imports_xdray(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    rows = {"long": [2, 5, 6, 7, 8, 9, 10, 3], "short": [2, 9, 3]}
    expected = {}
    for kind in SHAPES:
        student = make(kind).eval()
        with torch.no_grad():
            inside(student).classifier.bias.copy_(torch.tensor([-9.0, 0.0, 0.0]))  # no token is O
        save_student(student, tokenizer, tmp_path / kind)
        expected[kind] = []
        for row in rows.values():
            logits = inside(student)(torch.tensor([row])).logits[0]
            best = logits.softmax(-1).max(-1)
            inner = range(1, len(row) - 1)
            tags = [LABELS.names[int(best.indices[i])] for i in inner]
            expected[kind].append(
                [
                    (tag, i, pytest.approx(best.values[i].item(), abs=1e-5))
                    for tag, i in zip(tags, inner, strict=True)
                ]
            )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PIPELINES, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in SHAPES:
        assert [[tuple(token) for token in sentence] for sentence in found[kind]] == expected[kind]


def test_aligned_embeddings_are_the_nearest_to_the_start_that_the_teachers_give():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 12, generator=generator)
    turned = table @ torch.randn(12, 12, generator=generator)  # the same in another basis
    kept = torch.tensor([5, 0, 59])
    torch.testing.assert_close(
        aligned_embeddings(table, turned, kept), turned[kept], rtol=1e-3, atol=1e-3
    )
    start = torch.randn(60, 4, generator=generator)
    found = aligned_embeddings(table, start, torch.arange(60))
    reduced = svd_embeddings(table, 4, torch.arange(60))
    best = torch.linalg.lstsq(reduced, start).solution
    torch.testing.assert_close(found, reduced @ best, rtol=1e-3, atol=1e-3)
