"""Features of the levels of a condition: a fingerprint for each drug, a text embedding for each gene, or one's own.

parquet        a column of names (`name`, else the first one of text) and numbers: one column of lists, or many
csv, tsv       names in the first column, numbers in the others; .gz too
safetensors    a one-dimensional tensor for each name
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64

from mdsc.atomic import replacing
from mdsc.config.flags import named_values
from mdsc.errors import UserError

MAX_SIZE = 128
"""Numbers that a model reads of a level's features at most: of some hundred levels no more can be told apart."""


@dataclass(frozen=True, eq=False)
class LevelFeatures:
    """Features of some names, as a user has them."""

    names: tuple[str, ...]
    values: Float64[np.ndarray, "names features"]
    source: str
    """What messages call them."""

    def __post_init__(self) -> None:
        if not (self.names and self.values.shape[1]):
            raise UserError(f"{self.source} has no features: it needs names, and numbers for each.")
        if twice := [name for name, times in Counter(self.names).items() if times > 1]:
            raise UserError(f"{self.source} has several rows for {', '.join(twice[:3])}: leave one of each.")
        if (bad := np.flatnonzero(~np.isfinite(self.values).all(axis=1))).size:
            raise UserError(f"{self.source}: the features of {self.names[bad[0]]} are not all numbers: leave it out.")


@dataclass(frozen=True, eq=False)
class FittedFeatures:
    """What a model keeps of features: vectors (features - mean) @ basis, of training levels and of all others."""

    names: tuple[str, ...]
    vectors: Float32[np.ndarray, "names size"]
    mean: Float32[np.ndarray, " features"]
    basis: Float32[np.ndarray, "features size"]

    @property
    def size(self) -> int:
        return self.vectors.shape[1]


def fit_features(features: LevelFeatures, levels: Sequence[str], column: str) -> FittedFeatures:
    """Principal components of the training levels' features, all on one scale: mean square 1 over levels and numbers.

    What does not vary among the training levels is left out: its weights would stay as they were drawn, and put noise
    into what the model makes of a level that it has never seen.
    """
    row_of = {name: row for row, name in enumerate(features.names)}
    rows = [row_of[level] for level in levels if level in row_of]
    if len(rows) < 2:
        raise UserError(
            f"--data.condition-features {column}: {features.source} has features of {len(rows)} of the {len(levels)} "
            f"levels of {column} ({', '.join(levels[:3])}, ...), and two is the least to learn from;\n"
            f"it has {', '.join(features.names[:3])}, ...: name its rows like the levels."
        )
    known = features.values[rows]
    mean = known.mean(axis=0)
    _, size, directions = np.linalg.svd(known - mean, full_matrices=False)
    kept = min(int((size > 1e-6 * max(size[0], 1e-12)).sum()), MAX_SIZE)
    if size[0] < 1e-9:
        raise UserError(f"--data.condition-features {column}: {features.source} has the same features for all levels.")
    scale = np.sqrt(np.square(size[:kept]).sum() / (len(rows) * kept))
    basis = directions[:kept].T / scale
    vectors = (features.values - mean) @ basis
    return FittedFeatures(features.names, *(table.astype(np.float32) for table in (vectors, mean, basis)))


def feature_files(texts: Iterable[str], flag: str) -> dict[str, Path]:
    """["drug=features.parquet"] -> {"drug": Path("features.parquet")}."""
    files = named_values(texts, flag, "COLUMN=FILE, e.g. drug=drug_features.parquet")
    return {column: Path(path) for column, path in files.items()}


def read_features(path: str | Path) -> LevelFeatures:
    """Features of names out of a file of one of the kinds above; UserError where it cannot be read so."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}: make one with `mdsc prepare features`.")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "safetensors":
            return _of_tensors(path)
        if kind == "parquet":
            return features_of_table(pq.read_table(path), str(path))
        if kind in ("csv", "tsv"):
            return features_of_table(read_text_table(path), str(path))
    except UserError:
        raise
    except Exception as error:  # a damaged file raises whatever the library under it does
        raise UserError(f"{path} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    raise UserError(f"{path}: features are read from .parquet, .csv, .tsv (also .gz) and .safetensors files.")


def write_features(features: LevelFeatures, path: str | Path) -> None:
    """A parquet file with the columns `name` and `features`."""
    size = features.values.shape[1]
    # Without a Python number for each: files of gene embeddings have a hundred million.
    flat = pa.array(features.values.astype(np.float32).ravel(), pa.float32())
    numbers = pa.ListArray.from_arrays(pa.array(np.arange(len(features.names) + 1) * size, pa.int32()), flat)
    with replacing(path) as beside:
        pq.write_table(pa.table({"name": pa.array(features.names, pa.string()), "features": numbers}), beside)


def read_text_table(path: Path) -> pa.Table:
    """A csv or tsv file. The first column is text, whatever its values look like."""
    from pyarrow import csv

    parse = csv.ParseOptions(delimiter="\t" if ".tsv" in path.name.lower() else ",", newlines_in_values=True)
    names = csv.open_csv(path, parse_options=parse).schema.names
    as_text = csv.ConvertOptions(column_types={names[0]: pa.string()})
    return csv.read_csv(path, parse_options=parse, convert_options=as_text)


def features_of_table(
    table: pa.Table, source: str, naming: str | None = None, columns: Sequence[str] = ()
) -> LevelFeatures:
    """naming: the column of names; columns: those of numbers, or one of lists; by default all that there are."""
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    naming = naming or naming_column(table, source)
    columns = list(columns) or [name for name in table.column_names if name != naming]
    names = tuple(str(name) for name in table[naming].to_pylist())
    if len(columns) == 1 and (pa.types.is_list(kinds[columns[0]]) or pa.types.is_fixed_size_list(kinds[columns[0]])):
        rows = table[columns[0]]
        if pc.count_distinct(pc.fill_null(pc.list_value_length(rows), -1)).as_py() > 1:
            raise UserError(f"{source}: the lists of column {columns[0]!r} are of different lengths.")
        flat = pc.list_flatten(rows).to_numpy().astype(np.float64)
        return LevelFeatures(names, flat.reshape(len(rows), -1), source)
    for name in columns:
        kind = kinds[name]
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise UserError(
                f"{source}: column {name!r} holds no numbers; choose others by mdsc prepare features --columns, or "
                "make fingerprints of SMILES by --smiles-column."
            )
    values = [table[name].to_numpy().astype(np.float64) for name in columns]
    return LevelFeatures(names, np.column_stack(values) if values else np.zeros((len(names), 0)), source)


def naming_column(table: pa.Table, source: str, beside: str | None = None) -> str:
    """`name`, or the first column of text that is not `beside`."""
    kinds = zip(table.column_names, table.schema.types, strict=True)
    texts = [name for name, kind in kinds if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    texts = [name for name in texts if name != beside]
    if not texts:
        raise UserError(
            f"{source} has no column of names (it has {', '.join(table.column_names[:5])}); choose one by mdsc prepare "
            "features --name-column."
        )
    return "name" if "name" in texts else texts[0]


def _of_tensors(path: Path) -> LevelFeatures:
    from safetensors.numpy import load_file

    tensors: Mapping[str, np.ndarray] = load_file(path)
    if {tensor.ndim for tensor in tensors.values()} != {1} or len({len(tensor) for tensor in tensors.values()}) > 1:
        raise UserError(f"{path}: give each name a one-dimensional tensor, all of one length.")
    return LevelFeatures(tuple(tensors), np.stack(list(tensors.values())).astype(np.float64), str(path))
