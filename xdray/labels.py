"""The BIO tag set: order, ids, what may follow what, and how other schemes are read into it."""

from collections.abc import Sequence
from dataclasses import dataclass

from xdray.errors import ConfigError

IGNORE_INDEX = -100
OUTSIDE = "O"


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and entity type of a tag: ("B", "LOC") of "B-LOC", ("O", "") of "O"."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


@dataclass(frozen=True)
class LabelSet:
    """The tags of a task in the order of their ids, IOB2 once read."""

    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a set that cannot be IOB2."""
        if len(set(self.tags)) != len(self.tags):
            raise ConfigError(f"task.labels: {list(self.tags)} names a tag twice; name each once")
        if OUTSIDE not in self.tags:
            raise ConfigError(f"task.labels: {list(self.tags)} lacks 'O', the tag outside entities")
        for tag in self.tags:
            prefix, kind = split_tag(tag)
            if tag != OUTSIDE and (prefix not in {"B", "I"} or not kind):
                raise ConfigError(f"task.labels: '{tag}' is not 'O', 'B-TYPE' or 'I-TYPE'")

    def __len__(self) -> int:
        """Return the number of tags."""
        return len(self.tags)

    @property
    def ids(self) -> dict[str, int]:
        """Tag to label id."""
        return {tag: index for index, tag in enumerate(self.tags)}

    @property
    def id2label(self) -> dict[int, str]:
        """Label id to tag, as a transformers configuration keeps it."""
        return dict(enumerate(self.tags))

    def mapping_from(self, other: Sequence[str], where: str) -> list[int]:
        """Positions in `other` of this set's tags, so that `logits[..., mapping]` is in our order.

        Raises ConfigError when the two sets differ, naming the tags that only one side has.
        """
        ours, theirs = set(self.tags), set(other)
        if ours != theirs or len(other) != len(self.tags):
            raise ConfigError(
                f"{where}: labels {list(other)}, expected {list(self.tags)} in any order "
                f"(only there: {sorted(theirs - ours)}, only here: {sorted(ours - theirs)}); "
                "fine-tune the teacher on this tag set or change task.labels"
            )
        return [list(other).index(tag) for tag in self.tags]


def label_set_of(tags: set[str]) -> LabelSet:
    """Return the tag set of `tags`: O, then B- and I- of each type in alphabetical order."""
    kinds = sorted({split_tag(tag)[1] for tag in tags if tag != OUTSIDE})
    return LabelSet((OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in ("B", "I"))))


def to_iob2(tags: Sequence[str], scheme: str) -> tuple[list[str], int]:
    """Read the tags of one sentence from IOB2, IOB1 or BIOES into IOB2.

    Returns them with the number of orphans repaired: an I- (in BIOES also an E-) that continues no
    entity of its type becomes B-. In IOB1 such an I- is how an entity starts: nothing is repaired.
    """
    result: list[str] = []
    repaired = 0
    inside = ""  # type of the entity that the next I- may continue
    for tag in tags:
        prefix, kind = split_tag(tag)
        if prefix == OUTSIDE:
            result.append(OUTSIDE)
            inside = ""
            continue
        starts = prefix in {"B", "S"} or kind != inside
        if starts and prefix in {"I", "E"} and scheme != "IOB1":
            repaired += 1
        result.append(f"{'B' if starts else 'I'}-{kind}")
        inside = "" if scheme == "BIOES" and prefix in {"E", "S"} else kind
    return result, repaired


PREFIXES = {"IOB2": "BI", "IOB1": "BI", "BIOES": "BIES"}


def is_tag(tag: str, scheme: str) -> bool:
    """Whether `tag` is a tag of the scheme."""
    prefix, kind = split_tag(tag)
    return tag == OUTSIDE or (len(prefix) == 1 and prefix in PREFIXES[scheme] and bool(kind))
