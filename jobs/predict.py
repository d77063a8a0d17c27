"""Text in, entities out: python jobs/predict.py FOLDER text.txt --output entities.jsonl."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
