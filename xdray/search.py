"""The search: many students from one teacher pass, the best of them made into a run.

Ray Tune runs the trials, each in a process of its own; a proposer (proposals) names what to try
next, and ASHA ends trials that are behind. All that must survive is in the trials' folders, so the
same command goes on after a kill, and a search with more trials starts from those that are there.
"""

import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xdray.assessment import teacher_predictions
from xdray.cluster import Cluster, plan_resources
from xdray.config import Config
from xdray.config_search import SearchConfig
from xdray.configfile import load_config, with_fields
from xdray.corpus import Labelled
from xdray.distillation import Corpus, annotate_all, distill, make_teacher, read_corpus, settled
from xdray.errors import ConfigError
from xdray.evaluation import entity_scores
from xdray.header import ModelHeader
from xdray.labels import LabelSet
from xdray.planning import check_plan, check_student
from xdray.proposals import Proposer, make_proposer, pareto_front
from xdray.runs import Run, open_run
from xdray.search_report import write_search_report
from xdray.space import Fields, Space, check_space, space_of, trial_config, trial_id
from xdray.stages import needed_layers, plan_stages
from xdray.starts import prepare_start
from xdray.storage import write_bytes_atomic
from xdray.targets import TargetView
from xdray.tokens import fingerprint as tokenizer_fingerprint
from xdray.tokens import load_tokenizer, words_of
from xdray.trials import (
    ENDED,
    Course,
    objectives_of,
    read_trials,
    run_trial,
    shape_key,
    start_key,
    student_costs,
    write_trial,
)

SHAPES_AHEAD = 64
"""Shapes of a space that are weighed and timed before the first trial, on a quiet machine."""
REPEATS = 200
"""Proposals in a row that are known or too big, before a search ends short of its trials."""
SETTINGS = {  # Tune's own files serve nobody here; its prints are replaced by ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
}


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
        teacher_dev = _teacher_score(config, corpus.splits["dev"], targets.dev, corpus.labels)
        pool = _Pool(run, course, space)
        pool.weigh_ahead()
        pool.run(cluster)
        trials = read_trials(run.folder)
        report = summarise(config, trials, pool.excluded, targets.facts, teacher_dev)
        best = report["best"]
        if best is None:
            raise ConfigError(f"{run.folder}: no trial finished; see trials/*/trial.json")
        chosen = distill_best(run, course, best)
        best["run"] = {key: chosen[key] for key in ("run_dir", "retention", "gain", "latency_ms")}
        best["test"] = chosen["student"]["test"][config.evaluation.metric]
        baseline = chosen["baseline"]
        report["baseline_dev"] = baseline and baseline["dev"][config.evaluation.metric]
        report["seconds"] = round(time.monotonic() - started, 2)
        report["report"] = str(write_search_report(run.folder, report, trials))
        run.console.say(f"\nreport: {report['report']}")
        run.write_json("search.json", report)
        return report


def make_course(
    run: Run, corpus: Corpus, view: TargetView, teacher: str, header: ModelHeader, space: Space
) -> Course:
    """Prepare what trials start from: an embedding table for each width and start of the space."""
    config = settled(run)
    starts: dict[str, tuple[str, str]] = {}
    for fields in space.part("student.embedding").combinations():
        its = trial_config(config, fields)
        folder = run.path("starts", start_key(its))
        prepare_start(its, folder, teacher, view, corpus.splits["train"].sentences)
        starts[start_key(its)] = str(folder), tokenizer_fingerprint(load_tokenizer(str(folder)))
    return Course(
        config=config,
        labels=corpus.labels.tags,
        num_teacher_layers=header.num_layers,
        teacher_width=header.width,
        targets=view.fingerprint,
        data=corpus.fingerprint,
        starts=starts,
        threads=_concurrency(config)[1],
    )


def distill_best(run: Run, course: Course, best: Mapping[str, Any]) -> dict[str, Any]:
    """Make the chosen trial's student a run of its own: tested once, saved, reported."""
    search = _settings(course.config)
    config = with_fields(course.config, {**best["fields"], **search.retrain})
    folder = run.path("best")
    its_run = {"folder": str(folder), "start_from": str(course.folder(best["fields"]))}
    config = config.model_copy(
        update={"search": None, "run": config.run.model_copy(update=its_run)}
    )
    saved = folder / "config.yaml"
    other = saved.is_file() and load_config(str(saved)) != config
    run.console.say(f"best: {_shown(best['fields'])}; made a run in {folder}")
    return distill(config, fresh=other)


