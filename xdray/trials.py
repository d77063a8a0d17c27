"""One trial of a search: from the values of its fields to a scored student; and all of them.

A trial is a folder: trial.json (fields, costs, status, score), reports.jsonl (a line an epoch),
stages/ and log.txt as in a run. Trials share the start and the targets of their search.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xdray.config import Config
from xdray.errors import ClusterError, TrainingError
from xdray.evaluation import measure_latency, num_parameters
from xdray.learner import logits_of
from xdray.learning import learn
from xdray.lessons import Lesson, lesson_base
from xdray.mirror import Mirror
from xdray.recipes import plan_stages
from xdray.redaction import redact
from xdray.sessions import LocalSession, Session
from xdray.space import Fields, trial_config, trial_id
from xdray.starts import start_fields
from xdray.storage import fingerprint
from xdray.student import Student
from xdray.task import Task
from xdray.trial_files import all_trials, write_trial

BYTES_PER_PARAMETER = 4  # weights are saved in float32


@dataclass(frozen=True, kw_only=True)
class Course:
    """What all trials of a search share. Picklable."""

    config: Config
    """Of the search, `training.autocast` worked out."""
    task: Task
    num_teacher_layers: int
    teacher_width: int
    teacher_heads: int
    targets: str
    """Fingerprint of what the teacher said."""
    data: str
    """Fingerprint of train and dev."""
    starts: Mapping[str, tuple[str, str]]
    """`start_key` of a trial's config to its start's folder, and its tokenizer's fingerprint."""
    threads: int
    mirror: Mirror | None = None
    """Of the search's folder, where it is at a URI."""

    @property
    def key(self) -> str:
        """32 hex characters: trials on other text or of another teacher are of another search."""
        return fingerprint([self.targets, self.data, self.task.labels.names])

    def folder(self, fields: Fields) -> Path:
        """Folder of a trial."""
        return Path(self.config.run.folder) / "trials" / trial_id(fields)

    def lesson(self, fields: Fields) -> Lesson:
        """All that the student of a trial is made from."""
        config = trial_config(self.config, fields)
        folder = self.folder(fields)
        start, tokenizer = self.starts[start_key(config)]
        base = lesson_base(
            config, tokenizer=tokenizer, targets=self.targets, data=self.data, task=self.task
        )
        run = config.run.model_copy(update={"folder": str(folder)})
        return Lesson(
            config=config.model_copy(update={"run": run}),
            task=self.task,
            stages=tuple(plan_stages(config, self.num_teacher_layers)),
            base=base,
            start=start,
            view=self.config.run.folder,
            teacher_width=self.teacher_width,
            teacher_heads=self.teacher_heads,
            folder=str(folder / "stages"),
            start_from=None,
            threads=self.threads,
            quiet=True,
            mirror=self.mirror,
        )

    def send(self, fields: Fields) -> None:
        """Send a trial's folder to the URI of the search, where it is at one."""
        if self.mirror is not None:
            self.mirror.send("trials", trial_id(fields))

    def fetch(self, fields: Fields) -> None:
        """Have a trial's folder as it is at the URI: it may have been written elsewhere."""
        if self.mirror is not None:
            self.mirror.fetch("trials", trial_id(fields))


def start_key(config: Config) -> str:
    """Name what two trials must have alike to start from the same files."""
    return fingerprint(list(map(str, start_fields(config.student))))


def shape_key(config: Config) -> str:
    """Name what two students must have alike to cost the same."""
    return fingerprint(
        config.student.model_dump(mode="json", exclude={"dropout", "embedding_init"})
    )


def student_costs(student: Student, length: int | None) -> dict[str, Any]:
    """Parameters, bytes and, with a length in tokens, the median forward pass in ms at batch 1, 32.

    The student comes back in eval mode, on the device that a run in this process uses.
    """
    student.eval()
    parameters, embedding = num_parameters(student.model)
    model: Any = student.model
    costs: dict[str, Any] = {
        "parameters": parameters,
        "embedding_parameters": embedding,
        "bytes": parameters * BYTES_PER_PARAMETER,
        "latency_ms": None,
        "latency_ms_32": None,
    }
    if length is not None:
        device = LocalSession(None).device
        model.to(device)

        def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return logits_of(model(input_ids=input_ids, attention_mask=attention_mask))

        timed = measure_latency(
            {"student": forward},
            {"student": int(model.config.vocab_size)},
            length=length,
            device=device,
            seed=0,
            budget_seconds=0.5,
        )["student"]
        costs["latency_ms"] = timed["batch_1"]["median"]
        costs["latency_ms_32"] = timed["batch_32"]["median"]
    return costs


