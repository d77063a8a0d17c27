"""Which kinds of task there are: the files of tasks/, found by name."""

import importlib
from dataclasses import replace
from pathlib import Path

from xdray.config import Config
from xdray.errors import ConfigError
from xdray.labels import LabelSet
from xdray.task import Task

FOLDER = Path(__file__).with_name("tasks")


def task_kinds() -> list[str]:
    """Names of the kinds of tasks: the files of tasks/."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def task_class(kind: str) -> type[Task]:
    """Return the class of a kind. Raises ConfigError."""
    if kind not in task_kinds():
        raise ConfigError(f"task.kind = '{kind}': expected one of {', '.join(task_kinds())}")
    return importlib.import_module(f"xdray.tasks.{kind}").TASK


def load_task(config: Config) -> Task:
    """Return the task of a config, its labels those that the config names. Raises ConfigError."""
    kind = task_class(config.task.kind)
    metric = config.evaluation.metric or next(iter(kind.metrics))
    if metric not in kind.metrics:
        raise ConfigError(
            f"evaluation.metric = '{metric}': a {config.task.kind} run has "
            f"{', '.join(kind.metrics)}"
        )
    task = kind(
        labels=kind.given_labels(config.task),
        metric=metric,
        settings=config.task,
        word_rule=config.tokens.words,
        max_length=config.tokens.max_length,
        scheme=config.data.scheme,
        teacher_labels=tuple(config.teacher.labels or ()),
    )
    if task.labels:
        _check_metric(task)
    return task


def with_labels(task: Task, labels: LabelSet) -> Task:
    """Return the task with these labels. Raises ConfigError for a metric that they do not have."""
    found = replace(task, labels=labels)
    _check_metric(found)
    return found


def _check_metric(task: Task) -> None:
    if task.metric not in task.own_metrics:
        raise ConfigError(
            f"evaluation.metric = '{task.metric}': with these labels there is "
            f"{', '.join(task.own_metrics)}"
        )
