"""scVI as predictors: laws of tokens where tokens are counts, else expected counts alone.

Three rows, because there is no one way in which scVI fills in hidden counts:

scvi           trained on whole training cells, its encoder reads the visible counts (`WholeToVisible`)
scvi_refined   the same network, each cell's posterior fitted to its visible genes
scvi_masked    trained on training cells and held-out cells with their counts hidden, hidden ones zero
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.diffusion.evidence import Evidence
from mdsc.evaluation.negative_binomial import fitted_dispersions, token_masses
from mdsc.evaluation.predictor import AskedCells, ExpectedCounts, LogProbs, TrainingCells, Visible
from mdsc.evaluation.scvi_posterior import REFINE_STEPS, VisibleAsWhole, WholeToVisible, dispersions
from mdsc.evaluation.scvi_training import train_scvi


@dataclass(frozen=True)
class ScviPoints:
    """The posterior mean, where tokens are no counts and a negative binomial says nothing of them."""

    posterior: VisibleAsWhole | WholeToVisible

    def expected_counts(self, cells: Evidence) -> ExpectedCounts:
        return self.posterior.means(*_arrays(cells)).mean(axis=0)


@dataclass(frozen=True)
class ScviLaws:
    """The posterior predictive law: the mean over draws of the state of negative binomials."""

    posterior: VisibleAsWhole | WholeToVisible
    dispersion: Float[np.ndarray, " genes"]
    tokenizer: CountTokenizer

    def log_probs(self, cells: Evidence) -> LogProbs:
        counts, visible = _arrays(cells)
        means = self.posterior.means(counts, visible)
        cell, gene = np.nonzero(~visible)
        masses = token_masses(means[:, cell, gene], self.dispersion[gene], self.tokenizer)
        p = np.full((*counts.shape, self.tokenizer.num_tokens), 1 / self.tokenizer.num_tokens, dtype=np.float32)
        p[cell, gene] = np.maximum(masses, 1e-30)
        return np.log(p, out=p)


def fit_scvi(train: TrainingCells, *, seed: int = 0) -> dict[str, ScviLaws | ScviPoints]:
    """The rows that one network gives which is trained on whole training cells; for all mask ratios."""
    module = train_scvi(sp.csr_matrix(train.counts), seed=seed).module
    return {
        name: _predictor(WholeToVisible(module, steps), dispersions(module), train.tokenizer)
        for name, steps in (("scvi", 0), ("scvi_refined", REFINE_STEPS))
    }


def fit_scvi_masked(
    train: TrainingCells, hidden: Visible, asked: AskedCells, *, seed: int = 0
) -> ScviLaws | ScviPoints:
    """The dispersions are those of the hidden counts of the training cells, given what is expected there: scVI's own
    are of matrices in which most zeros are not counts."""
    seen = np.where(hidden, 0, train.counts)
    matrix = sp.vstack([sp.csr_matrix(seen), asked.counts], format="csr")
    posterior = VisibleAsWhole(train_scvi(matrix, seed=seed).module)
    means = [
        posterior.means(seen[first : first + 128], ~hidden[first : first + 128]).mean(axis=0)
        for first in range(0, len(seen), 128)
    ]
    theta = fitted_dispersions(np.concatenate(means), train.counts, hidden)
    return _predictor(posterior, theta, train.tokenizer)


def _predictor(
    posterior: VisibleAsWhole | WholeToVisible, dispersion: np.ndarray, tokenizer: Tokenizer
) -> ScviLaws | ScviPoints:
    if isinstance(tokenizer, CountTokenizer):
        return ScviLaws(posterior, dispersion, tokenizer)
    return ScviPoints(posterior)


def _arrays(cells: Evidence) -> tuple[np.ndarray, np.ndarray]:
    return cells.counts.numpy().astype(np.int32), cells.visible.numpy()
