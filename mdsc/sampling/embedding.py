"""What a model makes of whole cells, as one vector for each, and of genes.

    factors   posterior mean of the factors of the fixed factor model, which tells the network what to expect of genes
    state     that of the cell-state pathway's own factors, which are trained
    0 .. L    what goes into the first block and what comes out of each: its mean over a cell's expressed genes, or over
              the latents of the latent backbone
    last      the last of these, of genes with either backbone

Factors are read from counts at the depth of a mean training cell, count / (observed / expected depth), so that two
cells of one kind and of different depth lie together. They are given in units of the genes' noise: for loadings V and
noise variances 1/w, |z - z'|^2 = sum_g w_g (v_g . (z - z'))^2, what the two cells' expected expression differs by, each
gene measured by its own noise. (The plain posterior has the prior's units, where a factor of few genes weighs as
much as one of many.) docs/results/embedding.md has what each is worth.

A model is told no conditions here: an embedding must not hold the labels that it is compared with.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.errors import UserError
from mdsc.model.configuration import MdscConfig
from mdsc.model.factor_posterior import factor_posterior
from mdsc.model.modeling import MdscModel

FACTORS, STATE, LAST = "factors", "state", "last"


def layers_of(config: MdscConfig) -> list[str]:
    """The layers that a model has, best first, as measured where there were several."""
    hidden = [LAST, *map(str, range(config.num_layers + 1))] if config.num_layers else []
    return [*([FACTORS] if config.factor_size else []), STATE, *hidden]


def layer_of(config: MdscConfig, layer: str | None) -> str:
    """`layer`, or the first one; a `UserError` lists what there is."""
    layers = layers_of(config)
    if layer is not None and layer not in layers:
        raise UserError(f"--layer: the model has no layer {layer}; it has {', '.join(layers)}.")
    return layer or layers[0]


@torch.no_grad()
def embed_cells(model: MdscModel, tokenizer: Tokenizer, cells: CellBatch, layer: str) -> Float32[Tensor, "cells width"]:
    """One vector for each cell, of all its genes. Cells have no pads, and are where the model is."""
    if layer == FACTORS:
        evidence = model.gene_evidence
        residual = at_mean_depth(model, cells).log1p() - evidence.gene_mean[cells.gene_ids]
        precision, loadings = evidence.precision[cells.gene_ids], evidence.loadings[cells.gene_ids]
        prior = torch.ones(loadings.shape[-1], device=loadings.device)
        mean, _ = factor_posterior(residual, loadings, precision, prior)
        return mean @ metric_root(evidence.loadings, evidence.precision)
    if layer == STATE:
        counts = at_mean_depth(model, cells)
        mean = model.cell_state.pool(cells.gene_ids, counts, torch.ones_like(counts))
        return mean @ metric_root(*_state_loadings(model))
    # Nothing is hidden, so that the tokens of whole cells are the visible ones.
    output = model(cells.gene_ids, cells.tokens, cells.counts, None, output_hidden_states=True)
    hidden = output.hidden_states[-1 if layer == LAST else int(layer)].float()
    if hidden.shape[1] != cells.counts.shape[1] or (model.config.backbone == "latent" and layer != LAST):
        return hidden.mean(dim=1)
    expressed = (cells.counts > 0).float()[..., None]
    return (hidden * expressed).sum(dim=1) / expressed.sum(dim=1).clamp(min=1)


@torch.no_grad()
def embed_genes(model: MdscModel, layer: str) -> Float32[Tensor, "genes width"]:
    """A vector for each gene of the vocabulary: its loadings in units of its noise, or its row of the embedding."""
    if layer == FACTORS:
        return model.gene_evidence.loadings * model.gene_evidence.precision.sqrt()[:, None]
    if layer == STATE:
        loadings, precision = _state_loadings(model)
        return loadings * precision.sqrt()[:, None]
    return model.gene_embedding.weight.detach().clone()


def at_mean_depth(model: MdscModel, cells: CellBatch) -> Float[Tensor, "cells genes"]:
    counts = cells.counts.float()
    log_depth = model.cell_state.log_relative_depth(cells.gene_ids, counts, torch.ones_like(counts))
    return counts * torch.exp(-log_depth)[:, None]


def _state_loadings(model: MdscModel) -> tuple[Float[Tensor, "genes state"], Float[Tensor, " genes"]]:
    """Loadings for factors in prior standard deviations, and precisions."""
    state = model.cell_state
    return state.gene_in.weight * (-0.5 * state.log_prior).exp(), state.log_precision.exp()


def metric_root(
    loadings: Float[Tensor, "genes factors"], precision: Float[Tensor, " genes"]
) -> Float[Tensor, "factors factors"]:
    """The symmetric root of V' diag(w) V: it has no signs that could be the other way round on another machine."""
    metric = loadings.double().T @ (loadings.double() * precision.double()[:, None])
    values, vectors = torch.linalg.eigh(metric)
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).float()
