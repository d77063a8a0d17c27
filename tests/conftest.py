"""Fixtures: a small text, teachers of every family with random weights, one real Ray a session."""

import os

# Before Ray, tokenizers and the hub client are imported: they read these once.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_DEDUP_LOGS="0",
    RAY_TRAIN_ENABLE_PRINT_PATCH="0",
    RAY_worker_niceness="0",  # else workers starve beside whatever else a machine does
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="agg",
)
os.environ.pop("RAY_ADDRESS", None)  # never join the cluster that a shell happens to name

import importlib
import json
import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faulty_files
import fsspec
import fuzzing
import pytest

from xdray.config import Config, TaskConfig
from xdray.configfile import make_config
from xdray.kinds import task_class
from xdray.labels import LabelSet, label_set_of
from xdray.sample import tiny_corpus
from xdray.task import Task

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2")
VOCABULARY = 400
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}


def tagging_task(labels: LabelSet | None = None, **settings: Any) -> Task:
    """Return a tagging task for tests; without labels, those of the model at hand."""
    values: dict[str, Any] = {
        "labels": labels or LabelSet(()),
        "metric": "entity_f1",
        "settings": TaskConfig(),
        "word_rule": "punctuation",
        "max_length": 48,
        "scheme": "IOB2",
    }
    return task_class("tagging")(**{**values, **settings})


MakeTeacher = Callable[..., Path]
MakeConfig = Callable[..., Config]


@pytest.fixture
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail where a test, or a library that it calls, prints anything."""
    yield
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/, dev/, test/ (LANGUAGE.conll) and transfer/ (LANGUAGE.txt), en and de."""
    folder = tmp_path_factory.mktemp("text")
    tiny_corpus(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_labels() -> LabelSet:
    """The tag set of `tiny_text`."""
    return label_set_of({"B-LOC", "B-ORG", "B-PER"})


@pytest.fixture(scope="session")
def make_teacher(
    tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, tiny_labels: LabelSet
) -> MakeTeacher:
    """Return a factory of 2-layer token classifiers with random weights, saved as folders.

    make_teacher(family, folder=None, labels=None, seed=0, **settings) -> folder. `family` is one
    of FAMILIES; its own kind of tokenizer is trained on `tiny_text`. `settings` go to the model's
    configuration.
    """

    def make(
        family: str,
        folder: Path | None = None,
        labels: Sequence[str] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForTokenClassification

        folder = folder or tmp_path_factory.mktemp(family)
        tokenizer = _tokenizer(family, tiny_text)
        tags = list(labels or tiny_labels.names)
        shape = dict(SHAPE)
        if family == "distilbert":
            shape = {"n_layers": 2, "dim": 32, "n_heads": 2}
        width = {"hidden_dim": 64} if family == "distilbert" else {"intermediate_size": 64}
        config = AutoConfig.for_model(
            family,
            vocab_size=len(tokenizer),
            max_position_embeddings=160,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(tags)),
            label2id={tag: index for index, tag in enumerate(tags)},
            **{**shape, **width, **settings},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForTokenClassification.from_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_teacher(make_teacher: MakeTeacher) -> Path:
    """Folder of a 2-layer BERT tagger with random weights and a WordPiece tokenizer."""
    return make_teacher("bert")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A targets store that all runs share."""
    return tmp_path_factory.mktemp("targets")


@pytest.fixture
def tiny(tmp_path: Path, tiny_at: MakeConfig) -> MakeConfig:
    """Return a maker of small configs: tiny(folder, section={...})."""
    return lambda folder, **sections: tiny_at(tmp_path / folder, **sections)


@pytest.fixture(scope="session")
def tiny_at(tiny_text: Path, tiny_teacher: Path, store: Path) -> MakeConfig:
    """Return a maker of small configs with their run folders anywhere."""

    def make(folder: Path, **sections: Any) -> Config:
        def labelled(split: str) -> dict[str, str]:
            return {"path": f"{tiny_text}/{split}/*.conll", "language": "{stem}"}

        values: dict[str, Any] = {
            "run": {"folder": str(folder)},
            "data": {split: labelled(split) for split in ("train", "dev", "test")},
            "tokens": {"max_length": 48},
            "teacher": {"model": str(tiny_teacher), "replicas": 1},  # auto starts no actor
            "targets": {"store": str(store), "shard_sentences": 32},
            "student": {"embedding": 8, "hidden": 8},
            "training": {"epochs": 2, "batch_tokens": 256, "autocast": "none"},
            "evaluation": {"bootstrap": 50},
            "cluster": {"threads": 1, "num_cpus": 2},
        }
        values["data"]["transfer"] = {"path": f"{tiny_text}/transfer/*.txt", "language": "{stem}"}
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return make_config(values, "test")

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One real Ray of two CPUs for all tests that ask; mark them `cluster`."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each curve in the one TensorBoard file of a folder, as they stand there.

    A file is records: length, its checksum, an Event, its checksum. The first says the version.
    """
    from tensorboardX.proto import event_pb2

    protos: Any = event_pb2
    (path,) = folder.iterdir()
    assert path.name.startswith("events.out.tfevents.")  # else TensorBoard does not see it
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(protos.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in events[1:]:
        for value in event.summary.value:
            curves.setdefault(value.tag, []).append((event.step, value.simple_value))
    return curves


@pytest.fixture(scope="session")
def faulty_ray(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    """The same Ray; here and in its workers faulty:// is a file system that fails as it is told."""
    folder = tmp_path_factory.mktemp("path")
    faulty_files.install(folder)
    fsspec.register_implementation("faulty", faulty_files.FaultyFiles, clobber=True)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), str(ROOT), before]))
    yield request.getfixturevalue("ray_session")
    os.environ["PYTHONPATH"] = before or ""


