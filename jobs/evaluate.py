"""Score a model: python jobs/evaluate.py CONFIG [--model FOLDER] [--split dev]."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
