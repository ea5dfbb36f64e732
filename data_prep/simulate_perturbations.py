"""A file like GEARS' whose effects are known: python data_prep/simulate_perturbations.py --output simulated.h5ad"""

from mdsc.prep.simulated_perturbations import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
