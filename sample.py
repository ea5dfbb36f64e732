"""Fill hidden counts or generate cells: python sample.py --checkpoint runs/a --input cells.h5ad --mask-ratio 0.8"""

import sys

from mdsc.cli import exit_with
from mdsc.sampling.command import main

if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
