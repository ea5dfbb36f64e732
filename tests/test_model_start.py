"""A new model is the gene marginal, exactly: zero gates and heads, biases from counted frequencies, an SVD beside."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_model import NUM_TOKENS, tiny_cells, tiny_config
from torch.nn import functional as F

from mdsc.config.schema import DataConfig, ModelConfig
from mdsc.data.folds import NUM_FOLDS
from mdsc.data.loader import CellLoader
from mdsc.data.shard_statistics import CellFactors, ShardStatistics, shard_statistics
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import Tokenizer, make_tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.diffusion.evidence import hide
from mdsc.model.attention import Attending
from mdsc.model.initialisation import build_model
from mdsc.model.modeling import MdscModel
from mdsc.model.zero_start import ZeroLinear
from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth

VALIDATION_FRACTION = 0.2


def zero_layers(model: MdscModel) -> Iterator[tuple[str, ZeroLinear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, ZeroLinear))


def assert_zero_where_it_must_be(model: MdscModel) -> None:
    names = {name for name, _ in zero_layers(model)}
    blocks = {f"blocks.{layer}.modulation" for layer in range(model.config.num_layers)}
    heads = {"cell_state.readout", "cell_state.depth_readout", "gene_response.leave", "gene_response.skip"}
    assert names == blocks | heads | {"final.modulation", "final.head"}
    for name, layer in zero_layers(model):
        assert all(parameter.eq(0).all() for parameter in layer.parameters()), name
    others = [module for module in model.modules() if type(module) is torch.nn.Linear]
    assert all(layer.weight.std() > 0.01 for layer in others)


def test_gates_and_heads_are_zero_in_a_new_model():
    assert_zero_where_it_must_be(MdscModel(tiny_config()))


def test_gates_and_heads_are_zero_after_loading(tmp_path: Path):
    MdscModel(tiny_config()).save_pretrained(tmp_path)
    assert_zero_where_it_must_be(MdscModel.from_pretrained(tmp_path))


def test_gates_and_heads_that_a_file_lacks_start_at_zero(tmp_path: Path):
    """transformers asks _init_weights about the modules that hold missing weights, and never about a whole block."""
    model = MdscModel(tiny_config())
    model.save_pretrained(tmp_path)
    lacking = {name for name, _ in zero_layers(model)}
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if name.rpartition(".")[0] not in lacking}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, found = MdscModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(found["missing_keys"]) == weights.keys() - kept.keys()
    assert_zero_where_it_must_be(loaded)


def test_a_new_block_is_the_identity():
    model, x = MdscModel(tiny_config()), torch.randn(2, 5, 16)
    assert all(torch.equal(block(x, torch.randn(2, 16), Attending("eager", None)), x) for block in model.blocks)


@dataclass(frozen=True)
class Simulated:
    folder: ShardFolder
    tokenizer: Tokenizer
    statistics: ShardStatistics

    def model(self, *, seed: int = 0, with_drugs: bool = True, **changes) -> MdscModel:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "state_size": 8}
        levels = {"drug": ("control", "drug1")} if with_drugs else None
        return build_model(ModelConfig(**(sizes | changes)), self.tokenizer, self.statistics, levels)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Simulated:
    """Cells of five types, which four gene programs tell apart."""
    config = SimulationConfig(
        num_cells=1200,
        num_genes=60,
        num_types=5,
        num_drugs=1,
        genes_per_drug=0,
        median_depth=120.0,
        heldout_fraction=0.0,
    )
    folder = simulate_shards(Truth.of(config), tmp_path_factory.mktemp("simulated") / "shards")
    tokenizer = make_tokenizer("count", 16)
    statistics = shard_statistics(folder, tokenizer, rank=16, validation_fraction=VALIDATION_FRACTION)
    return Simulated(folder, tokenizer.with_values(statistics.token_mean_count), statistics)


def test_the_output_bias_is_the_log_of_shrunk_frequencies(simulated: Simulated):
    counted = simulated.statistics.token_frequency
    highest = max(token for token in range(16) if counted[:, token].any())
    assert highest < 14  # some tokens are in no training cell
    law = [sum(counted[:, token]) + 0.5 * 0.25 ** max(token - highest, 0) for token in range(16)]
    found = simulated.model().output_bias.weight
    for gene in range(60):
        shrunk = [counted[gene, token] + law[token] / sum(law) for token in range(16)]
        expected = [math.log(one / sum(shrunk)) for one in shrunk]
        np.testing.assert_allclose(found[gene].detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_layers", [pytest.param(0, id="pooled"), pytest.param(1, id="dit")])
@pytest.mark.parametrize("gene_init", ["svd", "random"])
def test_step_0_is_the_gene_marginal_whatever_is_visible(simulated: Simulated, gene_init: str, num_layers: int):
    model = simulated.model(gene_init=gene_init, num_layers=num_layers)
    cells = tiny_cells()
    cells["tokens"][cells["tokens"] == NUM_TOKENS] = model.config.mask_token
    logits = model(**cells, categories={"drug": torch.tensor([0, 1, 2])}).logits
    assert torch.equal(logits, model.output_bias(cells["gene_ids"]))


def test_the_factor_model_starts_from_the_cells(simulated: Simulated):
    """Loadings scaled by their prior deviations are the singular vectors; with noise they give the variances."""
    factors, state = simulated.statistics.factors, simulated.model().cell_state
    deviation = (-0.5 * state.log_prior).exp()
    loadings = (state.gene_in.weight * deviation).detach().numpy()
    np.testing.assert_allclose(loadings, factors.gene_vectors[:, :8], rtol=1e-4, atol=1e-5)
    variance = np.square(loadings).sum(axis=1) + np.exp(-state.log_precision.detach().numpy())
    np.testing.assert_allclose(variance, np.square(factors.gene_sd), atol=0.03)
    np.testing.assert_allclose(state.gene_value.detach(), factors.gene_mean, rtol=1e-5)
    np.testing.assert_allclose(state.mean_count, simulated.statistics.mean_count, rtol=1e-5)


def test_the_tables_of_genes_start_along_the_directions_of_the_cells(simulated: Simulated):
    """Each at the size that its reader expects: factors of unit mean square, read-out and embedding of about a half."""
    model, loadings = simulated.model(state_size=8, hidden_size=256), simulated.statistics.factors.gene_vectors[:, :8]
    gene_in, gene_out = (
        table.weight.detach().numpy() for table in (model.cell_state.gene_in, model.cell_state.gene_out)
    )
    np.testing.assert_allclose(np.square(gene_in).mean(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(gene_out, 0.5 * loadings / loadings.std(), rtol=1e-4, atol=1e-5)
    embedding = model.gene_embedding.weight.detach().numpy()
    assert np.corrcoef((embedding @ embedding.T).ravel(), (gene_in @ gene_in.T).ravel())[0, 1] > 0.9
    assert 0.15 < np.square(embedding).mean() < 0.45


def narrowed(statistics: ShardStatistics, directions: int) -> ShardStatistics:
    """As of cells that differ in these directions alone; the variances keep a little that is in none of them."""

    def narrow(factors: CellFactors) -> CellFactors:
        vectors = factors.gene_vectors * (np.arange(factors.gene_vectors.shape[1]) < directions)
        return replace(factors, gene_vectors=vectors, gene_sd=np.sqrt(np.square(vectors).sum(axis=1) + 1e-6))

    without_fold = tuple(map(narrow, statistics.without_fold))
    return replace(statistics, factors=narrow(statistics.factors), without_fold=without_fold)


@pytest.mark.parametrize("directions", [0, 3])
def test_cells_of_few_directions_leave_the_other_factors_unused(simulated: Simulated, directions: int):
    model = replace(simulated, statistics=narrowed(simulated.statistics, directions)).model(factor_size=8)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    tables = (model.gene_evidence.loadings, *model.gene_evidence.fold_loadings)
    for table in tables:
        assert (table[:, directions:] == 0).all()
        assert (table[:, :directions] != 0).any(dim=0).all()
    assert model.cell_state.gene_out.weight[:, directions:].std() < 0.1
    prior = model.cell_state.log_prior
    assert (prior[directions:] == prior[directions - 1]).all()


def test_as_many_factors_as_genes_leave_no_noise_but_the_least(simulated: Simulated):
    statistics = shard_statistics(
        simulated.folder, simulated.tokenizer, rank=60, validation_fraction=VALIDATION_FRACTION, cross_fit=False
    )
    evidence = replace(simulated, statistics=statistics).model(factor_size=60).gene_evidence
    np.testing.assert_allclose(evidence.loadings, statistics.factors.gene_vectors, atol=1e-5)
    np.testing.assert_allclose(evidence.precision, 1 / 0.02, rtol=1e-4)


def test_genes_of_one_level_are_all_at_level_0(simulated: Simulated):
    statistics = replace(simulated.statistics, mean_count=np.full(60, 0.5))
    model = build_model(ModelConfig(hidden_size=16), simulated.tokenizer, statistics)
    assert (model.gene_evidence.gene_level.abs() < 1e-6).all()


def test_the_evidence_is_probabilistic_pca_of_the_cells(simulated: Simulated):
    """Against the closed form of Tipping & Bishop: the variance beyond the directions that are kept is noise."""
    evidence = simulated.model(factor_size=4, with_drugs=False).gene_evidence
    tables = [(evidence.gene_mean, evidence.loadings, evidence.precision)]
    tables += list(zip(evidence.fold_gene_mean, evidence.fold_loadings, evidence.fold_precision, strict=True))
    statistics = simulated.statistics
    fits = [statistics.factors, *statistics.without_fold]
    assert len(fits) == len(tables) == 1 + NUM_FOLDS
    for factors, (gene_mean, loadings, precision) in zip(fits, tables, strict=True):
        variance = np.square(factors.gene_vectors).sum(axis=0)
        noise = (np.square(factors.gene_sd).sum() - variance[:4].sum()) / (60 - 4)
        expected = factors.gene_vectors[:, :4] * np.sqrt(1 - noise / variance[:4])
        np.testing.assert_allclose(loadings, expected, rtol=1e-4, atol=1e-6)
        own = np.maximum(np.square(factors.gene_sd) - np.square(expected).sum(axis=1), 0.02)
        np.testing.assert_allclose(precision, 1 / own, rtol=1e-4)
        np.testing.assert_allclose(gene_mean, factors.gene_mean, rtol=1e-5)
    level = np.log(statistics.mean_count + 1e-3)
    np.testing.assert_allclose(evidence.gene_level, (level - level.mean()) / level.std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(evidence.gene_sd, statistics.factors.gene_sd + 0.05, rtol=1e-5)


def test_with_conditions_the_factors_of_all_folds_are_the_same_ones(simulated: Simulated):
    """Turned towards those of all cells as near as a rotation can, which leaves the law of the genes as it was."""
    plain, aligned = (simulated.model(factor_size=8, with_drugs=drugs).gene_evidence for drugs in (False, True))
    assert torch.equal(plain.loadings, aligned.loadings)
    assert torch.equal(plain.fold_precision, aligned.fold_precision)
    of_all = aligned.loadings
    for before, fold in zip(plain.fold_loadings, aligned.fold_loadings, strict=True):
        torch.testing.assert_close(fold @ fold.T, before @ before.T, rtol=1e-3, atol=1e-5)
        overlap = fold.T @ of_all  # symmetric with no negative values where no rotation brings them nearer
        torch.testing.assert_close(overlap, overlap.T, rtol=1e-3, atol=1e-4)
        assert torch.linalg.eigvalsh(overlap).min() > -1e-4
        assert (fold - of_all).norm() < 0.9 * (before - of_all).norm()


def test_the_config_holds_what_the_data_tells(simulated: Simulated):
    config = simulated.model().config
    assert (config.num_genes, config.num_tokens) == (60, 16)
    assert config.condition_levels == {"drug": ["control", "drug1"]}


def test_the_start_is_drawn_from_the_global_seed(simulated: Simulated):
    one, same, other = (simulated.model(seed=seed).gene_embedding.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def hidden_nll(model: MdscModel, cells, tokenizer: Tokenizer, hidden: torch.Tensor) -> torch.Tensor:
    """Nats per hidden gene."""
    logits = hide(cells, hidden).predict(lambda *arguments: model(*arguments[:4]).logits, tokenizer)
    return F.cross_entropy(logits[hidden], cells.tokens[hidden])


def test_the_svd_start_learns_what_cells_share_sooner(simulated: Simulated):
    settings = DataConfig(num_genes=60, num_lanes=4, validation_fraction=VALIDATION_FRACTION, prefetch=0)
    found = {}
    for gene_init in ("svd", "random"):
        model = simulated.model(gene_init=gene_init, num_layers=0, factor_size=0)
        loader = CellLoader(simulated.folder, simulated.tokenizer, settings, seed=0, global_batch_size=32)
        validation = loader.validation_batch(200)
        half = hide_fraction(validation.is_pad, 0.5, seed=0, cell_index=validation.cell_index)
        before = hidden_nll(model, validation, simulated.tokenizer, half).item()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step, cells in zip(range(30), loader.iterate(), strict=False):
            hidden = hide_fraction(cells.is_pad, 0.5, seed=step + 1, cell_index=cells.cell_index)
            optimizer.zero_grad()
            hidden_nll(model, cells, simulated.tokenizer, hidden).backward()
            optimizer.step()
        found[gene_init] = before - hidden_nll(model, validation, simulated.tokenizer, half).item()
    assert found["svd"] > found["random"] + 0.02
