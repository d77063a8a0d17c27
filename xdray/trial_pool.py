"""The trials of a search: which is next, and what came of each. No Ray.

Weighs students before they are trained, asks a proposer, leaves out what is known or beyond a
limit, goes on with what an earlier call left half-done.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xdray.cluster import plan_resources
from xdray.config import Config
from xdray.config_search import SearchConfig
from xdray.errors import ConfigError
from xdray.learning import start_student
from xdray.proposals import Proposer, make_proposer
from xdray.space import Fields, Space, trial_id
from xdray.storage import write_bytes_atomic
from xdray.tokens import load_tokenizer
from xdray.trial_files import ENDED, has_ended, read_costs, read_trial, write_trial
from xdray.trials import Course, begin_trial, objectives_of, read_trials, shape_key, student_costs

LIMITED = ("parameters", "bytes", "latency_ms")
SHAPES_AHEAD = 64
"""Shapes of a space that are weighed and timed before the first trial, on a quiet machine."""
REPEATS = 30
"""Proposals in a row that are known or too big, before others are drawn at random."""
DRAWS = 5_000
"""Draws at random before a space counts as used up; a finite one this small is gone through."""


class TrialPool:
    """The trials of a search: which is next, what came of each."""

    def __init__(self, course: Course, space: Space, say: Callable[[str], object]) -> None:
        """Find what earlier calls left. say: told of what happens, in one line."""
        self.course, self.space, self.say = course, space, say
        folder = Path(course.config.run.folder)
        self.search = search_of(course.config)
        self._excluded: set[str] = set()
        self._costs_path = folder / "costs.json"
        self._costs: dict[str, Any] = (
            read_costs(self._costs_path) if self._costs_path.is_file() else {}
        )
        self._running: dict[str, Fields] = {}
        known = read_trials(course)
        trials = trials_of(course, space)
        self._ended = {trial["id"]: trial for trial in trials if has_ended(trial)}
        self._interrupted = [trial for trial in trials if not has_ended(trial)]
        self._count = len(trials)
        self._number = max((trial["number"] + 1 for trial in known), default=0)
        if len(known) > len(trials):
            self.say(
                f"search: {len(known) - len(trials)} trials of earlier calls are beyond this space "
                "or its limits, and left aside"
            )
        config = course.config
        self._proposer: Proposer = make_proposer(
            space, self.search.algorithm, self.search.objectives, config.run.seed
        )
        for trial in self._ended.values():
            self._proposer.tell(trial["fields"], self._values(trial))
        self.limit = self.search.trials
        if self.search.algorithm == "grid":
            self.limit = space.size or 0

    @property
    def excluded(self) -> int:
        """Students that were proposed and may not be trained."""
        return len(self._excluded)

    @property
    def remaining(self) -> int:
        """Trials that have not come to an end."""
        return self.limit - len(self._ended)

    def weigh_ahead(self) -> None:
        """Weigh and time the shapes of a small space. Raises ConfigError if none may be trained."""
        shapes = self.space.part("student.")
        if (shapes.size or 0) > SHAPES_AHEAD:
            return
        rest = next(self.space.part("").combinations())
        found = [self.costs({**rest, **fields}) for fields in shapes.combinations()]
        refusals = [reason for costs in found if (reason := refusal(self.search, costs))]
        if len(refusals) == len(found):
            nearest = min(found, key=lambda costs: beyond(self.search, costs))
            raise ConfigError(
                "search: no student of the space may be trained; the nearest has "
                f"{refusal(self.search, nearest)}"
            )
        self.say(
            f"search: {len(found)} shapes, {len(refusals)} beyond the limits, "
            f"{self.space.size or 'any number of'} combinations"
        )

    def costs(self, fields: Fields) -> dict[str, Any]:
        """Return the costs of a trial's student, measured once for each shape."""
        lesson = self.course.lesson(fields)
        key = f"{self.course.key}-{shape_key(lesson.config)}"
        if key not in self._costs:
            student = start_student(lesson, load_tokenizer(lesson.start))
            self._costs[key] = student_costs(student, timed_length(self.course.config))
            write_bytes_atomic(str(self._costs_path), json.dumps(self._costs, indent=1).encode())
        return self._costs[key]

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
            elif refusal(self.search, costs := self.costs(fields)):
                self._excluded.add(name)
                self._proposer.tell(fields, None)
            else:
                self._running[name] = fields
                begin_trial(self.course, fields, self._number, costs)
                self._count += 1
                self._number += 1
                return fields
        if self._count < self.limit:
            self.say(f"search: no more students to propose after {self._count} of {self.limit}")
            self.limit = self._count
        return None

    def _proposals(self) -> Iterator[Fields]:
        if self._count >= self.limit:
            return
        for _ in range(REPEATS):
            fields = self._proposer.ask()
            if fields is None:
                return
            yield fields
        rng = random.Random(f"{self.course.config.run.seed} {self._number}")
        if self.space.size is not None and self.space.size <= DRAWS:
            rest = list(self.space.combinations())
            rng.shuffle(rest)
            yield from rest
        else:
            yield from (self.space.draw(rng) for _ in range(DRAWS))

    def end(self, fields: Fields, result: Mapping[str, Any] | None) -> None:
        """Note the end of a trial. result: Tune's last, None where its process died."""
        folder = self.course.folder(fields)
        self.course.fetch(fields)
        trial = read_trial(folder / "trial.json")
        if trial["status"] not in ENDED:
            more: dict[str, Any] = {"status": "failed", "again": True, "score": None}
            more["error"] = "its process died"
            if result and "score" in result:
                more = {"status": "stopped", "score": result["score"]}
                more |= {"done": result["percent"] / 100, "seconds": result["time_total_s"]}
            trial = write_trial(folder, fields, more)
            self.course.send(fields)
        self._running.pop(trial["id"], None)
        self._ended[trial["id"]] = trial
        self._proposer.tell(fields, self._values(trial))
        score = "no score" if trial["score"] is None else f"score {trial['score']:.4f}"
        why = f" ({trial['error']})" if trial["status"] == "failed" else ""
        self.say(
            f"trial {len(self._ended)} of {self.limit} {trial['status']}{why}: {score}, "
            f"{trial['costs']['parameters']:,} parameters, {shown(fields)}, "
            f"{trial.get('seconds', 0):.0f} s"
        )

    def _values(self, trial: Mapping[str, Any]) -> list[float] | None:
        if trial["score"] is None:
            return None
        return objectives_of(trial, self.search.objectives)


