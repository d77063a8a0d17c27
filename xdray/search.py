"""The search: many students from one teacher pass, the best of them made into a run.

Ray Tune runs the trials, each in a process of its own; a proposer (proposals) names what to try
next, and ASHA ends trials that are behind. All that must survive is in the trials' folders, so the
same command goes on after a kill, and a search with more trials starts from those that are there.
"""

import json
import os
import pickle
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from xdray.assessment import teacher_scores
from xdray.checks import check_plan, check_student
from xdray.cluster import Cluster, fit_on_workers, plan_resources
from xdray.config import Config
from xdray.configfile import changed_fields, load_config, with_fields
from xdray.distillation import annotate_all, distill, make_teacher, settled
from xdray.errors import ConfigError
from xdray.fronts import pareto_front
from xdray.header import ModelHeader
from xdray.lessons import Lesson
from xdray.recipes import plan_stages
from xdray.runs import Run, open_run
from xdray.search_report import write_search_report
from xdray.space import Fields, Space, check_space, space_of, trial_config
from xdray.splits import Corpus, read_corpus
from xdray.stages import needed_layers
from xdray.starts import prepare_start
from xdray.storage import exists, join, read_bytes
from xdray.targets import TargetView
from xdray.tokenised import Signal
from xdray.tokens import fingerprint as tokenizer_fingerprint
from xdray.tokens import load_tokenizer
from xdray.trial_files import ENDED
from xdray.trial_pool import TrialPool, concurrency, search_of, shown, trials_of, workers_of
from xdray.trials import (
    Course,
    Report,
    learn_here,
    learn_in_trial,
    objectives_of,
    run_trial,
    start_key,
)
from xdray.workers import enter, keep_few_shapes, trim_memory

SETTINGS = {  # Tune's own files serve nobody here; its prints are replaced by ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end the search as if it had finished
}


POLL_SECONDS = 0.5


def tune(config: Config, *, fresh: bool = False) -> dict[str, Any]:
    """Search the config's space, then make the best student; returns the search's report."""
    started = time.monotonic()
    space = space_of(config)
    header = check_plan(config)
    check_space(config, space, lambda its: check_student(its, header))
    with open_run(config, fresh) as run, Cluster(config.cluster) as cluster:
        corpus = read_corpus(run)
        teacher = make_teacher(run, cluster, corpus)
        layers = _layers(config, space, header)
        targets = annotate_all(run, cluster, corpus, teacher, layers)
        course = make_course(run, corpus, targets.transfer, teacher, header, space)
        dev, tokenizer = corpus.splits["dev"].sentences, load_tokenizer(teacher)
        scores = teacher_scores(corpus.task, targets.dev, tokenizer, dev)
        pool = TrialPool(course, space, run.console.say)
        pool.weigh_ahead()
        run_trials(pool, cluster)
        trials = [its for its in trials_of(course, space) if its["status"] in ENDED]
        report = summarise(course, trials, pool.excluded, targets.facts, scores[course.task.metric])
        best = report["best"]
        if best is None:
            raise ConfigError(
                f"{run.place}: no trial finished; see trials/*/trial.json"
                if trials
                else f"search: none of {pool.excluded} students that were proposed may be trained; "
                "raise the limits (max_parameters, max_bytes, max_latency_ms) or change the space"
            )
        chosen = distill_best(run, course, teacher, best)
        best["run"] = {key: chosen[key] for key in ("retention", "gain", "latency_ms")}
        best["run"]["run_dir"] = run.named("best")
        best["test"] = chosen["student"]["test"][course.task.metric]
        baseline = chosen["baseline"]
        report["baseline_dev"] = baseline and baseline["dev"][course.task.metric]
        report["seconds"] = round(time.monotonic() - started, 2)
        report["run_dir"] = run.place
        report["report"] = run.named(write_search_report(run.folder, report, trials).name)
        run.console.say(f"\nreport: {report['report']}")
        run.write_json("search.json", report)
        return report


