"""One student's training, from files to weights: what each worker runs.

A `Lesson` names the files. Each worker reads its own tokenizer, labelled text and targets from
them, and `training` does the rest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist
from transformers import PreTrainedTokenizerFast

from xdray.batch_plan import BatchPlan, Source
from xdray.config import Config
from xdray.console import Console
from xdray.corpus import Sentence
from xdray.errors import ConfigError
from xdray.finetuning import TeacherLearner
from xdray.forwarding import predict_logits
from xdray.header import resolve_model
from xdray.learner import Learner
from xdray.lessons import Lesson
from xdray.loader import Loader
from xdray.sessions import Session
from xdray.sources import LabelledSource, StoredSource, StreamedSource
from xdray.stage_files import load_last
from xdray.stages import Stage, chain_keys, compared_layers
from xdray.student import Student, build_student
from xdray.targets import TargetView
from xdray.task import Task
from xdray.tokenised import Tokens
from xdray.tokens import load_tokenizer, pad_id_of
from xdray.training import Training, run_stages
from xdray.watching import Meters, Watch, run_name, watch_training

OnEpoch = Callable[[dict[str, Any]], None]
SCORING_TOKENS = 4096
"""Tokens of a batch when scoring, padding included."""


class Scorer:
    """Scores a model on labelled sentences; each rank reads its share of them."""

    def __init__(
        self,
        sentences: Sequence[Sentence],
        tokenizer: PreTrainedTokenizerFast,
        task: Task,
        session: Session,
    ) -> None:
        """Tokenise this rank's share once."""
        self.task, self.session = task, session
        self.golds, self.languages = task.golds(sentences), task.languages(sentences)
        self.pad_id = pad_id_of(tokenizer)
        units = task.units(sentences)
        self.mine = [its for its, unit in zip(sentences, units, strict=True) if self._is_mine(unit)]
        self.tokens, self.cut_words = task.tokens(tokenizer, self.mine)

    def _is_mine(self, unit: int) -> bool:
        return unit % self.session.world_size == self.session.rank

    def logits(self, model: Learner) -> NDArray[np.float32]:
        """Logits of this rank's tokens (N, C), or sentences (S, C)."""
        model.eval()
        device = self.session.device
        model.to(device)

        def forward(input_ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
            types = None if types is None else types.to(device)
            return model(input_ids.to(device), mask.to(device), types)[1]

        return predict_logits(
            forward, self.tokens, SCORING_TOKENS, self.pad_id, num_labels=len(self.task.labels)
        )

    def predict(self, model: Learner) -> list[Any]:
        """What is said of each unit, not yet decided, in order, on every rank."""
        mine = self.task.decode(self.logits(model), self.tokens, self.mine)
        if self.session.world_size == 1:
            return mine
        shares: list[Any] = [None] * self.session.world_size
        dist.all_gather_object(shares, mine)
        predicted: list[Any] = [None] * len(self.golds)
        for rank, share in enumerate(shares):
            predicted[rank :: self.session.world_size] = share
        return predicted

    def __call__(self, model: Learner) -> dict[str, Any]:
        """Scores, the same on every rank."""
        predicted = self.predict(model)
        decided = self.task.decide(predicted, self.task.choose(self.golds, predicted))
        return self.task.scores(self.golds, decided, self.languages)


def learn(
    lesson: Lesson, session: Session, on_epoch: OnEpoch | None = None
) -> list[dict[str, Any]]:
    """Train one student through the lesson's stages; returns a row a stage."""
    _enter(lesson, session)
    config = lesson.config
    tokenizer = load_tokenizer(lesson.start)
    student = start_student(lesson, tokenizer)
    id_map = np.load(Path(lesson.start) / "student_ids.npy")
    rank, ranks = session.rank, session.world_size
    streams = transfer_sources(lesson, ranks)

    def plan_of(stage: Stage, split: str, train: LabelledSource) -> Loader:
        sources: Sequence[Source] = [train] if split == "train" else streams
        shared = len(sources) == 1  # by all ranks, each has some rows of every batch
        plans = [
            BatchPlan(
                source,
                max(1, stage.batch_tokens // len(sources)),
                config.training.window_tokens,
                seed=config.run.seed,
                held_out=config.training.held_out if split == "transfer" else 0.0,
                share=getattr(config.training, f"{split}_share"),
            )
            for source in sources
        ]
        mapping = id_map if split == "transfer" else None
        pad_id = pad_id_of(tokenizer)
        epochs = stage.epochs if split == stage.splits[0] else 0
        if shared:
            loader = Loader(plans[0], stage.layers, pad_id, mapping, rank, ranks)
        else:
            mine = plans.pop(rank)
            loader = Loader(mine, stage.layers, pad_id, mapping, others=tuple(plans))
        loader.epochs = epochs
        return loader

    return _run(lesson, session, student, tokenizer, plan_of, on_epoch)


def transfer_sources(lesson: Lesson, ranks: int) -> list[Source]:
    """The transfer text: one source for all ranks, or of a stream one for each; or none."""
    if lesson.view is None:
        return []
    config, targets = lesson.config, lesson.config.targets
    view = TargetView.load(lesson.view, targets.store)
    if lesson.stream is None:
        window = config.training.window_tokens  # so many are in memory anyway
        return [StoredSource(view, targets.codec, lesson.task, config.tokens.pieces, window)]
    return [StreamedSource(lesson.stream, view, lesson.task, rank, ranks) for rank in range(ranks)]


def finetune(lesson: Lesson, session: Session) -> list[dict[str, Any]]:
    """Fine-tune a teacher on the labels, by the same loop; saves nothing but its stage."""
    _enter(lesson, session)
    config = lesson.config
    tokenizer = load_tokenizer(lesson.start)
    how = config.teacher.finetune
    assert how is not None
    teacher = TeacherLearner.from_encoder(
        lesson.start, lesson.task, config.run.seed, how.fresh, how.dropout
    )

    def plan_of(stage: Stage, split: str, train: LabelledSource) -> Loader:
        plan = BatchPlan(train, stage.batch_tokens, window_tokens=1, seed=config.run.seed)
        return Loader(plan, (), pad_id_of(tokenizer), None, session.rank, session.world_size)

    return _run(lesson, session, teacher, tokenizer, plan_of)


def _enter(lesson: Lesson, session: Session) -> None:
    """Have the lesson's files on this machine, and its number of threads."""
    if lesson.mirror is not None:
        lesson.mirror.enter()
        Path(lesson.config.run.folder).mkdir(parents=True, exist_ok=True)
    if session.device == "cpu":
        # before the first tensor: orthogonal weights round otherwise on another number of threads
        torch.set_num_threads(lesson.threads)
        _check_autocast(lesson.config)


def _check_autocast(config: Config) -> None:
    """Raise ConfigError where this CPU has no LSTM in the dtype that the config asks for."""
    if config.training.autocast != "bfloat16" or config.student.kind != "bilstm":
        return
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(8, 8, bidirectional=True)(torch.zeros(2, 1, 8))
    except RuntimeError as error:
        raise ConfigError(
            "training.autocast: bfloat16, which this machine's CPU does not run a BiLSTM in; "
            "expected auto or none"
        ) from error


def _run(
    lesson: Lesson,
    session: Session,
    learner: Learner,
    tokenizer: PreTrainedTokenizerFast,
    plan_of: Callable[[Stage, str, LabelledSource], Loader],
    on_epoch: OnEpoch | None = None,
) -> list[dict[str, Any]]:
    config, task = lesson.config, lesson.task
    train_tokens, cut_words, unmarked = labelled_tokens(config, "train", tokenizer, task)
    train = LabelledSource(train_tokens)
    dev = task.read(config.data.dev, "dev").sentences
    log_file = Path(config.run.folder) / "log.txt" if session.rank == 0 else None
    console = Console(log_file, quiet=lesson.quiet or session.rank > 0)

    def loaders(stage: Stage) -> Mapping[str, Loader]:
        return {split: plan_of(stage, split, train) for split in stage.splits}

    with console:
        if cut_words:
            console.say(f"train: {cut_words} words cut off at tokens.max_length, not learnt from")
        if unmarked:
            console.say(f"train: {unmarked} questions whose answer no window holds whole")
        training = Training(
            stages=lesson.stages,
            keys=chain_keys(lesson.stages, lesson.base),
            task=task,
            settings=config.training,
            seed=config.run.seed,
            loaders=loaders,
            score=Scorer(dev, tokenizer, task, session),
            folder=Path(lesson.folder),
            start_from=Path(resolve_model(lesson.start_from)) if lesson.start_from else None,
            session=session,
            console=console,
            on_epoch=on_epoch,
            on_save=lesson.send,
            watch=Watch() if session.rank > 0 else _watch(lesson, session.meters),
        )
        rows = run_stages(learner, training)
    if session.rank == 0:
        lesson.send()
    return rows


def _watch(lesson: Lesson, meters: Meters) -> Watch:
    run = Path(lesson.config.run.folder)
    return watch_training(run, run_name(lesson.place), Path(lesson.folder), meters)


def labelled_tokens(
    config: Config, split: str, tokenizer: PreTrainedTokenizerFast, task: Task
) -> tuple[Tokens, int, int]:
    """Tokens of a labelled split with gold, words cut off, and units whose gold is not there."""
    sentences = task.read(getattr(config.data, split), split).sentences
    tokens, cut_words = task.tokens(tokenizer, sentences)
    tokens.labels = task.label_array(tokens, sentences)
    return tokens, cut_words, task.unmarked(tokens.labels, sentences)


def start_student(lesson: Lesson, tokenizer: PreTrainedTokenizerFast) -> Student:
    """Build the student of a lesson as it is before its first stage."""
    config = lesson.config
    path = Path(lesson.start) / "embeddings.safetensors"
    encoder = Path(lesson.start) / "encoder"
    return build_student(
        config.student,
        vocab_size=len(tokenizer),
        teacher_width=lesson.teacher_width,
        task=lesson.task,
        pad_token_id=pad_id_of(tokenizer),
        max_length=config.tokens.max_length,
        embeddings=load_file(path)["embeddings"] if path.is_file() else None,
        seed=config.run.seed,
        encoder=str(encoder) if encoder.is_dir() else None,
        layers=compared_layers(lesson.stages),
        teacher_heads=lesson.teacher_heads,
    )


def control_epochs(lesson: Lesson, rows: Sequence[Mapping[str, Any]], loss: str) -> int:
    """Epochs that give a control the student's steps with labels, or passes with logits."""
    config = lesson.config
    if loss == "hard_labels":
        with_logits = {
            stage.name
            for stage in lesson.stages
            if any(term.loss == "logits" for term in stage.terms)
        }
        passes = [row["epochs"] for row in rows if row["name"] in with_logits]
        return max(config.training.epochs, sum(passes))
    with_labels = {stage.name for stage in lesson.stages if stage.by_dev}
    steps = sum(row["steps"] for row in rows if row["name"] in with_labels)
    tokenizer = load_tokenizer(lesson.start)
    tokens, _, _ = labelled_tokens(config, "train", tokenizer, lesson.task)
    source = LabelledSource(tokens)
    training = config.training
    plan = BatchPlan(
        source,
        training.batch_tokens,
        window_tokens=1,
        seed=config.run.seed,
        share=training.train_share,
    )
    return max(config.training.epochs, math.ceil(steps / plan.num_steps(0)))


def finished_student(lesson: Lesson, tokenizer: PreTrainedTokenizerFast) -> Student:
    """Build the student of a lesson with the weights of its last stage."""
    student = start_student(lesson, tokenizer)
    load_last(student, Path(lesson.folder), len(lesson.stages))
    return student.eval()
