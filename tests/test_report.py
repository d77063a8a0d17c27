"""The page, the table and the card, from a made-up report whose figures are nobody's results."""

import random
import re
from html.parser import HTMLParser
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from xdray.report import model_card, summary_table, write_report
from xdray.tasks.tagging import Tagging

CODES = "ar bg bn cs da de el en es et fa fi fr he hi hr hu id it ja ko lv mr nl no pl pt ro ru sk"
LANGUAGES = [*CODES.split(), "sr", "sv", "ta", "tr", "uk", "vi", "zh"]
OPTIONAL = [
    "baseline",
    "hard_labels",
    "retention",
    "retention_interval",
    "gain",
    "gain_interval",
    "latency_ms",
    "speedup",
    "agreement",
    "corpus",
    "stages",
    "targets",
    "machine",
    "plan",
    "config",
    "evaluation",
]


def made_up_scores(mean, languages, seed=0):
    rng = random.Random(seed)
    last = len(languages) - 1
    spread = [
        0.18 * i / last - 0.09 + rng.uniform(-0.02, 0.02) if last else 0.0 for i in range(last + 1)
    ]
    f1 = {name: mean + shift for name, shift in zip(languages, spread, strict=True)}
    return {
        "entity_f1": mean,
        "entity_f1_strict": mean - 0.011,
        "precision": mean + 0.01,
        "recall": mean - 0.01,
        "macro_f1": mean - 0.005,
        "mean_language_f1": sum(f1.values()) / len(f1),
        "std_language_f1": 0.044,
        "by_language": {
            language: {
                "entity_f1": score,
                "entity_f1_strict": score - 0.012,
                "sentences": 1111,
                "entities": 1333,
            }
            for language, score in f1.items()
        },
        "by_type": {"LOC": mean + 0.02, "ORG": mean - 0.06, "PER": mean + 0.05},
    }


def made_up_step(stage, name, trainable, epochs, losses, dev, by_dev=False):
    """A sub-step: losses fall from the first value to the second."""
    high, low = losses
    history = []
    for epoch in range(epochs):
        loss = low + (high - low) * 0.55**epoch
        score = dev["entity_f1"] - 0.02 * 0.5**epoch if by_dev else -1.05 * loss
        history.append(
            {
                "epoch": epoch + 1,
                "step": 100 * (epoch + 1),
                "seconds": 11.1 * (epoch + 1),
                "learning_rate": 1e-3,
                "terms": {stage: loss},
                "score": score,
            }
        )
    return {
        "stage": stage,
        "name": name,
        "trainable": trainable,
        "steps": 100 * epochs,
        "epochs": epochs,
        "seconds": 11.1 * epochs,
        "dev": dev,
        "score": history[-1]["score"],
        "score_name": "dev entity_f1" if by_dev else "minus held-out loss",
        "history": history,
    }


def made_up_stages(languages):
    groups = ["head", "projection", "encoder", "embedding"]
    hidden = ["projection", "encoder", "embedding"]
    rows = [made_up_step("representation", "representation", hidden, 4, (0.3, 0.1), None)]
    for stage, reached, losses in (
        ("logits", (0.0, 0.111, 0.711, 0.733), ((9, 8), (8, 5), (5, 0.8), (0.8, 0.4))),
        (
            "labels",
            (0.735, 0.737, 0.742, 0.744),
            ((0.5, 0.4), (0.4, 0.35), (0.35, 0.3), (0.3, 0.2)),
        ),
    ):
        for number, (dev, fall) in enumerate(zip(reached, losses, strict=True)):
            name = f"{stage} +{groups[number]}"
            scores = made_up_scores(dev, languages)
            epochs = 8 if (stage, number) == ("logits", 3) else 2
            trainable = groups[: number + 1]
            by_dev = stage == "labels"
            rows.append(made_up_step(stage, name, trainable, epochs, fall, scores, by_dev))
    return rows


