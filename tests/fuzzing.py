"""What the fuzz tests share: damage done to inputs, and the two ways in which a reader may end.

`make fuzz` sets XDRAY_FUZZ, the examples a reader; without it there are few, always the same.
"""

import itertools
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from xdray.errors import XdrayError

T = TypeVar("T")

SECONDS = 20
"""That an example may take."""
LONGEST = 2000
"""Characters of a message that can be read."""

fuzzed = settings(
    max_examples=int(os.environ.get("XDRAY_FUZZ", "25")),
    derandomize="XDRAY_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    phases=(Phase.generate, Phase.shrink),  # to explain takes a tracer, and ten times as long
)

COUNTS: dict[str, Counter[str]] = defaultdict(Counter)
"""Reader to how many of its inputs were accepted and refused."""
NUMBERS = itertools.count()


class Hang(BaseException):
    """An example that takes too long; no reader catches it."""


def _hang(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang(f"more than {SECONDS} s")


@contextmanager
def bounded() -> Iterator[None]:
    """End in a Hang what takes too long."""
    old = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def outcome(reader: str, names: tuple[object, ...], read: Callable[[], T]) -> T | None:
    """What a reader returned; None where it refused in one message with one of the names in it.

    Whatever else it raises, a library's warning too, fails the test.
    """
    try:
        with bounded():
            found = read()
    except XdrayError as error:
        message = str(error)
        assert any(str(name) in message for name in names), message
        assert len(message.splitlines()) == 1, message
        assert len(message.encode()) < LONGEST, message[:LONGEST]
        COUNTS[reader]["refused"] += 1
        return None
    COUNTS[reader]["accepted"] += 1
    return found


@contextmanager
def written(folder: Path, ending: str, data: bytes) -> Iterator[Path]:
    """A file under a name of its own, as long as it is needed."""
    path = folder / f"{next(NUMBERS)}.{ending}"
    path.write_bytes(data)
    yield path
    path.unlink()


# what is done to bytes

DEEP = 5000
"""Brackets of the deepest nesting."""
PIECES = (
    *(b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1f"),
    *(b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b" ", b'"', b"\\", b",", b":", b"{}", b"[]", b"-"),
    *(b"[" * DEEP, b'{"a":' * DEEP, b"9" * DEEP, b"x" * 70_000, b"\\ud800", b"\\u0000"),
    *(
        b"NaN",
        b"1e999",
        b"null",
        b"true",
        b"-1",
        b"0",
        b"O",
        b"B-",
        b"-DOCSTART- ",
        b"{}\n",
        b"PAR1",
    ),
)
KINDS = ("flip", "insert", "insert", "cut", "drop", "repeat", "ends", "old ends", "mark", "recode")
Change = tuple[str, float, float, bytes, int]


def _apply(data: bytes, change: Change) -> bytes:
    kind, first, second, piece, bits = change
    begin, end = sorted((int(first * len(data)), int(second * len(data))))
    if kind == "flip":
        return (
            data[:begin]
            + bytes(byte ^ bits for byte in data[begin : begin + 1])
            + data[begin + 1 :]
        )
    if kind == "insert":
        return data[:begin] + piece + data[begin:]
    if kind == "drop":
        return data[:begin] + data[end:]
    if kind == "repeat":
        return data[:end] + data[begin:end] + data[end:]
    if kind == "recode":
        code = ("utf-16", "utf-16-le", "latin-1", "utf-8-sig")[bits % 4]
        return data.decode("utf-8", "replace").encode(code, "replace")
    whole = {
        "cut": data[:begin],
        "ends": data.replace(b"\n", b"\r\n"),
        "old ends": data.replace(b"\n", b"\r"),
        "mark": b"\xef\xbb\xbf" + data,
    }
    return whole[kind]


def damaged(data: bytes, changes: list[Change]) -> bytes:
    """Bytes after the changes."""
    for change in changes:
        data = _apply(data, change)
    return data


_share = st.floats(0, 1)
_change = st.tuples(
    st.sampled_from(KINDS), _share, _share, st.sampled_from(PIECES), st.integers(1, 255)
)
some_changes = st.lists(_change, min_size=1, max_size=3)
changes = st.just([]) | some_changes
"""None in half of the examples."""


# what stands in inputs

words = st.text(
    st.characters(
        codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"], exclude_characters="\ufeff"
    ),
    min_size=1,
    max_size=5,
)
texts = st.lists(words, min_size=1, max_size=6).map(" ".join)
NESTED = "\x00nested\x00"
"""In place of brackets too deep for `json.dumps`; `nest` puts them in."""
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.sampled_from([10**400, -(2**63), 2**64, 1e300, -0.0, float("inf"), float("nan"), 1.5])
    | st.sampled_from(["", " ", "\0", "\ud800", "9" * DEEP, "x" * DEEP, "1_0", "\u0661", "-1", "O"])
    | st.sampled_from([NESTED, "a\nb", "../a", "/a", "B-", "X-LOC", "1e400"])
    | st.text(max_size=4)
)
junk: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda its: st.lists(its, max_size=3) | st.dictionaries(st.text(max_size=3), its, max_size=3),
    max_leaves=5,
)


def nest(text: str) -> str:
    """JSON with the brackets that its markers stand for."""
    return text.replace('"\\u0000nested\\u0000"', "[" * DEEP + "]" * DEEP)


@st.composite
def spoiled(draw: Any, value: Any) -> Any:
    """Plain nested values with junk, or nothing, in place of one of them."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: its for name, its in value.items() if name != key}
        kind = draw(st.integers(0, 7))
        if kind == 0:
            return rest
        if kind == 1:
            return {
                **rest,
                draw(st.sampled_from([f"{key}x", "", "\ud800", "x" * DEEP])): value[key],
            }
        return {**rest, key: draw(spoiled(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        if not draw(st.integers(0, 5)):
            return value[:index] + value[index + 1 :]
        return [*value[:index], draw(spoiled(value[index])), *value[index + 1 :]]
    return draw(junk)
