"""scVI's bound of the likelihood of test cells, in nats per gene, beside its importance-weighted estimate.

scVI has a negative binomial for each gene given a latent z. With `use_observed_lib_size` (its default) the means are
shares of the cell's own total count: what is bounded is p(counts | total). Without, the size is latent too, with a
log-normal prior fitted on the training cells: what is bounded is p(counts), as with `mdsc likelihood`.
"""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np

MAX_EPOCHS, PATIENCE, TRAIN_SHARE = 400, 30, 0.9
NUM_WEIGHTED = 1000
"""Importance samples of each cell."""


def has_scvi() -> bool:
    return find_spec("scvi") is not None


def scvi_losses(train: Path, test: Path, *, observed_size: bool, latents: tuple[int, ...], seed: int) -> dict:
    """Train one scVI for each number of latents, keep the one with the best bound of its own validation cells (10% of
    the training cells, which stop the training too), and score the test cells.

    Returns {"elbo", "weighted": nats per gene of each cell, "latents": number, "epochs": number}.
    """
    import anndata
    import scvi

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    train_cells, test_cells = anndata.read_h5ad(train), anndata.read_h5ad(test)
    best, best_loss = None, np.inf
    for number in latents:
        scvi.settings.seed = seed
        cells = train_cells.copy()
        scvi.model.SCVI.setup_anndata(cells)
        model = scvi.model.SCVI(
            cells, n_latent=number, gene_likelihood="nb", use_observed_lib_size=observed_size, dispersion="gene"
        )
        model.train(
            max_epochs=MAX_EPOCHS,
            train_size=TRAIN_SHARE,
            early_stopping=True,
            early_stopping_monitor="elbo_validation",
            early_stopping_patience=PATIENCE,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=None,
        )
        loss = float(model.history["elbo_validation"].min().iloc[0])
        if loss < best_loss:
            best, best_loss = (model, number, len(model.history["elbo_validation"])), loss
    model, number, epochs = best
    genes = train_cells.n_vars
    elbo = _elbo(model, test_cells) / genes
    weighted = -np.asarray(
        model.get_marginal_ll(test_cells, n_mc_samples=NUM_WEIGHTED, n_mc_samples_per_pass=50, return_mean=False)
    )
    return {
        "elbo": elbo.tolist(),
        "weighted": (weighted.ravel() / genes).tolist(),
        "latents": number,
        "epochs": epochs,
    }


def _elbo(model, cells, num_draws: int = 10) -> np.ndarray:
    """Reconstruction loss + KL of each cell, mean over draws of z."""
    import torch

    cells = model._validate_anndata(cells)
    draws = []
    with torch.inference_mode():
        for _ in range(num_draws):
            parts = []
            for tensors in model._make_data_loader(cells, batch_size=256):
                _, _, losses = model.module(tensors)
                parts.append(sum(losses.reconstruction_loss.values()) + sum(losses.kl_local.values()))
            draws.append(torch.cat(parts))
    return torch.stack(draws).mean(dim=0).double().numpy()
