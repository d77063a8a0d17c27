"""The verbs of the console command, and what each takes."""

import argparse
from typing import Any, NoReturn

from xdray.redaction import redact


class _Parser(argparse.ArgumentParser):
    """Repeats no secret in a usage error."""

    def error(self, message: str) -> NoReturn:
        super().error(redact(message))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; `verb` names the verb, `overrides` are of those that take a config."""
    parser = _Parser(
        prog="xdray", description="Distils Transformer encoders into small students, on Ray."
    )
    parser.set_defaults(run_dir=None)  # until the config says it
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_run_verbs(verbs)
    _add_evaluate(verbs)
    _add_export(verbs)
    _add_suite(verbs)
    _add_predict(verbs)
    _add_trust(verbs)
    _add_targets(verbs)
    _add_sample(verbs)
    for its in verbs.choices.values():
        its.add_argument(
            "--workspace",
            metavar="FOLDER",
            help="take relative paths, but those of config files, from there",
        )
    return parser


def _add_run_verbs(verbs: Any) -> None:
    for verb, about in (
        ("distill", "text in, small model out; finished steps are skipped"),
        ("annotate", "only the teacher's pass over the transfer text"),
        ("tune", "search the best student; all trials share one teacher pass"),
        ("finetune_teacher", "only the teacher, fine-tuned on the labels"),
    ):
        parser = verbs.add_parser(verb, help=about, description=about)
        _add_config(parser)
        parser.add_argument("--plan", action="store_true", help="print the plan and start nothing")
        parser.add_argument(
            "--cluster",
            metavar="NODES",
            help="with --plan: for this one, such as 4x8xH100+16x32cpu",
        )
        parser.add_argument("--fresh", action="store_true", help="delete the run folder first")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. student.hidden=200"
    )


def _add_evaluate(verbs: Any) -> None:
    about = "score a model folder on a labelled split of a config"
    parser = verbs.add_parser("evaluate", help=about, description=about)
    _add_config(parser)
    parser.add_argument("--model", help="folder; default: the run's student")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="dev")


def _add_export(verbs: Any) -> None:
    about = "write a finished student as ONNX, ONNX int8 and bfloat16, checked, scored and timed"
    parser = verbs.add_parser("export", help=about, description=about)
    _add_config(parser)
    parser.add_argument("--model", help="folder; default: the run's student")


def _add_suite(verbs: Any) -> None:
    about = "fine-tune encoders on several tasks over seeds, in one table"
    parser = verbs.add_parser("evaluate_suite", help=about, description=about)
    parser.add_argument(
        "tasks", nargs="+", help="config files with teacher.finetune, and section.key=value for all"
    )
    parser.add_argument(
        "--encoder",
        action="append",
        required=True,
        metavar="NAME=MODEL",
        help="a folder, a Hub name or package:NAME/FOLDER; fresh:MODEL for random weights",
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1, help="fine-tunings at once")
    parser.add_argument("--output", required=True, help="folder")


def _add_predict(verbs: Any) -> None:
    about = "text in, entities, classes, numbers or answers out"
    parser = verbs.add_parser("predict", help=about, description=about)
    parser.add_argument("model", help="a student's folder")
    parser.add_argument("input", nargs="+", help="text files (.txt .jsonl .parquet .json) or globs")
    parser.add_argument("--output", required=True, help="a .jsonl or .parquet file")
    parser.add_argument("--replicas", type=int, default=1, help="predicting actors")
    parser.add_argument("--shard-sentences", type=int, default=4096, help="sentences a call")
    parser.add_argument("--text", default="text", help="column with the text")
    parser.add_argument("--pair", help="column with a second text, or the context of a question")
    parser.add_argument("--format", help="of the files, where their ending does not say it")
    parser.add_argument("--no-header", action="store_true", help="table: columns are numbers")
    parser.add_argument(
        "--runtime", choices=("torch", "onnx", "onnx-int8"), default="torch", help="see export"
    )


def _add_trust(verbs: Any) -> None:
    for parser in verbs.choices.values():
        parser.add_argument(
            "--trust-pickle",
            action="store_true",
            help="also load models whose weights are a pickle, which may run code",
        )
        parser.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="run the Python files that come with a model, as transformers does",
        )


def _add_targets(verbs: Any) -> None:
    about = "list, verify or delete target stores"
    parser = verbs.add_parser("targets", help=about, description=about)
    parser.add_argument("action", choices=("list", "verify", "delete"))
    parser.add_argument("store", help="the folder or URI that targets.store names")
    parser.add_argument("key", nargs="?", help="of one store in it (delete needs it)")


def _add_sample(verbs: Any) -> None:
    about = "write generated text: tiny (tests) or quickstart"
    parser = verbs.add_parser("sample", help=about, description=about)
    parser.add_argument("kind", choices=("tiny", "quickstart"))
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