def made_up_report(languages):
    def both(mean, seed):
        return {name: made_up_scores(mean, languages, seed) for name in ("dev", "test")}

    times = {"batch_1": {"median": 11.11, "p95": 13.3}, "batch_32": {"median": 222.2, "p95": 244}}
    quick = {"batch_1": {"median": 1.11, "p95": 1.33}, "batch_32": {"median": 33.3, "p95": 35.5}}
    return {
        "job": "distill",
        "status": "done",
        "run_dir": "runs/made-up",
        "seconds": 1111.1,
        "created": "2001-01-01T01:01:01+00:00",
        "version": "0.0.0",
        "task": {
            "metrics": dict(Tagging.metrics),
            **{name: getattr(Tagging, name) for name in ("about", "noun", "pipeline", "usage")},
            "kind": "tagging",
            "labels": ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"],
            "languages": list(languages),
        },
        "teacher": {
            "name": "made-up/teacher-base",
            "parameters": 111_000_000,
            "embedding_parameters": 88_000_000,
            "bytes": 444_000_000,
            **both(0.777, 1),
        },
        "student": {
            "kind": "bilstm",
            "shape": {"embedding": 50, "hidden": 200, "layers": 1},
            "parameters": 5_550_000,
            "embedding_parameters": 4_440_000,
            "bytes": 22_200_000,
            "vocabulary": 88_800,
            **both(0.744, 2),
            "segmentation": {
                "dev": {"words": 2222, "resegmented": 11, "unknown": 1},
                "test": {"words": 3333, "resegmented": 22, "unknown": 2},
            },
        },
        "baseline": {**both(0.666, 3), "steps": 999},
        "hard_labels": None,
        "retention": 0.744 / 0.777,
        "retention_interval": [0.9511, 0.9644],
        "gain": 0.744 - 0.666,
        "gain_interval": [0.0711, 0.0844],
        "agreement": {"equal_tags": 0.9555, "mean_kl": 0.1111, "words": 3333},
        "compression": 20.0,
        "speedup": {"batch_1": 10.0, "batch_32": 6.7},
        "latency_ms": {"teacher": times, "student": quick},
        "machine": {
            "processor": "Made-up processor",
            "cpus": 2,
            "threads": 2,
            "gpu": None,
            "python": "3.11.0",
            "torch": "2.0.0",
            "ray": "2.0.0",
            "transformers": "5.0.0",
            "xdray": "0.0.0",
        },
        "targets": {
            "store": "targets",
            "key": "0123456789abcdef",
            "rows": 44_444,
            "teacher_forward_rows": 44_444,
            "rejected": 0,
            "bytes": 1_111_000_000,
            "seconds": 222.2,
            "codec_error": {"hidden-4-float16": 0.000111},
        },
        "evaluation": {
            "metric": "entity_f1",
            "teacher_forward_rows": 5555,
            "cut_words": {"dev": 0, "test": 3},
        },
        "corpus": {
            "train": {"sentences": 4444, "repaired_tags": 1, "empty": 0},
            "dev": {"sentences": 555, "repaired_tags": 0, "empty": 0},
            "test": {"sentences": 1111, "repaired_tags": 0, "empty": 0},
            "transfer": {
                "read": 55_555,
                "empty": 11,
                "duplicates": 111,
                "left_by_cap": 10_989,
                "taken": 44_444,
                "by_language": {name: {"read": 1555, "taken": 1444} for name in languages},
            },
        },
        "stages": made_up_stages(languages),
        "plan": {"devices": "2 CPUs", "teacher_replicas": 1},
        "config": {
            "run": {"folder": "runs/made-up", "seed": 0},
            "tokens": {"max_length": 128},
            "evaluation": {"latency_length": 32},
        },
    }


def page_of(folder, report):
    return write_report(folder, report).read_text(encoding="utf-8")


def terminal(report, width=150):
    stream = StringIO()
    Console(file=stream, width=width).print(summary_table(report))
    return stream.getvalue()


def card_data(report) -> Any:
    """Return the card's metadata as the Hub's own reader reads it."""
    return ModelCard(model_card(report)).data


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("languages", [["en"], LANGUAGES], ids=["one", "many"])
def test_page_loads_nothing_from_outside_itself(tmp_path, languages):
    page = page_of(tmp_path, made_up_report(languages))
    tags = Tags(page)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(tags.names)
    links = [value for name, value in tags.attributes if name.split(":")[-1] in {"href", "src"}]
    assert all(link.startswith("#") for link in links)
    assert all(place.startswith("#") for place in re.findall(r"url\(['\"]?([^)]*)", page))
    assert "@import" not in page


