"""Features of the levels of a condition: python data_prep/features.py genept.csv.gz --output gene_features.parquet"""

from mdsc.prep.features import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
