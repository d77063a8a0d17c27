"""JSON from files that others wrote: what `json` lets pass and nobody could mean is refused."""

import json
from typing import Any

DEEPEST = 100
"""Values inside one another; Python's own limit depends on who calls."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a text in UTF-8.

    Raises ValueError for what is not JSON, a key twice in one object, half a surrogate pair (it
    fails in every tokenizer), and values nested more than DEEPEST deep.
    """
    if isinstance(text, bytes):
        text = str(text, "utf-8-sig")
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(_too_deep())
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"key {twice!r:.60} twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # `json.loads` makes one each time


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        nested = [its for its in level if isinstance(its, list | dict)]
        if not nested:
            return False
        level = [x for its in nested for x in (its.values() if isinstance(its, dict) else its)]
    return True


def _too_deep() -> str:
    return f"more than {DEEPEST} values inside one another"
