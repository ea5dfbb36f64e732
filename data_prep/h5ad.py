"""One or more h5ad files to a folder of shards: python data_prep/h5ad.py cells.h5ad --output-dir shards/"""

from mdsc.prep.h5ad import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
