"""Distil a student, skipping finished steps: python jobs/distill.py CONFIG [key=value ...]."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["distill", *sys.argv[1:]]))