_FAULTS: list[tuple[str, int, int, int]] = []


@pytest.fixture
def tell_faults() -> Callable[..., None]:
    """Return a recorder of faults that happened: tell_faults(what, survived=0, refused=0).

    refused: those that ended in the stated clear error. The table is printed at the end.
    """

    def tell(what: str, survived: int = 0, refused: int = 0) -> None:
        _FAULTS.append((what, survived + refused, survived, refused))

    return tell


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what fuzzed readers made of their inputs, and which faults were survived."""
    for reader, its in sorted(fuzzing.COUNTS.items()):
        counts = f"accepted {its['accepted']:7,} refused {its['refused']:7,}"
        terminalreporter.write_line(f"fuzzed {reader:20} {counts}")
    if not _FAULTS:
        return
    lines = ["| what | faults | survived | ended in the stated error |", "|---|---|---|---|"]
    rows: dict[str, list[int]] = {}
    for what, *counts in _FAULTS:
        rows[what] = [a + b for a, b in zip(rows.get(what, [0, 0, 0]), counts, strict=True)]
    rows["all"] = [sum(counts) for counts in zip(*rows.values(), strict=True)]
    lines += [f"| {what} | {' | '.join(map(str, counts))} |" for what, counts in rows.items()]
    terminalreporter.write_line("\n".join(["", *lines]))


def _lines(text: Path) -> list[str]:
    files = sorted((text / "transfer").glob("*.txt"))
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _tokenizer(family: str, text: Path) -> Any:
    """Train the family's own kind of tokenizer: WordPiece, byte-level BPE or Unigram."""
    transformers: Any = importlib.import_module("transformers")  # lists no tokenizers for checkers
    lines = _lines(text)
    if family == "roberta":
        vocabulary, merges = _byte_pairs(lines)
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges)
    if family == "xlm-roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>"]
        pieces = _unigram(lines, special)
        return transformers.XLMRobertaTokenizer(vocab=[*pieces, ("<mask>", 0.0)])
    if family == "deberta-v2":
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
        return transformers.DebertaV2Tokenizer(vocab=_unigram(lines, special), unk_id=3)
    kinds = {
        "bert": transformers.BertTokenizer,
        "electra": transformers.ElectraTokenizer,
        "distilbert": transformers.DistilBertTokenizer,
    }
    return kinds[family](vocab=_word_pieces(lines))


def _word_pieces(lines: list[str]) -> dict[str, int]:
    """Piece to id, as BERT, ELECTRA and DistilBERT have them; lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    raw: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer: Any = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(lines, trainer)
    return raw.get_vocab()


def _byte_pairs(lines: list[str]) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of a byte-level BPE, as RoBERTa has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw: Any = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(lines, trainer)
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _unigram(lines: list[str], special: list[str]) -> list[tuple[str, float]]:
    """Pieces with scores, as XLM-R and DeBERTa-v2 have them; the special ones first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw: Any = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer: Any = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    raw.train_from_iterator(lines, trainer)
    pieces = json.loads(raw.to_str())["model"]["vocab"]
    kept = [(piece, score) for piece, score in pieces if piece != "<unk>"]
    return [*((piece, 0.0) for piece in special), *kept]
