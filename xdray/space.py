"""The space of a search: the values that each field may take, and the configs that come of them."""

import importlib.util
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xdray.config import Config
from xdray.config_search import RangeConfig
from xdray.configfile import with_fields
from xdray.errors import ConfigError
from xdray.redaction import redacted
from xdray.storage import fingerprint

Fields = dict[str, Any]
"""Dotted name of a config field to its value, for all fields of the space."""

SEARCHED = ("student.", "recipe.", "training.")
FIXED = ("training.workers", "training.checkpoint_seconds", "training.max_failures")
CHECKED = 1_000
"""Combinations that are checked before the first trial: all of a space this small, else a draw."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in ascending order, so that neighbours are alike."""
        kinds = {type(value) for value in self.values}
        return kinds <= {int, float} and list(self.values) == sorted(self.values)

    def draw(self, rng: random.Random) -> Any:
        """Return a value, each as likely."""
        return rng.choice(self.values)

    def __contains__(self, value: Any) -> bool:
        """Whether it is one of them."""
        return value in self.values


@dataclass(frozen=True)
class Range:
    """Any number between two bounds."""

    low: float
    high: float
    log: bool

    def __contains__(self, value: Any) -> bool:
        """Whether it is a number between them."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def draw(self, rng: random.Random) -> float:
        """Return a number, evenly or evenly on a logarithmic scale."""
        if not self.log:
            return rng.uniform(self.low, self.high)
        return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))


@dataclass(frozen=True)
class Space:
    """Every field that varies, with its values."""

    domains: dict[str, Choice | Range]

    @property
    def size(self) -> int | None:
        """Number of combinations, None where a field takes any number of a range."""
        choices = [d for d in self.domains.values() if isinstance(d, Choice)]
        if len(choices) < len(self.domains):
            return None
        return math.prod(len(choice.values) for choice in choices)

    def __contains__(self, fields: Fields) -> bool:
        """Whether fields are a combination of it."""
        same = fields.keys() == self.domains.keys()
        return same and all(fields[name] in domain for name, domain in self.domains.items())

    def combinations(self) -> Iterator[Fields]:
        """Yield all combinations of a finite space, the last field varying fastest."""
        values = [d.values for d in self.domains.values() if isinstance(d, Choice)]
        for combination in itertools.product(*values):
            yield dict(zip(self.domains, combination, strict=True))

    def draw(self, rng: random.Random) -> Fields:
        """Return a combination, fields drawn apart from each other."""
        return {name: domain.draw(rng) for name, domain in self.domains.items()}

    def part(self, *prefixes: str) -> "Space":
        """Return the fields that begin so; of a range its low end."""
        return Space(
            {
                name: domain if isinstance(domain, Choice) else Choice((domain.low,))
                for name, domain in self.domains.items()
                if name.startswith(prefixes)
            }
        )

    def sample(self, seed: int) -> list[Fields]:
        """Return all combinations of a small finite space, else CHECKED drawn ones."""
        if self.size is not None and self.size <= CHECKED:
            return list(self.combinations())
        rng = random.Random(seed)
        return [self.draw(rng) for _ in range(CHECKED)]


def space_of(config: Config) -> Space:
    """Return the space that a config asks for. Raises ConfigError for a field of no student."""
    if config.search is None:
        raise ConfigError("the config has no section `search`; name its space")
    for name, its in config.search.space.items():
        if isinstance(its, list) and redacted(its) != its:
            raise ConfigError(
                f"search.space: '{name}' holds a secret, which the files of trials would tell; "
                "name it by the environment, or by a place that asks for none"
            )
        if not name.startswith(SEARCHED) or name in FIXED:
            raise ConfigError(
                f"search.space: '{name}' cannot vary between trials, which share text, teacher and "
                f"machine; fields of {', '.join(SEARCHED)} can, but for {', '.join(FIXED)}"
            )
    return Space({name: _domain(its) for name, its in config.search.space.items()})


def _domain(given: list[Any] | RangeConfig) -> Choice | Range:
    if isinstance(given, list):
        return Choice(tuple(given))
    if given.step is None:
        return Range(given.low, given.high, given.log)
    count = int((given.high - given.low) / given.step + 1e-9) + 1
    values = [given.low + given.step * number for number in range(count)]
    whole = all(float(v).is_integer() for v in (given.low, given.high, given.step))
    return Choice(tuple(int(v) if whole else v for v in values))


def trial_config(config: Config, fields: Mapping[str, Any]) -> Config:
    """Return the config of one trial. Raises ConfigError for values that do not go together."""
    return with_fields(config, fields).model_copy(update={"search": None})


def trial_id(fields: Mapping[str, Any]) -> str:
    """12 hex characters that name a combination, whatever the order of its fields."""
    return fingerprint(json.dumps(dict(sorted(fields.items()))))[:12]


def check_space(config: Config, space: Space, check: Callable[[Config], object]) -> None:
    """Refuse a space in which some combination cannot be trained, with the reason of the first.

    check: raises ConfigError for a trial's config that the teacher does not fit.
    """
    algorithm = config.search.algorithm if config.search else ""
    if algorithm == "grid" and space.size is None:
        ranges = [name for name, domain in space.domains.items() if isinstance(domain, Range)]
        raise ConfigError(
            f"search.algorithm: grid needs values, but {ranges[0]} is a range; give it a `step`, "
            "or choose random or tpe"
        )
    if algorithm in {"tpe", "nsga2"} and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            f"search.algorithm: {algorithm} needs the package optuna: pip install 'xdray[search]'; "
            "or choose grid or random"
        )
    combinations = space.sample(config.run.seed)
    bad: list[str] = []
    for fields in combinations:
        try:
            check(trial_config(config, fields))
            if config.search and config.search.retrain:
                check(trial_config(config, {**fields, **config.search.retrain}))
        except ConfigError as error:
            bad.append(str(error))
    if bad:
        raise ConfigError(
            f"search.space: {len(bad)} of {len(combinations)} combinations cannot be trained, the "
            f"first: {bad[0]}"
        )
