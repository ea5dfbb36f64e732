"""Features of the levels of a condition, for levels that no training cell has: drugs by SMILES, genes by text, or any.

    mdsc prepare features drugs.csv --smiles-column smiles --name-column drug --output drug_features.parquet
    mdsc prepare features genept.csv.gz --output gene_features.parquet

With --smiles-column they are Morgan fingerprints (extended-connectivity fingerprints, Rogers & Hahn 2010, by rdkit),
else the numbers of the file. Train with --data.condition-features drug=drug_features.parquet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from jaxtyping import Float64

from mdsc.config.flags import parse_flags
from mdsc.data.condition_levels import near_names
from mdsc.data.level_features import (
    LevelFeatures,
    features_of_table,
    naming_column,
    read_features,
    read_text_table,
    write_features,
)
from mdsc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    input: tyro.conf.Positional[Path]
    """Table of names and SMILES or numbers (.parquet, .csv, .tsv, the last two also .gz), or .safetensors with a vector
    for each name."""
    output: Path
    """parquet file to write."""
    name_column: str | None = None
    """Column of the names, which are the levels of the condition; by default `name`, or the first one of text."""
    smiles_column: str | None = None
    """Column of SMILES: make fingerprints of it (needs rdkit: pip install mdsc[chem])."""
    columns: tuple[str, ...] = ()
    """Columns of numbers to take; by default all but the names."""
    bits: int = 1024
    """Length of the fingerprints."""
    radius: int = 2
    """Bonds that a fingerprint looks around each atom: 2 is known as ECFP4."""

    def __post_init__(self) -> None:
        if self.bits < 1 or self.radius < 0:
            raise UserError(f"--bits {self.bits} --radius {self.radius}: give 1 or more, and 0 or more.")
        if self.output.suffix != ".parquet":
            raise UserError(f"--output {self.output} is to be a .parquet file.")


def prepare_features(config: FeaturesConfig, say: Callable[[str], None] = print) -> LevelFeatures:
    """Write the file, and give what is in it; `say` is told of names that are left out."""
    chosen = (config.name_column, config.smiles_column, *config.columns)
    if not any(chosen):
        features = read_features(config.input)
    else:
        table = _table(config.input)
        for column in filter(None, chosen):
            if column not in table.column_names:
                near = near_names(column, table.column_names, "it has")
                raise UserError(f"{config.input} has no column {column!r}: {near}.")
        if config.smiles_column:
            features = _fingerprints_of(table, config, say)
        else:
            features = features_of_table(table, str(config.input), config.name_column, config.columns)
    write_features(features, config.output)
    return features


def morgan_fingerprints(bits: int, radius: int) -> Callable[[str], Float64[np.ndarray, " bits"] | None]:
    """Of SMILES, one at a time: bits 0.0 and 1.0; None where rdkit cannot read it."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise UserError("--smiles-column needs rdkit: pip install 'mdsc[chem]'.") from error
    RDLogger.DisableLog("rdApp.*")
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)

    def fingerprint(smiles: str) -> Float64[np.ndarray, " bits"] | None:
        molecule = Chem.MolFromSmiles(smiles)
        return None if molecule is None else generator.GetFingerprintAsNumPy(molecule).astype(np.float64)

    return fingerprint


def _fingerprints_of(table: pa.Table, config: FeaturesConfig, say: Callable[[str], None]) -> LevelFeatures:
    naming = config.name_column or naming_column(table, str(config.input), beside=config.smiles_column)
    names = [str(name) for name in table[naming].to_pylist()]
    found: dict[str, np.ndarray] = {}
    smiles_of: dict[str, str] = {}
    lacking, unreadable = [], []
    fingerprint = morgan_fingerprints(config.bits, config.radius)
    for name, smiles in zip(names, table[config.smiles_column].to_pylist(), strict=True):
        if smiles_of.get(name, smiles) != smiles:
            raise UserError(f"{config.input} has several SMILES for {name}: leave one of each.")
        if not smiles:
            lacking.append(name)
            continue
        smiles_of[name] = smiles
        vector = fingerprint(smiles)
        if vector is None:
            unreadable.append(name)
        else:
            found[name] = vector
    for left_out, why in ((lacking, "have no SMILES"), (unreadable, "have SMILES that rdkit cannot read")):
        if left_out:
            more = ", ..." if len(left_out) > 5 else ""
            say(f"{len(left_out)} names {why} and are left out: {', '.join(left_out[:5])}{more}")
    values = np.stack(list(found.values())) if found else np.zeros((0, config.bits))
    return LevelFeatures(tuple(found), values, str(config.input))


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        return pq.read_table(path) if path.suffix == ".parquet" else read_text_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """`mdsc prepare features genept.csv.gz --output gene_features.parquet`"""
    config = parse_flags(FeaturesConfig, argv, __doc__)
    features = prepare_features(config)
    count, length = features.values.shape
    print(f"{config.output}: {count:,} names x {length:,} features ({', '.join(features.names[:3])}, ...)")