def summarise(
    config: Config,
    trials: list[dict[str, Any]],
    excluded: int,
    targets: Mapping[str, Any],
    teacher_dev: float,
) -> dict[str, Any]:
    """Return counts, front and best of the trials."""
    search = _settings(config)
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
        "metric": config.evaluation.metric,
        "space": {name: str(domain) for name, domain in space_of(config).domains.items()},
        "config": config.model_dump(mode="json"),
    }


def _line(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {key: trial[key] for key in ("id", "fields", "score", "costs")}


class _Pool:
    """The trials of a search: which is next, what came of each."""

    def __init__(self, run: Run, course: Course, space: Space) -> None:
        self.run_, self.course, self.space = run, course, space
        self.search = _settings(course.config)
        self.excluded = 0
        self._costs_path = run.path("costs.json")
        self._costs: dict[str, Any] = run.read_json("costs.json") or {}
        self._running: dict[str, Fields] = {}
        trials = read_trials(run.folder)
        self._ended = {trial["id"]: trial for trial in trials if trial["status"] in ENDED}
        self._interrupted = [trial for trial in trials if trial["status"] not in ENDED]
        self._count = len(trials)
        config = course.config
        self._proposer: Proposer = make_proposer(
            space, self.search.algorithm, self.search.objectives, config.run.seed
        )
        for trial in self._ended.values():
            self._proposer.tell(trial["fields"], self._values(trial))
        self.limit = self.search.trials
        if self.search.algorithm == "grid":
            self.limit = space.size or 0

    def weigh_ahead(self) -> None:
        """Weigh and time the shapes of a small space. Raises ConfigError if none may be trained."""
        shapes = self.space.part("student.")
        if (shapes.size or 0) > SHAPES_AHEAD:
            return
        rest = next(self.space.part("").combinations())
        found = [self.costs({**rest, **fields}) for fields in shapes.combinations()]
        refusals = [reason for costs in found if (reason := self._refusal(costs))]
        if len(refusals) == len(found):
            raise ConfigError(
                f"search: no student of the space may be trained; the nearest has {min(refusals)}"
            )
        self.run_.console.say(
            f"search: {len(found)} shapes, {len(refusals)} beyond the limits, "
            f"{self.space.size or 'any number of'} combinations"
        )

    def costs(self, fields: Fields) -> dict[str, Any]:
        """Return the costs of a trial's student, measured once for each shape."""
        lesson = self.course.lesson(fields)
        key = shape_key(lesson.config)
        if key not in self._costs:
            latency = self.course.config.evaluation.latency
            self._costs[key] = student_costs(lesson, latency)
            write_bytes_atomic(str(self._costs_path), json.dumps(self._costs, indent=1).encode())
        return self._costs[key]

    def run(self, cluster: Cluster) -> None:
        """Run the trials that are missing."""
        remaining = self.limit - len(self._ended)
        if remaining <= 0:
            self.run_.console.say(f"search: all {len(self._ended)} trials are there")
            return
        os.environ.update(SETTINGS)
        cluster.start()
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        at_once, _ = _concurrency(self.course.config)
        self.run_.console.say(f"search: {remaining} trials, {min(at_once, remaining)} at once")
        search, scheduler = self.search, None
        if search.early_stopping == "asha":
            scheduler = ASHAScheduler(
                time_attr="percent",
                max_t=100,
                grace_period=max(1, int(100 * search.grace)),
                reduction_factor=search.reduction,
            )
        resources = {"cpu": 1.0}
        if plan_resources(self.course.config, None).available.gpus:
            resources["gpu"] = search.gpus_per_trial
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, course=self.course, folder=str(Path.cwd())), resources
            ),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_searcher(self),
                scheduler=scheduler,
                num_samples=remaining,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"{time.time_ns():x}",
                storage_path=str(self.run_.path("ray").resolve()),
                verbose=0,
            ),
        )
        tuner.fit()

    def next(self) -> Fields | None:
        """Return the fields of the next trial: first those that an earlier call left half-done."""
        if self._interrupted:
            trial = self._interrupted.pop()
            self._running[trial["id"]] = trial["fields"]
            return trial["fields"]
        for fields in self._proposals():
            name = trial_id(fields)
            if name in self._ended or name in self._running:
                known = self._ended.get(name)
                self._proposer.tell(fields, None if known is None else self._values(known))
            elif self._refusal(costs := self.costs(fields)):
                self.excluded += 1
                self._proposer.tell(fields, None)
            else:
                self._running[name] = fields
                begun = {"number": self._count, "status": "running", "costs": costs}
                write_trial(self.course.folder(fields), fields, begun)
                self._count += 1
                return fields
        return None

    def _proposals(self) -> Iterator[Fields]:
        if self._count >= self.limit:
            return
        for _ in range(REPEATS):
            fields = self._proposer.ask()
            if fields is None:
                return
            yield fields

    def end(self, fields: Fields, result: Mapping[str, Any] | None) -> None:
        """Note the end of a trial. result: Tune's last, None where its process died."""
        folder = self.course.folder(fields)
        trial = json.loads((folder / "trial.json").read_text(encoding="utf-8"))
        if trial["status"] not in ENDED:
            more: dict[str, Any] = {"status": "failed", "score": None, "error": "its process died"}
            if result and "score" in result:
                more = {"status": "stopped", "score": result["score"]}
                more |= {"done": result["percent"] / 100, "seconds": result["time_total_s"]}
            trial = write_trial(folder, fields, more)
        self._running.pop(trial["id"], None)
        self._ended[trial["id"]] = trial
        self._proposer.tell(fields, self._values(trial))
        score = "no score" if trial["score"] is None else f"score {trial['score']:.4f}"
        why = f" ({trial['error']})" if trial["status"] == "failed" else ""
        self.run_.console.say(
            f"trial {len(self._ended)} of {self.limit} {trial['status']}{why}: {score}, "
            f"{trial['costs']['parameters']:,} parameters, {_shown(fields)}, "
            f"{trial.get('seconds', 0):.0f} s"
        )

    def _values(self, trial: Mapping[str, Any]) -> list[float] | None:
        if trial["score"] is None:
            return None
        return objectives_of(trial, self.search.objectives)

    def _refusal(self, costs: Mapping[str, Any]) -> str | None:
        """Say which limit a student is beyond."""
        for name in ("parameters", "bytes", "latency_ms"):
            limit = getattr(self.search, f"max_{name}")
            if limit is not None and costs[name] is not None and costs[name] > limit:
                return f"{name} {costs[name]:,.6g}, search.max_{name} is {limit:,.6g}"
        return None


