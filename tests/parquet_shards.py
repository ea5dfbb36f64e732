"""A folder of one shard out of any arrow table, as a stranger might write it: no hashes, any types and options."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mdsc.data.genes import GeneVocabulary
from mdsc.data.manifest import Manifest, Shard
from mdsc.data.shards import ShardFolder

NUM_GENES = 12  # token ids 3 to 14
FILE = "a.parquet"


def parquet_shard(folder: Path, table: pa.Table, *, conditions=("drug",), rows=None, **options) -> ShardFolder:
    """`rows` are those of the row groups as the manifest says it; by default the truth. The rest is for pyarrow."""
    folder.mkdir(exist_ok=True, parents=True)
    pq.write_table(table, folder / FILE, **options)
    return described(folder, conditions=conditions, rows=rows)


def described(folder: Path, *, conditions=("drug",), rows=None) -> ShardFolder:
    """The folder with a manifest and a vocabulary."""
    metadata = pq.read_metadata(folder / FILE)
    true = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    size = (folder / FILE).stat().st_size
    shard = Shard(file=FILE, split="train", bytes=size, row_groups=true if rows is None else tuple(rows))
    Manifest(conditions=dict.fromkeys(conditions, ("a", "b")), shards=(shard,)).save(folder)
    GeneVocabulary.of([f"G{number}" for number in range(NUM_GENES)]).save(folder)
    return ShardFolder.open(folder)


def cells(genes, expressions, /, **columns) -> pa.Table:
    """A table of such cells; columns take the place of the usual ones, or are left out where None."""
    number = len(genes)
    usual = {
        "genes": pa.array(genes, pa.list_(pa.int64())) if isinstance(genes, list) else genes,
        "expressions": pa.array(expressions, pa.list_(pa.float32())) if isinstance(expressions, list) else expressions,
        "cell_id": pa.array([f"cell {row}" for row in range(number)]),
        "drug": pa.array([("a", "b")[row % 2] for row in range(number)]),
    }
    return pa.table({name: column for name, column in (usual | columns).items() if column is not None})
