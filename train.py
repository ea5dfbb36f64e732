"""Train a model: accelerate launch train.py [--config configs/tiny.yaml] [--data.dir shards/] [--output-dir runs/a]"""

import sys

from mdsc.training.command import main

from mdsc.cli import exit_with

if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
