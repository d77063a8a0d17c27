"""What one student is taught, by the files it is made from: small, it travels to the workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdray.batch_plan import HELD_OUT_LIMIT, HELD_OUT_TOKENS, PLAN_VERSION
from xdray.config import Config
from xdray.mirror import RAY_FOLDER, Mirror
from xdray.parts import BLOCK
from xdray.sources import Stream
from xdray.stages import Stage
from xdray.storage import join
from xdray.task import Task


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is taught, by the files it is made from."""

    config: Config
    task: Task
    stages: tuple[Stage, ...]
    base: dict[str, Any]
    """All that decides the weights beside the stages: hashed into the stages' keys."""
    start: str
    """Folder of the student's tokenizer, embeddings and id map (starts); of the
    encoder when a teacher is fine-tuned."""
    view: str | None
    """Folder with targets.json; None where no stage reads transfer text."""
    teacher_width: int
    teacher_heads: int
    folder: str
    """Finished stages and checkpoints are kept under it."""
    start_from: str | None
    threads: int
    stream: Stream | None = None
    """The teacher at work, where targets are streamed."""
    quiet: bool = False
    """Only the log file is told."""
    mirror: Mirror | None = None
    """Of the run folder, where it is at a URI: the paths above lie in its copy."""

    @property
    def place(self) -> str:
        """The run's, or trial's, folder; its URI where it is at one."""
        return self._at(self.config.run.folder)

    @property
    def storage(self) -> str:
        """Where Ray Train keeps its checkpoints: below `folder`, or where that is mirrored."""
        return self._at(str(Path(self.folder).absolute() / RAY_FOLDER))

    def _at(self, path: str) -> str:
        if self.mirror is None:
            return path
        return join(self.mirror.uri, *Path(path).relative_to(self.mirror.folder).parts)

    def send(self) -> None:
        """Send what is new in this run's, or trial's, folder to its URI, where it is at one."""
        if self.mirror is not None:
            own = Path(self.config.run.folder).relative_to(self.mirror.folder)
            self.mirror.send(*own.parts)


def lesson_base(
    config: Config, *, tokenizer: str, targets: str, data: str, task: Task
) -> dict[str, Any]:
    """Return a lesson's `base`. tokenizer (the student's), targets, data: fingerprints."""
    training = config.training.model_dump(mode="json")
    for name in ("workers", "checkpoint_seconds", "max_failures"):
        training.pop(name)  # how, not what
    return {
        "student": config.student.model_dump(mode="json"),
        "training": training,
        # else a stage would go on with another one
        "plan": [PLAN_VERSION, HELD_OUT_LIMIT, HELD_OUT_TOKENS, BLOCK],
        "task": config.task.model_dump(mode="json"),
        "metric": task.metric,
        "max_length": config.tokens.max_length,
        "tokenizer": tokenizer,
        "targets": targets,
        "codec": config.targets.codec,
        "pieces": config.tokens.pieces,
        "data": data,
        "labels": task.labels.names,
        "seed": config.run.seed,
    }
