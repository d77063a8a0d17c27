"""Each config of the repository loads; the recipe of each becomes a plan."""

from pathlib import Path

import pytest

from xdray.checks import check_student
from xdray.configfile import dump_config, load_config
from xdray.header import ModelHeader
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
