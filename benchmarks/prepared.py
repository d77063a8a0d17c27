"""A run whose teacher's pass is done: what training takes, ours, a bare loop's and peers'."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Settings, run_config, scratch
from xdray.annotation import Annotated
from xdray.batch_plan import BatchPlan
from xdray.batches import Batch
from xdray.checks import check_plan
from xdray.cluster import Cluster
from xdray.corpus import read_shard
from xdray.distillation import annotate_all, make_lesson, make_teacher, settled
from xdray.header import ModelHeader
from xdray.learning import start_student, transfer_sources
from xdray.lessons import Lesson
from xdray.loader import Loader
from xdray.recipes import plan_stages
from xdray.runs import Run, open_run
from xdray.splits import Corpus, read_corpus
from xdray.stages import Stage, needed_layers
from xdray.starts import prepare_start
from xdray.teacher import DTYPES, load_teacher
from xdray.tokens import load_tokenizer, pad_id_of


@dataclass(frozen=True)
class Prepared:
    """A run with its teacher's pass done."""

    run: Run
    cluster: Cluster
    corpus: Corpus
    teacher: str
    header: ModelHeader
    targets: Annotated
    stages: Sequence[Stage]
    start: Path
    """Folder of the student's start."""

    def lesson(self) -> Lesson:
        """What training takes, of the run's config as it is now."""
        its = (self.run, self.corpus, self.targets, self.header, self.start, self.stages)
        return make_lesson(*its, "")

    @property
    def bfloat16(self) -> bool:
        """Whether the student's forward pass is under autocast."""
        return settled(self.run).training.autocast == "bfloat16"

    @property
    def dtype(self) -> str:
        """Of the teacher."""
        return self.targets.facts["dtype"]

    def student(self) -> Any:
        """A new student of the lesson."""
        return start_student(self.lesson(), load_tokenizer(str(self.start)))

    def peer_teacher(self) -> Any:
        """The teacher as a transformers model."""
        return load_teacher(self.teacher, self.corpus.task, DTYPES[self.dtype]).model

    def peer_ids(self) -> list[list[int]]:
        """Token ids of the transfer text, the teacher's: peers have no pruned vocabulary."""
        contents = [s.content for shard in self.corpus.transfer.shards for s in read_shard(shard)]
        encoded = self.corpus.task.encode(load_tokenizer(self.teacher), contents)
        bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
        return [encoded.ids[first:last].tolist() for first, last in bounds]

    def batches(self, epoch: int) -> list[Batch]:
        """An epoch's batches as training reads them."""
        lesson = self.lesson()
        training = lesson.config.training
        plan = BatchPlan(
            transfer_sources(lesson, 1)[0],
            lesson.stages[0].batch_tokens,
            training.window_tokens,
            seed=0,
            held_out=training.held_out,
        )
        ids = np.load(self.start / "student_ids.npy")
        pad_id = pad_id_of(load_tokenizer(str(self.start)))
        return list(Loader(plan, lesson.stages[0].layers, pad_id, ids).batches(epoch))


@contextmanager
def prepared(settings: Settings, sentences: int, *changes: str) -> Iterator[Prepared]:
    """Do the teacher's pass of a run in a folder that goes."""
    with scratch() as folder:
        config = run_config(settings, folder, f"data.transfer.sentences={sentences}", *changes)
        with open_run(config, True) as run, Cluster(config.cluster) as cluster:
            header = check_plan(config)
            stages = plan_stages(config, header.num_layers)
            corpus = read_corpus(run)
            teacher = make_teacher(run, cluster, corpus)
            targets = annotate_all(run, cluster, corpus, teacher, needed_layers(stages))
            words = corpus.splits["train"].sentences
            start = prepare_start(
                config, run.path("start"), teacher, corpus.task, targets.transfer, words
            )
            yield Prepared(run, cluster, corpus, teacher, header, targets, stages, start)


def imitated_layer(settings: Settings) -> int:
    """Layer of the teacher that all imitate."""
    return run_config(settings, Path("none")).recipe.layer or 4
