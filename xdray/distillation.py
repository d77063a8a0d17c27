"""The recipe: START READING HERE. Text in, small model out: all that xdray does, in order."""

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from xdray import __version__
from xdray.annotation import Annotated, annotate
from xdray.assessment import assess_split, systems_report, weigh_and_time
from xdray.batch_plan import PLAN_VERSION
from xdray.checks import check_plan
from xdray.cluster import Cluster, fit_on_workers, plan_resources
from xdray.config import Config
from xdray.costs import cost_report
from xdray.errors import ConfigError
from xdray.finetuning import save_finetuned
from xdray.header import ModelHeader, absolute_model, read_header
from xdray.learning import (
    control_epochs,
    finetune,
    finished_student,
    learn,
)
from xdray.lessons import Lesson, lesson_base
from xdray.planning import make_plan
from xdray.recipes import finetune_stage, label_stage, plan_stages
from xdray.report import is_whole, loading_example, model_card, summary_table, write_report
from xdray.runs import Run, open_run
from xdray.saving import check_saved, load_student, save_student
from xdray.scoring import score_model
from xdray.sessions import LocalSession
from xdray.splits import Corpus, read_corpus
from xdray.stages import Stage, needed_layers
from xdray.starts import prepare_start
from xdray.storage import NUMBER, absolute, exists, fingerprint, join
from xdray.student import Student
from xdray.teacher import best_dtype, default_device
from xdray.tokenised import Signal
from xdray.tokens import fingerprint as tokenizer_fingerprint
from xdray.tokens import load_tokenizer
from xdray.weights import model_folder

Report = dict[str, Any]


def distill(config: Config, *, fresh: bool = False) -> Report:
    """Text in, small model out; finished steps are skipped, a finished run is found done."""
    started = time.monotonic()
    with open_run(config, fresh) as run, Cluster(config.cluster) as cluster:
        report = run.read_json("report.json")
        if report is not None and not is_whole(report):
            raise ConfigError(
                f"{run.named('report.json')}: damaged, or of something else, expected the report "
                "of a finished run; delete it and run the same command again"
            )
        if report is not None:
            run.console.say(f"{run.place}: this run is done; --fresh does it again")
            return report
        if run.path("trials").is_dir():
            raise ConfigError(f"{run.place} is the folder of a search; name another run.folder")
        header = check_plan(config)
        if run.read_json("plan.json") is None:
            run.write_json("plan.json", make_plan(config))  # refuses what the disk cannot hold
        stages = plan_stages(config, header.num_layers)
        torch.set_num_threads(plan_resources(config, None).threads_per_worker)  # also when resumed
        corpus = read_corpus(run)
        teacher = make_teacher(run, cluster, corpus)  # fine-tuned here, or the folder given
        targets = annotate_all(run, cluster, corpus, teacher, needed_layers(stages))
        train_text = corpus.splits["train"].sentences
        start = prepare_start(
            config, run.path("start"), teacher, corpus.task, targets.transfer, train_text
        )
        lesson = make_lesson(run, corpus, targets, header, start, stages, "")
        rows = train(run, cluster, lesson)
        controls = train_controls(run, cluster, lesson, rows)
        learnt = [row for its in (rows, *(its for _, its in controls.values())) for row in its]
        targets.facts["teacher_forward_rows"] += sum(r["teacher_forward_rows"] for r in learnt)
        return assess(run, corpus, targets, teacher, lesson, rows, controls, started)


def make_teacher(run: Run, cluster: Cluster, corpus: Corpus) -> str:
    """Return the fine-tuned teacher by a name that all machines know; fine-tune it first if asked.

    A folder, a URI, a Hub name or a package's folder.
    """
    config = run.config
    if config.teacher.model is not None:
        model_folder(config.teacher.model)  # is there
        return absolute_model(config.teacher.model)
    assert config.teacher.finetune is not None
    folder = run.path("teacher")
    fresh = config.teacher.finetune.fresh
    model_folder(config.teacher.finetune.encoder, weights=not fresh)  # is there
    encoder = absolute_model(config.teacher.finetune.encoder)
    settings = config.teacher.finetune.model_dump(mode="json")
    base = {"finetune": settings, "data": corpus.fingerprint, "seed": config.run.seed}
    key = fingerprint(base)
    before = run.read_json("teacher.json", key=str, seconds=NUMBER) or {}
    if folder.is_dir() and before.get("key") == key:
        run.console.say(f"teacher: fine-tuned before, taken from {run.named('teacher')}")
        return run.named("teacher")
    lesson = Lesson(
        config=settled(run),
        task=corpus.task,
        stages=(finetune_stage(config),),
        base={**base, "plan": PLAN_VERSION},  # what is half done starts anew under another one
        start=encoder,
        view=None,
        teacher_width=read_header(encoder).width,
        teacher_heads=0,
        folder=str(run.path("finetuning")),
        start_from=None,
        threads=plan_resources(config, None).threads_per_worker,
    )
    rows = train(run, cluster, lesson, loop=finetune)
    run.path("teacher.json").unlink(missing_ok=True)  # it vouches for an earlier one
    run.send()
    save_finetuned(lesson.start, corpus.task, run.path("finetuning"), folder, fresh)
    run.write_json("teacher.json", {"key": key, "seconds": sum(row["seconds"] for row in rows)})
    return run.named("teacher")


