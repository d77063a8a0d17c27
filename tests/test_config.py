"""The config: what is refused, with which words, and that it comes back as it was written."""

import json
import time
from pathlib import Path

import pytest

from xdray.config import Config
from xdray.config_search import SearchConfig
from xdray.configfile import changed_fields, dump_config, load_config
from xdray.errors import ConfigError

MINIMAL = """
run: {folder: runs/x}
data: {train: a.conll, dev: b.conll, test: c.conll, transfer: t.txt}
teacher: {model: m}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "x.yaml"
    file.write_text(MINIMAL)
    return str(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.hiden=3", "student has no key 'hiden'; did you mean 'hidden'?"),
        ("trainig.epochs=3", "the config has no key 'trainig'; did you mean 'training'?"),
        ("student.hidden=wide", "student.hidden = 'wide'"),
        ("student.dropout=1.5", "student.dropout = 1.5"),
        ("data.scheme=IOB3", "'IOB2', 'IOB1' or 'BIOES'"),
        ("recipe=stagd", "did you mean 'staged'?"),
        ("recipe.temperature=2", "recipe.temperature = 2.0 goes with recipe.distance: kl"),
        ("data.test=b.conll", "data.dev and data.test both read 'b.conll'"),
        ("teacher.model=null", "either `model` (fine-tuned) or `finetune`"),
        (
            "teacher={finetune: {encoder: e, fresh: true}}",
            "fresh: true with freeze_embeddings: true",
        ),
        ("teacher.replicas=0", "expected 'auto', 1 and more, or [least, most]"),
        ("data.transfer={sources: t.txt, alpha: 0.5}", "alpha = 0.5 shares out `sentences`"),
        ("data.train={hub: conll}", "a `hub` source needs its `split`"),
        ("training.workers=-1", "training.workers is -1"),
        ("student.hidden", "expected section.key=value"),
        ("student.kind.x=3", "student.kind = {'x': 3}"),
        ("recipe=[{name: a, terms: [{loss: logits, split: train}]}]", "reads split 'transfer'"),
        (
            "recipe=[{name: a, terms: [{loss: logits, split: transfer, temperature: 2}]}]",
            "temperature = 2.0 goes with a kl logit loss",
        ),
        (
            "recipe=[{name: a, terms: [{loss: labels, split: train, tokens: first}]}]",
            "tokens: first goes with a hidden or logit term",
        ),
        (
            "recipe=[{name: a, unfreeze: true, terms: [{loss: hidden, split: transfer}]}]",
            "nothing is frozen",
        ),
        (
            "recipe=[{name: a, unfreeze: true, trainable: [head], "
            "terms: [{loss: labels, split: train}]}]",
            "nothing is frozen",
        ),
        (
            "recipe=[{name: ../../../x, terms: [{loss: logits, split: transfer}]}]",
            "recipe.stages.0.name = '../../../x'",
        ),
        ("recipe={stages: [{name: a/b, terms: [{loss: logits, split: transfer}]}]}", "'a/b'"),
        ("student.hidden=true", "student.hidden: true is a truth value"),
    ],
)
def test_a_mistake_is_refused_in_words_that_name_it(path: str, override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert message in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do(path: str):
    overrides = ["student.kind=transformer", "student.hidden=96", "student.heads=5"]
    with pytest.raises(ConfigError, match=r"heads = 5 does not divide .* = 96; 1, 2, 3, 4, 6, 8"):
        load_config(path, overrides)


def test_latency_of_sentences_that_a_transformer_cannot_read_is_refused(path: str):
    overrides = ["student.kind=transformer", "student.hidden=64", "tokens.max_length=16"]
    with pytest.raises(ConfigError, match=r"latency_length = 32, but .*max_length = 16"):
        load_config(path, overrides)
    assert load_config(path, [*overrides, "evaluation.latency=false"])


def test_yaml_is_version_1_2(path: str):
    config = load_config(path, ["training.learning_rate=3e-4", "data.transfer={sources: t.txt}"])
    assert config.training.learning_rate == pytest.approx(3e-4)
    config = load_config(path, ["data.transfer.sources=t.txt", "data.transfer.caps={no: 5}"])
    assert config.data.transfer.caps == {"no": 5}


def test_short_forms_take_overrides(path: str):
    for short in ("data.transfer={path: t.txt}", "data.transfer=t.txt"):
        config = load_config(path, [short, "data.transfer.cap=100"])
        assert config.data.transfer.cap == 100
        assert config.data.transfer.sources[0].path == "t.txt"
    stages = "[{name: a, terms: [{loss: logits, split: transfer}]}]"
    config = load_config(path, [f"recipe={stages}", "recipe.layer=4"])
    assert config.recipe.layer == 4
    assert [stage.name for stage in config.recipe.stages or ()] == ["a"]


def test_an_entry_of_a_list_takes_overrides_by_its_number(path: str):
    stages = "recipe=[{name: a, terms: [{loss: logits, split: transfer}]}]"
    config = load_config(path, [stages, "recipe.stages.0.epochs=9"])
    assert [(stage.name, stage.epochs) for stage in config.recipe.stages or ()] == [("a", 9)]
    for entry in ("1", "-1", "first"):
        with pytest.raises(ConfigError, match=rf"'{entry}' is no entry of a list of 1"):
            load_config(path, [stages, f"recipe.stages.{entry}.epochs=9"])


def test_a_dumped_config_loads_equal(path: str, tmp_path: Path):
    config = load_config(path, ["recipe=joint", "student.kind=transformer", "student.hidden=64"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(str(again)) == config


def test_changed_fields_are_named_with_both_values(path: str):
    old, new = load_config(path), load_config(path, ["student.hidden=64"])
    assert changed_fields(old, new) == ["student.hidden (was 200, is 64)"]


def test_a_file_that_is_no_config_is_refused_with_its_name(tmp_path: Path):
    file = tmp_path / "bad.yaml"
    for text in ("a: [1", "- 1", "\0"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_config(str(file))
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(str(tmp_path / "missing.yaml"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os."])
def test_yaml_makes_no_objects_and_calls_nothing(tag: str, tmp_path: Path):
    file, trace = tmp_path / "bad.yaml", tmp_path / "it-ran"
    file.write_text(f"run: {{folder: {tag} [{trace}]}}\n" + MINIMAL.replace("run:", "run2:"))
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(str(file))
    assert not trace.exists()


def test_secrets_are_not_dumped_and_another_secret_is_no_other_config(path: str):
    uri = "targets.store=s3://AK:{}@bucket/x?region=eu"
    old, new = (load_config(path, [uri.format(its)]) for its in ("wJalrXUtnF", "EMI7MDENGb"))
    assert "wJalrXUtnF" not in dump_config(old)
    assert changed_fields(old, new) == []
    other = load_config(path, ["targets.store=s3://AK:EMI7MDENGb@other/x?region=eu"])
    (changed,) = changed_fields(old, other)
    assert changed.startswith("targets.store (was 's3://REDACTED@bucket")


def test_every_field_says_what_it_means():
    def check(model: type, where: str) -> None:
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            inner = field.annotation
            if isinstance(inner, type) and hasattr(inner, "model_fields"):
                check(inner, f"{where}.{name}")
            else:
                assert field.description, f"{where}.{name} has no description"

    check(Config, "config")


def test_the_keys_of_the_config_are_a_decision():
    sections = {
        name: " ".join(
            sorted((SearchConfig if name == "search" else field.annotation).model_fields)  # type: ignore[union-attr]
        )
        for name, field in Config.model_fields.items()
    }
    expected = {
        "run": "folder seed start_from",
        "task": "kind labels max_answer multi_label null_answers null_margin overlap window",
        "data": "dev scheme test train transfer",
        "tokens": "max_length pieces tokenizer vocabulary words",
        "teacher": "batch_tokens dtype finetune gpus_per_replica labels model replicas",
        "targets": "codec delivery shard_sentences store",
        "student": (
            "dropout embedding embedding_init heads hidden intermediate kind layers pooling "
            "projection start start_layers"
        ),
        "recipe": "distance layer name new_head overrides stages temperature",
        "training": (
            "accumulation autocast batch_tokens checkpoint_seconds clip epochs final_rate "
            "held_out learning_rate max_failures partial_epochs patience schedule train_share "
            "transfer_share warmup weight_decay window_tokens workers"
        ),
        "export": "formats max_loss teacher",
        "evaluation": "baseline bootstrap hard_labels latency latency_length metric",
        "cluster": (
            "fleet max_resources num_cpus num_gpus object_store_gib teacher_labels threads "
            "training_labels"
        ),
        "search": (
            "algorithm concurrent early_stopping gpus_per_trial grace max_bytes max_latency_ms "
            "max_parameters objectives reduction retrain space trials"
        ),
    }
    assert sections == expected


# from strangers, and damaged


def unfolding(depth: int) -> str:
    """A line that stands for nine times as much as the one before it, and so on."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, depth):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{unfolding(12)}\nrun: {{folder: *a11}}", "more than 50 values inside .*, or 100,000"),
        ("a: &a [*a]", "more than 50 values inside one another"),
        ("a: " + "[" * 2000, "more than 50 brackets inside one another"),
        ("a:\n" + "- " * 5000, "recursion"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: " + "x" * 200_000, "more than 100,000 characters"),
        ("a: 2024-99-01", "month must be"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!int x", "invalid literal"),
    ],
)
def test_yaml_made_to_break_its_reader_is_refused(tmp_path: Path, text: str, message: str):
    file = tmp_path / "x.yaml"
    file.write_text(f"{MINIMAL.replace('runs/x', '*a11' if 'a11' in text else 'x')}\n{text}")
    if "a11" in text:
        file.write_text(text)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=rf"x\.yaml: not a config in YAML: .*({message})"):
        load_config(str(file))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [CANARY]",
        "!!python/object/new:os.mkdir [CANARY]",
        "!!python/object/apply:subprocess.run [[mkdir, CANARY]]",
        "!!python/name:os.mkdir",
        "!other x",
    ],
)
def test_tags_of_yaml_run_nothing(path: str, tmp_path: Path, value: str):
    text = value.replace("CANARY", str(tmp_path / "canary"))
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load_config(path, [f"run.seed={text}"])
    Path(path).write_text(f"{MINIMAL}\ntokens: {text}")
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load_config(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rate=.inf", "inf is no number"),
        ("task.null_margin=.nan", "nan is no number"),
        ("run.seed=18446744073709551616", "more than 64 bits"),
        ("run.folder=2024-01-01", "put it in quotes"),
        ('run.folder="a\\0b"', "a character that no text has"),
        ('run.folder="a\\ud800b"', "a character that no text has"),
        ("search={space: {student.hidden: [!!binary aGk=]}}", "put it in quotes"),
        (f"data.train.{'9' * 5000}.path=x", "is not a section|no entry"),
    ],
)
def test_values_that_no_config_holds_are_refused(path: str, override: str, message: str):
    Path(path).write_text(MINIMAL.replace("train: a.conll", "train: [a.conll]"))
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_an_override_changes_one_place_of_an_alias(path: str):
    data = "{train: &a {path: a.conll}, dev: b.conll, test: c.conll, transfer: {sources: *a}}"
    Path(path).write_text(f"run: {{folder: x}}\ndata: {data}\nteacher: {{model: m}}")
    config = load_config(path, ["data.train.path=z.conll"])
    assert config.data.train[0].path == "z.conll"
    assert config.data.transfer.sources[0].path == "a.conll"


def test_a_source_beside_sources_is_not_left_out_silently(path: str):
    with pytest.raises(ConfigError, match=r"name `sources`, or one source's `path`"):
        load_config(path, ["data.transfer={path: a.txt, sources: [b.txt]}"])


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "a\nb"])
def test_a_stage_cannot_name_a_folder_outside_the_run(path: str, name: str):
    stage = json.dumps([{"name": name, "terms": [{"loss": "logits", "split": "transfer"}]}])
    with pytest.raises(ConfigError, match=r"recipe\.stages\.0\.name = "):
        load_config(path, [f"recipe={stage}"])


def test_a_message_about_a_long_value_is_short(path: str):
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"student.hidden={'x' * 50_000}"])
    assert len(str(caught.value)) < 400


def test_a_value_with_a_line_separator_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "task: {kind: answerin\u2028g, null_answers: true}\n"
        "data: {transfer: a.txt}\nteacher: {model: m}\nstudent: {}\n"
    )
    with pytest.raises(ConfigError, match="null_answers") as caught:
        load_config(str(path))
    assert len(str(caught.value).splitlines()) == 1
