"""Small counts of perturbed cells whose effects are linear in gene embeddings, so that a right prediction is known."""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

NUM_GENES, NUM_FEATURES, DEPTH = 60, 3, 600


@dataclass(frozen=True)
class Simulated:
    """Perturbation P0 knocks gene G0 down, and so on."""

    adata: anndata.AnnData
    vectors: dict[str, np.ndarray]
    rates: dict[tuple[str, str], np.ndarray]
    """(context, perturbation) -> expected share of counts, by gene."""

    def counts(self, context: str, perturbation: str, number: int, seed: int) -> np.ndarray:
        return drawn(self.rates[context, perturbation], number, np.random.default_rng(seed))


def drawn(rate: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    depth = DEPTH * rng.lognormal(0, 0.2, (number, 1))
    return rng.poisson(depth * rate / rate.sum()).astype(np.float32)


def simulated(
    num_perturbations: int = 14, num_test: int = 6, cells: int = 40, contexts: tuple[str, ...] = ("",), seed: int = 0
) -> Simulated:
    """obs: perturbation, split, context. The last perturbations are the test ones."""
    rng = np.random.default_rng(seed)
    names = [f"G{number}" for number in range(num_perturbations)]
    vectors = {name: rng.normal(size=NUM_FEATURES) for name in names}
    base = rng.gamma(2.0, 1.0, NUM_GENES) + 0.3
    loadings = rng.normal(0, 0.45, (NUM_FEATURES, NUM_GENES))
    common = rng.normal(0, 0.5, NUM_GENES)
    rates, parts, obs = {}, [], []
    for context in contexts:
        own = base * rng.lognormal(0, 0.5 if context else 0, NUM_GENES)
        for name in ["ctrl", *names]:
            effect = np.zeros(NUM_GENES) if name == "ctrl" else common + vectors[name] @ loadings
            rate = own * np.exp(effect)
            if name != "ctrl":
                rate[names.index(name)] *= 0.2
            rates[context, name] = rate
            number = 4 * cells if name == "ctrl" else cells
            parts.append(drawn(rate, number, rng))
            part = "test" if name in names[num_perturbations - num_test :] else "train"
            obs += [(name, part, context)] * number
    frame = pd.DataFrame(obs, columns=["perturbation", "split", "context"], index=[f"c{n}" for n in range(len(obs))])
    var = pd.DataFrame(index=[f"G{number}" for number in range(NUM_GENES)])
    return Simulated(anndata.AnnData(sp.csr_matrix(np.concatenate(parts)), obs=frame, var=var), vectors, rates)