@pytest.mark.parametrize("languages", [["en"], LANGUAGES], ids=["one", "many"])
def test_page_shows_each_language_sub_step_and_system(tmp_path, languages):
    report = made_up_report(languages)
    page = page_of(tmp_path, report)
    picture = (tmp_path / "plots" / "languages.svg").read_text(encoding="utf-8")
    for language in languages:
        assert f">{language}</text>" in picture
        assert f"<td>{language}</td>" in page
    for row in report["stages"]:
        assert f"<td>{row['name']}</td>" in page
    for figure in ("95.8 % kept", "[95.1, 96.4]", "+7.8 points", "[+7.1, +8.4]", "10.0x faster"):
        assert figure in page
    for figure in ("5.55 M", "1.11 M", "111.0 M", "23.0 M", "22.2 MB", "11.1 ms (13.3)"):
        assert figure in page  # whole, less 4.44 M of embeddings; the teacher less 88 M
    assert "held-out loss 0.1399" in page  # 1.05 * (0.1 + 0.2 * 0.55**3), kept as its negative
    assert "dev 73.4" in page  # 0.744 - 0.02 / 2


def test_text_from_outside_never_becomes_markup(tmp_path):
    evil = '<script>alert("1")</script>&\'$x$ 人'
    report = made_up_report([evil, "en"])
    report["teacher"]["name"] = report["run_dir"] = report["machine"]["processor"] = evil
    report["targets"][evil] = report["config"][evil] = {evil: evil}
    report["corpus"][evil] = {evil: 1}
    for row in report["stages"]:
        row["stage"], row["name"], row["trainable"] = evil, evil + row["name"], [evil]
        for epoch in row["history"]:
            epoch["terms"] = {evil: 0.1}
    for system in ("teacher", "student", "baseline"):
        report[system]["test"]["by_type"] = {evil: 0.5}
    tags = Tags(page_of(tmp_path, report))
    assert "script" not in tags.names
    assert tags.text.count(evil) > 20
    assert tags.names.count("svg") == 4
    picture = ElementTree.parse(tmp_path / "plots" / "languages.svg")
    assert [node.text for node in picture.iter() if node.text == evil] == [evil] * 2
    assert evil in terminal(report, width=1000)


def test_terminal_shows_brackets_of_names_as_they_are():
    report = made_up_report(["[red]en[/red]", "sw"])
    report["machine"]["processor"] = "[bold]processor"
    assert "[red]en[/red]" in terminal(report)
    assert "[bold]processor" in terminal(report)


@pytest.mark.parametrize("part", OPTIONAL)
def test_a_report_without_an_optional_part_is_still_drawn(tmp_path, part):
    report = made_up_report(["en", "sw"])
    report[part] = None
    assert "<h2>Summary</h2>" in page_of(tmp_path, report)
    assert "Entity F1" in terminal(report)
    assert card_data(report).pipeline_tag == "token-classification"


def test_an_empty_report_is_drawn_with_dashes(tmp_path):
    assert "–" in page_of(tmp_path, {})
    assert "–" in terminal({})
    assert model_card({}).startswith("---\n")
    assert not list((tmp_path / "plots").iterdir())


