"""Files of a search's trials: trial.json, reports.jsonl (a line an epoch), costs.json of shapes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    model_validator,
)

from xdray.errors import XdrayError
from xdray.storage import read_object, write_bytes_atomic
from xdray.strict_json import parse_json

ENDED = ("finished", "stopped", "failed")


class _Costs(BaseModel):
    """Of a student, as `student_costs` says them."""

    model_config = ConfigDict(strict=True)

    parameters: NonNegativeInt
    embedding_parameters: NonNegativeInt
    bytes: NonNegativeInt
    latency_ms: FiniteFloat | None
    latency_ms_32: FiniteFloat | None


class _Trial(BaseModel):
    """What a trial.json holds at least."""

    model_config = ConfigDict(strict=True)

    id: str
    number: NonNegativeInt
    course: str
    fields: dict[str, Any]
    costs: _Costs
    status: Literal["running", "finished", "stopped", "failed"]
    score: FiniteFloat | None
    again: bool = False
    error: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "_Trial":
        lacks = self.error is None if self.status == "failed" else self.score is None
        if lacks and self.status != "running":
            raise ValueError(f"{self.status}, without its score or error")
        return self


class _Told(BaseModel):
    """What a line of reports.jsonl holds at least."""

    model_config = ConfigDict(strict=True)

    done: FiniteFloat
    score: FiniteFloat


def read_trial(path: Path) -> dict[str, Any]:
    """Read a trial.json. Raises XdrayError."""
    trial = read_object(str(path))
    try:
        _Trial.model_validate(trial)
    except ValueError as error:
        raise _damaged(path, path.parent, error) from error
    return trial


def read_costs(path: Path) -> dict[str, dict[str, Any]]:
    """Read what students of some shapes cost. Raises XdrayError."""
    costs = read_object(str(path))
    try:
        TypeAdapter(dict[str, _Costs]).validate_python(costs)
    except ValueError as error:
        raise _damaged(path, path, error) from error
    return costs


def _damaged(path: Path, goes: Path, error: Exception) -> XdrayError:
    reason = " ".join(str(error).split())
    return XdrayError(
        f"{path}: damaged ({reason:.300}); delete {goes} and run the same command again"
    )


def write_trial(folder: Path, fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Write trial.json, what it said before kept; returns all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trial.json"
    old = read_object(str(path)) if path.is_file() else {}
    trial = {**old, "id": folder.name, "fields": fields, **more}
    write_bytes_atomic(str(path), json.dumps(trial, indent=1).encode())
    return trial


def has_ended(trial: Mapping[str, Any]) -> bool:
    """Whether a trial is not run again by a later call: one that its machines failed is."""
    return trial["status"] in ENDED and not trial.get("again")


def all_trials(folder: str | Path) -> list[dict[str, Any]]:
    """Return the trials under a search's folder, whatever text they learnt from."""
    trials: list[dict[str, Any]] = []
    for path in Path(folder).glob("trials/*/trial.json"):
        trial = read_trial(path)
        reports = path.with_name("reports.jsonl")
        last = _last_reports(reports) if reports.is_file() else {}
        trials.append({**trial, "reports": [last[done] for done in sorted(last)]})
    return sorted(trials, key=lambda trial: trial["number"])


def _last_reports(path: Path) -> dict[float, dict[str, Any]]:
    """Share done to what was reported there; a resumed trial tells some epochs twice."""
    whole = path.read_bytes().rpartition(b"\n")[0]  # what follows was being written
    try:
        told = [parse_json(line) for line in whole.splitlines()]
        return {_Told.model_validate(line).done: line for line in told}
    except ValueError as error:
        raise _damaged(path, path.parent, error) from error
