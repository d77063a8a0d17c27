"""Measure against bare loops and peers: python jobs/benchmark.py configs/benchmark.yaml.

Options: --parts teacher,student, --output benchmarks/speed_MACHINE_DATE.md (appended to), and
key=value of the YAML. Peers need `pip install 'xdray[benchmark]'`. The last line of stdout is JSON
with `ratios`.
"""

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BARS = {
    "teacher_over_bare_loop": 0.92,
    "teacher_over_pipeline_same_dtype": 1.5,
    "teacher_over_pipeline_default": 3,
    "student_epoch_over_bare_loop": 0.90,
    "student_two_workers_over_one": 1.0,
    "student_epoch_over_trainer": 3,
    "student_epoch_over_textbrewer": 3,
    "run_over_trainer": 3,
    "run_over_textbrewer": 3,
    "paper_shape_float32_batch_32": 110,
    "paper_shape_float32_batch_1": 70,
    "paper_shape_int8_batch_32": 150,
    "paper_shape_parameters": 34.4,
    "memory_300k_over_10k_teacher": 1.15,
    "memory_300k_over_10k_training": 1.15,
    "replicas_64_over_ideal": 0.9,
    "plan_start_s": 4,
    "import_s": 0.5,
    "tiny_run_s": 25,
}


def main() -> int:
    """Measure the parts one after the other; prints the table, returns 0."""
    sys.path.insert(0, str(ROOT))
    from ruamel.yaml import YAML

    from benchmarks.harness import Found, as_markdown, conditions, read_settings, use_threads
    from benchmarks.parts import MEASURES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--parts", help="comma between them")
    parser.add_argument("--output", type=Path)
    args = parser.parse_intermixed_args()
    pairs = [change.partition("=")[::2] for change in args.changes]
    changes = {key: YAML(typ="safe").load(value) for key, value in pairs}
    settings = read_settings(args.config, args.parts and args.parts.split(","), changes)
    use_threads(settings)
    found = Found()
    for part in settings.parts:
        print(f"{part}:", flush=True)
        its = MEASURES[part](settings)
        found.ratios |= its.ratios
        found.figures |= its.figures
        found.notes += its.notes
    about: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()} | conditions(settings)
    command = shlex.join(["python", "jobs/benchmark.py", *sys.argv[1:]])
    text = as_markdown(found, BARS, command, dict(about))
    print(text)
    if args.output is not None:
        with args.output.open("a", encoding="utf-8") as file:
            file.write(text)
    line = {"job": "benchmark", "status": "done", "ratios": found.ratios}
    print(json.dumps({**line, "figures": found.figures, "conditions": about}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
