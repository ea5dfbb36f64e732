"""Counts of an AnnData hidden, filled in by the model and put beside the ones that were there.

What is added to a copy of the AnnData, whose X, obs, var and other parts stay as they are: the layers that
`mdsc.sampling.filled_layers` lists (CSR), and

    var["mdsc_modelled"]     bool: which genes the model knows; the others are kept as they are and never hidden
    uns["mdsc"]              how it was made

`Inpainting` gives the layers a portion of cells at a time, which the command writes to a file at constant memory, and
`inpaint_anndata` collects.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.anndata_counts import CountSource, open_counts
from mdsc.data.genes import known_columns
from mdsc.diffusion.evidence import Evidence, Predict, SeenUnder
from mdsc.progress import say_nothing
from mdsc.sampling.anndata_cells import described
from mdsc.sampling.conditions import CellConditions, ConditionRequest, Features, KnownConditions
from mdsc.sampling.filled_layers import OURS, Portion, filled_portion, joined
from mdsc.sampling.guidance import guided
from mdsc.sampling.hiding import Hiding
from mdsc.sampling.inpaint import fill
from mdsc.sampling.keyword_options import taken_from
from mdsc.sampling.loaded_model import opened, predictor, provenance
from mdsc.sampling.options import AnswerOptions, SamplerOptions
from mdsc.sampling.pass_size import PassOptions, PassSize, pass_size
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

READ_POSITIONS = 2**22
"""Cells times genes that are read at once."""


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What is settled before the first cell is filled in."""

    checkpoint: Checkpoint
    source: CountSource
    places: Int64[np.ndarray, " modelled"]
    """In the vocabulary, ascending, so that a gene gets the same draws wherever it stands in the input."""
    columns: Int64[np.ndarray, " modelled"]
    """Of these genes in the input."""
    asked: ConditionRequest
    conditions: CellConditions
    seen_under: CellConditions | None
    hiding: Hiding
    sampling: SamplerOptions
    answer: AnswerOptions
    size: PassSize

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        source: CountSource,
        hiding: Hiding,
        *,
        asked: ConditionRequest,
        sampling: SamplerOptions,
        answer: AnswerOptions,
        passes: PassOptions,
        say: Callable[[str], None],
    ) -> "Inpainting":
        """UserError for what cannot be filled in; `say` is told what is worth knowing."""
        places = checkpoint.vocabulary.match_var(source.var, source.name)
        known = KnownConditions(checkpoint.model, asked.features)
        conditions = known.of_cells(source.obs, asked.condition, say)
        asked.check_guidance(known, conditions)
        seen_under = None
        if asked.seen_under:
            seen_under = known.but_for(conditions, asked.seen_under, len(source.obs), "--seen-under")
        columns = known_columns(places)
        size = pass_size(checkpoint, len(columns), passes, all_genes=len(source.var))
        say(described(source, places, checkpoint.vocabulary, "kept as they are and never hidden"))
        say(hiding.said(len(columns)))
        hiding.check(len(columns))
        return cls(
            checkpoint, source, places[columns], columns, asked, conditions, seen_under, hiding, sampling, answer, size
        )

    @property
    def num_cells(self) -> int:
        return len(self.source.obs)

    @property
    def is_modelled(self) -> Bool[np.ndarray, " genes"]:
        return np.isin(np.arange(len(self.source.var)), self.columns)

    def progress(self, *, show: bool) -> SamplingProgress:
        passes = self.sampling.num_steps * self.answer.num_draws + 1
        return SamplingProgress("filling in", self.num_cells, passes, show=show)

    def portions(self, progress: SamplingProgress, first: int = 0) -> Iterator[Portion]:
        """The cells from `first` on, as many at once as a pass takes. Portions begin at multiples of that number
        whatever `first` is, so that cells have the same mates in an interrupted run, to the bit."""
        size = self.size.cells
        assert first % size == 0 or first == self.num_cells
        predict = progress.watch(guided(predictor(self.checkpoint, self.size.genes), self.asked.guidance))
        progress.done(first)
        start = first
        for chunk in self.source.chunks(max(1, READ_POSITIONS // len(self.source.var) // size) * size, first):
            for row in range(0, chunk.shape[0], size):
                counts = chunk[row : row + size]
                yield self._portion(predict, counts, start)
                start += counts.shape[0]
                progress.done(start)

    def _portion(self, predict: Predict, counts: "sp.csr_matrix", start: int) -> Portion:
        device = self.checkpoint.model.device
        evidence = evidence_of(
            counts[:, self.columns], self.places, start, self.conditions, self.hiding, self.seen_under
        )
        filled = fill(
            predict,
            self.checkpoint.tokenizer,
            evidence.to(device),
            self.sampling,
            seed=self.hiding.seed,
            num_draws=self.answer.num_draws,
            with_sd=self.answer.with_sd,
            levels=self.answer.levels,
        )
        return filled_portion(counts, self.columns, filled.to("cpu"), evidence.hidden, self.answer)

    def about(self) -> dict:
        """How it is made, in types that h5ad keeps."""
        given = dict(self.asked.condition)
        return {
            "task": "impute_zeros" if self.hiding.impute_zeros else "inpaint",
            "mask_ratio": self.hiding.mask_ratio,
            "seed": self.hiding.seed,
            **self.sampling.record(),
            "num_draws": self.answer.num_draws,
            "quantiles": np.array(self.answer.levels, dtype=float),
            "mean_floor": self.answer.mean_floor,
            "genes_per_pass": self.size.genes or len(self.columns),
            "counts": self.source.location,
            "conditions": given,
            "conditions_from_obs": [name for name in self.conditions.labels if name not in given],
            "guidance": self.asked.guidance,
            "seen_under": dict(self.asked.seen_under),
            "genes_modelled": len(self.columns),
            "genes_not_modelled": len(self.source.var) - len(self.columns),
            **provenance(self.checkpoint),
        }

    def found(self, totals: Float64[np.ndarray, " 4"], say: Callable[[str], None]) -> dict:
        """What is known once all cells are done: for uns["mdsc"], and told."""
        cells, empty, expected, left_out = totals.tolist()
        if empty:
            say(
                f"{empty:,.0f} of {cells:,.0f} cells have no counts at all: what is filled in there is what the model "
                "takes an empty droplet for; leave them out"
            )
        share = left_out / expected if expected else 0.0
        if share:
            say(
                f"mdsc_mean leaves out what is expected below {self.answer.mean_floor:g} counts: {share:.2%} of the "
                "hidden counts that are expected (--mean-floor)"
            )
        return {"mean_left_out": share}


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
    seen_under: Mapping[str, str] | None = None,
    seed: int = 0,
    copy: bool = True,
    name: str = "the AnnData",
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options,
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
        seen_under: levels under which the visible counts were seen, where these are not those of `condition`, e.g.
            {"drug": "DMSO_TF"}: what is filled in is then what the same cell would have under `condition`.
        seed: what is hidden and what is drawn in a cell depends on the seed, the cell's row and its visible counts.
        copy: False adds to `adata` itself.
        name: what messages call the AnnData.
        say: told what is worth knowing, a line at a time, e.g. `print`.
        show_progress: draw a bar; an output that is no terminal gets a line now and then.
        options: fields of `SamplerOptions` (e.g. num_steps=64), `AnswerOptions` (num_draws, quantiles, mean_floor) and
            `PassOptions` (batch_size, genes_per_pass, max_memory).
    """
    hiding = Hiding.of(mask_ratio, impute_zeros, seed)
    sampling, answer, passes = taken_from(options, SamplerOptions, AnswerOptions, PassOptions)
    say = say or say_nothing
    with open_counts(adata, layer, name) as source:
        inpainting = Inpainting.of(
            opened(checkpoint),
            source,
            hiding,
            asked=ConditionRequest(condition or {}, condition_features or {}, guidance, seen_under or {}),
            sampling=sampling,
            answer=answer,
            passes=passes,
            say=say,
        )
        with inpainting.progress(show=show_progress) as progress:
            portions = list(inpainting.portions(progress))

    if layer == "raw":
        result = adata.raw.to_adata()
    elif adata.isbacked:
        result = adata.to_memory()
    else:
        result = adata.copy() if copy else adata
    for stale in filter(OURS.fullmatch, list(result.layers)):
        del result.layers[stale]
    for layer_name in answer.layers:
        result.layers[layer_name] = joined([portion.layers[layer_name] for portion in portions])
    result.var["mdsc_modelled"] = inpainting.is_modelled
    result.uns["mdsc"] = inpainting.about() | inpainting.found(sum(portion.totals for portion in portions), say)
    return result


def evidence_of(
    counts: "sp.csr_matrix",
    places: Int64[np.ndarray, " genes"],
    first_cell: int,
    conditions: CellConditions,
    hiding: Hiding,
    seen_under: CellConditions | None = None,
) -> Evidence:
    """What is visible of cells. counts: (cells, genes); places: of these genes in the vocabulary.

    conditions, seen_under: of all cells, of which these are the ones from `first_cell` on.
    """
    whole = torch.from_numpy(counts.toarray())
    cell_index = torch.arange(first_cell, first_cell + len(whole))
    visible = ~hiding.hidden(whole, cell_index)
    rows = slice(first_cell, first_cell + len(whole))
    return Evidence(
        gene_ids=torch.from_numpy(places).expand(whole.shape),
        counts=whole * visible,
        visible=visible,
        is_pad=torch.zeros_like(visible),
        cell_index=cell_index,
        **conditions.block(rows),
        seen_under=None if seen_under is None else SeenUnder(positions=visible, **seen_under.block(rows)),
    )
