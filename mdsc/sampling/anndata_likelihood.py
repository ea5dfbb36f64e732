"""Likelihoods of the cells of an AnnData, of all genes or of some given others.

What is added to obs, in nats per target gene:

    mdsc_nll              bound of -log p(x_T | x_G) / |T|, by default of all genes the model knows given none
    mdsc_nll_se           its standard error over independent replicates of the draws
    mdsc_information      if asked for: [log p(x_T | x_G) - log p(x_T)] / |T|, what G tells of T in this cell
    mdsc_information_se   its standard error; both terms have the same draws

and to uns["mdsc_likelihood"] how it was made, and of what the likelihood is: counts, or tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mdsc.checkpoint import Checkpoint
from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.errors import UserError
from mdsc.progress import CellProgress, say_nothing
from mdsc.sampling.anndata_cells import ModelCells, open_cells
from mdsc.sampling.chain_rule import chain_rule
from mdsc.sampling.keyword_options import taken_from
from mdsc.sampling.loaded_model import opened, predictor, provenance
from mdsc.sampling.nelbo import Nelbo, count_losses, nelbo
from mdsc.sampling.pass_size import PassOptions, pass_size

if TYPE_CHECKING:
    from anndata import AnnData

ESTIMATORS = ("bound", "chain")
ALL_THAT_FITS = PassOptions()
OF_COUNTS = "counts: -log p(token) - log p(count | token)"


@dataclass(frozen=True)
class LikelihoodOptions:
    """What is scored given what, and how; refused where it makes no sense."""

    target_genes: Sequence[str] = ()
    given_genes: Sequence[str] = ()
    information: bool = False
    estimator: str = "bound"
    num_samples: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise UserError(f"--estimator is {self.estimator}; it takes bound or chain.")
        if self.estimator == "bound" and (self.num_samples < 2 or self.num_samples % 2):
            raise UserError(f"--num-samples is {self.num_samples}; it takes an even number, for draws come in pairs.")
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}; it takes 1 or more.")
        if self.information and not self.given_genes:
            raise UserError("--information is what the given genes tell of the others: name them with --given-genes.")


@dataclass(frozen=True, eq=False)
class CellScores:
    names: Sequence[str]
    """Of the cells."""
    obs: dict[str, Float64[np.ndarray, " cells"]]
    settings: dict
    """For uns."""

    @property
    def said(self) -> str:
        """Mean over cells, with its standard error over them, in a line."""
        lines = []
        for name, what in (("mdsc_nll", "-log p"), ("mdsc_information", "information")):
            if name in self.obs:
                values, errors = self.obs[name], self.obs[f"{name}_se"]
                spread = f" ± {values.std(ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
                one = f"; of a cell ± {np.sqrt(np.mean(errors**2)):.4f}" if np.isfinite(errors).all() else ""
                lines.append(f"{what} = {values.mean():.4f}{spread} nats per gene{one}")
        return f"{', '.join(lines)}, of {self.settings['of']}"


def likelihood_anndata(
    checkpoint: str | Path | Checkpoint,
    adata: "AnnData",
    *,
    layer: str | None = None,
    condition: Mapping[str, str] | None = None,
    copy: bool = True,
    name: str = "the AnnData",
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options,
) -> "AnnData":
    """Score each cell; see the top of this file for what the result holds.

    Args:
        checkpoint: folder, or a checkpoint that is loaded.
        adata: raw counts in X or `layer`; genes by symbol or Ensembl id, in any order.
        condition: level of a condition for all cells; others come from the columns of obs named like the model's.
        copy: False adds to `adata` itself.
        options: fields of `LikelihoodOptions`: target_genes and given_genes (names; by default all genes that are not
            given are the target; genes that are in neither are neither seen nor scored), information, estimator
            ("bound" or "chain": the chain rule in num_samples orders, with as many passes each as there are targets),
            num_samples (draws of what is hidden), seed; and of `PassOptions` (batch_size, genes_per_pass, max_memory).
    """
    likelihood, passes = taken_from(options, LikelihoodOptions, PassOptions)
    scores = score_cells(
        checkpoint,
        adata,
        likelihood,
        passes,
        layer=layer,
        condition=condition,
        name=name,
        say=say,
        show_progress=show_progress,
    )
    result = adata.to_memory() if adata.isbacked else adata.copy() if copy else adata
    for column, values in scores.obs.items():
        result.obs[column] = values
    result.uns["mdsc_likelihood"] = scores.settings
    return result


def score_cells(
    checkpoint: str | Path | Checkpoint,
    source: "AnnData | str | Path",
    options: LikelihoodOptions,
    passes: PassOptions = ALL_THAT_FITS,
    *,
    layer: str | None = None,
    condition: Mapping[str, str] | None = None,
    name: str = "the AnnData",
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
) -> CellScores:
    """The scores of the cells of an AnnData or of an h5ad file, which is read a chunk at a time."""
    checkpoint, say, condition = opened(checkpoint), say or say_nothing, dict(condition or {})
    tokenizer = checkpoint.tokenizer
    is_of_counts = isinstance(tokenizer, CountTokenizer)
    if options.information and not is_of_counts:
        raise UserError(
            f"--information compares likelihoods with and without the given genes, but tokens of `{tokenizer.name}` "
            "depend on which genes are there; it takes a model of the tokenizer `count`."
        )
    obs: dict[str, list[np.ndarray]] = {}
    with open_cells(checkpoint, source, layer=layer, condition=condition, name=name, say=say) as cells:
        names = cells.source.obs.index.astype(str).tolist()
        target, given = _target_and_given(cells, options)
        columns = np.concatenate([target, given])
        columns = columns[np.argsort(cells.places[columns])]
        is_target = np.isin(columns, target)
        say(f"scoring {len(target):,} genes given {len(given):,}, of {'counts' if is_of_counts else 'tokens'}")
        device = checkpoint.model.device
        size = pass_size(checkpoint, len(columns), passes)
        predict = predictor(checkpoint, size.genes)
        with CellProgress("scoring", len(cells), show=show_progress, lines=True) as progress:
            for batch in cells.batches(columns, size.cells):
                for column, values in _scores(predict, tokenizer, batch, is_target, options, device).items():
                    obs.setdefault(column, []).append(values)
                progress.done(int(batch.cell_index[-1]) + 1)
    settings = {
        "task": "likelihood",
        "unit": "nats per target gene",
        "of": OF_COUNTS if is_of_counts else f"tokens of `{tokenizer.name}`, not comparable with other tokenizers",
        "estimator": options.estimator,
        "num_samples": options.num_samples,
        "num_replicates": options.num_samples // (2 if options.estimator == "bound" else 1),
        "num_target_genes": len(target),
        "num_given_genes": len(given),
        "target_genes": list(options.target_genes),
        "given_genes": list(options.given_genes),
        "seed": options.seed,
        "genes_per_pass": size.genes or len(columns),
        "counts": layer or "X",
        "conditions": condition,
        "conditions_from_obs": [one for one in cells.conditions.labels if one not in condition],
        **provenance(checkpoint),
    }
    return CellScores(names, {column: np.concatenate(values) for column, values in obs.items()}, settings)


def _target_and_given(
    cells: ModelCells, options: LikelihoodOptions
) -> tuple[Int64[np.ndarray, " target"], Int64[np.ndarray, " given"]]:
    """Columns of both."""
    given = np.zeros(0, dtype=np.int64)
    if options.given_genes:
        given = cells.columns_of(options.given_genes, "--given-genes")
    if not options.target_genes:
        target = np.setdiff1d(cells.columns, given)
        if not len(target):
            raise UserError("--given-genes names all genes that the model knows: none is left to score.")
        return target, given
    target = cells.columns_of(options.target_genes, "--target-genes")
    if len(both := np.intersect1d(target, given)):
        names = ", ".join(cells.source.var.index[both[:3]].astype(str))
        raise UserError(f"--target-genes and --given-genes both name {names}: a gene is one or the other.")
    return target, given


def _scores(
    predict: Callable,
    tokenizer: Tokenizer,
    batch: CellBatch,
    is_target: Bool[np.ndarray, " columns"],
    options: LikelihoodOptions,
    device: torch.device,
) -> dict[str, Float64[np.ndarray, " cells"]]:
    target = torch.from_numpy(is_target).to(device).expand(batch.is_pad.shape)
    batch = batch.to(device)

    def bound(cells: CellBatch, target: Tensor) -> Nelbo:
        if options.estimator == "chain":
            return chain_rule(
                predict, tokenizer, cells, target=target, num_orders=options.num_samples, seed=options.seed
            )
        pairs = options.num_samples // 2
        return nelbo(predict, tokenizer, cells, target=target, num_replicates=pairs, seed=options.seed)

    conditional = bound(batch, target)
    nll = conditional.per_cell
    if isinstance(tokenizer, CountTokenizer):
        nll = nll + count_losses(tokenizer, batch, target)
    scores = {"mdsc_nll": nll, "mdsc_nll_se": conditional.per_cell_error}
    if options.information:
        alone = _of_columns(batch, target[0])
        # The draws are the same, as they are keyed by genes: much of their noise goes out with the difference.
        marginal = bound(alone, torch.ones_like(alone.is_pad))
        difference = Nelbo(marginal.replicates - conditional.replicates)
        scores |= {"mdsc_information": difference.per_cell, "mdsc_information_se": difference.per_cell_error}
    return {name: values.cpu().numpy() for name, values in scores.items()}


def _of_columns(cells: CellBatch, columns: Bool[Tensor, " genes"]) -> CellBatch:
    """These genes alone. Tokens stay as they are: for a tokenizer whose tokens depend on no other gene."""
    of_genes = {name: getattr(cells, name)[:, columns] for name in ("gene_ids", "counts", "tokens", "is_pad")}
    return replace(cells, **of_genes)
