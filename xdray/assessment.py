"""What teacher, student and controls score, agree on, weigh and cost: the figures of a report.

Test is scored here only, after every choice is made.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xdray.config import Config
from xdray.corpus import Sentence, read_labelled
from xdray.evaluation import (
    agreement,
    entity_counts,
    entity_scores,
    gain_interval,
    machine,
    measure_latency,
    num_parameters,
    retention_interval,
)
from xdray.header import read_header
from xdray.labels import LabelSet
from xdray.learner import Learner
from xdray.learning import Scorer
from xdray.sessions import LocalSession
from xdray.student import load_student
from xdray.targets import TargetView
from xdray.tasks.tagging import decode_tags, word_logits
from xdray.teacher import load_teacher
from xdray.tokens import load_tokenizer, words_of
from xdray.vocabulary import compare_segmentation

Tags = list[list[str]]


@dataclass
class SplitResult:
    """One labelled split, tagged by everybody."""

    sentences: Sequence[Sentence]
    gold: Tags
    predicted: dict[str, Tags]
    """By system: teacher, student, baseline, hard_labels."""
    scores: dict[str, dict[str, Any]]
    agreement: dict[str, Any]
    segmentation: dict[str, int]
    cut_words: int

    @property
    def languages(self) -> list[str]:
        """Language of each sentence."""
        return [sentence.language for sentence in self.sentences]


def assess_split(
    config: Config,
    split: str,
    labels: LabelSet,
    view: TargetView,
    students: Mapping[str, Learner],
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> SplitResult:
    """Score all systems on dev or test, by the same code on the same sentences.

    view: what the teacher said of the split. students: by system. tokenizers: teacher's, student's.
    """
    sources = getattr(config.data, split)
    sentences = read_labelled(sources, config.data.scheme, labels, split).sentences
    words = [words_of(sentence, config.tokens.words) for sentence in sentences]
    gold = [list(sentence.tags or ()) for sentence in sentences]
    counts = [len(sentence) for sentence in words]
    teacher_tags, teacher_logits = teacher_predictions(view, counts, labels)
    predicted = {"teacher": teacher_tags}
    session = LocalSession(None)
    scorer = Scorer(sentences, tokenizers[1], labels, config, session)
    alike: dict[str, Any] = {}
    for system, student in students.items():
        logits = scorer.logits(student)
        predicted[system] = decode_tags(logits, scorer.tokens, counts, labels)
        if system == "student":
            alike = _agreement(teacher_logits, word_logits(logits, scorer.tokens, counts))
    languages = [sentence.language for sentence in sentences]
    return SplitResult(
        sentences=sentences,
        gold=gold,
        predicted=predicted,
        scores={name: entity_scores(gold, tags, languages) for name, tags in predicted.items()},
        agreement=alike,
        segmentation=compare_segmentation(*tokenizers, words),
        cut_words=scorer.cut_words,
    )


def teacher_predictions(
    view: TargetView, num_words: Sequence[int], labels: LabelSet
) -> tuple[Tags, NDArray[np.float32]]:
    """Tags of each word, and logits (words, C), from the recorded logits of a split."""
    tags: Tags = []
    logits: list[NDArray[np.float32]] = []
    for shard in range(len(view.shard_ids)):
        tokens = view.load_shard(shard, ["logits"])
        counts = num_words[len(tags) : len(tags) + len(tokens.lengths)]
        assert tokens.logits is not None
        tags += decode_tags(tokens.logits, tokens, counts, labels)
        logits.append(word_logits(tokens.logits, tokens, counts))
    return tags, np.concatenate(logits)


def _agreement(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> dict[str, Any]:
    """Agreement over the words that both could read."""
    both = np.isfinite(teacher[:, 0]) & np.isfinite(student[:, 0])
    return agreement([teacher[both]], [student[both]])


def score_model(config: Config, folder: str, split: str) -> dict[str, Any]:
    """Scores of any token classifier's folder, a student's or a teacher's, with its tokenizer."""
    labels = LabelSet(read_header(folder).tags)
    given = LabelSet(tuple(config.task.labels or labels.tags))  # the order of tags that are ids
    given.mapping_from(labels.tags, folder)
    sources = getattr(config.data, split)
    sentences = read_labelled(sources, config.data.scheme, given, split).sentences
    model = FinishedModel(folder)
    scorer = Scorer(sentences, load_tokenizer(folder), labels, config, LocalSession(None))
    return scorer(model)


def evaluate_model(config: Config, model: str | None, split: str) -> dict[str, Any]:
    """Score a model's folder (default: the run's student) on a labelled split of a config."""
    started = time.monotonic()
    folder = model or str(Path(config.run.folder) / "student")
    scores = score_model(config, folder, split)
    seconds = round(time.monotonic() - started, 2)
    result = {"model": folder, "split": split, split: scores}
    return {"run_dir": config.run.folder, "seconds": seconds, **result}


