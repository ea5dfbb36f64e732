"""Networks of the Gaussian diffusion head, and that they and its buffers survive transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mdsc.perturbation.denoisers import DENOISERS, Denoiser, init_weights, make_denoiser
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.ridge_shift import RidgeShift
from mdsc.perturbation.set_losses import mmd2_unbiased
from mdsc.perturbation.targets import TARGETS, network_input, noised, pointwise, regression_target, x0_of

K, C = 7, 5


def denoiser(kind: str, *, trained: bool = True, dropout: float = 0.0) -> Denoiser:
    """trained: with numbers in place of the zeros that it starts from."""
    torch.manual_seed(0)
    model = make_denoiser(kind, K, C, width=64, num_layers=2, dropout=dropout)
    model.apply(init_weights)
    if trained:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batch(num_cells: int = 12, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, condition = torch.randn(num_cells, K, generator=generator), torch.randn(num_cells, C, generator=generator)
    return x, torch.linspace(-2.5, 2.5, num_cells), condition


@pytest.mark.parametrize("kind", DENOISERS)
def test_the_start_is_0_and_learns(kind: str):
    model = denoiser(kind, trained=False)
    x, time, condition = batch()
    assert not model(x, time, condition, 4).any()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    wanted = x.flip(1) * time[:, None] + condition[:, :1]
    for _ in range(60):
        loss = (model(x, time, condition, 4) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * wanted.square().mean()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("part", ["x", "time", "condition"])
def test_each_input_is_used(kind: str, part: str):
    inputs = dict(zip(("x", "time", "condition"), batch(), strict=True))
    model = denoiser(kind)
    changed = inputs | {part: inputs[part] + 0.1}
    assert (model(**inputs, group_size=3) - model(**changed, group_size=3)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["mlp", "adaln"])
def test_a_cell_alone_equals_itself_in_a_batch(kind: str):
    model, inputs = denoiser(kind), batch()
    together = model(*inputs, 12)
    for row in range(12):
        alone = model(*(values[row : row + 1] for values in inputs), 1)
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_permuting_the_cells_of_a_set_permutes_its_output():
    model, (x, time, condition) = denoiser("set"), batch()
    out = model(x, time, condition, 4)
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7, 11, 10, 9, 8])  # within groups of 4
    assert torch.allclose(model(x[order], time[order], condition[order], 4), out[order], atol=1e-5)


def test_cells_of_a_set_see_their_group_and_no_other():
    model, (x, time, condition) = denoiser("set"), batch()
    out = model(x, time, condition, 4)
    x[5] += 1
    changed = (model(x, time, condition, 4) - out).abs().max(dim=1).values > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="12 cells are no groups of 5"):
        denoiser("adaln")(*batch(), 5)
    with pytest.raises(ValueError, match="no denoiser 'unet': there are mlp, adaln, set"):
        make_denoiser("unet", K, C)


@pytest.mark.parametrize("kind", DENOISERS)
def test_float32_under_autocast(kind: str):
    model, inputs = denoiser(kind), batch()
    plain = model(*inputs, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(*inputs, 4), plain)


@pytest.mark.parametrize("kind", DENOISERS)
def test_dropout_is_for_training(kind: str):
    model, inputs = denoiser(kind, dropout=0.5), batch()
    assert torch.equal(model(*inputs, 4), model(*inputs, 4))
    model.train()
    assert not torch.equal(model(*inputs, 4), model(*inputs, 4))


@pytest.mark.parametrize(("kind", "millions"), [("adaln", 9.1), ("set", 20)])
def test_sizes_that_the_docstring_states(kind: str, millions: float):
    with torch.device("meta"):
        model = make_denoiser(kind, 50, 164)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("target", TARGETS)
def test_all_genes_without_pca_stay_finite(target: str):
    """A third of the 5,060 genes is never seen and one is the same in all cells; steps are large and levels extreme."""
    rng = np.random.default_rng(0)
    expression = np.log1p(rng.poisson(rng.gamma(0.3, 1, 5060), (24, 5060)) * (np.arange(5060) % 3 > 0)).astype(
        np.float32
    )
    expression[:, 1] = 0.7
    basis = PcaBasis.fit(expression, None, seed=0)
    x0 = basis.to_latent(torch.tensor(expression))
    torch.manual_seed(0)
    model = make_denoiser("adaln", 5060, C, width=32, num_layers=2)
    model.apply(init_weights)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for u in (torch.linspace(0, 1, 24), *torch.rand(9, 24)):
        alpha, sigma = noise_path("flow").levels(u)
        noise = torch.randn(24, 5060)
        xt = noised(x0, noise, alpha, sigma)
        output = model(*network_input(xt, alpha, sigma), torch.ones(24, C), 12)
        of_set = mmd2_unbiased(x0_of(output, xt, alpha, sigma, target).unflatten(0, (2, 12)), x0.unflatten(0, (2, 12)))
        loss = pointwise(output, regression_target(x0, noise, alpha, sigma, target)).mean() + of_set.mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()


class _Config(PretrainedConfig):
    model_type = "test_gaussian_parts"

    def __init__(self, kind: str = "adaln", size: int | None = K, **options):
        super().__init__(**options)
        self.kind, self.size = kind, size


class _Parts(PreTrainedModel):
    """All that a head would hold."""

    config_class = _Config

    def __init__(self, config: _Config):
        super().__init__(config)
        self.basis = PcaBasis(20, config.size)
        self.shift = RidgeShift(C, self.basis.latent_size)
        self.denoiser = make_denoiser(config.kind, self.basis.latent_size, C, width=32, num_layers=2)
        self.post_init()

    _init_weights = staticmethod(init_weights)


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("size", [K, None])
def test_modules_survive_transformers(kind: str, size: int | None, tmp_path: Path):
    """from_pretrained builds on the meta device, fills in what the file holds and initialises the rest."""
    torch.manual_seed(0)
    model = _Parts(_Config(kind, size)).eval()
    assert not model.denoiser.head.weight.any()
    model.init_weights()
    assert not model.denoiser.head.weight.any(), "the second start is as the first"
    rng = np.random.default_rng(0)
    expression = np.abs(rng.standard_normal((50, 20)))
    model.basis.load_state_dict(PcaBasis.fit(expression, size, seed=0).state_dict())
    k = model.basis.latent_size
    model.shift.load_state_dict(RidgeShift.fit(rng.standard_normal((9, C)), rng.standard_normal((9, k))).state_dict())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path)
    again = _Parts.from_pretrained(tmp_path).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    x = torch.tensor(expression[:6], dtype=torch.float32)
    vectors = torch.tensor(rng.standard_normal((6, C)), dtype=torch.float32)
    for one in (model, again):
        latent = one.basis.to_latent(x) + one.shift(vectors)
        one.out = one.basis.to_genes(one.denoiser(latent, torch.zeros(6), vectors, 3))
    assert torch.equal(model.out, again.out)


def test_what_a_file_lacks_starts_as_new(tmp_path: Path):
    """Not from memory that was never written, as buffers on the meta device would."""
    model = _Parts(_Config())
    held = {name: value for name, value in model.state_dict().items() if name.startswith("denoiser")}
    model.save_pretrained(tmp_path, state_dict=held)
    again = _Parts.from_pretrained(tmp_path)
    assert torch.equal(again.basis.scale, torch.ones(K))
    assert not again.basis.components.any()
    assert not again.basis.mean.any()
    assert not again.shift.weight.any()
    assert not again.shift.bias.any()
