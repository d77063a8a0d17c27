"""Search the best student for a budget: python jobs/tune.py CONFIG [key=value ...]."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["tune", *sys.argv[1:]]))