def annotate_all(
    run: Run, cluster: Cluster, corpus: Corpus, teacher: str, layers: tuple[Signal, ...]
) -> Annotated:
    """Run the teacher over the transfer text, and over dev and test to score it, once."""
    scored = {split: corpus.splits[split].sentences for split in ("dev", "test")}
    found = annotate(run, cluster, teacher, corpus.task, layers, corpus.transfer.shards, scored)
    counts = corpus.transfer.counts
    found.facts["rejected"] = counts["empty"] + counts["duplicates"]
    return found


def make_lesson(
    run: Run,
    corpus: Corpus,
    targets: Annotated,
    header: ModelHeader,
    start: Path,
    stages: Sequence[Stage],
    control: str,
) -> Lesson:
    """Name all that a student is made from. control: "" the student, else its folder's name."""
    config = settled(run)
    base = lesson_base(
        config,
        tokenizer=tokenizer_fingerprint(load_tokenizer(str(start))),
        targets=targets.transfer.fingerprint,
        data=corpus.fingerprint,
        task=corpus.task,
    )
    return Lesson(
        config=config,
        task=corpus.task,
        stages=tuple(stages),
        base=base,
        start=str(start),
        view=str(run.folder),
        teacher_width=header.width,
        teacher_heads=header.num_heads,
        folder=str(run.path(control, "stages")),
        start_from=_earlier_stages(config, control),
        threads=plan_resources(config, None).threads_per_worker,
        stream=targets.stream,
    )


def _earlier_stages(config: Config, control: str) -> str | None:
    """Where the stages of the run to start from are, if it has any."""
    if config.run.start_from is None:
        return None
    place = absolute(join(config.run.start_from, *filter(None, [control]), "stages"))
    return place if exists(place) else None


def settled(run: Run) -> Config:
    """Return the config with `training.autocast` worked out, the same when a run is resumed."""
    config = run.config
    if config.training.autocast != "auto":
        return config
    on_gpu = plan_resources(config, None).gpus_per_worker or default_device() == "cuda"
    dtype = run.remembered("autocast", lambda: best_dtype("cuda" if on_gpu else "cpu"))
    autocast = "bfloat16" if dtype == "bfloat16" else "none"
    training = config.training.model_copy(update={"autocast": autocast})
    return config.model_copy(update={"training": training})


def train(run: Run, cluster: Cluster, lesson: Lesson, loop: Any = learn) -> list[dict[str, Any]]:
    """All stages in ONE Ray Train run, or in this process where the plan has no workers."""
    plan = plan_resources(run.config, None)
    if run.mirror is not None:
        lesson = replace(lesson, mirror=run.mirror.renew())
    if plan.workers == 0:
        return loop(lesson, LocalSession(Path(lesson.folder), meters=cluster.meters))
    with run.console.follow():  # the workers write the run's log, this process prints it
        rows = fit_on_workers(
            cluster,
            loop,
            lesson,
            plan,
            storage=lesson.storage,
            name=fingerprint([lesson.base, [str(stage) for stage in lesson.stages]])[:12],
            max_failures=run.config.training.max_failures,
        )
    if run.mirror is not None:
        run.mirror.fetch()  # rank 0 may have been elsewhere
    return rows


def train_controls(
    run: Run, cluster: Cluster, lesson: Lesson, rows: Sequence[dict[str, Any]]
) -> dict[str, tuple[Lesson, list[dict[str, Any]]]]:
    """Train the same student without a teacher, and on the teacher's best tags only, as asked.

    Same start and choice by dev, `training`'s rate; at least the student's number of steps, and no
    early end.
    """
    controls = {}
    for control, loss in (("baseline", "labels"), ("hard_labels", "hard_labels")):
        if not (lesson.task.has_gold and getattr(run.config.evaluation, control)):
            continue
        epochs = control_epochs(lesson, rows, loss)
        run.console.say(f"control {control}: {epochs} epochs of {loss}")
        its = replace(
            lesson,
            stages=tuple(label_stage(run.config, loss, epochs)),
            folder=str(run.path(control, "stages")),
            start_from=_earlier_stages(run.config, control),
        )
        controls[control] = (its, train(run, cluster, its))
    return controls


