"""A finished student as ONNX, int8 and bfloat16: python jobs/export.py CONFIG [--model FOLDER]."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))
