"""Only the teacher, on the labels: python jobs/finetune_teacher.py CONFIG."""

import sys

from xdray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["finetune_teacher", *sys.argv[1:]]))
