"""Gene embeddings of a source to one file: python data_prep/gene_embeddings.py GenePT.pickle --output genes.parquet"""

from mdsc.prep.gene_embeddings import main

if __name__ == "__main__":
    from mdsc.cli import exit_with

    exit_with(main)