Report = Callable[[dict[str, Any]], object]


def learn_in_trial(
    lesson: Lesson, session: Session, report: Report | None = None
) -> list[dict[str, Any]]:
    """Train the student of a trial; rank 0 writes a line of reports.jsonl for each scored epoch.

    report: told the same in this process: score, done (share of planned epochs).
    """
    started = time.monotonic()
    path = Path(lesson.config.run.folder) / "reports.jsonl"
    if session.rank == 0 and path.is_file():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):  # a kill, or a full disk, cut it off
            path.write_bytes(whole[: whole.rfind(b"\n") + 1])

    def on_epoch(told: dict[str, Any]) -> None:
        if told["dev"] is None:
            return
        score = told["dev"][lesson.task.metric]
        if not math.isfinite(score):  # the same on every rank
            raise TrainingError(f"stage {told['stage']}: {lesson.task.metric} on dev is {score}")
        if session.rank > 0:
            return
        line = {
            "stage": told["stage"],
            "epoch": told["epoch"],
            "done": round(told["done"], 4),
            "score": score,
            "seconds": round(time.monotonic() - started, 2),
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        lesson.send()
        if report is not None:
            report(line)

    return learn(lesson, session, on_epoch)


def learn_here(lesson: Lesson, report: Report) -> list[dict[str, Any]]:
    """Train the student of a trial in this process."""
    return learn_in_trial(lesson, LocalSession(Path(lesson.folder)), report)


def run_trial(
    course: Course,
    fields: Fields,
    report: Report,
    fit: Callable[[Lesson, Report], list[dict[str, Any]]] = learn_here,
) -> dict[str, Any]:
    """Train the student of a trial; returns its end, which is in trial.json too.

    report: told after each epoch that had a score on dev. fit: where it is trained. An error ends
    the trial, not the search: it is in the result.
    """
    started = time.monotonic()
    folder = course.folder(fields)
    metric = course.task.metric
    course.fetch(fields)
    try:
        rows = fit(course.lesson(fields), report)
        scored = [row["dev"] for row in rows if row["dev"]]
        if not scored:
            raise TrainingError("no stage trains the head, so there is no score")
        end: dict[str, Any] = {
            "status": "finished",
            "again": False,
            "score": scored[-1][metric],
            "training_seconds": round(sum(row["seconds"] for row in rows), 2),
            "steps": sum(row["steps"] for row in rows),
        }
    except Exception as error:
        message = redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
        again = isinstance(error, ClusterError | OSError)  # of the machines, not of the student
        end = {"status": "failed", "again": again, "score": None, "error": message}
    end["seconds"] = round(time.monotonic() - started, 2)
    trial = write_trial(folder, fields, end)
    course.send(fields)
    return trial


def begin_trial(course: Course, fields: Fields, number: int, costs: Mapping[str, Any]) -> None:
    """Write the trial.json of a trial that is about to run, in place of one on other text."""
    folder = course.folder(fields)
    if (folder / "trial.json").is_file():
        shutil.rmtree(folder)
    begun = {"number": number, "status": "running", "course": course.key, "costs": costs}
    begun["score"] = None
    write_trial(folder, fields, begun)
    course.send(fields)


def read_trials(course: Course) -> list[dict[str, Any]]:
    """Return all trials of a search, with their `reports`, in the order of their starts."""
    return [
        trial for trial in all_trials(course.config.run.folder) if trial["course"] == course.key
    ]


def objectives_of(trial: Mapping[str, Any], objectives: Sequence[str]) -> list[float]:
    """Return a finished trial's figures in the order of the objectives."""
    return [trial["score"] if name == "score" else trial["costs"][name] for name in objectives]