def assess(
    run: Run,
    corpus: Corpus,
    targets: Annotated,
    teacher: str,
    lesson: Lesson,
    rows: list[dict[str, Any]],
    controls: dict[str, tuple[Lesson, list[dict[str, Any]]]],
    started: float,
) -> Report:
    """Score, save and weigh the student, and write the report. Test is scored here only."""
    config, task = run.config, corpus.task
    tokenizers = (load_tokenizer(teacher), load_tokenizer(lesson.start))
    student = finished_student(lesson, tokenizers[1])
    systems = {"student": student}
    systems |= {name: finished_student(its, tokenizers[1]) for name, (its, _) in controls.items()}
    run.console.say("scoring dev and test" if task.has_gold else "saving the encoder")
    dev = assess_split(config, "dev", task, targets.dev, systems, tokenizers, None)
    test = assess_split(config, "test", task, targets.test, systems, tokenizers, dev)
    student.model.config.update(task.saved(dev.chosen["student"]))  # for predict
    save_student(student, tokenizers[1], run.path("student"))
    reloaded = load_student(run.path("student"), task.model_class)
    check_saved(student, reloaded, run.path("student"))
    if config.recipe.name == "universal" and task.has_gold and student.projection is not None:
        base: Any = student.model.base_model  # without the head (P2)
        base.config = copy.deepcopy(base.config)
        base.config.update({"task_kind": "encoding"})
        encoder = Student(base, None, student.max_length)
        save_student(encoder, tokenizers[1], run.path("encoder"))
    costs = weigh_and_time(config, task, teacher, str(run.path("student")), reloaded)
    report: Report = {
        "job": "distill",
        "status": "done",
        "run_dir": run.place,
        "seconds": round(time.monotonic() - started, 2),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        **systems_report(config, task, teacher, dev, test, costs),
        "targets": targets.facts,
        "evaluation": {
            "metric": task.metric,
            "teacher_forward_rows": targets.evaluation_forward_rows,
            "cut_words": {"dev": dev.cut_words, "test": test.cut_words},
        },
        "corpus": {split: its.counts for split, its in corpus.splits.items()}
        | {"transfer": corpus.transfer.counts},
        "stages": rows,
        "plan": plan_resources(config, None).as_dict(),
        "config": config.model_dump(mode="json"),
    }
    for name, (_, its_rows) in controls.items():
        report[name] |= {key: sum(row[key] for row in its_rows) for key in ("steps", "seconds")}
    finetuning = (run.read_json("teacher.json", seconds=NUMBER) or {}).get("seconds", 0.0)
    report["costs"] = cost_report(report, finetuning, [report[its]["seconds"] for its in controls])
    (run.path("student") / "README.md").write_text(model_card(report), encoding="utf-8")
    report["report"] = run.named(write_report(run.folder, report).name)
    run.console.show(summary_table(report))
    run.console.say(f"\nreport: {report['report']}\n\n{loading_example(report)}\n")
    run.write_json("report.json", report)  # last: it says that the run is done
    return report


def annotate_only(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Run the teacher's pass of a run, and nothing after it."""
    started = time.monotonic()
    if config.targets.delivery == "streamed":
        raise ConfigError(
            "targets.delivery: streamed keeps nothing of a pass; annotate fills a store "
            "(delivery: stored), distill streams"
        )
    with open_run(config, fresh) as run, Cluster(config.cluster) as cluster:
        header = check_plan(config)
        layers = needed_layers(plan_stages(config, header.num_layers))
        corpus = read_corpus(run)
        teacher = make_teacher(run, cluster, corpus)
        targets = annotate_all(run, cluster, corpus, teacher, layers)
        seconds = round(time.monotonic() - started, 2)
        return {"run_dir": run.place, "seconds": seconds, "targets": targets.facts}


def finetune_only(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Fine-tune the teacher of a run, and nothing after it."""
    started = time.monotonic()
    if config.teacher.finetune is None:
        raise ConfigError("teacher.finetune is not set: there is nothing to fine-tune")
    with open_run(config, fresh) as run, Cluster(config.cluster) as cluster:
        check_plan(config)
        corpus = read_corpus(run)
        folder = make_teacher(run, cluster, corpus)
        scores = score_model(config, folder, "dev")
        seconds = round(time.monotonic() - started, 2)
        return {"run_dir": run.place, "seconds": seconds, "teacher": folder, "dev": scores}
