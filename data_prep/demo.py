"""The embedded cells to data/demo: python data_prep/demo.py"""

from mdsc.prep.demo import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
