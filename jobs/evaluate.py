"""Score a model folder:  python jobs/evaluate.py configs/tiny.yaml [--model FOLDER] [--split dev]"""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
