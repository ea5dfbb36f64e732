"""The PCA that a checkpoint keeps, and the linear shift that the Gaussian head starts from."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from mdsc.perturbation.pca_basis import SD_FLOOR, PcaBasis
from mdsc.perturbation.ridge_shift import PENALTIES, RidgeShift


def cells(num_cells: int = 120, num_genes: int = 40, rank: int = 6, seed: int = 0) -> np.ndarray:
    """Of an exact rank about their mean, with a third of the genes 0 in all cells."""
    rng = np.random.default_rng(seed)
    x = 2 + rng.standard_normal((num_cells, rank)) @ rng.standard_normal((rank, num_genes))
    x[:, ::3] = 0
    return x


def tensor(x: np.ndarray) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)


def test_data_in_the_span_comes_back():
    x = cells()
    basis = PcaBasis.fit(x, 6, seed=0)
    others = tensor(cells()[:7] * 0.5 + cells()[7:14] * 0.5)  # not trained on, but in the span
    assert torch.allclose(basis.to_genes(basis.to_latent(others)), others, atol=1e-4)
    fewer = PcaBasis.fit(x, 3, seed=0)
    assert (fewer.to_genes(fewer.to_latent(others)) - others).abs().max() > 0.1


def test_latents_of_training_cells_have_mean_0_and_variance_1():
    x = cells()
    basis = PcaBasis.fit(x, 5, seed=0)
    latent = basis.to_latent(tensor(x))
    assert latent.dtype == torch.float32
    assert torch.allclose(torch.cov(latent.T), torch.eye(5), atol=1e-4)
    assert torch.allclose(latent.mean(dim=0), torch.zeros(5), atol=1e-4)


def test_other_cells_are_placed_in_the_basis_of_training():
    """What the parent does not do: it fits the test cells anew, and so gives them variance 1."""
    x = cells()
    moved = PcaBasis.fit(x, 5, seed=0).to_latent(tensor(3 * x + 1))
    assert torch.allclose(moved.var(dim=0), torch.full((5,), 9.0), atol=1e-2)


@pytest.mark.parametrize("size", [4, None])
def test_sparse_and_dense_agree(size: int | None):
    x = cells()
    dense, sparse = PcaBasis.fit(x, size, seed=0), PcaBasis.fit(sp.csr_matrix(x), size, seed=0)
    assert dense.state_dict().keys() == sparse.state_dict().keys()
    for name, value in dense.state_dict().items():
        assert torch.allclose(value, sparse.state_dict()[name], atol=1e-5), name


def test_as_many_components_as_there_are():
    x = np.random.default_rng(0).standard_normal((50, 8))
    basis = PcaBasis.fit(x, 8, seed=0)
    assert torch.allclose(basis.to_genes(basis.to_latent(tensor(x))), tensor(x), atol=1e-4)
    with pytest.raises(ValueError, match="9 components of 50 cells and 8 genes: there are 1 to 8"):
        PcaBasis.fit(x, 9, seed=0)


def test_without_pca_genes_are_standardised_and_nothing_is_divided_by_0():
    x = cells(num_genes=5060, num_cells=30)
    x[:, 1] = 0.7  # the same in all cells
    basis = PcaBasis.fit(sp.csr_matrix(x), None, seed=0)
    assert basis.latent_size == 5060
    assert "components" not in basis.state_dict()
    assert np.isclose(basis.scale[0], SD_FLOOR)
    assert np.isclose(basis.scale[1], SD_FLOOR)
    latent = basis.to_latent(tensor(x))
    assert latent.isfinite().all()
    varied = x.std(axis=0) > SD_FLOOR
    assert varied.any()
    assert torch.allclose(latent.var(dim=0)[torch.tensor(varied)], torch.ones(int(varied.sum())), atol=1e-3)
    assert torch.allclose(basis.to_genes(latent), tensor(x), atol=1e-5)


def test_constant_cells_have_latents_0():
    basis = PcaBasis.fit(np.full((20, 6), 0.7), 2, seed=0)
    assert basis.to_latent(torch.full((3, 6), 0.7)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", [sp.csr_matrix, np.asarray])
def test_what_is_not_finite_is_named(kind):
    x = cells()
    x[5, 7] = np.nan
    x[9, 1] = np.inf
    with pytest.raises(ValueError, match="not finite at 2 places, the first in cell 5, gene 7"):
        PcaBasis.fit(kind(x), 3, seed=0)


def test_the_shift_is_that_of_sklearn():
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(0)
    features = rng.standard_normal((25, 10))
    effects = features @ rng.standard_normal((10, 4)) + rng.standard_normal((25, 4)) + 1
    spread = features.var(axis=0).sum()
    reference = RidgeCV(alphas=PENALTIES * spread).fit(features, effects)
    shift = RidgeShift.fit(features, effects)
    new = rng.standard_normal((6, 10))
    assert np.allclose(shift(tensor(new)).numpy(), reference.predict(new), atol=1e-5)
    assert PENALTIES[0] * spread < reference.alpha_ < PENALTIES[-1] * spread


def test_the_penalty_is_that_of_leaving_one_perturbation_out():
    rng = np.random.default_rng(1)
    features, effects = rng.standard_normal((12, 3)), rng.standard_normal((12, 2))
    effects += 0.5 * features[:, :2]
    spread = features.var(axis=0).sum()

    def error(penalty: float) -> float:
        total = 0.0
        for row in range(12):
            x, y = np.delete(features, row, 0), np.delete(effects, row, 0)
            centred = x - x.mean(0)
            weight = np.linalg.solve(centred.T @ centred + penalty * spread * np.eye(3), centred.T @ (y - y.mean(0)))
            total += np.square(y.mean(0) + (features[row] - x.mean(0)) @ weight - effects[row]).sum()
        return total

    best = min(PENALTIES, key=error)
    centred = features - features.mean(0)
    weight = np.linalg.solve(centred.T @ centred + best * spread * np.eye(3), centred.T @ (effects - effects.mean(0)))
    assert np.allclose(RidgeShift.fit(features, effects).weight.numpy(), weight, atol=1e-5)


def test_the_unit_of_the_features_does_not_matter():
    rng = np.random.default_rng(2)
    features, effects = rng.standard_normal((15, 5)), rng.standard_normal((15, 3))
    one, other = RidgeShift.fit(features, effects), RidgeShift.fit(1000 * features, effects)
    assert torch.allclose(one(tensor(features)), other(tensor(1000 * features)), atol=1e-4)


def test_an_unknown_vector_shifts_nothing_and_the_shift_is_frozen():
    rng = np.random.default_rng(3)
    shift = RidgeShift.fit(rng.standard_normal((9, 4)), 3 + rng.standard_normal((9, 2)))
    vectors = torch.ones(3, 4)
    vectors[0, 2] = torch.nan
    vectors[1] = torch.nan
    out = shift(vectors)
    assert not out[:2].any()
    assert (out[2].abs() > 0.5).all()
    assert not list(shift.parameters())


@pytest.mark.parametrize(("rows", "features"), [(1, 4), (2, 4), (9, 0)], ids=["one", "two", "constant features"])
def test_little_to_learn_from_gives_the_mean_shift(rows: int, features: int):
    effects = np.random.default_rng(4).standard_normal((rows, 3))
    x = np.random.default_rng(5).standard_normal((rows, 4)) if features else np.ones((rows, 4))
    out = RidgeShift.fit(x, effects)(torch.randn(5, 4))
    assert torch.allclose(out, tensor(effects.mean(axis=0)).expand(5, 3), atol=1e-6)


def test_effects_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="the effect is not finite for 1 perturbations, the first in row 2"):
        RidgeShift.fit(np.ones((4, 2)), np.array([[1.0], [1], [np.nan], [1]]))
    with pytest.raises(ValueError, match="the feature vector is not finite for 4 perturbations"):
        RidgeShift.fit(np.full((4, 2), np.nan), np.ones((4, 1)))