def _trial(values: dict[str, Any], course: Course, folder: str) -> None:
    """Runs in a process of Tune's."""
    from ray import tune

    if Path(folder).is_dir():
        os.chdir(folder)  # relative paths of the config are from where the command was typed

    def report(line: dict[str, Any]) -> None:
        tune.report({"score": line["score"], "percent": min(99, int(100 * line["done"]))})

    end = run_trial(course, values["fields"], report)
    tune.report({"score": end["score"] or 0.0, "percent": 100, "status": end["status"]})


def _searcher(pool: _Pool) -> Any:
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


def _settings(config: Config) -> SearchConfig:
    assert config.search is not None
    return config.search


def _concurrency(config: Config) -> tuple[int, int]:
    """Trials at once, and threads of each."""
    there, search = plan_resources(config, None).available, _settings(config)
    threads = config.cluster.threads or 1
    if search.concurrent != "auto":
        return search.concurrent, config.cluster.threads or max(1, there.cpus // search.concurrent)
    if there.gpus:
        return max(1, int(there.gpus / search.gpus_per_trial)), threads
    return max(1, there.cpus // threads), threads


def _layers(config: Config, space: Space, header: ModelHeader) -> tuple[int, ...]:
    """Teacher layers that any trial imitates: all are stored in one pass."""
    found: set[int] = set()
    for fields in space.part("recipe.").sample(config.run.seed):
        stages = plan_stages(trial_config(config, fields), header.num_layers)
        found.update(needed_layers(stages))
    return tuple(sorted(found))


def _teacher_score(config: Config, dev: Labelled, view: TargetView, labels: LabelSet) -> float:
    counts = [len(words_of(sentence, config.tokens.words)) for sentence in dev.sentences]
    tags, _ = teacher_predictions(view, counts, labels)
    gold = [list(sentence.tags or ()) for sentence in dev.sentences]
    languages = [sentence.language for sentence in dev.sentences]
    return entity_scores(gold, tags, languages)[config.evaluation.metric]


def _shown(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())
