"""Measure against bare loops and peers: python jobs/benchmark.py benchmarks/speed.yaml.

Options: --parts teacher,student, --output benchmarks/speed_MACHINE_DATE.md (appended to), and
key=value of the YAML. Peers need `pip install 'xdray[benchmark]'`. The last line of stdout is JSON
with `ratios`.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Measure the parts one after the other; prints a table of each, returns 0."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.harness import Found, as_markdown, conditions, measure_all, read_settings
    from benchmarks.parts import MEASURES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    parser.add_argument("--parts", help="comma between them")
    parser.add_argument("--output", type=Path)
    args = parser.parse_intermixed_args()
    settings = read_settings(args.config, args.parts and args.parts.split(","), args.changes)
    about, found = conditions(settings), Found()
    command = shlex.join(["python", "jobs/benchmark.py", *sys.argv[1:]])
    for part in measure_all(settings, MEASURES):
        found.add(part)
        text = as_markdown(part, command, about)
        print(text, flush=True)
        if args.output is not None:  # what is measured stays, whatever becomes of later parts
            with args.output.open("a", encoding="utf-8") as file:
                file.write(text)
    line = {"job": "benchmark", "status": "failed" if found.failed else "done"}
    line |= {"ratios": found.ratios}
    print(json.dumps({**line, "figures": found.figures, "conditions": about}))
    return 1 if found.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
