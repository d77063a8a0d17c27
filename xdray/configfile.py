"""Config files: YAML 1.2 in, a checked `Config` out, mistakes in words that say what to do.

Unknown keys, wrong types and contradictions end in a ConfigError that names the file, the field,
the value and what is allowed.
"""

import difflib
import io
import itertools
import math
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from xdray.config import Config
from xdray.config_data import Section, TransferConfig
from xdray.errors import ConfigError
from xdray.redaction import redacted

DEEPEST = 50
"""Values inside one another in a config file."""
MOST = 100_000
"""Characters of a config file; values in it, what its aliases stand for written out."""
_BRACKETS = defaultdict(int, {"[": 1, "{": 1, "]": -1, "}": -1})
FROM_YAML = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the reader of YAML lets through of Python's own, e.g. for `!!bool maybe`."""
SHORT_FORMS = {"recipe": "name", "transfer": "sources"}
"""Sections that may be written as one value, and the key that it stands for."""


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, apply `section.key=value` overrides (values are YAML), check it all."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a config file: {error}") from error
    values = _parse(text, path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {type(values).__name__}, expected sections such as `data:`"
        )
    for override in overrides:
        _apply(values, override)
    return make_config(values, path)


def make_config(values: dict[str, Any], where: str) -> Config:
    """Check plain values, as read from YAML; `where` names them in messages."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        problems = [_describe(problem) for problem in errors[:4]]
        more = f" (and {len(errors) - 1} more: {'; '.join(problems[1:])})" if problems[1:] else ""
        raise ConfigError(f"{where}: {problems[0]}{more}") from error


def with_fields(config: Config, fields: Mapping[str, Any]) -> Config:
    """Return the config with other values of some fields, by their dotted names, checked again."""
    values = config.model_dump(mode="json")
    for name, value in fields.items():
        _set(values, name, value, f"{name}={value}")
    shown = ", ".join(f"{name}={value}" for name, value in fields.items())
    return make_config(values, shown)


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML that `load_config` reads back equal, secrets hidden."""
    return to_yaml(redacted(config.model_dump(mode="json")))


def to_yaml(values: Any) -> str:
    """Return plain values as YAML, keys in their order."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(values, stream)
    return stream.getvalue()


def changed_fields(old: Config, new: Config) -> list[str]:
    """Dotted names of the fields that differ, each with both values; secrets may differ."""
    before, after = (dict(_flatten(redacted(its.model_dump()))) for its in (old, new))
    return [
        f"{key} (was {before.get(key)!r}, is {after.get(key)!r})"
        for key in [*after, *(before.keys() - after.keys())]
        if before.get(key) != after.get(key)
    ]


def _flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def _parse(text: str, where: str) -> Any:
    try:
        if len(text) > MOST:
            raise ValueError(f"more than {MOST:,} characters")
        if max(itertools.accumulate(map(_BRACKETS.__getitem__, text)), default=0) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets inside one another")  # read for seconds
        _refuse_merges(YAML(typ="safe", pure=True).compose(text))
        values = YAML(typ="safe", pure=True).load(text)
        return _plain(values, 0, itertools.count())
    except (YAMLError, *FROM_YAML) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: not a config in YAML: {reason:.300}") from error


def _refuse_merges(root: Any) -> None:
    """Raise ValueError for a merge key: a few of them in one another write out without end."""
    seen, nodes = set[int](), [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, MappingNode | SequenceNode):
            continue
        seen.add(id(node))
        for its in node.value:
            nodes += its if isinstance(node, MappingNode) else [its]
            if isinstance(node, MappingNode) and its[0].tag == "tag:yaml.org,2002:merge":
                raise ValueError("a merge key (<<); write the fields out")


def _plain(value: Any, depth: int, count: Iterator[int]) -> Any:
    """Copy YAML's values, each alias written out, so that an override changes one place.

    count: of the values so far. Raises ValueError for what no config holds: more than a person
    writes, dates and the like, numbers of more than 64 bits, characters that no file name has.
    """
    if depth > DEEPEST or next(count) > MOST:
        raise ValueError(f"more than {DEEPEST} values inside one another, or {MOST:,} in all")
    if isinstance(value, dict):
        its = (_plain(inner, depth + 1, count) for inner in value.values())
        return dict(zip((_plain(key, depth + 1, count) for key in value), its, strict=True))
    if isinstance(value, list):
        return [_plain(inner, depth + 1, count) for inner in value]
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{value!r:.60} is no text, number or truth value; put it in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a number of more than 64 bits")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= c <= "\udfff" for c in value)):
        raise ValueError(f"{value!r:.60} holds a character that no text has")
    return value


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place."""
    dotted, sign, text = override.partition("=")
    if not sign or not dotted:
        raise ConfigError(f"{override!r:.100}: expected section.key=value, e.g. student.hidden=200")
    _set(values, dotted, _parse(text, f"{override!r:.100}"), override)


def _set(values: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    """Set a field of plain values in place; `override` names it in errors."""
    *parents, key = dotted.split(".")
    node: Any = values
    for parent in parents:
        at = _place(node, parent, override)
        child: Any = node[at] if isinstance(node, list) else node.setdefault(at, {})
        if isinstance(child, list) and parent == "recipe":
            child = node[at] = {"name": "custom", "stages": child}
        elif isinstance(child, str | list) and parent in SHORT_FORMS:
            child = node[at] = {SHORT_FORMS[parent]: child}
        if not isinstance(child, dict | list):
            raise ConfigError(
                f"{override!r:.100}: {parent!r:.60} is {child!r:.60} in the file, not a section"
            )
        node = child
    if key == "sources" and isinstance(node, dict):  # in place of the one source written out
        for name in node.keys() - TransferConfig.model_fields.keys():
            del node[name]
    node[_place(node, key, override)] = value


def _place(node: Any, part: str, override: str) -> Any:
    """Return the key of a section, or the index of a list, that a part of the dotted name means."""
    if not isinstance(node, list):
        return part
    if not part.isdecimal() or len(part) > 6 or int(part) >= len(node):
        raise ConfigError(
            f"{override!r:.100}: {part!r:.60} is no entry of a list of {len(node)}; the first is 0"
        )
    return int(part)


def _describe(problem: Any) -> str:
    """Put one problem of pydantic's in our words: field, value, what is allowed."""
    where = ".".join(_shown(part) for part in problem["loc"] if not _is_machinery(part))
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        section, _, key = where.rpartition(".")
        known = _keys_of(section)
        near = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
        return f"{section or 'the config'} has no key '{key}'; {hint}"
    if kind == "missing":
        return f"{where} is missing; it has no default"
    if kind == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{where}: {reason}" if where else reason
    return f"{where} = {value!r:.80}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shown(part: Any) -> str:
    """Return a part of pydantic's location as it can stand in a line."""
    name = str(part)
    return name if name.isprintable() and len(name) < 80 else f"{name!r:.80}"


def _is_machinery(part: Any) -> bool:
    """Whether a part of pydantic's location names a branch of a union, not a key."""
    return isinstance(part, str) and (part in {"int", "list", "str"} or "[" in part)


def _keys_of(section: str) -> list[str]:
    """Keys that the section at this dotted place has."""
    model: Any = Config
    for part in section.split(".") if section else []:
        if part.isdigit() or part not in model.model_fields:
            continue
        inner = _model_in(model.model_fields[part].annotation)
        model = inner or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[Section] | None:
    """Return the section class inside an annotation such as `list[SourceConfig] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, Section) else None
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model is not None), None)
