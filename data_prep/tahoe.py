"""Tahoe-100M's parquet files, as they are, to a folder of shards: python data_prep/tahoe.py --source tahoe/ ..."""

from mdsc.prep.tahoe import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
