"""Cells as GEARS' processed files hold them (perturb_processed.h5ad), written a chunk at a time at constant memory.

obs     condition (GENE+ctrl, ctrl), cell_type, dose_val (1, 1+1), control (1, 0), condition_name; batch beside
var     index Ensembl ids, gene_name
X       log1p of counts per 10,000, float32; layers["counts"] raw counts
uns     rank_genes_groups_cov_all (all genes by |t| against the controls), top_non_dropout_de_20, top_non_zero_de_20,
        non_zeros_gene_idx, non_dropout_gene_idx, each by condition_name
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsc.atomic import replacing
from mdsc.data.h5ad_writer import GrowingCsr
from mdsc.data.log_expression import log_normalised

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

CELL_TYPE = "K562(?)"
TOP = 20


def gears_obs(conditions: Sequence[str], names: Sequence[str], batches: Sequence[str]) -> "pd.DataFrame":
    """obs of cells with these conditions (GENE+ctrl or ctrl)."""
    import pandas as pd

    doses = ["1" if name == "ctrl" else "1+1" for name in conditions]
    obs = pd.DataFrame({"condition": list(conditions)}, index=list(names))
    obs["cell_type"] = CELL_TYPE
    obs["dose_val"] = doses
    obs["control"] = [int(name == "ctrl") for name in conditions]
    obs["condition_name"] = [condition_name(name) for name in conditions]
    obs["batch"] = list(batches)
    texts = ["condition", "cell_type", "dose_val", "condition_name", "batch"]
    return obs.astype(dict.fromkeys(texts, "category"))


def condition_name(condition: str) -> str:
    return f"{CELL_TYPE}_{condition}_{'1' if condition == 'ctrl' else '1+1'}"


def gears_var(genes: Sequence[str]) -> "pd.DataFrame":
    """var of these symbols. The ids are beyond those that Ensembl has given."""
    import pandas as pd

    return pd.DataFrame({"gene_name": list(genes)}, index=[f"ENSG9{number:010d}" for number in range(len(genes))])


class DifferentialExpression:
    """Sums over cells of each condition, from chunks of them; and what GEARS keeps of differential expression."""

    def __init__(self, conditions: Sequence[str], num_genes: int) -> None:
        self.conditions = list(conditions)
        self.number = np.zeros(len(self.conditions))
        self.sums, self.squares = (np.zeros((len(self.conditions), num_genes)) for _ in range(2))

    def add(self, logs: "sp.csr_matrix", condition: np.ndarray) -> None:
        """logs: (cells, genes) log expression; condition: (cells,) places in `conditions`."""
        import scipy.sparse as sp

        cells = np.arange(len(condition))
        of_condition = sp.csr_matrix((np.ones(len(cells)), (condition, cells)), (len(self.conditions), len(cells)))
        self.number += np.bincount(condition, minlength=len(self.conditions))
        self.sums += (of_condition @ logs).toarray()
        self.squares += (of_condition @ logs.power(2)).toarray()

    def uns(self, gene_ids: Sequence[str]) -> dict[str, Any]:
        """By Welch's t against the controls, as scanpy's rank_genes_groups with rankby_abs."""
        ids = np.array(gene_ids, dtype=object)
        number = np.maximum(self.number, 2)[:, None]
        mean = self.sums / number
        variance = np.maximum(self.squares / number - mean**2, 0) * number / (number - 1) / number
        control = self.conditions.index("ctrl")
        found: dict[str, dict[str, Any]] = {
            key: {}
            for key in (
                "rank_genes_groups_cov_all", "top_non_dropout_de_20", "top_non_zero_de_20",
                "non_zeros_gene_idx", "non_dropout_gene_idx",
            )
        }  # fmt: skip
        for row, condition in enumerate(self.conditions):
            if row == control:
                continue
            t = (mean[row] - mean[control]) / np.sqrt(variance[row] + variance[control] + 1e-12)
            order = np.argsort(-np.abs(t), kind="stable")
            is_there = mean[row] > 0
            no_dropout = is_there | (mean[control] == 0)
            for key, value in zip(
                found,
                (
                    ids[order],
                    ids[order][no_dropout[order]][:TOP],
                    ids[order][is_there[order]][:TOP],
                    np.flatnonzero(is_there),
                    np.flatnonzero(no_dropout),
                ),
                strict=True,
            ):
                found[key][condition_name(condition)] = value
        return found


def write_gears_file(
    path: str | Path,
    chunks: Iterable[np.ndarray],
    condition: np.ndarray,
    conditions: Sequence[str],
    obs: "pd.DataFrame",
    genes: Sequence[str],
    uns: dict[str, Any],
) -> None:
    """chunks: counts of the cells in order, (cells, genes) int32 each. condition: (cells,) places in `conditions`."""
    import h5py
    import scipy.sparse as sp
    from anndata.io import write_elem

    var, start = gears_var(genes), 0
    expression = DifferentialExpression(conditions, len(genes))
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        layers = file.create_group("layers")
        layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        x = GrowingCsr(file, "X", np.float32, len(genes))
        counts = GrowingCsr(layers, "counts", np.int32, len(genes))
        for chunk in chunks:
            rows = sp.csr_matrix(chunk)
            logs = log_normalised(rows)
            counts.append(rows)
            x.append(logs.astype(np.float32))
            expression.add(logs, condition[start : start + rows.shape[0]])
            start += rows.shape[0]
        write_elem(file, "obs", obs)
        write_elem(file, "var", var)
        write_elem(file, "uns", expression.uns(var.index.tolist()) | uns)
        for name in ("obsm", "varm", "obsp", "varp"):
            write_elem(file, name, {})
