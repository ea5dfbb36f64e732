"""Slow, plain versions of the mathematics: Python integers and float64 loops, written from the formulas."""

import math

import numpy as np

MASK64 = (1 << 64) - 1


def keyed_uniform(*keys: int) -> float:
    """splitmix64 in Python's unbounded integers."""
    state = 0
    for key in keys:
        state = (state + (key + 1) * 0x9E3779B97F4A7C15) & MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK64
        state = state ^ (state >> 31)
    return (2 * (state >> 12) + 1) / 2**53


def objective(logits, tokens, hidden, weight, is_pad, v, ordinal: str) -> tuple[list[float], list[float]]:
    """(nll, ordinal) per cell in nested loops; v: what the ordinal term compares; all arguments are nested lists."""
    nll, ordinals = [], []
    for cell in range(len(logits)):
        n = sum(not pad for pad in is_pad[cell])
        total_nll = total_ordinal = 0.0
        for i, x in enumerate(tokens[cell]):
            if not hidden[cell][i]:
                continue
            largest = max(logits[cell][i])
            e = [math.exp(logit - largest) for logit in logits[cell][i]]
            p = [one / sum(e) for one in e]
            total_nll -= math.log(p[x])
            mean = sum(p_j * v_j for p_j, v_j in zip(p, v, strict=True))
            if ordinal == "mean_matching":
                total_ordinal += (mean - v[x]) ** 2
            elif ordinal == "unsquared":
                total_ordinal += abs(mean - v[x])
            elif ordinal == "crps":  # E|X - x| - E|X - X'| / 2, another form than the sum over thresholds
                total_ordinal += sum(p_j * abs(v_j - v[x]) for p_j, v_j in zip(p, v, strict=True))
                total_ordinal -= 0.5 * sum(
                    p_j * p_k * abs(v_j - v_k)
                    for p_j, v_j in zip(p, v, strict=True)
                    for p_k, v_k in zip(p, v, strict=True)
                )
        nll.append(weight[cell] * total_nll / max(n, 1))
        ordinals.append(weight[cell] * total_ordinal / max(n, 1))
    return nll, ordinals


def factor_posterior(values, means, loadings, precisions, prior) -> np.ndarray:
    """E[z | values] of values = means + loadings z + noise with z ~ N(0, diag(1 / prior)), in the observations' form.

    z = S V^T (V S V^T + Psi)^-1 (values - means), with S and Psi the covariances of z and noise: a matrix of the size
    of the genes is solved, where the model solves one of the size of the state.
    """
    covariance_of_z, noise = np.diag(1 / prior), np.diag(1 / precisions)
    covariance = loadings @ covariance_of_z @ loadings.T + noise
    return covariance_of_z @ loadings.T @ np.linalg.solve(covariance, values - means)
