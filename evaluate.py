"""Score a model beside plain baselines: python evaluate.py inpaint --checkpoint runs/a --input test.h5ad"""

import sys

from mdsc.cli import exit_with
from mdsc.evaluation.command import main

if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
