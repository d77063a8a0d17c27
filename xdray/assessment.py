"""What teacher, student and controls score, agree on, weigh and cost: the figures of a report.

Test is scored here only, after every choice is made.
"""

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
from xdray.corpus import Sentence
from xdray.evaluation import (
    Resampling,
    gain_interval,
    machine,
    measure_latency,
    num_parameters,
    retention_interval,
)
from xdray.header import read_header
from xdray.learner import Learner, logits_of
from xdray.learning import Scorer
from xdray.sessions import LocalSession
from xdray.targets import TargetView
from xdray.task import Reading, Task
from xdray.teacher import load_teacher
from xdray.vocabulary import compare_segmentation
from xdray.weights import model_folder
from xdray.words import words_of


@dataclass
class SplitResult:
    """One labelled split, read by everybody. U units that are scored."""

    gold: list[Any]
    """(U,)."""
    languages: list[str]
    """(U,)."""
    predicted: dict[str, list[Any]]
    """By system: teacher, student, baseline, hard_labels; each (U,)."""
    chosen: dict[str, Any]
    """By system: what was chosen on dev to decide by."""
    scores: dict[str, dict[str, Any]]
    agreement: dict[str, Any]
    segmentation: dict[str, int]
    cut_words: int


def assess_split(
    config: Config,
    split: str,
    task: Task,
    view: TargetView,
    students: Mapping[str, Learner],
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
    dev: SplitResult | None,
) -> SplitResult:
    """Score all systems on dev or test, by the same code on the same sentences.

    view: what the teacher said of the split. students: by system. tokenizers: teacher's, student's.
    dev: where what is decided by was chosen; None: this is it.
    """
    if not task.has_gold:
        return SplitResult([], [], {}, dict.fromkeys(students), {}, {}, {}, 0)
    sentences = task.read(getattr(config.data, split), split).sentences
    gold, languages = task.golds(sentences), task.languages(sentences)
    chosen: dict[str, Any] = {}
    predicted: dict[str, list[Any]] = {}

    def decide(system: str, said: list[Any]) -> list[Any]:
        chosen[system] = dev.chosen[system] if dev else task.choose(gold, said)
        predicted[system] = task.decide(said, chosen[system])
        return predicted[system]

    tokens, _ = task.tokens(tokenizers[0], sentences)
    logits = teacher_logits(view)
    said = decide("teacher", task.decode(logits, tokens, sentences))
    teacher = Reading(logits, tokens, said)
    scorer = Scorer(sentences, tokenizers[1], task, LocalSession(None))
    alike: dict[str, Any] = {}
    for system, student in students.items():
        logits = scorer.logits(student)
        said = decide(system, task.decode(logits, scorer.tokens, sentences))
        if system == "student":
            alike = task.agreement(teacher, Reading(logits, scorer.tokens, said), sentences)
    words = [words_of(sentence.content, task.word_rule) for sentence in sentences]
    return SplitResult(
        gold=gold,
        languages=languages,
        predicted=predicted,
        chosen=chosen,
        scores={name: task.scores(gold, said, languages) for name, said in predicted.items()},
        agreement=alike,
        segmentation=compare_segmentation(*tokenizers, words),
        cut_words=scorer.cut_words,
    )


def teacher_logits(view: TargetView) -> NDArray[np.float32]:
    """Recorded logits of a split, (N, C) or (S, C)."""
    found = [view.load_shard(shard, ["logits"]).logits for shard in range(len(view.shard_ids))]
    return np.concatenate([logits for logits in found if logits is not None])


def teacher_scores(
    task: Task,
    view: TargetView,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
) -> dict[str, Any]:
    """Scores of the recorded logits of dev."""
    tokens, _ = task.tokens(tokenizer, sentences)
    said = task.decode(teacher_logits(view), tokens, sentences)
    gold = task.golds(sentences)
    decided = task.decide(said, task.choose(gold, said))
    return task.scores(gold, decided, task.languages(sentences))


NO_COMPARISON = ("retention", "retention_interval", "gain", "gain_interval")


def compare(config: Config, task: Task, test: SplitResult) -> dict[str, Any]:
    """Retention, and gain over the baseline, in the task's metric, with 95 % intervals."""
    nothing: dict[str, Any] = dict.fromkeys(NO_COMPARISON)
    if not task.has_gold:
        return nothing
    values = {system: scores[task.metric] for system, scores in test.scores.items()}
    settings = Resampling(
        value=task.value,
        resamples=config.evaluation.bootstrap,
        seed=config.run.seed,
        groups=test.languages if task.means_over_languages else None,
    )
    counts = {name: task.statistics(test.gold, said) for name, said in test.predicted.items()}
    interval = retention_interval(counts["teacher"], counts["student"], settings)
    result: dict[str, Any] = {
        **nothing,
        "retention": values["student"] / values["teacher"] if values["teacher"] else None,
        "retention_interval": interval,
    }
    if "baseline" in values:
        result["gain"] = values["student"] - values["baseline"]
        result["gain_interval"] = gain_interval(counts["baseline"], counts["student"], settings)
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
    config: Config, task: Task, teacher_folder: str, student_folder: str, student: Any
) -> dict[str, Any]:
    """Sizes of both models, compression, and latency side by side in float32 on this machine.

    student: the Hugging Face model of the student's folder.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_teacher(teacher_folder, task, torch.float32, device)
    student = student.to(device).eval()
    models = {"teacher": teacher.model, "student": student}
    sizes = {
        "teacher": weigh(teacher.model, str(model_folder(teacher_folder))),
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
            return logits_of(model(input_ids=input_ids, attention_mask=attention_mask))

    return forward


def systems_report(
    config: Config,
    task: Task,
    teacher: str,
    dev: SplitResult,
    test: SplitResult,
    costs: dict[str, Any],
) -> dict[str, Any]:
    """Return what the report says of teacher, student and controls. costs: of `weigh_and_time`."""
    sizes, found = costs["sizes"], test.scores.get("student", {})
    scores = {name: {"dev": dev.scores[name], "test": test.scores[name]} for name in test.scores}
    name = config.teacher.model or f"fine-tuned {read_header(teacher).model_type}"
    student = {
        "kind": config.student.kind,
        "shape": student_shape(config),
        **sizes["student"],
        **scores.get("student", {}),
        "segmentation": {"dev": dev.segmentation, "test": test.segmentation},
    }
    languages = sorted(set(test.languages))
    return {
        "task": {
            "kind": task.kind,
            "labels": list(task.labels.names),
            "languages": languages,
            "metrics": {name: title for name, title in task.metrics.items() if name in found},
            "about": task.about,
            "noun": task.noun,
            "pipeline": task.pipeline,
            "usage": task.usage,
        },
        "teacher": {"name": name, **sizes["teacher"], **scores.get("teacher", {})},
        "student": student,
        "baseline": scores.get("baseline"),
        "hard_labels": scores.get("hard_labels"),
        **compare(config, task, test),
        "agreement": test.agreement,
        **{key: costs[key] for key in ("compression", "speedup", "latency_ms")},
        "machine": machine(),
    }


def student_shape(config: Config) -> dict[str, Any]:
    """Return the fields of the config that make the student's shape."""
    student = config.student
    if student.kind == "encoder":
        return {"start": student.start, "layers": student.layers}
    shape = {"embedding": student.embedding, "hidden": student.hidden, "layers": student.layers}
    return shape if student.kind == "bilstm" else shape | {"heads": student.num_heads}
