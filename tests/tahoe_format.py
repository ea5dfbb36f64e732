"""A folder in the exact format of Tahoe-100M, of any size, with simulated counts; for tests and benchmarks.

Ten columns of the published types; token ids, samples, drugs, plates and cell lines from the side tables; every row
begins with the CLS entry; rows are sorted by plate and interleaved within one; row groups of 1,000 rows, snappy, with
plate in the footer's statistics. The format is known from its documentation, and not from a published shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    {"genes": pa.list_(pa.int64()), "expressions": pa.list_(pa.float32())}
    | {
        name: pa.string()
        for name in (
            *("drug", "sample", "BARCODE_SUB_LIB_ID", "cell_line_id"),
            *("moa-fine", "canonical_smiles", "pubchem_cid", "plate"),
        )
    }
)
TABLES = ("gene_metadata", "sample_metadata", "drug_metadata", "cell_line_metadata")


@dataclass(frozen=True)
class SideTables:
    gene: pd.DataFrame
    sample: pd.DataFrame
    drug: pd.DataFrame
    cell_line: pd.DataFrame

    @classmethod
    def load(cls, folder: Path) -> "SideTables":
        """The published tables."""
        return cls(*(pd.read_parquet(folder / f"{name}.parquet") for name in TABLES))

    @classmethod
    def made_up(cls, num_genes: int = 60, num_plates: int = 3) -> "SideTables":
        """Small tables of the same columns, with the names that are traps."""
        ids = [f"ENSG{number:011d}" for number in range(num_genes)]
        gene = pd.DataFrame({"gene_symbol": [f"G{n}" for n in range(num_genes)], "ensembl_id": ids})
        gene["token_id"] = np.arange(num_genes) + 3
        drugs = ["Infigratinib", "Erdafitinib ", "Trametinib (DMSO_TF solvate)", "8-Hydroxyquinoline", "DMSO_TF"]
        doses = [0.05, 0.5, 5.0]
        rows = []
        for plate in range(num_plates):
            for drug in drugs:
                dose = 0.0 if drug == "DMSO_TF" else doses[plate % 3]
                told = f"[({drug!r}, {dose}, 'uM')]"
                rows.append((f"smp_{1495 + len(rows)}", f"plate{plate + 1}", drug, told))
        sample = pd.DataFrame(rows, columns=["sample", "plate", "drug", "drugname_drugconc"])
        drug = pd.DataFrame({"drug": [name.strip() for name in drugs[:-1]], "moa-fine": "unclear"})
        drug["canonical_smiles"], drug["pubchem_cid"] = "C1=CC2=C(C(=C1)O)N=CC=C2", 1923.0
        lines = {"CVCL_0023": "A549", "CVCL_0480": "PANC-1", "CVCL_0546": "SW480"}
        pairs = [(name, cellosaurus) for cellosaurus, name in lines.items() for _ in range(2)]
        return cls(gene, sample, drug, pd.DataFrame(pairs, columns=["cell_name", "Cell_ID_Cellosaur"]))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tables = zip(TABLES, (self.gene, self.sample, self.drug, self.cell_line), strict=True)
        for name, table in tables:
            table.to_parquet(folder / f"{name}.parquet", index=False)


def write_tahoe(
    folder: Path,
    cells_of_plate: Mapping[str, int],
    tables: SideTables,
    *,
    rows_per_file: int = 28_224,
    rows_per_group: int = 1000,
    genes_per_cell: int = 1450,
    num_lines: int = 50,
    seed: int = 0,
) -> Path:
    """Write data/ and metadata/ below `folder`; plates follow each other in the order given."""
    rng = np.random.default_rng(seed)
    cells = pd.concat([_cells(plate, number, tables, num_lines, rng) for plate, number in cells_of_plate.items()])
    cells = cells.reset_index(drop=True)
    tables.save(folder / "metadata")
    (folder / "data").mkdir(parents=True)
    num_files = -(-len(cells) // rows_per_file)
    weights = np.exp(rng.normal(0, 1.5, len(tables.gene)))
    for number in range(num_files):
        part = cells.iloc[number * rows_per_file : (number + 1) * rows_per_file]
        path = folder / "data" / f"train-{number:05d}-of-{num_files:05d}.parquet"
        with pq.ParquetWriter(path, SCHEMA, compression="snappy") as file:
            for first in range(0, len(part), rows_per_group):
                obs = part.iloc[first : first + rows_per_group]
                lists = _counts(obs["cell_line_id"], weights, genes_per_cell, tables.gene["token_id"].to_numpy(), rng)
                file.write_table(pa.table(lists | dict(obs), schema=SCHEMA), row_group_size=rows_per_group)
    return folder


def _cells(plate: str, number: int, tables: SideTables, num_lines: int, rng: np.random.Generator) -> pd.DataFrame:
    samples = tables.sample[tables.sample["plate"] == plate]
    chosen = samples.iloc[rng.integers(len(samples), size=number)]
    lines = tables.cell_line["Cell_ID_Cellosaur"].unique()[:num_lines]
    drugs = tables.drug.drop_duplicates("drug").set_index("drug").reindex(chosen["drug"].str.strip())
    wells = rng.integers(1, 97, (number, 2))
    barcodes = [f"{a:02d}_{b:03d}_{n % 1000:03d}-lib_{1105 + n // 1000:04d}" for n, (a, b) in enumerate(wells)]
    return pd.DataFrame(
        {
            "drug": chosen["drug"].to_numpy(),
            "sample": chosen["sample"].to_numpy(),
            "BARCODE_SUB_LIB_ID": [f"{barcode}-{plate}" for barcode in barcodes],
            "cell_line_id": rng.choice(lines, number),
            "moa-fine": drugs["moa-fine"].fillna("unclear").to_numpy(),
            "canonical_smiles": drugs["canonical_smiles"].fillna("").to_numpy(),
            "pubchem_cid": drugs["pubchem_cid"].astype(str).to_numpy(),
            "plate": plate,
        }
    )


def _counts(
    lines: pd.Series, weights: np.ndarray, genes_per_cell: int, token_ids: np.ndarray, rng: np.random.Generator
) -> dict[str, pa.Array]:
    """Lists of ascending token ids and of counts (mean some 1.6), each with the CLS entry first."""
    num_cells, num_genes = len(lines), len(token_ids)
    depth = rng.gamma(4, genes_per_cell / 4, num_cells).astype(int) + 1
    keys = []
    for line in lines.unique():
        # A line has its own programme of genes.
        own = np.random.default_rng([7, *line.encode()]).normal(0, 1, num_genes)
        edges = np.cumsum(weights * np.exp(own))
        cells = np.flatnonzero(lines == line)
        owner = np.repeat(cells, depth[cells])
        keys.append(owner * num_genes + np.searchsorted(edges / edges[-1], rng.random(len(owner))))
    keys, counts = np.unique(np.concatenate(keys), return_counts=True)
    owner, gene = np.divmod(keys, num_genes)
    starts = np.searchsorted(owner, np.arange(num_cells))
    ends = np.append(starts, len(owner)) + np.arange(num_cells + 1)
    offsets = pa.array(ends.astype(np.int32))
    return {
        "genes": pa.ListArray.from_arrays(offsets, pa.array(np.insert(token_ids[gene].astype(np.int64), starts, 1))),
        "expressions": pa.ListArray.from_arrays(offsets, pa.array(np.insert(counts.astype(np.float32), starts, -2))),
    }