def test_pictures_stand_alone_and_come_out_the_same_twice(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        page_of(folder, made_up_report(["en", "sw"]))
    names = sorted(path.name for path in (first / "plots").iterdir())
    assert names == ["curves.svg", "languages.svg", "latency.svg", "sizes.svg"]
    for name in names:
        text = (first / "plots" / name).read_text(encoding="utf-8")
        assert text == (second / "plots" / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(text.partition("<svg")[1] + text.partition("<svg")[2])
        assert "var(" not in text


def test_each_colour_of_a_picture_is_defined_for_light_and_dark(tmp_path):
    page = page_of(tmp_path, made_up_report(["en", "sw"]))
    style, _, body = page.partition("</style>")
    light, _, dark = style.partition("prefers-color-scheme:dark")
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    assert {"ink", "paper", "teacher", "student", "baseline", "term-0", "term-2"} <= used
    for name in used:
        assert f"--{name}:#" in light
        assert f"--{name}:#" in dark
    assert not set(re.findall(r"(?:fill|stroke): (#\w{6})", body))


def test_terminal_lists_the_twelve_languages_that_keep_least_then_mean_and_lowest():
    report = made_up_report(LANGUAGES)
    student, teacher = (report[s]["test"]["by_language"] for s in ("student", "teacher"))
    share = {n: student[n]["entity_f1"] / teacher[n]["entity_f1"] for n in LANGUAGES}
    least = sorted(LANGUAGES, key=lambda name: share[name])[:12]
    lines = [line.strip("│ ") for line in terminal(report).splitlines()]
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("F1 by language")) :]
    assert [line.split()[0] for line in table if re.match(r"[a-z]{2} ", line)] == least
    mean = 100 * sum(row["entity_f1"] for row in student.values()) / len(student)
    lowest = 100 * min(row["entity_f1"] for row in student.values())
    assert f"{mean:.1f}" in next(line for line in table if line.startswith("mean of all"))
    assert f"{lowest:.1f}" in next(line for line in table if line.startswith("lowest of all"))
    assert "F1 by language" not in terminal(made_up_report(["en"]))


def test_a_language_without_entities_has_no_score_in_mean_or_lowest():
    report = made_up_report(["en", "sw"])
    for system in ("teacher", "student", "baseline"):
        report[system]["test"]["by_language"]["sw"] |= {"entities": 0, "entity_f1": 0.0}
    lines = {line.split()[1]: line for line in terminal(report).splitlines() if "│" in line}
    english = f"{100 * report['student']['test']['by_language']['en']['entity_f1']:.1f}"
    assert lines["sw"].split()[3:10:2] == ["–"] * 4
    assert english in lines["mean"]
    assert english in lines["lowest"]


def test_metric_of_the_run_comes_first_and_carries_the_interval():
    report = made_up_report(["en", "sw"])
    report["evaluation"]["metric"] = "entity_f1_strict"
    rows = [line for line in terminal(report).splitlines() if line.startswith("│ Entity F1")]
    assert rows[0].startswith("│ Entity F1, strict")
    assert "[95.1, 96.4]" in rows[0]
    assert not any("[" in row for row in rows[1:])
    strict = report["student"]["test"]["by_language"]["sw"]["entity_f1_strict"]
    line = next(line for line in terminal(report).splitlines() if line.startswith("│ sw"))
    assert f"{100 * strict:.1f}" in line


def test_card_carries_the_figures_as_metadata_that_the_hub_reads():
    report = made_up_report(["no", "en"])  # YAML 1.1 reads a bare no as False
    data = card_data(report)
    assert data.language == ["no", "en"]
    assert data.pipeline_tag == "token-classification"
    assert data.base_model == "made-up/teacher-base"
    found = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert found["Entity F1"] == 0.744
    assert found["Entity F1, strict IOB2"] == 0.733


@pytest.mark.parametrize(
    "name", ["../teachers/base", "/teachers/base", "fine-tuned bert", "package:a/b", "a/b/c", None]
)
def test_card_names_no_base_model_that_the_hub_cannot_know(name):
    report = made_up_report(["en"])
    report["teacher"]["name"] = name
    assert card_data(report).base_model is None


def test_card_names_no_base_model_that_is_a_folder_here(tmp_path, monkeypatch):
    (tmp_path / "made-up" / "teacher-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card_data(made_up_report(["en"])).base_model is None


def test_card_asks_for_remote_code_only_where_the_student_carries_code():
    report = made_up_report(["en"])
    assert model_card(report).count("trust_remote_code=True") == 1
    report["student"]["kind"] = "transformer"
    assert "trust_remote_code" not in model_card(report)


def test_card_tables_have_as_many_cells_in_each_row():
    report = made_up_report(["e|n", "sw"])
    lines = model_card(report).splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| ---"):
            width = line.count("|")
            following = iter(lines[i + 1 :])
            while (row := next(following)).startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", row)) == width
