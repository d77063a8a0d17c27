"""Kinds of tasks beside tagging: gold, tokens of pairs, losses' targets, decoding, metrics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from xdray.config import TaskConfig
from xdray.config_data import SourceConfig
from xdray.errors import ConfigError, CorpusError
from xdray.kinds import task_class, task_kinds, with_labels
from xdray.labels import LabelSet
from xdray.places import Place, Span
from xdray.questions import contexts_of
from xdray.readers import read_rows
from xdray.sentences import Sentence, TextPair
from xdray.task import Task
from xdray.tasks.answering import Asked, Said
from xdray.tokenised import Tokens, token_types
from xdray.tokens import encode_texts, load_tokenizer
from xdray.windows import Windows

MakeTeacher = Callable[..., Path]


def make(
    kind: str, labels: tuple[str, ...] = (), metric: str | None = None, **settings: Any
) -> Task:
    found = task_class(kind)
    its = TaskConfig(kind=kind, labels=list(labels) or None, **settings)
    return found(
        labels=found.given_labels(its),
        metric=metric or next(iter(found.metrics)),
        settings=its,
        word_rule="punctuation",
        max_length=32,
        scheme="IOB2",
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def source(path: Path, **fields: Any) -> list[SourceConfig]:
    return [SourceConfig(path=str(path), **fields)]


def test_each_file_of_tasks_is_a_kind_and_others_are_refused():
    assert {"tagging", "classification", "regression", "answering"} <= set(task_kinds())
    with pytest.raises(ConfigError, match=r"task\.kind = 'clasification': expected one of"):
        task_class("clasification")


# tokens of pairs


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_and_pairs_are_encoded_as_transformers_encodes_them(
    family: str, make_teacher: MakeTeacher
):
    tokenizer: Any = load_tokenizer(str(make_teacher(family)))
    pairs = [("Anna lives in Lyon.", "Don't go!"), ("a", "b " * 40), ("one more", "text")]
    contents = [TextPair(*pair) for pair in pairs] + ["Anna lives in Lyon, isn't it?"]
    found = encode_texts(tokenizer, contents, 512)
    types = token_types(found.word_ids, found.offsets)
    assert types is not None
    for row, content in enumerate(contents):
        texts = [content] if isinstance(content, str) else [content.first, content.second]
        expected = tokenizer(*texts, return_token_type_ids=True)
        its = slice(found.offsets[row], found.offsets[row + 1])
        assert found.ids[its].tolist() == expected["input_ids"]
        if family == "bert":
            assert types[its].tolist() == expected["token_type_ids"]
    assert token_types(*_words(encode_texts(tokenizer, ["a b", "c"], 512))) is None


def _words(encoded: Any) -> tuple[Any, Any]:
    return encoded.word_ids, encoded.offsets


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(8, 40), st.booleans())
def test_a_long_pair_loses_tokens_of_its_longer_text_or_its_second(
    tiny_tokenizer: Any, first: int, second: int, max_length: int, cut_second: bool
):
    pair = TextPair("a " * first, "a " * second)
    found = encode_texts(tiny_tokenizer, [pair], max_length, cut_second=cut_second)
    room = max_length - 3
    assert len(found.ids) == min(max_length, first + second + 3)
    assert found.cut_words[0] == max(0, first + second - room)
    types = token_types(found.word_ids, found.offsets)
    kept_second = 0 if types is None else int(((types == 1) & (found.word_ids >= 0)).sum())
    kept_first = len(found.ids) - 3 - kept_second
    if first + second > room:
        if cut_second:
            assert kept_first == min(first, max(room - second, room // 2))
        else:
            assert abs(kept_first - kept_second) <= 1 or min(kept_first, kept_second) in (
                first,
                second,
            )


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(str(tiny_teacher))


def test_windows_cover_every_word_and_share_the_overlap():
    words = [f"w{n}" for n in range(23)]
    text = "  ".join(words)
    cut = list(Windows(8, 3).cut(TextPair("q", text)))
    assert all(text[at:].startswith(pair.second) for at, pair in cut)
    parts = [pair.second.split() for _, pair in cut]
    assert [part[0] for part in parts] == ["w0", "w5", "w10", "w15"]
    assert parts[-1][-1] == "w22"
    assert all(len(part) <= 8 for part in parts)
    assert list(Windows(8, 3).cut(TextPair("q", "two words"))) == [(0, TextPair("q", "two words"))]


# gold


def test_classes_are_read_by_name_or_id_from_a_table_with_a_header(tmp_path: Path):
    path = write(tmp_path / "x.tsv", '\ufeffQuality\t#1 String\nequal\t"a"\n0\tb "c\n')
    task = make("classification", ("different", "equal"))
    found = task.read(
        source(path, format="table", text="#1 String", label="Quality", language="en"), "train"
    )
    assert [(s.content, s.gold, s.language) for s in found.sentences] == [
        ('"a"', 1, "en"),
        ('b "c', 0, "en"),
    ]


def test_a_table_without_a_header_has_numbered_columns(tmp_path: Path):
    path = write(tmp_path / "x.tsv", "gj04\t1\t\tOur friends.\ngj04\t0\t*\tMore one.\n")
    fields = {"format": "table", "header": False, "text": "4", "label": "2"}
    found = make("classification", ("no", "yes")).read(source(path, **fields), "train")
    assert [(s.content, s.gold) for s in found.sentences] == [("Our friends.", 1), ("More one.", 0)]
    rows = make("classification", ("no", "yes")).read(source(path, **fields, rows=[1, None]), "dev")
    assert [s.gold for s in rows.sentences] == [0]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2", "label '2', expected one of no yes or an id from 0 to 1"),
        ("maybe", "label 'maybe', expected one of"),
        ("", "label '', expected one of"),
    ],
)
def test_a_class_out_of_range_is_refused_with_its_line(tmp_path: Path, label: str, message: str):
    path = write(tmp_path / "x.tsv", f"text\tlabel\na\tyes\nb\t{label}\n")
    with pytest.raises(CorpusError, match=f"x.tsv:3: {message}"):
        make("classification", ("no", "yes")).read(source(path, format="table"), "train")


def test_a_line_of_a_table_with_a_column_less_is_refused(tmp_path: Path):
    path = write(tmp_path / "x.tsv", "text\tlabel\na\t1\nb\n")
    with pytest.raises(CorpusError, match=r"x\.tsv:3: 1 columns, expected 2"):
        make("classification", ("no", "yes")).read(source(path, format="table"), "train")


def test_a_pair_with_an_empty_text_is_dropped_and_counted(tmp_path: Path):
    rows = [{"a": "x", "b": " ", "label": 0}, {"a": "x", "b": "y", "label": 1}]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = make("classification", ("no", "yes"))
    found = task.read(source(path, text="a", pair="b"), "train")
    assert [s.content for s in found.sentences] == [TextPair("x", "y")]
    assert found.counts["empty"] == 1


def test_labels_without_names_are_asked_for(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", '{"text": "a", "label": 1}\n')
    with pytest.raises(ConfigError, match=r"names no labels; set task\.labels"):
        make("classification").read(source(path), "train")


def test_several_labels_are_a_list_of_each_text(tmp_path: Path):
    path = write(
        tmp_path / "x.jsonl",
        '{"text": "a", "label": ["c", 0, "c"]}\n{"text": "b", "label": []}\n',
    )
    task = make("classification", ("a", "b", "c"), multi_label=True)
    sentences = task.read(source(path), "train").sentences
    assert [s.gold for s in sentences] == [(0, 2), ()]
    tokens = Tokens(np.zeros(4, np.int32), np.zeros(4, np.int32), np.array([0, 2, 4]))
    assert task.label_array(tokens, sentences).tolist() == [[1, 0, 1], [0, 0, 0]]
    bad = write(tmp_path / "y.jsonl", '{"text": "a", "label": "c"}\n')
    with pytest.raises(CorpusError, match=r"y\.jsonl:1: label is 'c', expected a list of labels"):
        task.read(source(bad), "train")


@pytest.mark.parametrize("value", ["nan", "inf", "high", ""])
def test_a_number_that_is_none_is_refused(tmp_path: Path, value: str):
    path = write(tmp_path / "x.tsv", f"text\tlabel\na\t1.5\nb\t{value}\n")
    task = make("regression")
    with pytest.raises(CorpusError, match=f"x.tsv:3: label '{value}', expected a finite number"):
        task.read(source(path, format="table"), "train")


# metrics


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
def test_a_metric_from_summed_statistics_is_scikit_learns(metric: str, answers: Any):
    task = make("classification", ("a", "b", "c"), metric)
    gold, said = ([pair[side] for pair in answers] for side in (0, 1))
    value = task.value(task.statistics(gold, said).sum(axis=0))
    assert value == pytest.approx(task.figures(gold, said)[metric], abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_of_two_classes_f1_is_that_of_the_second(metric: str, answers: Any):
    task = make("classification", ("no", "yes"), metric)
    gold, said = ([pair[side] for pair in answers] for side in (0, 1))
    value = task.value(task.statistics(gold, said).sum(axis=0))
    assert value == pytest.approx(task.figures(gold, said)[metric], abs=1e-9)


SETS = st.frozensets(st.integers(0, 3)).map(lambda its: tuple(sorted(its)))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=20))
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "micro_f1"])
def test_metrics_of_several_labels_are_scikit_learns(metric: str, answers: Any):
    task = make("classification", ("a", "b", "c", "d"), metric, multi_label=True)
    gold, said = ([pair[side] for pair in answers] for side in (0, 1))
    value = task.value(task.statistics(gold, said).sum(axis=0))
    assert value == pytest.approx(task.figures(gold, said)[metric], abs=1e-9)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlations_from_summed_moments_are_scipys(metric: str):
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 6, 200).astype(float).tolist()
    said = (np.array(gold) + rng.normal(size=200) * 2).tolist()
    task = make("regression", (), metric)
    value = task.value(task.statistics(gold, said).sum(axis=0))
    assert value == pytest.approx(task.figures(gold, said)[metric], abs=1e-9)
    assert task.figures([1.0, 1.0], [0.5, 2.0]) == {"spearman": 0.0, "pearson": 0.0}


def test_scores_tell_each_language_and_each_class():
    task = make("classification", ("no", "yes"))
    scores = task.scores([0, 1, 1, 0], [0, 1, 0, 0], ["en", "en", "de", "de"])
    assert scores["accuracy"] == 0.75
    assert {name: its["accuracy"] for name, its in scores["by_language"].items()} == {
        "de": 0.5,
        "en": 1.0,
    }
    assert scores["by_type"]["yes"] == pytest.approx(2 / 3)


# answering

CONTEXT = (
    "Anna Kovář was born in Lyon, and lives in New York (since 1999). Her brother, a painter, "
    "moved to Oslo in 2004; their parents never left the old harbour of Port Lydia."
)


def asked(question: str, *answers: str) -> dict[str, Any]:
    given = [{"text": text, "answer_start": CONTEXT.index(text)} for text in answers]
    return {"question": question, "id": question, "answers": given}


def squad(path: Path, *questions: dict[str, Any]) -> Path:
    data = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": list(questions)}]}]}
    return write(path, json.dumps(data))


QUESTIONS = (
    asked("Where was Anna born?", "Lyon"),
    asked("Where does she live?", "New York", "York"),
    asked("Where did the parents stay?", "the old harbour of Port Lydia", "Port Lydia"),
)


def test_the_answers_tokens_decode_to_the_answer_in_every_window(
    tmp_path: Path, tiny_tokenizer: Any
):
    task = make("answering", window=12, overlap=4)
    sentences = task.read(
        source(squad(tmp_path / "q.json", *QUESTIONS), language="en"), "dev"
    ).sentences
    assert len(sentences) > len(QUESTIONS)  # windows
    task = make("answering", window=12, overlap=4)
    object.__setattr__(task, "max_length", 200)
    tokens, cut = task.tokens(tiny_tokenizer, sentences)
    assert cut == 0
    labels = task.label_array(tokens, sentences)
    logits = np.zeros((len(tokens.ids), 2), np.float32)
    logits[tokens.offsets[:-1][labels[:, 0] == 0]] = 5  # [CLS]: no answer here
    for side in (0, 1):
        rows = np.flatnonzero(labels[:, 0] > 0)
        logits[tokens.offsets[rows] + labels[rows, side], side] = 9
    said = task.decide(task.decode(logits, tokens, sentences), None)
    assert said == ["Lyon", "New York", "the old harbour of Port Lydia"]
    gold = task.golds(sentences)
    assert gold[1] == ("New York", "York")
    assert task.figures(gold, said) == {"exact_match": 1.0, "f1": 1.0}
    assert task.languages(sentences) == ["en"] * 3
    windows = task.units(sentences)
    assert sorted(set(windows)) == [0, 1, 2]


def test_a_wrong_offset_or_a_question_without_an_answer_is_refused(tmp_path: Path):
    task = make("answering")
    bad = asked("Where?", "Lyon")
    bad["answers"][0]["answer_start"] += 1
    with pytest.raises(CorpusError, match=r"q\.json:2: answer 'Lyon' at \d+ is not what the"):
        task.read(source(squad(tmp_path / "q.json", QUESTIONS[0], bad)), "train")
    none = {"question": "Who?", "id": "n", "answers": []}
    with pytest.raises(CorpusError, match=r"without an answer; set task\.null_answers"):
        task.read(source(squad(tmp_path / "n.json", none)), "train")
    allowed = make("answering", null_answers=True)
    read = allowed.read(source(squad(tmp_path / "n.json", none)), "train")
    assert allowed.golds(read.sentences) == [("",)]
    wrong = write(tmp_path / "w.json", '{"data": [{"paragraphs": [{"context": "x"}]}]}')
    place = r"w\.json: data\.0\.paragraphs\.0\.qas is .*: field required; expected SQuAD's"
    with pytest.raises(CorpusError, match=place):
        task.read(source(wrong), "train")


def test_the_margin_is_the_one_that_gives_most_f1_on_dev():
    task = make("answering", null_answers=True)
    gold = [("a",), ("",), ("b c",), ("",), ("d",)]
    said = [Said("a", 3.0), Said("x", 2.5), Said("b", 2.0), Said("y", -1.0), Said("d", 0.5)]
    chosen = task.choose(gold, said)
    best = task.figures(gold, task.decide(said, chosen))["f1"]
    tried = [task.figures(gold, task.decide(said, m))["f1"] for m in np.linspace(-2, 4, 121)]
    assert best == pytest.approx(max(tried))
    fixed = make("answering", null_answers=True, null_margin=2.2)
    assert fixed.choose(gold, said) == 2.2
    assert make("answering").choose(gold, said) is None


def test_the_best_answer_of_a_question_is_that_of_its_best_window():
    task = make("answering")
    windows = [
        Sentence(str(n), "en", TextPair("q", text), Asked("one", (("b", 4),), 0))
        for n, text in enumerate(["a b", "b c"])
    ]
    # [CLS] q [SEP] x y [SEP]
    tokens = Tokens(
        np.zeros(12, np.int32),
        np.tile(np.array([-1, 0, -1, 1, 2, -1], np.int32), 2),
        np.array([0, 6, 12]),
        spans=np.tile(np.array([[-1, -1], [0, 1], [-1, -1], [0, 1], [2, 3], [-1, -1]]), (2, 1)),
    )
    logits = np.zeros((12, 2), np.float32)
    logits[4] = 1  # b of the first window
    logits[9, 0], logits[10, 1] = 2, 2  # b c of the second
    (said,) = task.decode(logits, tokens, windows)
    assert said.text == "b c"
    assert said.margin == 4.0
    assert task.statistics([("b",)], ["b c"]).tolist() == [[1.0, pytest.approx(2 / 3)]]


def test_labels_are_for_kinds_that_have_some():
    with pytest.raises(ConfigError, match="a regression has a number"):
        make("regression", ("a",))
    with pytest.raises(ConfigError, match="expected two classes or more"):
        make("classification", ("a",))
    assert make("answering").labels == LabelSet(("start", "end"))


def test_ids_of_a_file_go_by_the_names_that_the_file_gives_them(tmp_path: Path):
    task = make("classification", ("entailment", "not_entailment"))
    for name, names in (("a", ["entailment", "not_entailment"]), ("b", None)):
        names = names or ["not_entailment", "entailment"]
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        rows = {"text": ["x", "y"], "label": [names.index("entailment"), 1]}
        about = {"huggingface": json.dumps({"info": {"features": feature}})}
        table = pa.table(rows).replace_schema_metadata(about)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    read = task.read(source(tmp_path / "*.parquet", language="en"), "train")
    assert [its.gold for its in read.sentences] == [0, 1, 0, 0]


def test_names_that_are_numbers_are_names(tmp_path: Path):
    task = make("classification", ("1", "2", "3"))
    lines = [{"text": "x", "label": value} for value in (1, "1", 3)]
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(its) + "\n" for its in lines))
    assert [its.gold for its in task.read(source(path), "train").sentences] == [0, 0, 2]


def test_a_metric_that_the_labels_do_not_have_is_refused():
    for labels, metric, fields in (
        (("a", "b", "c"), "f1", {}),
        (("a", "b"), "micro_f1", {}),
        (("a", "b"), "matthews", {"multi_label": True}),
    ):
        task = make("classification", labels, metric, **fields)
        with pytest.raises(ConfigError, match=rf"evaluation\.metric = '{metric}': with these"):
            with_labels(task, task.labels)


def test_a_question_with_an_id_that_comes_again_is_another_one(tmp_path: Path):
    task = make("answering")
    for language in ("en", "es"):
        squad(tmp_path / f"{language}.json", QUESTIONS[0])
    read = task.read(source(tmp_path / "*.json", language="{stem}"), "test").sentences
    assert len(task.golds(read)) == 2
    assert task.languages(read) == ["en", "es"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["Lyon"], "answer_start": []}, "expected lists of equal length"),
        ({"text": ["Lyon"], "answer_start": [-6]}, "expected lists of equal length"),
        ({"text": "Lyon", "answer_start": [4]}, "expected lists of equal length"),
        ({"text": [None], "answer_start": [4]}, "expected lists of equal length"),
        ({"text": [" "], "answer_start": [4]}, "is not what the context has"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path: Path, given: dict[str, Any], message: str):
    row = {"question": "Where?", "context": "In Lyon .", "answers": given}
    path = write(tmp_path / "q.jsonl", json.dumps(row))
    columns = {"text": "question", "pair": "context", "label": "answers"}
    with pytest.raises(CorpusError, match=message):
        make("answering").read(source(path, **columns), "train")


def test_answers_with_white_space_or_accents_written_apart_are_marked(
    tmp_path: Path, tiny_tokenizer: Any
):
    context = "They met in a cafe\u0301 in 1990 or so"
    rows = [
        {"q": "Where?", "c": context, "a": {"text": ["cafe\u0301"], "answer_start": [14]}},
        {"q": "When?", "c": context, "a": {"text": [" 1990 "], "answer_start": [22]}},
        {"q": "Where?", "c": context, "a": {"text": ["They met in a"], "answer_start": [0]}},
    ]
    path = write(tmp_path / "q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = make("answering", window=3, overlap=1)
    columns = {"text": "q", "pair": "c", "label": "a"}
    read = task.read(source(path, **columns), "train").sentences
    object.__setattr__(task, "max_length", 100)
    tokens, _ = task.tokens(tiny_tokenizer, read)
    labels = task.label_array(tokens, read)
    marked = {its.gold.question for its, row in zip(read, labels, strict=True) if row.any()}
    assert {place.rpartition(":")[2] for place in marked} == {"1", "2"}
    assert task.unmarked(labels, read) == 1  # no window of three words holds four


def test_a_margin_of_the_config_stays_and_one_that_was_saved_is_used():
    own = make("answering", null_answers=True, null_margin=3.0)
    assert own.as_saved({"null_margin": 1.0}).settings.null_margin == 3.0
    chosen = make("answering", null_answers=True, window=20, overlap=5)
    saved = chosen.saved(1.5)
    again = make("answering", null_answers=True).as_saved(saved)
    assert again.settings.null_margin == 1.5
    assert again.windows == Windows(20, 5)
    assert make("answering", null_answers=True).as_saved({}).chooses


def test_a_prediction_is_the_best_answer_over_the_windows_of_a_context(tiny_tokenizer: Any):
    task = make("answering", window=4, overlap=1, null_margin=0.5)
    object.__setattr__(task, "max_length", 60)
    words = [f"w{number}" for number in range(12)]
    pair = TextPair("Which?", " ".join(words))
    wanted = pair.second.index("w7")

    def run(tokens: Tokens) -> np.ndarray:
        logits = np.zeros((len(tokens.ids), 2), np.float32)
        for row, start in enumerate(tokens.offsets[:-1]):
            text = windows[row].second
            for begin, end, position in contexts_of(tokens)[row]:
                if text.startswith("w7", begin):
                    logits[start + position, 0] = 4
                if text[:end].endswith("w7"):
                    logits[start + position, 1] = 4
        return logits

    assert task.windows is not None
    windows = [content for _, content in task.windows.cut(pair)]
    (record,) = task.records(run, tiny_tokenizer, [Sentence("1", "en", pair)])
    assert (record["answer"], record["start"]) == ("w7", wanted)
    assert record["score"] == pytest.approx(8.0)


def test_windows_count_each_han_character_as_a_word():
    parts = list(Windows(4, 1).cut(TextPair("?", "\u4e1c\u4eac\u5728\u65e5\u672c and Lyon")))
    assert [pair.second for _, pair in parts][:2] == [
        "\u4e1c\u4eac\u5728\u65e5",
        "\u65e5\u672c and Lyon",
    ]


def test_columns_of_a_file_without_columns_are_refused(tmp_path: Path):
    path = write(tmp_path / "dev.tsv", "index\tsentence1\n0\tx\n")
    with pytest.raises(CorpusError, match="read as tsv, which has no columns"):
        list(read_rows(Span(Place(str(path), "tsv", "words", "tags", "sentence1", "en"))))


# from strangers, and damaged


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("regression", True),
        ("regression", "1_0"),
        ("regression", 10**400),
        ("regression", 1e300),  # infinite in float32
        ("regression", -3.5e38),
        ("classification", "9" * 5000),
        ("classification", True),
        ("classification", [[1]]),
    ],
)
def test_a_label_that_python_alone_reads_is_refused(tmp_path: Path, kind: str, label: Any):
    task = make(kind, labels=("no", "yes") if kind == "classification" else ())
    path = write(tmp_path / "x.jsonl", json.dumps({"text": "a", "label": label}))
    with pytest.raises(CorpusError, match=r"x\.jsonl:1: label .*, expected") as caught:
        task.read(source(path), "train")
    assert len(str(caught.value)) < 400


def test_a_truth_value_is_neither_a_tag_nor_a_place_of_an_answer(tmp_path: Path):
    path = write(tmp_path / "x.jsonl", json.dumps({"tokens": ["a"], "ner_tags": [True]}))
    with pytest.raises(CorpusError, match=r"x\.jsonl:1: tag True, expected one of O B-X"):
        make("tagging", labels=("O", "B-X")).read(source(path), "train")
    answers = {"text": ["b"], "answer_start": [True]}
    path = write(tmp_path / "y.jsonl", json.dumps({"text": "q", "pair": "ab", "label": answers}))
    with pytest.raises(CorpusError, match=r"y\.jsonl:1: answers .*, expected lists"):
        make("answering").read(source(path, pair="pair"), "train")


def test_a_squad_question_whose_answers_are_left_out_is_not_one_without_an_answer(tmp_path: Path):
    bare = {"question": "Who?", "id": "n"}
    with pytest.raises(CorpusError, match=r"q\.json:1: answers None, expected an object"):
        make("answering", null_answers=True).read(source(squad(tmp_path / "q.json", bare)), "dev")
    place = Place(str(tmp_path / "q.json"), "squad", "a", "b", "c", None)
    assert len(list(read_rows(Span(place)))) == 1


def test_class_names_without_the_tag_outside_are_refused_with_the_file(tmp_path: Path):
    features = {"info": {"features": {"ner_tags": {"names": ["B-X", "I-X"]}}}}
    table = pa.table({"tokens": [["a"]], "ner_tags": [[0]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=r"x\.parquet: ClassLabel names .* lack 'O'"):
        make("tagging").read(source(tmp_path / "x.parquet"), "train")