def make_course(
    run: Run, corpus: Corpus, view: TargetView, teacher: str, header: ModelHeader, space: Space
) -> Course:
    """Prepare what trials start from: an embedding table for each width and start of the space."""
    config = settled(run)
    starts: dict[str, tuple[str, str]] = {}
    fields_of_starts = ("student.embedding", "student.start", "student.layers")
    for fields in space.part(*fields_of_starts).combinations():
        its = trial_config(config, fields)
        if start_key(its) in starts:
            continue
        folder = run.path("starts", start_key(its))
        prepare_start(its, folder, teacher, corpus.task, view, corpus.splits["train"].sentences)
        starts[start_key(its)] = str(folder), tokenizer_fingerprint(load_tokenizer(str(folder)))
    return Course(
        config=config,
        task=corpus.task,
        num_teacher_layers=header.num_layers,
        teacher_width=header.width,
        teacher_heads=header.num_heads,
        targets=view.fingerprint,
        data=corpus.fingerprint,
        starts=starts,
        threads=concurrency(config)[1],
        mirror=run.mirror and run.mirror.renew(),
    )


def distill_best(run: Run, course: Course, teacher: str, best: Mapping[str, Any]) -> dict[str, Any]:
    """Make the chosen trial's student a run of its own: tested once, saved, reported."""
    search = search_of(course.config)
    config = with_fields(course.config, {**best["fields"], **search.retrain})
    folder = run.path("best")
    trial = run.named("trials", course.folder(best["fields"]).name)
    its_run = {"folder": run.named("best"), "start_from": trial}
    its_teacher = {"model": teacher, "finetune": None}  # not fine-tuned once more
    update = {"run": its_run, "teacher": its_teacher}
    sections = {name: getattr(config, name).model_copy(update=its) for name, its in update.items()}
    config = config.model_copy(update={"search": None, **sections})
    saved = folder / "config.yaml"
    other = saved.is_file() and bool(changed_fields(load_config(str(saved)), config))
    other |= run.read_json("best.json") not in (None, {"course": course.key})
    run.write_json("best.json", {"course": course.key})
    run.console.say(f"best: {shown(best['fields'])}; made a run in {its_run['folder']}")
    return distill(config, fresh=other)


def summarise(
    course: Course,
    trials: list[dict[str, Any]],
    excluded: int,
    targets: Mapping[str, Any],
    teacher_dev: float,
) -> dict[str, Any]:
    """Return counts, front and best of the trials."""
    config = course.config
    search = search_of(config)
    finished = [trial for trial in trials if trial["status"] == "finished"]
    names = search.objectives if len(search.objectives) > 1 else ["score", "parameters"]
    points = [objectives_of(trial, names) for trial in finished]
    front = [finished[k] for k in pareto_front(points, names)]
    best = max(finished, key=lambda trial: trial["score"], default=None)
    counts = {status: sum(trial["status"] == status for trial in trials) for status in ENDED}
    return {
        "job": "tune",
        "status": "done",
        "run_dir": config.run.folder,
        "trials": {**counts, "excluded": excluded},
        "best": best and _line(best),
        "front": [_line(trial) for trial in sorted(front, key=lambda t: t["costs"]["parameters"])],
        "front_objectives": names,
        "targets": {key: targets[key] for key in ("rows", "teacher_forward_rows", "layers")},
        "teacher_dev": teacher_dev,
        "metric": course.task.metric,
        "space": {name: str(domain) for name, domain in space_of(config).domains.items()},
        "config": config.model_dump(mode="json"),
    }


