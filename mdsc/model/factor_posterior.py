"""What noisy values of some genes say of a cell's few factors: exact, for any set of genes."""

import torch
from jaxtyping import Float
from torch import Tensor


def factor_posterior(
    residual: Float[Tensor, "batch genes"],
    loadings: Float[Tensor, "batch genes factors"],
    precision: Float[Tensor, "batch genes"],
    prior: Float[Tensor, " factors"],
    prior_mean: Float[Tensor, "batch factors"] | None = None,
) -> tuple[Float[Tensor, "batch factors"], Float[Tensor, "batch factors factors"]]:
    """Of residual = loadings z + noise, z ~ N(prior_mean, diag(1 / prior)): the law of z (Bishop 2006, section 12.2.4).

    Args:
        residual: values less their means; anything where the precision is 0.
        precision: 1 / variance of the noise of each gene; 0 where nothing is known of it.
        prior: precision of each factor.
        prior_mean: what is known of z before any gene is seen; None stands for 0.

    Returns:
        the posterior mean of z, and the lower Cholesky factor of its precision; NaN where that is not positive.
    """
    weighted = loadings * precision[..., None]
    # `cholesky` would wait for the device to say whether it went well; here NaN says so.
    root, failed = torch.linalg.cholesky_ex(torch.diag(prior) + loadings.mT @ weighted)
    root = root.masked_fill((failed > 0)[..., None, None], torch.nan)
    evidence = (weighted.mT @ residual[..., None])[..., 0]
    if prior_mean is not None:
        evidence = evidence + prior * prior_mean
    return torch.cholesky_solve(evidence[..., None], root)[..., 0], root