def trials_of(course: Course, space: Space) -> list[dict[str, Any]]:
    """Return the trials that are of this space and within the limits, in the order of starts."""
    search = search_of(course.config)
    return [
        trial
        for trial in read_trials(course)
        if trial["fields"] in space and refusal(search, trial["costs"]) is None
    ]


def beyond(search: SearchConfig, costs: Mapping[str, Any]) -> float:
    """How many times a student is beyond the limit that it is furthest beyond."""
    limits = {name: getattr(search, f"max_{name}") for name in LIMITED}
    return max(costs[name] / its for name, its in limits.items() if its and costs[name])


def refusal(search: SearchConfig, costs: Mapping[str, Any]) -> str | None:
    """Say which limit of the search a student is beyond, None if it may be trained."""
    for name in LIMITED:
        limit = getattr(search, f"max_{name}")
        if limit is not None and costs[name] is not None and costs[name] > limit:
            return f"{name} {costs[name]:,.6g}, search.max_{name} is {limit:,.6g}"
    return None


def timed_length(config: Config) -> int | None:
    """Tokens of a sentence when latency is measured, None where it is not."""
    return config.evaluation.latency_length if config.evaluation.latency else None


def search_of(config: Config) -> SearchConfig:
    """Return the section `search`, which is there."""
    assert config.search is not None
    return config.search


def concurrency(config: Config) -> tuple[int, int]:
    """Trials at once, and threads of each."""
    plan, search = plan_resources(config, None), search_of(config)
    there, workers = plan.available, workers_of(config)
    threads = config.cluster.threads or 1
    if workers:
        fit = there.gpus // workers if there.gpus else there.cpus // workers
        at_once = fit if search.concurrent == "auto" else search.concurrent
        return max(1, int(at_once)), plan.threads_per_worker
    if search.concurrent != "auto":
        return search.concurrent, config.cluster.threads or max(1, there.cpus // search.concurrent)
    if there.gpus:
        return max(1, int(there.gpus / search.gpus_per_trial)), threads
    return max(1, there.cpus // threads), threads


def workers_of(config: Config) -> int:
    """Ray Train workers of a trial; 0: it trains in its own process."""
    asked = config.training.workers
    return asked if isinstance(asked, int) and asked > 1 else 0


def shown(fields: Mapping[str, Any]) -> str:
    """Return fields as overrides are typed."""
    return " ".join(f"{name}={value}" for name, value in fields.items())
