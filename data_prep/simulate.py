"""Simulated cells of known truth: python data_prep/simulate.py --output-dir data/simulated"""

from mdsc.prep.simulate import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
