"""Secrets stay inside: URIs, options and tokens, in messages, on both streams, in a run's files."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdray.cli import main
from xdray.config import Config
from xdray.configfile import dump_config
from xdray.errors import ClusterError
from xdray.redaction import HIDDEN, redact, redacted

SECRET = "wJalrXUtnFEMI7MDENGbPxRfiCYMADEUPKEY"
MakeConfig = Callable[..., Config]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"s3://AK:{SECRET}@bucket/a/b", "s3://REDACTED@bucket/a/b"),
        ("s3://AK:wJ/alr@X+/U@bucket/a", "s3://REDACTED@bucket/a"),
        (f"no file at 'https://{SECRET}@host/x', try", "no file at 'https://REDACTED@host/x', try"),
        (f"/AK:{SECRET}@place/x: not there", "/REDACTED@place/x: not there"),
        (f"s3://AK:{SECRET[:9]}: no file system", "s3://REDACTED: no file system"),
        (
            f"s3://b/x?region=eu&secret_key={SECRET}&scheme=http",
            "s3://b/x?region=eu&secret_key=REDACTED&scheme=http",
        ),
        (f"?a=1&amp;X-Amz-Signature={SECRET}<", "?a=1&amp;X-Amz-Signature=REDACTED<"),
        (f"abfs://c/x?sig={SECRET}", "abfs://c/x?sig=REDACTED"),
        ("got hf_abcdefghijklmnopqrstuvwxyzABCDEF", "got REDACTED"),
        ("id AKIAIOSFODNN7EXAMPLE is", "id REDACTED is"),
        (f"got hf_oauth_{SECRET}.", "got REDACTED"),
        (f"x#access_token={SECRET}&b=1", "x#access_token=REDACTED&b=1"),
        (f"AWS_SECRET_ACCESS_KEY={SECRET} x", "AWS_SECRET_ACCESS_KEY=REDACTED x"),
        ("abfs://container@account.dfs.x/y", "abfs://container@account.dfs.x/y"),
        (f"abfs://c:{SECRET}@x/y", "abfs://REDACTED@x/y"),
    ],
)
def test_a_secret_is_hidden_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c?region=eu-1&endpoint_override=localhost:9000&scheme=http",
        "the cluster at http://127.0.0.1:8265/ and ray://head:10001",
        "sw.conll:1041: 3 columns, expected 2",
        "training.batch_tokens=512 package:NAME/FOLDER fsspec+memory://place/x",
        "file:///data/en.txt {'a': 1} 12:30:01 write me@there.org hf_hub_download",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


@given(
    secret=st.text("abcdefXYZ0189+/=._~-", min_size=12),
    form=st.sampled_from(
        [
            "s3://AK:{}@bucket/x",
            "cannot open 'gs://user:{}@bucket'",
            "https://host/x?token={}&b=2",
            '{{"store": "s3://b/x?a=1&secret_key={}"}}',
        ]
    ),
)
@settings(deadline=None, derandomize=True)
def test_no_secret_comes_through_whatever_it_is_made_of(secret: str, form: str) -> None:
    assert secret not in redact(form.format(secret))


def test_values_and_names_of_json_are_redacted_and_other_values_stay() -> None:
    uri, hidden = f"s3://AK:{SECRET}@b", f"s3://{HIDDEN}@b"
    value = {"store": [uri, 3, None, {uri: 0.5, "x": True}]}
    assert redacted(value) == {"store": [hidden, 3, None, {hidden: 0.5, "x": True}]}


def test_an_error_of_ours_hides_what_it_names() -> None:
    assert str(ClusterError(f"s3://AK:{SECRET}@b: not there")) == f"s3://{HIDDEN}@b: not there"


@pytest.mark.parametrize(
    "override",
    [
        "data.train.path=s3://AK:{}@bucket/x.conll?region",
        "data.transfer.sources=s3://AK:{}@b/x?scheme=nonsense",
        "data.transfer={{path: 'file://user:{}@/x.txt'}}",
        "data.dev=/nowhere/x.conll?token={}",
        "targets.store=nosuch://AK:{}@place/x",
        "teacher.model=https://user:{}@host/model",
        "teacher.model=./nowhere?token={}",
        "tokens.tokenizer=https://user:{}@host/model",
        "student={{kind: encoder, start: 'https://host/x?token={}'}}",
        "run={{folder: x, seed: 's3://AK:{}@b'}}",
        "https://user:{}@host",
    ],
)
@pytest.mark.parametrize("plan", [True, False])
def test_neither_a_failing_command_nor_a_plan_prints_a_secret(
    override: str,
    plan: bool,
    tiny: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(dump_config(tiny("run")))
    arguments = ["distill", "x.yaml", override.format(SECRET), *(["--plan"] if plan else [])]
    try:
        status = main(arguments)
    except SystemExit as left:
        status = left.code
    assert plan or status in {1, 2}
    out, err = capfd.readouterr()
    assert HIDDEN in out + err
    assert SECRET not in out + err
    assert not _files_with_secrets(tmp_path)


def _files_with_secrets(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.cluster
def test_a_run_works_with_secrets_in_its_uris_and_keeps_none(
    tiny: MakeConfig, tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = tiny(
        "run", recipe={"name": "joint_logits"}, targets={"store": f"file://{tmp_path}/targets?"}
    )
    text = dump_config(plain)
    text = re.sub(r"path: /(\S+)", rf"path: file:///\1?secret_key={SECRET}", text)
    text = text.replace("targets?", f"targets?access_key=AK&secret_key={SECRET}")
    assert text.count(SECRET) == 5
    config = tmp_path / "secret" / "x.yaml"
    config.parent.mkdir()
    config.write_text(text)
    assert main(["distill", str(config)]) == 0
    streams = capfd.readouterr()
    assert SECRET not in streams.out + streams.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["targets"]["rows"] == report["targets"]["teacher_forward_rows"] > 0
    assert f"secret_key={HIDDEN}" in (tmp_path / "run" / "config.yaml").read_text()
    assert [path for path in (tmp_path / "targets").rglob("*.parquet")]
    assert _files_with_secrets(tmp_path) == [config]

    # another secret is the same run; another place is not
    config.write_text(text.replace(SECRET, SECRET[::-1]))
    assert main(["distill", str(config)]) == 0
    assert "this run is done" in capfd.readouterr().out
    config.write_text(text.replace("targets?", "others?"))
    assert main(["distill", str(config)]) == 1
    streams = capfd.readouterr()
    assert "a run of another config: targets.store" in streams.err
    assert SECRET not in streams.out + streams.err
