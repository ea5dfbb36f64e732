"""Counts of an AnnData hidden, filled in by the model and put beside the ones that were there.

What is added to a copy of the AnnData, whose X, obs, var and other parts stay as they are:

    layers["mdsc_sampled"]   CSR int32: one draw of all hidden counts of a cell together; visible counts as they were
    layers["mdsc_mean"]      dense float32: expected count of each hidden gene given the visible ones; else the count
    layers["mdsc_hidden"]    CSR bool: which counts were hidden
    var["mdsc_modelled"]     bool: which genes the model knows; the others are kept as they are and never hidden
    uns["mdsc"]              how it was made
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from mdsc.checkpoint import Checkpoint
from mdsc.data.anndata_counts import read_counts
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import Evidence
from mdsc.errors import UserError
from mdsc.sampling.conditions import CellConditions, Features, KnownConditions
from mdsc.sampling.filled_layers import FilledLayers
from mdsc.sampling.guidance import guided, require_conditions
from mdsc.sampling.inpaint import fill
from mdsc.sampling.loaded_model import cells_per_pass, opened, predictor, provenance
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData


@dataclass(frozen=True)
class Hiding:
    """Which counts of a cell are taken as unknown."""

    mask_ratio: float
    impute_zeros: bool
    seed: int

    @classmethod
    def of(cls, mask_ratio: float | None, impute_zeros: bool, seed: int) -> "Hiding":
        """Checked as a user gave them."""
        if mask_ratio is not None and not 0 <= mask_ratio <= 1:
            raise UserError(f"--mask-ratio is {mask_ratio}; it takes a share between 0 and 1, e.g. 0.8.")
        if impute_zeros and mask_ratio:
            raise UserError(
                f"--impute-zeros hides the zeros and nothing else; give it with --mask-ratio 0, not {mask_ratio}."
            )
        if not impute_zeros and not mask_ratio:
            what = "is not given" if mask_ratio is None else "0 hides nothing"
            raise UserError(
                f"--mask-ratio {what}: give the share of each cell's genes to hide, e.g. --mask-ratio 0.8,\n"
                "or --mask-ratio 0 --impute-zeros to treat the zeros of the cells as possibly missing."
            )
        return cls(mask_ratio or 0.0, impute_zeros, seed)

    def hidden(
        self, counts: Int[Tensor, "cells genes"], cell_index: Int[Tensor, " cells"]
    ) -> Bool[Tensor, "cells genes"]:
        if self.impute_zeros:
            return counts == 0
        # Which are hidden is a function of seed and cell alone; no count is looked at.
        no_pads = torch.zeros_like(counts, dtype=torch.bool)
        return hide_fraction(no_pads, self.mask_ratio, seed=self.seed, cell_index=cell_index)

    def said(self, num_genes: int) -> str:
        if self.impute_zeros:
            return f"hiding the zeros among the {num_genes:,} modelled genes of each cell"
        return f"hiding {round(self.mask_ratio * num_genes):,} of the {num_genes:,} modelled genes of each cell"


def inpaint_anndata(
    checkpoint: str | Path | Checkpoint,
    adata: "AnnData",
    *,
    mask_ratio: float | None = None,
    impute_zeros: bool = False,
    layer: str | None = None,
    condition: Mapping[str, str] | None = None,
    condition_features: Features | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    copy: bool = True,
    name: str = "the AnnData",
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **sampling,
) -> "AnnData":
    """Hide counts of each cell and fill them in; see the top of this file for what the result holds.

    Args:
        checkpoint: folder, or a checkpoint that is loaded.
        adata: raw counts in X or `layer`; genes by symbol or Ensembl id, in any order.
        mask_ratio: share of each cell's modelled genes to hide, whatever their counts: round(mask_ratio * n) of n.
        impute_zeros: hide the zeros instead, and take the nonzero counts as all that is known. A heuristic: the model
            was trained on genes that were hidden whatever their counts, and here the visible ones are those that are
            not zero. It takes them for a fair sample, so for a cell that is deeper than it is, and expects too much of
            the zeros.
        layer: where the counts are: the name of a layer, or "raw" (the result then has the genes and the X of raw).
        condition: level of a condition for all cells, e.g. {"drug": "DMSO_TF"}; conditions that are not given come
            from the columns of obs that are named like the model's.
        condition_features: features of levels that the model has not seen, e.g. {"drug": "new_drugs.parquet"}.
        guidance: how much conditions count: 1 is the model itself, 0 leaves them out (`mdsc.sampling.guidance`).
        seed: what is hidden and what is drawn in a cell depends on the seed, the cell's row and its visible counts.
        batch_size: cells at once; by default what suits the device. It changes no result but by rounding.
        copy: False adds to `adata` itself.
        name: what messages call the AnnData.
        say: told what is worth knowing, a line at a time, e.g. `print`.
        show_progress: draw a bar, if the output is a terminal.
        sampling: fields of `SamplerOptions`, e.g. num_steps=64; the means take one pass, and depend on none of them.
    """
    hiding = Hiding.of(mask_ratio, impute_zeros, seed)
    options = SamplerOptions(**sampling)
    say = say or _say_nothing
    checkpoint = opened(checkpoint)
    cells = read_counts(adata, layer, name)
    places = checkpoint.vocabulary.match_var(cells.var, name)
    known = KnownConditions(checkpoint.model, condition_features)
    conditions = known.of_cells(cells.obs, condition or {}, say)
    require_conditions(guidance, known.names, conditions.names)

    # In the order of the vocabulary, so that a gene gets the same draws wherever it stands in the input.
    columns = np.argsort(places, kind="stable")[(places < 0).sum() :]
    say(_described(name, cells.counts, cells.var.index, places, checkpoint.vocabulary.naming_column(cells.var)))
    say(hiding.said(len(columns)))
    if not impute_zeros and round(hiding.mask_ratio * len(columns)) == 0:
        raise UserError(
            f"--mask-ratio {mask_ratio} hides none of the {len(columns)} modelled genes; give a larger one."
        )

    layers = FilledLayers(cells.counts.shape, columns)
    size = cells_per_pass(len(columns), batch_size, checkpoint.model.device)
    with SamplingProgress("filling in", len(cells.obs), options.num_steps + 1, show=show_progress) as progress:
        predict = progress.watch(guided(predictor(checkpoint), guidance))
        for start in range(0, len(cells.obs), size):
            rows = slice(start, start + size)
            block = cells.counts[rows]
            evidence = evidence_of(block[:, columns], places[columns], start, conditions, hiding)
            filled = fill(
                predict,
                checkpoint.tokenizer,
                evidence,
                options,
                seed=seed,
                device=checkpoint.model.device,
            )
            layers.add(block, filled, evidence.hidden)
            progress.done(start + block.shape[0])

    if layer == "raw":
        result = adata.raw.to_adata()
    elif adata.isbacked:
        result = adata.to_memory()
    else:
        result = adata.copy() if copy else adata
    layers.put_into(result)
    result.uns["mdsc"] = {
        "task": "impute_zeros" if impute_zeros else "inpaint",
        "mask_ratio": hiding.mask_ratio,
        "seed": seed,
        **asdict(options),
        "counts": layer or "X",
        "conditions": dict(condition or {}),
        "conditions_from_obs": [name for name in conditions.level_ids if name not in (condition or {})],
        "guidance": guidance,
        "genes_modelled": len(columns),
        "genes_not_modelled": len(places) - len(columns),
        **provenance(checkpoint),
    }
    return result


def evidence_of(
    counts: "sp.csr_matrix",
    places: Int64[np.ndarray, " genes"],
    first_cell: int,
    conditions: CellConditions,
    hiding: Hiding,
) -> Evidence:
    """What is visible of cells. counts: (cells, genes); places: of these genes in the vocabulary.

    conditions: of all cells, of which these are the ones from `first_cell` on.
    """
    whole = torch.from_numpy(counts.toarray())
    cell_index = torch.arange(first_cell, first_cell + len(whole))
    visible = ~hiding.hidden(whole, cell_index)
    return Evidence(
        gene_ids=torch.from_numpy(places).expand(whole.shape),
        counts=whole * visible,
        visible=visible,
        is_pad=torch.zeros_like(visible),
        cell_index=cell_index,
        **conditions.block(slice(first_cell, first_cell + len(whole))),
    )


def _described(
    name: str, counts: "sp.csr_matrix", names, places: Int64[np.ndarray, " genes"], column: str | None
) -> str:
    text = f"{name}: {counts.shape[0]:,} cells x {counts.shape[1]:,} genes"
    if column:
        text += f", named by var[{column!r}]"
    unknown = names[places < 0].astype(str)
    if len(unknown) == 0:
        return f"{text}, all of which the model knows"
    some = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    return f"{text}; {len(unknown):,} are unknown to the model, kept as they are and never hidden ({some})"


def _say_nothing(text: str) -> None:
    pass
