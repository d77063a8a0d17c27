"""Labels in the order of their ids; BIO tags: what may follow what, other schemes read into it."""

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
    """The labels of a task in the order of their ids."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a label that stands twice."""
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"task.labels: {list(self.names)} names one twice; name each once")

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self.names)

    @property
    def ids(self) -> dict[str, int]:
        """Label to id."""
        return {name: index for index, name in enumerate(self.names)}

    @property
    def id2label(self) -> dict[int, str]:
        """Label of each id, as a transformers configuration keeps it."""
        return dict(enumerate(self.names))

    def mapping_from(self, other: Sequence[str], where: str) -> list[int]:
        """Positions in `other` of these labels, so that `logits[..., mapping]` is in our order.

        Raises ConfigError when the two sets differ, naming the labels that only one side has.
        """
        ours, theirs = set(self.names), set(other)
        if ours != theirs or len(other) != len(self.names):
            raise ConfigError(
                f"{where}: labels {list(other)}, expected {list(self.names)} in any order "
                f"(only there: {sorted(theirs - ours)}, only here: {sorted(ours - theirs)}); "
                "fine-tune the teacher on these or change task.labels; where the teacher knows "
                "only LABEL_0, LABEL_1 ..., name them in its order in teacher.labels"
            )
        return [list(other).index(name) for name in self.names]


def tag_set(names: Sequence[str]) -> LabelSet:
    """Return a set of IOB2 tags. Raises ConfigError for one that cannot be IOB2."""
    labels = LabelSet(tuple(names))
    if OUTSIDE not in names:
        raise ConfigError(f"task.labels: {list(names)} lacks 'O', the tag outside entities")
    for tag in names:
        prefix, kind = split_tag(tag)
        if tag != OUTSIDE and (prefix not in {"B", "I"} or not kind):
            raise ConfigError(f"task.labels: '{tag}' is not 'O', 'B-TYPE' or 'I-TYPE'")
    return labels


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
