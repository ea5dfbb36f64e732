"""Train a model: accelerate launch train.py [--config configs/tiny.yaml] [--data.dir shards/] [--output-dir runs/a]"""

import sys

from mdsc.cli import exit_with
from mdsc.training.command import main

if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
