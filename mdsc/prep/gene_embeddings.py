"""Gene embeddings of any source to one file of vectors by symbol, for perturbations of genes that no cell was seen of.

    mdsc prepare gene-embeddings GenePT_gene_embedding_ada_text.pickle --output genes.parquet --for adamson/cells.h5ad
    mdsc prepare gene-embeddings go_biological_process.gmt --output go.parquet --num-components 64
    mdsc prepare gene-embeddings my_text_vectors.csv --output genes.parquet --genes genes.txt

A pickle (GenePT's: a dict of symbols and lists of numbers) is read without Python's unpickler; .csv, .tsv, .parquet and
.safetensors hold names and numbers; of gene sets (.gmt: GO, Reactome) the terms of each gene are reduced to components.
Symbols are compared as they are written: an alias is another gene until you rename it.
"""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float64

from mdsc.atomic import replacing
from mdsc.config.flags import parse_flags
from mdsc.data.gene_set_file import read_gmt
from mdsc.data.level_features import LevelFeatures, read_features, write_features
from mdsc.data.perturbations import CONTROL, canonical, perturbed_genes
from mdsc.errors import UserError
from mdsc.prep.perturbation_names import counted
from mdsc.prep.pickled_arrays import RefusedPickle
from mdsc.prep.plain_pickle import read_plain, vector_of

PICKLES = ("pickle", "pkl")
MIN_GENES = 2
"""Genes that a set needs, to tell of anything that genes have in common."""


@dataclass(frozen=True, kw_only=True)
class GeneEmbeddingsConfig:
    source: tyro.conf.Positional[Path]
    """.pickle or .pkl (GenePT), .csv, .tsv, .parquet, .safetensors, or gene sets as .gmt; text files also as .gz."""
    output: Path
    """parquet file to write."""
    genes: Path | None = None
    """Text file with one symbol a line: keep these genes, and report those that have no embedding."""
    for_cells: Annotated[Path | None, tyro.conf.arg(name="for")] = None
    """h5ad file (cells.h5ad of a task, or GEARS'): keep the genes that it measures or perturbs."""
    num_components: int = 128
    """Of gene sets: the length of the vectors."""
    report: Path | None = None
    """Text file to write the genes without an embedding to, one a line."""

    def __post_init__(self) -> None:
        if self.output.suffix != ".parquet":
            raise UserError(f"--output {self.output} is to be a .parquet file.")
        if self.genes is not None and self.for_cells is not None:
            raise UserError("--genes and --for both say which genes to keep: give one of them.")
        if self.report is not None and self.genes is None and self.for_cells is None:
            raise UserError("--report lists genes without an embedding: of which, --genes or --for says.")
        if self.num_components < 1:
            raise UserError(f"--num-components {self.num_components}: give 1 or more.")


def prepare_gene_embeddings(config: GeneEmbeddingsConfig, say: Callable[[str], None] = print) -> LevelFeatures:
    """Write the file, and give what is in it; `say` is told of genes without an embedding."""
    features = read_embeddings(config.source, config.num_components, say)
    wanted = _wanted(config)
    if wanted is not None:
        row_of = {name: row for row, name in enumerate(features.names)}
        found = [name for name in wanted if name in row_of]
        lacking = [name for name in wanted if name not in row_of]
        say(f"{len(found):,} of {len(wanted):,} genes have an embedding")
        if lacking:
            say(f"{len(lacking):,} have none: {counted(lacking, 10)} (aliases are not guessed)")
        if config.report is not None:
            with replacing(config.report) as beside:
                beside.write_text("".join(f"{name}\n" for name in lacking), encoding="utf-8")
        if not found:
            raise UserError(
                f"{config.source} has none of these genes: it has {counted(features.names, 3)}; they are "
                f"{counted(wanted, 3)}. Symbols are compared as they are written."
            )
        features = LevelFeatures(tuple(found), features.values[[row_of[name] for name in found]], features.source)
    write_features(features, config.output)
    return features


