"""Fine-tune encoders: jobs/evaluate_suite.py TASK.yaml ... --encoder NAME=MODEL --output DIR."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate_suite", *sys.argv[1:]]))
