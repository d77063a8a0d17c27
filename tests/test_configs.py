"""Each config of the repository loads; the recipe of each becomes a plan."""

import json
from collections import Counter
from pathlib import Path

import pytest

from xdray.checks import check_student
from xdray.config_data import SourceConfig
from xdray.configfile import dump_config, load_config
from xdray.corpus import plan_transfer
from xdray.header import ModelHeader
from xdray.kinds import load_task
from xdray.recipes import plan_stages

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_its_recipe_is_a_plan(path: Path, tmp_path: Path):
    config = load_config(str(path))
    assert path.read_text().startswith("# "), "says at its top what it shows"
    assert plan_stages(config, num_teacher_layers=12)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(str(copy)) == config


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "universal" in p.stem], ids=lambda p: p.stem
)
def test_a_universal_student_of_any_shape_fits_a_teacher_of_12_layers(path: Path):
    header = ModelHeader(
        model="m",
        model_type="bert",
        width=768,
        num_layers=12,
        num_heads=12,
        intermediate=3072,
        embedding_width=768,
        vocab_size=30_000,
        max_positions=512,
        tags=(),
    )
    check_student(load_config(str(path), ["student.start=teacher"]), header)


def test_every_config_that_we_ship_is_there():
    names = {path.stem for path in CONFIGS}
    expected = {"quickstart", "tiny", "wikiann_mbert", "wikiann_mbert_35x", "ner37", "wikiann_en"}
    assert expected <= names


AS_SHIPPED = {
    "cola": (None, ["gj04\t1\t\tA {}", "gj04\t0\t*\tA {}"]),
    "mnli": ("index\tsentence1\tsentence2\tlabel", ["0\tA {}\tB\tneutral"]),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", ["1\t7\t8\tA {}\tB"]),
    "qnli": ("index\tquestion\tsentence\tlabel", ["0\tA {}?\tB\tnot_entailment"]),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ["{}0\t2\t3\tA {}?\tB\t1", "{}1\t2\t3\tA {}, then the row ends"],
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel", ["0\tA {}\tB\tentailment"]),
    "sst-2": ("sentence\tlabel", ['a "quoted {}\t1']),
    "sts-b": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        ["0\tg\tf\t2012\t1\tnone\tnone\tA {}\tB\t3.800"],
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel", ["0\tA {}\tB\t1"]),
}
"""Header and rows as GLUE's files have them (CoLA has no header, MRPC a byte-order mark)."""
GOLD = {"cola": [1, 0], "mnli": [1], "mrpc": [1], "qnli": [1], "qqp": [1], "rte": [0]}
GOLD |= {"sst-2": [1], "sts-b": [3.8], "wnli": [1]}


@pytest.mark.parametrize("name", AS_SHIPPED)
def test_a_task_of_glue_is_read_from_the_file_that_is_shipped(name: str, tmp_path: Path):
    head, rows = AS_SHIPPED[name]
    lines = [row.replace("{}", str(number)) for number in range(4) for row in rows]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join([*([head] if head else []), *lines]) + "\n")
    config = load_config(str(ROOT / "configs" / "glue" / f"{name}.yaml"))
    every = {"path": str(path), "rows": None}
    task = load_task(config)
    for split in ("train", "dev", "test"):
        (source,) = getattr(config.data, split)
        labelled = task.read([source.model_copy(update=every)], split)
        assert [its.gold for its in labelled.sentences] == GOLD[name] * 4
        assert labelled.counts["empty"] == 4 * (len(rows) - len(GOLD[name]))
    own = config.data.transfer.sources[0].model_copy(update=every)
    transfer = config.data.transfer.model_copy(update={"sources": [own]})
    counts = plan_transfer(transfer, frozenset(), seed=0, shard_sentences=8).counts
    assert (counts["read"], counts["taken"]) == (len(lines), 4 * len(GOLD[name]))


def test_squad_2_is_read_from_the_file_that_is_shipped(tmp_path: Path):
    answer = {"text": "Lyon", "answer_start": 14}
    asked = [
        {"question": "Where?", "id": "a", "answers": [answer], "is_impossible": False},
        {
            "plausible_answers": [answer],
            "question": "When?",
            "id": "b",
            "answers": [],
            "is_impossible": True,
        },
    ]
    paragraph = {"context": "Anna lives in Lyon.", "qas": asked}
    file = {"version": "v2.0", "data": [{"title": "Lyon", "paragraphs": [paragraph]}]}
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(file))
    config = load_config(str(ROOT / "configs" / "glue" / "squad2.yaml"))
    labelled = load_task(config).read([SourceConfig(path=str(path))], "dev")
    assert Counter(bool(its.gold.answers) for its in labelled.sentences) == {True: 1, False: 1}
