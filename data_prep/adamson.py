"""Perturb-seq cells to a task's folder: python data_prep/adamson.py perturb_processed.h5ad --output-dir adamson/"""

from mdsc.prep.perturbation import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
