"""The tag set and the schemes that are read into it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from xdray.errors import ConfigError
from xdray.labels import LabelSet, is_tag, label_set_of, tag_set, to_iob2


def test_teacher_labels_in_another_order_are_mapped():
    ours = LabelSet(("O", "B-LOC", "I-LOC"))
    assert ours.mapping_from(["I-LOC", "O", "B-LOC"], "teacher") == [1, 2, 0]


def test_teacher_labels_of_another_set_are_refused_with_both_differences():
    ours = LabelSet(("O", "B-LOC", "I-LOC"))
    with pytest.raises(ConfigError, match=r"only there: \['B-PER'\], only here: \['I-LOC'\]"):
        ours.mapping_from(["O", "B-LOC", "B-PER"], "teacher")


@pytest.mark.parametrize(
    "tags", [("B-LOC",), ("O", "O"), ("O", "LOC"), ("O", "X-LOC"), ("O", "B-")]
)
def test_a_set_that_is_not_iob2_is_refused(tags: tuple[str, ...]):
    with pytest.raises(ConfigError):
        tag_set(tags)


def test_labels_of_the_data_are_o_then_types_in_alphabetical_order():
    labels = label_set_of({"I-PER", "B-LOC", "O"})
    assert labels.names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


@pytest.mark.parametrize(
    ("scheme", "tags", "expected", "repaired"),
    [
        ("IOB2", ["I-PER", "I-PER", "O", "I-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], 2),
        ("IOB2", ["B-PER", "I-LOC"], ["B-PER", "B-LOC"], 1),
        ("IOB1", ["I-PER", "B-PER", "I-PER"], ["B-PER", "B-PER", "I-PER"], 0),
        ("BIOES", ["S-LOC", "B-PER", "E-PER", "I-PER"], ["B-LOC", "B-PER", "I-PER", "B-PER"], 1),
        ("BIOES", ["B-PER", "I-PER", "E-PER"], ["B-PER", "I-PER", "I-PER"], 0),
    ],
)
def test_schemes_are_read_into_iob2(
    scheme: str, tags: list[str], expected: list[str], repaired: int
):
    assert to_iob2(tags, scheme) == (expected, repaired)


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])))
def test_repair_keeps_the_entities_that_seqeval_sees(tags: list[str]):
    assert get_entities(to_iob2(tags, "IOB2")[0]) == get_entities(tags)


def test_tags_of_another_scheme_are_no_tags():
    assert is_tag("S-LOC", "BIOES")
    assert not is_tag("S-LOC", "IOB2")
    assert not is_tag("B-", "IOB2")
    assert not is_tag("LOC", "IOB2")
