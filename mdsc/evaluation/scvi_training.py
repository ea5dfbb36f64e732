"""scVI (Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15), trained on a
matrix of counts, as its authors' package scvi-tools has it."""

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from scvi.model import SCVI

MAX_EPOCHS = 400
PATIENCE = 15
"""Epochs without a better bound on the cells that it keeps for validation."""
LEARNING_RATE = 2e-3
"""Twice the default, because few cells make few steps an epoch."""


def train_scvi(counts: sp.csr_matrix, *, seed: int = 0) -> "SCVI":
    """Train on counts (cells, genes) until the bound of the validation cells, a tenth of them, no longer improves; the
    weights are those of the best epoch. Everything else is as scvi-tools has it by default (10 latent dimensions, a
    hidden layer of 128), but for the learning rate and for negative binomials without zero inflation (Svensson 2020,
    "Droplet scRNA-seq is not zero-inflated"). On the CPU, so that its time can be compared.
    """
    import pandas as pd
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvi
        from lightning.pytorch.callbacks import Callback

        class BestEpoch(Callback):
            """Early stopping of scvi-tools leaves the weights of its last epoch, which is PATIENCE past the best."""

            def __init__(self):
                self.bound, self.weights = np.inf, None

            def on_validation_epoch_end(self, trainer, pl_module) -> None:
                bound = float(trainer.callback_metrics.get("elbo_validation", np.inf))
                if bound < self.bound:
                    weights = pl_module.module.state_dict()
                    self.bound, self.weights = bound, {name: value.clone() for name, value in weights.items()}

        for name in ("lightning.pytorch", "scvi", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        scvi.settings.seed = seed
        obs = pd.DataFrame(index=[str(cell) for cell in range(counts.shape[0])])
        cells = AnnData(sp.csr_matrix(counts, dtype=np.float32), obs=obs)
        scvi.model.SCVI.setup_anndata(cells)
        model = scvi.model.SCVI(cells, gene_likelihood="nb")
        best = BestEpoch()
        model.train(
            max_epochs=MAX_EPOCHS,
            accelerator="cpu",
            train_size=0.9,
            early_stopping=True,
            early_stopping_patience=PATIENCE,
            callbacks=[best],
            plan_kwargs={"lr": LEARNING_RATE},
            check_val_every_n_epoch=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    if best.weights is not None:
        model.module.load_state_dict(best.weights)
    model.module.eval()
    return model
