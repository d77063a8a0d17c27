"""The console command `xdray VERB ...`; each file of jobs/ is one verb of it.

Prints human text, and as the last line of stdout one JSON object. Exit status 0 done, 1 failed,
2 usage, 130 left on Ctrl-C, 143 on SIGTERM (`ray job stop`): the same command continues.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xdray.arguments import make_parser
from xdray.config import Config
from xdray.configfile import load_config
from xdray.console import mute_stdout
from xdray.errors import XdrayError
from xdray.redaction import redact, redacted
from xdray.signals import leaving
from xdray.weights import TRUSTS, trust_models
from xdray.workspace import check_kept, workspace

Result = dict[str, Any]
SIGTERM_STATUS = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") or "=" not in word for word in rest) or "overrides" not in args:
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
    else:
        args.overrides += rest  # overrides that stand behind an option
    trust_models([its for its in TRUSTS if getattr(args, f"trust_{its}", False)])
    started = time.monotonic()
    status = 1
    try:
        with leaving():
            status = _run(args, started)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the last line
        mute_stdout()
    if status == SIGTERM_STATUS:
        signal.raise_signal(signal.SIGTERM)  # at once: Python itself takes seconds to end
    return status


def _run(args: argparse.Namespace, started: float) -> int:
    try:
        _keep_config_paths(args)
        with workspace(args.workspace):
            result = VERBS[args.verb](args)
    except XdrayError as error:
        return _failed(args, started, type(error).__name__, " ".join(str(error).split()), 1)
    except OSError as error:  # a full disk, a folder that may not be written
        return _failed(args, started, type(error).__name__, str(error), 1)
    except KeyboardInterrupt:
        message = "interrupted; the same command continues"
        return _failed(args, started, "Interrupted", message, 130)
    except SystemExit:  # also from Ray's handler, while Ray starts
        message = "stopped by SIGTERM; the same command continues"
        return _failed(args, started, "Interrupted", message, SIGTERM_STATUS)
    except BaseException as error:  # a fault of ours: all of it on stderr, and a last line still
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            short = f"memory ran short: {' '.join(str(error).split())[:200]}; lower batch_tokens of"
            message = f"{short} teacher and training, or the student's size, and run it again"
            return _failed(args, started, type(error).__name__, message, 1)
        print(redact(traceback.format_exc()), file=sys.stderr, end="")
        return _failed(args, started, type(error).__name__, " ".join(str(error).split()), 1)
    print(json.dumps(redacted({"job": args.verb, "status": "done", **result})))
    return 0


def _failed(args: argparse.Namespace, started: float, kind: str, message: str, status: int) -> int:
    print(f"xdray {args.verb}: {redact(message)}", file=sys.stderr)
    line = {
        "job": args.verb,
        "status": "failed",
        "run_dir": args.run_dir,
        "seconds": round(time.monotonic() - started, 2),
        "error": {"kind": kind, "message": message},
    }
    print(json.dumps(redacted(line)))
    return status


def _keep_config_paths(args: argparse.Namespace) -> None:
    """Config files are where the command was typed, also with a workspace."""
    if args.workspace is not None and "config" in args:
        args.config = str(Path(args.config).absolute())
    if args.workspace is not None and "tasks" in args:
        args.tasks = [its if "=" in its else str(Path(its).absolute()) for its in args.tasks]


def _config(args: argparse.Namespace) -> Config:
    if getattr(args, "cluster", None) is not None:
        args.overrides.append(f"cluster.fleet={args.cluster}")
    config = load_config(args.config, args.overrides)
    args.run_dir = config.run.folder
    return config


def _with_plan(args: argparse.Namespace, work: Callable[[Config], Result]) -> Result:
    config = _config(args)
    if args.plan:
        from xdray.planning import make_plan, print_plan

        plan = redacted(make_plan(config))
        print_plan(plan)
        return {"plan": plan, "run_dir": config.run.folder}
    return work(config)


def _distill(args: argparse.Namespace) -> Result:
    def work(config: Config) -> Result:
        from xdray.distillation import distill
        from xdray.report import summary

        return summary(distill(config, fresh=args.fresh))

    return _with_plan(args, work)


def _annotate(args: argparse.Namespace) -> Result:
    def work(config: Config) -> Result:
        from xdray.distillation import annotate_only

        return annotate_only(config, fresh=args.fresh)

    return _with_plan(args, work)


def _finetune(args: argparse.Namespace) -> Result:
    def work(config: Config) -> Result:
        from xdray.distillation import finetune_only

        return finetune_only(config, fresh=args.fresh)

    return _with_plan(args, work)


def _tune(args: argparse.Namespace) -> Result:
    def work(config: Config) -> Result:
        from xdray.search import tune
        from xdray.search_report import last_line

        return last_line(tune(config, fresh=args.fresh))

    if not args.plan:
        return work(_config(args))
    from xdray.search_plan import make_search_plan, print_search_plan

    config = _config(args)
    plan = redacted(make_search_plan(config))
    print_search_plan(plan)
    return {"plan": plan, "run_dir": config.run.folder}


def _evaluate(args: argparse.Namespace) -> Result:
    from xdray.scoring import evaluate_model

    return evaluate_model(_config(args), args.model, args.split)


def _export(args: argparse.Namespace) -> Result:
    from xdray.export import export

    return export(_config(args), args.model)


def _suite(args: argparse.Namespace) -> Result:
    args.run_dir = args.output
    check_kept("--output", args.output)
    from xdray.suite import evaluate_suite

    encoders = dict(its.partition("=")[::2] for its in args.encoder)
    wrong = [name for name, model in encoders.items() if not model]
    if wrong or args.seeds < 1:
        raise XdrayError(
            f"--encoder {wrong[0]}: expected NAME=MODEL"
            if wrong
            else f"--seeds {args.seeds}: expected 1 or more"
        )
    overrides = [its for its in args.tasks if "=" in its]
    tasks = [its for its in args.tasks if "=" not in its]
    return evaluate_suite(encoders, tasks, args.seeds, args.output, args.replicas, overrides)


def _predict(args: argparse.Namespace) -> Result:
    check_kept("--output", args.output)
    from xdray.prediction import predict_files

    columns = {"text": args.text, "pair": args.pair, "header": not args.no_header}
    columns |= {"format": args.format} if args.format else {}
    return predict_files(
        args.model,
        args.input,
        args.output,
        args.replicas,
        args.shard_sentences,
        columns,
        args.runtime,
    )


def _targets(args: argparse.Namespace) -> Result:
    from xdray.targets import delete_store, list_stores, verify_stores

    started = time.monotonic()
    if args.action == "delete":
        if not args.key:
            raise XdrayError(
                "xdray targets delete: name the key of the store, see xdray targets list"
            )
        found = delete_store(args.store, args.key)
    else:
        found = (list_stores if args.action == "list" else verify_stores)(args.store, args.key)
    print(json.dumps(redacted(found), indent=1))
    return {"run_dir": None, "seconds": round(time.monotonic() - started, 2), "stores": found}


def _sample(args: argparse.Namespace) -> Result:
    from xdray.sample import tiny_corpus, write_sample

    check_kept("folder", args.folder)
    started = time.monotonic()
    (tiny_corpus if args.kind == "tiny" else write_sample)(args.folder, seed=args.seed)
    return {"run_dir": args.folder, "seconds": round(time.monotonic() - started, 2)}


VERBS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "distill": _distill,
    "annotate": _annotate,
    "tune": _tune,
    "finetune_teacher": _finetune,
    "evaluate": _evaluate,
    "export": _export,
    "evaluate_suite": _suite,
    "predict": _predict,
    "targets": _targets,
    "sample": _sample,
}
