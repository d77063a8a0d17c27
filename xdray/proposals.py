"""Which combination to try next: all of a grid, at random, or as Optuna advises.

A proposer is asked for fields and told what came of them. Told first what an earlier call of the
same search found, it goes on from there.
"""

import random
from collections.abc import Sequence
from typing import Any, Protocol

from xdray.errors import ConfigError
from xdray.fronts import MAXIMISED
from xdray.space import Choice, Fields, Space, trial_id

RANDOM_FIRST = 4
"""Trials that TPE draws at random before it learns; more win nothing (docs/LOG.md)."""


class Proposer(Protocol):
    """Names combinations, one after the other."""

    def ask(self) -> Fields | None:
        """Return the next combination, None when there is none left."""
        ...

    def tell(self, fields: Fields, values: Sequence[float] | None) -> None:
        """Learn the objectives of a combination; None: it was refused or failed."""
        ...


class ListProposer:
    """A grid, or seeded random draws, each combination once."""

    def __init__(self, space: Space, seed: int | None) -> None:
        """Without a seed: the grid in order."""
        if seed is None and space.size is None:
            raise ConfigError(
                "search.algorithm: grid needs values or steps; a field of the space has neither"
            )
        self._space, self._told = space, set[str]()
        self._next = space.combinations() if seed is None else self._draws(random.Random(seed))

    def _draws(self, rng: random.Random) -> Any:
        for _ in range(100_000):
            yield self._space.draw(rng)

    def ask(self) -> Fields | None:
        """Return the first one of the sequence that was not returned or told before."""
        for fields in self._next:
            if trial_id(fields) not in self._told:
                self._told.add(trial_id(fields))
                return fields
        return None

    def tell(self, fields: Fields, values: Sequence[float] | None) -> None:
        """Leave it out from now on."""
        self._told.add(trial_id(fields))


class OptunaProposer:
    """Optuna's samplers, by ask and tell."""

    def __init__(self, space: Space, algorithm: str, objectives: Sequence[str], seed: int) -> None:
        """algorithm: tpe or nsga2."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = optuna.samplers
        self._optuna, self._space = optuna, space
        self._study = optuna.create_study(
            sampler=samplers.NSGAIISampler(seed=seed, population_size=8)
            if algorithm == "nsga2"
            else samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST),
            directions=["maximize" if o in MAXIMISED else "minimize" for o in objectives],
        )
        self._asked: dict[str, Any] = {}

    def ask(self) -> Fields | None:
        """Return what the sampler advises."""
        trial = self._study.ask(self._distributions())
        fields: Fields = {}
        for name, domain in self._space.domains.items():
            value = trial.params[name]
            fields[name] = domain.values[value] if isinstance(domain, Choice) else value
        self._asked[trial_id(fields)] = trial
        return fields

    def tell(self, fields: Fields, values: Sequence[float] | None) -> None:
        """Hand the objectives to the sampler, also of a combination that it did not name."""
        trial = self._asked.pop(trial_id(fields), None)
        if trial is not None:
            state = self._optuna.trial.TrialState
            self._study.tell(trial, values, state=state.FAIL if values is None else state.COMPLETE)
        elif values is not None and (params := self._params(fields)) is not None:
            frozen = self._optuna.trial.create_trial(
                params=params, distributions=self._distributions(), values=list(values)
            )
            self._study.add_trial(frozen)

    def _distributions(self) -> dict[str, Any]:
        """Choices by their index: numbers in order as integers, the rest as categories."""
        kinds = self._optuna.distributions
        found: dict[str, Any] = {}
        for name, domain in self._space.domains.items():
            if not isinstance(domain, Choice):
                found[name] = kinds.FloatDistribution(domain.low, domain.high, log=domain.log)
            elif domain.ordered:
                found[name] = kinds.IntDistribution(0, len(domain.values) - 1)
            else:
                found[name] = kinds.CategoricalDistribution(range(len(domain.values)))
        return found

    def _params(self, fields: Fields) -> dict[str, Any] | None:
        """The sampler's own parameters of some fields, None for those of another space."""
        if fields not in self._space:
            return None
        return {
            name: domain.values.index(fields[name]) if isinstance(domain, Choice) else fields[name]
            for name, domain in self._space.domains.items()
        }


def make_proposer(space: Space, algorithm: str, objectives: Sequence[str], seed: int) -> "Proposer":
    """Return the proposer of an algorithm's name."""
    if algorithm in {"grid", "random"}:
        return ListProposer(space, None if algorithm == "grid" else seed)
    return OptunaProposer(space, algorithm, objectives, seed)