class FinishedModel(Learner):
    """A saved token classifier, to be scored."""

    def __init__(self, folder: str) -> None:
        """Load it; a BiLSTM's classes come from this package, not from the folder's file."""
        super().__init__()
        self.model = load_student(folder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """No hidden states, and logits (B, T, C)."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits[..., :0], logits

    def groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """Nothing of it trains."""
        return {}

    def reset_head(self, seed: int) -> None:
        """Nothing of it changes."""
        raise NotImplementedError


def compare(config: Config, test: SplitResult) -> dict[str, Any]:
    """Retention, and gain over the baseline, in the config's metric, with 95 % intervals."""
    metric = config.evaluation.metric
    values = {system: scores[metric] for system, scores in test.scores.items()}
    settings = (test.languages, metric, config.evaluation.bootstrap, config.run.seed)
    counts = {
        system: entity_counts(test.gold, tags, metric) for system, tags in test.predicted.items()
    }
    interval = retention_interval(counts["teacher"], counts["student"], *settings)
    result: dict[str, Any] = {
        "retention": values["student"] / values["teacher"] if values["teacher"] else None,
        "retention_interval": interval,
        "gain": None,
        "gain_interval": None,
    }
    if "baseline" in values:
        result["gain"] = values["student"] - values["baseline"]
        result["gain_interval"] = gain_interval(counts["baseline"], counts["student"], *settings)
    return result


def weigh(model: Any, folder: str) -> dict[str, Any]:
    """Parameters of a model, of its token embeddings, and bytes of its weight files."""
    parameters, embedding = num_parameters(model)
    files = [*Path(folder).glob("*.safetensors"), *Path(folder).glob("pytorch_model*.bin")]
    return {
        "parameters": parameters,
        "embedding_parameters": embedding,
        "bytes": sum(path.stat().st_size for path in files),
        "vocabulary": int(model.config.vocab_size),
    }


def weigh_and_time(
    config: Config, labels: LabelSet, teacher_folder: str, student_folder: str, student: Any
) -> dict[str, Any]:
    """Sizes of both models, compression, and latency side by side in float32 on this machine.

    student: the Hugging Face model of the student's folder.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_teacher(teacher_folder, labels, torch.float32, device)
    student = student.to(device).eval()
    models = {"teacher": teacher.model, "student": student}
    sizes = {
        "teacher": weigh(teacher.model, teacher_folder),
        "student": weigh(student, student_folder),
    }
    result: dict[str, Any] = {
        "sizes": sizes,
        "compression": sizes["teacher"]["parameters"] / sizes["student"]["parameters"],
        "latency_ms": None,
        "speedup": None,
    }
    if config.evaluation.latency:
        result["latency_ms"] = latency = measure_latency(
            {name: _forward(model) for name, model in models.items()},
            {name: int(model.config.vocab_size) for name, model in models.items()},
            length=config.evaluation.latency_length,
            device=device,
            seed=config.run.seed,
        )
        result["speedup"] = {
            batch: latency["teacher"][batch]["median"] / latency["student"][batch]["median"]
            for batch in latency["teacher"]
        }
    return result


def _forward(model: Any) -> Any:
    def forward(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=input_ids, attention_mask=attention_mask).logits

    return forward


def systems_report(
    config: Config,
    labels: LabelSet,
    teacher: str,
    dev: SplitResult,
    test: SplitResult,
    costs: dict[str, Any],
) -> dict[str, Any]:
    """Return what the report says of teacher, student and controls. costs: of `weigh_and_time`."""
    sizes = costs["sizes"]
    scores = {name: {"dev": dev.scores[name], "test": test.scores[name]} for name in test.scores}
    name = config.teacher.model or f"fine-tuned {read_header(teacher).model_type}"
    student = {
        "kind": config.student.kind,
        "shape": student_shape(config),
        **sizes["student"],
        **scores["student"],
        "segmentation": {"dev": dev.segmentation, "test": test.segmentation},
    }
    languages = sorted({sentence.language for sentence in test.sentences})
    return {
        "task": {"kind": config.task.kind, "labels": list(labels.tags), "languages": languages},
        "teacher": {"name": name, **sizes["teacher"], **scores["teacher"]},
        "student": student,
        "baseline": scores.get("baseline"),
        "hard_labels": scores.get("hard_labels"),
        **compare(config, test),
        "agreement": test.agreement,
        **{key: costs[key] for key in ("compression", "speedup", "latency_ms")},
        "machine": machine(),
    }


def student_shape(config: Config) -> dict[str, Any]:
    """Return the fields of the config that make the student's shape."""
    student = config.student
    shape = {"embedding": student.embedding, "hidden": student.hidden, "layers": student.layers}
    return shape if student.kind == "bilstm" else shape | {"heads": student.num_heads}


LAST_LINE = [
    "run_dir",
    "seconds",
    "teacher",
    "student",
    "baseline",
    "retention",
    "retention_interval",
    "gain",
    "compression",
    "latency_ms",
    "targets",
    "stages",
    "report",
]


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the last line of stdout, scores by language and type left to report.json."""
    line = {key: report.get(key) for key in LAST_LINE}
    for system in ("teacher", "student", "baseline"):
        entry = report.get(system)
        line[system] = None if entry is None else _without_details(entry)
    line["stages"] = [
        {
            "name": row["name"],
            "steps": row["steps"],
            "seconds": row["seconds"],
            "dev": row["dev"] and row["dev"]["entity_f1"],
        }
        for row in report["stages"]
    ]
    return line


def _without_details(system: dict[str, Any]) -> dict[str, Any]:
    """A system's entry with the figures of whole splits only."""
    scores = {
        split: {k: v for k, v in system[split].items() if not k.startswith("by_")}
        for split in ("dev", "test")
    }
    return {**system, **scores}