def _line(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {key: trial[key] for key in ("id", "fields", "score", "costs")}


def run_trials(pool: TrialPool, cluster: Cluster) -> None:
    """Run the trials that are missing, each in a process of Tune's."""
    course = pool.course
    if pool.remaining <= 0:
        pool.say(f"search: all {pool.limit} trials are there")
        return
    os.environ.update(SETTINGS)
    cluster.start()
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    folder = (Path(course.config.run.folder) / "ray").resolve()
    at_once, _ = concurrency(course.config)
    pool.say(f"search: {pool.remaining} trials, {min(at_once, pool.remaining)} at once")
    search, scheduler = search_of(course.config), None
    if search.early_stopping == "asha" or (
        search.early_stopping == "auto" and search.objectives == ["score"]
    ):
        scheduler = ASHAScheduler(
            time_attr="percent",
            max_t=100,
            grace_period=max(1, int(100 * search.grace)),
            reduction_factor=search.reduction,
        )
    several = workers_of(course.config) > 0
    # several workers ask for CPUs of their own; Tune refuses a trial that holds nothing
    resources = {"memory": 1.0} if several else {"cpu": 1.0}
    if plan_resources(course.config, None).available.gpus and not several:
        resources["gpu"] = search.gpus_per_trial
    trainable = tune.with_parameters(_trial, course=course, folder=str(Path.cwd()))
    tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=_searcher(pool),
            scheduler=scheduler,
            num_samples=pool.remaining,
            max_concurrent_trials=at_once,
            reuse_actors=not several,  # ended with its actor, a trial's workers end too
        ),
        run_config=tune.RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=course.config.training.max_failures),
        ),
    ).fit()
    shutil.rmtree(folder, ignore_errors=True)  # the trials' own folders hold all


def _trial(values: dict[str, Any], course: Course, folder: str) -> None:
    """Runs in a process of Tune's."""
    from ray import tune

    enter(folder)  # relative paths of the config are from where the command was typed
    keep_few_shapes(training=True)

    def report(line: dict[str, Any]) -> None:
        tune.report({"score": line["score"], "percent": min(99, int(100 * line["done"]))})

    fit = _learn_on_workers if workers_of(course.config) else learn_here
    end = run_trial(course, values["fields"], report, fit)
    trim_memory()  # the next trial comes to this process
    tune.report({"score": end["score"] or 0.0, "percent": 100, "status": end["status"]})


def _learn_on_workers(lesson: Lesson, report: Report) -> list[dict[str, Any]]:
    """Train the student of a trial in a Ray Train run of its own, telling its epochs as they end.

    The run is waited for in a thread, since Tune hears a trial only in the thread that it started.
    """
    plan = plan_resources(lesson.config, None)
    path = join(lesson.place, "reports.jsonl")
    told = len(read_bytes(path).splitlines()) if exists(path) else 0
    with ThreadPoolExecutor(1) as pool, Cluster(lesson.config.cluster) as cluster:
        fitting = pool.submit(
            fit_on_workers,
            cluster,
            learn_in_trial,
            lesson,
            plan,
            storage=lesson.storage,
            name="train",
            max_failures=lesson.config.training.max_failures,
        )
        while True:
            done = bool(wait([fitting], POLL_SECONDS).done)
            text = read_bytes(path).decode() if exists(path) else ""
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            for line in lines[told:]:
                report(json.loads(line))
            told = max(told, len(lines))
            if done:
                return fitting.result()


def _searcher(pool: TrialPool) -> Any:
    """Return the pool as a searcher of Tune's, whose class can be named only now."""
    from ray.tune.search import Searcher

    class PoolSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="score", mode="max")
            self._fields: dict[str, Fields] = {}

        def suggest(self, trial_id: str) -> Any:
            fields = pool.next()
            if fields is None:
                return Searcher.FINISHED
            self._fields[trial_id] = fields
            return {"fields": fields}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            pool.end(self._fields.pop(trial_id), None if error else result)

        def __reduce__(self) -> Any:
            return object, ()  # Tune writes its arguments to a file that nobody reads

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_bytes(pickle.dumps(None))  # the trials' folders say all

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

    return PoolSearcher()


def _layers(config: Config, space: Space, header: ModelHeader) -> tuple[Signal, ...]:
    """Teacher layers that any trial imitates: all are stored in one pass."""
    found: set[Signal] = set()
    for fields in space.part("recipe.").sample(config.run.seed):
        stages = plan_stages(trial_config(config, fields), header.num_layers)
        found.update(needed_layers(stages))
    return tuple(sorted(found, key=str))