def read_embeddings(
    path: Path, num_components: int = 128, say: Callable[[str], None] = lambda line: None
) -> LevelFeatures:
    """Vectors by name out of a file of one of the kinds above; UserError where it cannot be read so."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind in (*PICKLES, "gmt") and not path.is_file():
        raise UserError(f"there is no file {path}.")
    if kind in PICKLES:
        return _of_pickle(path, say)
    if kind == "gmt":
        return term_components(read_gmt(path), num_components, str(path))
    return read_features(path)


def _of_pickle(path: Path, say: Callable[[str], None]) -> LevelFeatures:
    try:
        data = path.read_bytes()
        stored = read_plain(gzip.decompress(data) if path.name.lower().endswith(".gz") else data)
    except (RefusedPickle, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is not read: {error}.\nA pickle may hold a dict of symbols and numbers; save anything else as "
            ".parquet or .csv."
        ) from error
    if not isinstance(stored, dict) or not stored:
        raise UserError(f"{path} holds no dict of symbols and numbers, but {type(stored).__name__}.")
    vectors = {str(name): vector_of(value) for name, value in stored.items()}
    empty = [name for name, vector in vectors.items() if vector is None or not len(vector)]
    if empty:
        say(f"{path}: {len(empty):,} names have no numbers, and are left out: {counted(empty)}")
    kept = {name: vector for name, vector in vectors.items() if vector is not None and len(vector)}
    if len({len(vector) for vector in kept.values()}) > 1:
        raise UserError(f"{path} has vectors of different lengths.")
    return LevelFeatures(tuple(kept), np.stack(list(kept.values())) if kept else np.zeros((0, 0)), str(path))


def term_components(sets: dict[str, frozenset[str]], num_components: int, source: str) -> LevelFeatures:
    """Each gene's terms as `num_components` numbers: truncated SVD of the genes x terms matrix (latent semantic
    analysis, Deerwester et al. 1990), in which a term weighs log(genes / genes of the term)."""
    import scipy.sparse as sp
    from sklearn.decomposition import TruncatedSVD

    terms = [genes for genes in sets.values() if len(genes) >= MIN_GENES]
    genes = sorted(set().union(*terms))
    most = min(len(terms), len(genes)) - 1
    if not 1 <= num_components <= most:
        raise UserError(
            f"{source} has {len(terms):,} sets of {MIN_GENES} or more genes, {len(genes):,} genes in all: give "
            f"--num-components 1 to {max(most, 1)}."
        )
    row_of = {gene: row for row, gene in enumerate(genes)}
    rows = np.array([row_of[gene] for own in terms for gene in sorted(own)])
    columns = np.repeat(np.arange(len(terms)), [len(own) for own in terms])
    weights = np.repeat([np.log(len(genes) / len(own)) for own in terms], [len(own) for own in terms])
    matrix = sp.csr_matrix((weights, (rows, columns)), (len(genes), len(terms)))
    values: Float64[np.ndarray, "genes components"] = TruncatedSVD(num_components, random_state=0).fit_transform(matrix)
    return LevelFeatures(tuple(genes), values.astype(np.float64), source)


def _wanted(config: GeneEmbeddingsConfig) -> list[str] | None:
    if config.genes is not None:
        if not config.genes.is_file():
            raise UserError(f"there is no file {config.genes} (--genes).")
        names = [line.strip() for line in config.genes.read_text(encoding="utf-8").splitlines()]
        return list(dict.fromkeys(filter(None, names)))
    return None if config.for_cells is None else genes_of_cells(config.for_cells)


def genes_of_cells(path: Path) -> list[str]:
    """Symbols that an h5ad file measures, and genes that it perturbs; its counts are not read."""
    import anndata

    from mdsc.data.genes import SYMBOL_COLUMNS, gene_identifiers

    if not path.is_file():
        raise UserError(f"there is no file {path} (--for).")
    try:
        cells = anndata.read_h5ad(path, backed="r")
    except Exception as error:  # anndata's readers have kinds of their own
        raise UserError(f"{path} is no h5ad file, or damaged ({str(error).splitlines()[0]})") from error
    measured, ids = gene_identifiers(cells.var)
    if any(ids) and (column := next((name for name in SYMBOL_COLUMNS if name in cells.var), None)):
        measured = cells.var[column].astype(str).tolist()
    column = next((name for name in ("perturbation", "condition") if name in cells.obs), None)
    labels = [] if column is None else sorted(map(str, cells.obs[column].dropna().unique()))
    cells.file.close()
    perturbed = [gene for label in labels if label not in ("", CONTROL) for gene in perturbed_genes(canonical(label))]
    return list(dict.fromkeys([*measured, *perturbed]))


def main(argv: Sequence[str] | None = None) -> None:
    """`python data_prep/gene_embeddings.py GenePT.pickle --output genes.parquet`"""
    config = parse_flags(GeneEmbeddingsConfig, argv, __doc__)
    features = prepare_gene_embeddings(config)
    count, length = features.values.shape
    print(f"{config.output}: {count:,} genes x {length:,} features ({', '.join(features.names[:3])}, ...)")
