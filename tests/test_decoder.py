"""From latents to all genes: exact at the start, and taught by real cells one by one and by generated ones as sets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mdsc.perturbation.decoder import Decoder, cellwise_loss, set_losses
from mdsc.perturbation.denoisers import init_weights
from mdsc.perturbation.pca_basis import PcaBasis

GENES, K = 24, 4


def cells(num_cells: int = 200, seed: int = 0) -> Tensor:
    """Curved: genes beyond the first are squares of a few programs, which no PCA of this size spans."""
    generator = torch.Generator().manual_seed(seed)
    programs = torch.randn(num_cells, 3, generator=generator)
    loadings = torch.randn(3, GENES, generator=torch.Generator().manual_seed(9))
    return (0.5 + programs @ loadings + (programs @ loadings).square() / 3).clamp(min=0)


def fitted(size: int | None = K) -> tuple[PcaBasis, Decoder]:
    basis = PcaBasis.fit(cells().numpy(), size, seed=0)
    torch.manual_seed(0)
    decoder = Decoder(basis.latent_size, GENES, width=32)
    decoder.apply(init_weights)
    return basis, decoder


def of_cells(decoder: Decoder, latent: Tensor, expression: Tensor, basis: PcaBasis) -> Tensor:
    return cellwise_loss(decoder(latent, basis), expression)


def of_sets(decoder: Decoder, latent: Tensor, expression: Tensor, basis: PcaBasis) -> dict[str, Tensor]:
    decoded = decoder(latent.flatten(0, 1), basis).unflatten(0, latent.shape[:2])
    return set_losses(decoded, expression, basis)


@pytest.mark.parametrize("size", [K, None])
def test_the_start_is_the_exact_inverse_of_the_pca(size: int | None):
    basis, decoder = fitted(size)
    latent = basis.to_latent(cells(seed=1))
    assert torch.equal(decoder(latent, basis), basis.to_genes(latent))
    if size is None:
        assert torch.allclose(decoder(latent, basis), cells(seed=1), atol=1e-5)


def test_real_cells_teach_what_the_pca_leaves_out():
    basis, decoder = fitted()
    train, held_out = cells(400, seed=3), cells(200, seed=4)
    before = of_cells(decoder, basis.to_latent(held_out), held_out, basis)
    assert before.shape == (200,)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        of_cells(decoder, basis.to_latent(train), train, basis).mean().backward()
        optimizer.step()
    assert of_cells(decoder, basis.to_latent(held_out), held_out, basis).mean() < 0.6 * before.mean()


def test_generated_cells_teach_the_decoder():
    """A set whose latents are all shifted: what is decoded comes nearer to the real cells, in the mean and as a law."""
    basis, decoder = fitted()
    real = cells(256, seed=5).unflatten(0, (4, 64))
    latent = (basis.to_latent(cells(256, seed=6)) + 0.7).unflatten(0, (4, 64))
    before = of_sets(decoder, latent, real, basis)
    assert before.keys() == {"mmd", "pseudobulk"}
    assert all(values.shape == (4,) for values in before.values())
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(values.mean() for values in of_sets(decoder, latent, real, basis).values()).backward()
        optimizer.step()
    after = of_sets(decoder, latent, real, basis)
    assert after["pseudobulk"].mean() < 0.5 * before["pseudobulk"].mean()
    assert after["mmd"].mean() < 0.5 * before["mmd"].mean()


def test_set_losses_of_real_cells_are_about_0():
    """Of other cells of the same law, without a bias for their number."""
    _, decoder = fitted(None)
    basis, _ = fitted(None)
    real, others = (cells(640, seed=seed).unflatten(0, (20, 32)) for seed in (7, 8))
    latent = basis.to_latent(others.flatten(0, 1)).unflatten(0, (20, 32))
    mmd = of_sets(decoder, latent, real, basis)["mmd"]
    assert mmd.mean().abs() < 4 * mmd.std() / 20**0.5
    same = of_sets(decoder, basis.to_latent(real.flatten(0, 1)).unflatten(0, (20, 32)), real, basis)
    assert same["pseudobulk"].max() < 1e-8


def test_gradients_are_finite_for_constant_cells_and_constant_genes():
    basis = PcaBasis.fit(np.full((20, GENES), 0.5), None, seed=0)
    decoder = Decoder(GENES, GENES, width=16)
    decoder.apply(init_weights)
    constant = torch.full((2, 8, GENES), 0.5)
    losses = of_sets(decoder, torch.zeros(2, 8, GENES), constant, basis)
    (losses["mmd"] + losses["pseudobulk"]).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_float32_under_autocast():
    basis, decoder = fitted()
    nn.init.normal_(decoder.head.weight)
    latent = basis.to_latent(cells())
    plain = decoder(latent, basis)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder(latent, basis), plain)


class _Config(PretrainedConfig):
    model_type = "test_gaussian_decoder"


class _Held(PreTrainedModel):
    config_class = _Config

    def __init__(self, config: _Config):
        super().__init__(config)
        self.basis = PcaBasis(GENES, K)
        self.decoder = Decoder(K, GENES, width=16)
        self.post_init()

    _init_weights = staticmethod(init_weights)


def test_it_survives_transformers(tmp_path: Path):
    model = _Held(_Config()).eval()
    assert not model.decoder.head.weight.any()
    nn.init.normal_(model.decoder.head.weight)
    model.basis.load_state_dict(fitted()[0].state_dict())
    model.save_pretrained(tmp_path)
    again = _Held.from_pretrained(tmp_path).eval()
    latent = torch.randn(5, K)
    assert torch.equal(again.decoder(latent, again.basis), model.decoder(latent, model.basis))
