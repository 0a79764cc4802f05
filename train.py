"""Distill a teacher into a student: ``python train.py CONFIG [key.path=value …]``. See README.md."""

import sys

from distill.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
