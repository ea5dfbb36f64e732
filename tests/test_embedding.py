"""`mdsc embed`: vectors of cells and genes, what they are made of, and what they do not depend on."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from simulated_shards import simulated_counts
from tiny_checkpoint import DRUGS, save_tiny_checkpoint, tiny_checkpoint

from mdsc import MdscEmbedder, embed_anndata, gene_embeddings
from mdsc.checkpoint import Checkpoint
from mdsc.cli import main
from mdsc.errors import UserError
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel

NUM_GENES = 30
GENES = [f"G{number}" for number in range(NUM_GENES)]
LAYERS = ["factors", "state", "last", "0", "1"]


def with_factors(checkpoint: Checkpoint, **config) -> Checkpoint:
    """The factor model's tables are buffers, which `tiny_checkpoint` leaves at zero."""
    model = checkpoint.model
    if config:
        torch.manual_seed(1)
        settings = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "state_size": 4, **config}
        model = MdscModel(MdscConfig(num_genes=NUM_GENES, num_tokens=12, **settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    if model.config.factor_size:
        torch.manual_seed(2)
        model.gene_evidence.loadings.normal_()
        model.gene_evidence.precision.uniform_(0.5, 3)
        model.gene_evidence.gene_mean.uniform_(0, 1)
    model.cell_state.mean_count.uniform_(0.5, 4)
    return Checkpoint(model, checkpoint.tokenizer, checkpoint.vocabulary, checkpoint.statistics, None)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return with_factors(tiny_checkpoint(GENES))


@pytest.fixture
def adata() -> AnnData:
    obs = pd.DataFrame({"drug": (DRUGS * 3)[:7]}, index=[f"cell {i}" for i in range(7)])
    return AnnData(simulated_counts(7, NUM_GENES, seed=1, mean=3.0), obs=obs, var=pd.DataFrame(index=GENES))


def embedding(checkpoint: Checkpoint, adata: AnnData, layer: str | None = None, **options) -> np.ndarray:
    return embed_anndata(checkpoint, adata, layer=layer, **options).obsm["X_mdsc"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_cell_is_embedded_alone_and_in_any_order_of_genes(checkpoint, adata, layer):
    whole = embedding(checkpoint, adata, layer)
    assert whole.dtype == np.float32
    assert whole.std(axis=0).min() > 1e-3
    np.testing.assert_allclose(embedding(checkpoint, adata[3:4, ::-1].copy(), layer), whole[3:4], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(embedding(checkpoint, adata, layer, batch_size=2), whole, rtol=1e-3, atol=1e-4)
    known_alike = embedding(checkpoint, adata, layer, batch_size=3)
    labels = adata.copy()
    labels.obs["drug"] = DRUGS[0]  # the label is a condition of the model, and no part of an embedding
    np.testing.assert_array_equal(embedding(checkpoint, labels, layer, batch_size=3), known_alike)


def test_factors_are_the_posterior_in_units_of_the_noise(checkpoint, adata):
    """By hand, in float64: log1p of counts at mean depth, then (I + V'WV)^-1 V'W r; distances by V'WV."""
    evidence, state = checkpoint.model.gene_evidence, checkpoint.model.cell_state
    v, w, b = (table.double().numpy() for table in (evidence.loadings, evidence.precision, evidence.gene_mean))
    x = adata.X.toarray().astype(float)
    ratio = (x.sum(1) + state.PRIOR_DEPTH) / (state.mean_count.sum().item() + state.PRIOR_DEPTH)
    residual = np.log1p(x / ratio[:, None]) - b
    metric = v.T @ (w[:, None] * v)
    z = np.linalg.solve(np.eye(len(metric)) + metric, v.T @ (w[:, None] * residual.T)).T
    ours = embedding(checkpoint, adata, "factors").astype(float)
    for one in range(3):
        squared = (z[one] - z) @ metric * (z[one] - z)
        np.testing.assert_allclose(((ours[one] - ours) ** 2).sum(1), squared.sum(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(ours, embedding(checkpoint, adata))  # the default


@pytest.mark.parametrize("layer", ["factors", "state"])
def test_factors_of_a_deeper_cell_of_the_same_kind_are_the_same(checkpoint, adata, layer):
    cells = adata[:3].copy()
    cells.X = (cells.X * 100).astype(np.int32)
    deeper = cells.copy()
    deeper.X = (deeper.X * 3).astype(np.int32)
    one, other = embedding(checkpoint, cells, layer), embedding(checkpoint, deeper, layer)
    apart = np.linalg.norm(one[0] - one[1])
    assert np.linalg.norm(one - other, axis=1).max() < 0.01 * apart
    assert np.abs(embedding(checkpoint, cells, "last") - embedding(checkpoint, deeper, "last")).max() > 0.05


@pytest.mark.parametrize("backbone", ["dit", "latent"])
def test_hidden_states_are_those_of_the_network(adata, backbone):
    """Every state has its shape, the logits stay as they are, and what is not asked for is not there."""
    checkpoint = with_factors(tiny_checkpoint(GENES), backbone=backbone, num_latents=5, factor_size=0)
    model, counts = checkpoint.model, torch.from_numpy(adata.X.toarray()).int()
    tokens = checkpoint.tokenizer.encode_visible(counts, torch.ones_like(counts, dtype=torch.bool))
    inputs = (torch.arange(NUM_GENES).expand(7, -1), tokens, counts, None)
    with torch.no_grad():
        plain, output = model(*inputs), model(*inputs, output_hidden_states=True)
    assert plain.hidden_states is None
    assert torch.equal(plain.logits, output.logits)
    places = 5 if backbone == "latent" else NUM_GENES
    shapes = [tuple(state.shape) for state in output.hidden_states]
    assert shapes == [(7, places, 16)] * 3 + [(7, NUM_GENES, 16)] * (backbone == "latent")
    assert not torch.equal(output.hidden_states[0], output.hidden_states[1])
    # The last of them is what the head reads.
    head = []
    model.final.register_forward_pre_hook(lambda module, inputs: head.append(inputs[0]))
    with torch.no_grad():
        model(*inputs)
    assert torch.equal(head[0], output.hidden_states[-1])
    expressed = (counts > 0).float()[..., None]
    mean = (output.hidden_states[-1] * expressed).sum(1) / expressed.sum(1)
    np.testing.assert_allclose(embedding(checkpoint, adata, "last"), mean.numpy(), rtol=1e-4, atol=1e-5)
    first = output.hidden_states[0]
    mean = first.mean(1) if backbone == "latent" else (first * expressed).sum(1) / expressed.sum(1)
    np.testing.assert_allclose(embedding(checkpoint, adata, "0"), mean.numpy(), rtol=1e-4, atol=1e-5)
    assert embedding(checkpoint, adata).shape == (7, 4)  # the state, where there are no fixed factors


def test_a_model_without_layers_has_factors_and_a_state(adata):
    checkpoint = with_factors(tiny_checkpoint(GENES), num_layers=0, factor_size=3)
    assert embedding(checkpoint, adata).shape == (7, 3)
    assert embedding(checkpoint, adata, "state").shape == (7, 4)
    with pytest.raises(UserError, match="--layer: the model has no layer last; it has factors, state"):
        embedding(checkpoint, adata, "last")


def test_genes_have_vectors_too(checkpoint, adata):
    strange = adata.copy()
    strange.var_names = ["unheard of", *GENES[1:]]
    embedded = embed_anndata(checkpoint, strange)
    table = gene_embeddings(checkpoint)
    assert np.isnan(embedded.varm["X_mdsc"][0]).all()
    np.testing.assert_array_equal(embedded.varm["X_mdsc"][5], table.loc["G5"].iloc[1:].to_numpy(np.float32))
    evidence = checkpoint.model.gene_evidence
    inner = (evidence.loadings[3] * evidence.loadings[4]).sum() * (evidence.precision[3] * evidence.precision[4]).sqrt()
    assert table.loc["G3"].iloc[1:].to_numpy(float) @ table.loc["G4"].iloc[1:].to_numpy(float) == pytest.approx(
        inner.item(), rel=1e-4
    )


def test_the_adapter_gives_what_the_command_gives(checkpoint, adata):
    embedder = MdscEmbedder(checkpoint)
    dataset = embedder.process_data(adata)
    assert len(dataset) == 7
    np.testing.assert_array_equal(embedder.get_embeddings(dataset), embedding(checkpoint, adata))
    named = adata.copy()
    named.var["symbol"] = named.var_names
    named.var_names = [f"row {i}" for i in range(NUM_GENES)]
    again = embedder.get_embeddings(embedder.process_data(named, gene_names="symbol"))
    np.testing.assert_array_equal(again, embedding(checkpoint, adata))
    with pytest.raises(UserError, match="gene_names is 'name'"):
        embedder.process_data(adata, gene_names="name")


def test_the_command_streams_into_a_copy(adata, tmp_path: Path, monkeypatch):
    folder, source = save_tiny_checkpoint(tmp_path / "run", GENES), tmp_path / "cells.h5ad"
    adata.obsm["X_mdsc"] = np.zeros((7, 2))
    adata.write_h5ad(source)
    source.chmod(0o444)
    monkeypatch.setattr("mdsc.sampling.anndata_cells.CHUNK_ROWS", 3)
    output, genes = tmp_path / "out.h5ad", tmp_path / "genes.parquet"
    flags = ["--output", str(output), "--gene-embeddings", str(genes), "--batch-size", "2", "--layer", "last"]
    assert main(["embed", "--checkpoint", str(folder), "--input", str(source), *flags]) == 0
    embedded = anndata.read_h5ad(output)
    np.testing.assert_allclose(embedded.obsm["X_mdsc"], embedding(folder, adata, "last"), rtol=1e-3, atol=1e-4)
    assert embedded.varm["X_mdsc"].shape == (NUM_GENES, 16)
    assert embedded.uns["mdsc_embedding"]["layer"] == "last"
    assert (embedded.X != adata.X).nnz == 0
    assert list(pd.read_parquet(genes).index) == GENES
    assert main(["embed", "--checkpoint", str(folder), "--gene-embeddings", str(tmp_path / "genes.npz")]) == 0
    table = np.lib.npyio.NpzFile(tmp_path / "genes.npz", allow_pickle=False)
    assert table["gene_symbol"].tolist() == GENES
    assert table["embedding"].shape == (NUM_GENES, 16)


def test_mistakes_are_told(adata, tmp_path, capsys):
    for flags, message in (
        ([], "nothing to do"),
        (["--input", "a.h5ad"], "--input and --output go together"),
        (["--gene-embeddings", "a.txt"], "ends neither in .parquet nor in .npz"),
        (["--input", "a.h5ad", "--output", "b.h5ad", "--key", "a/b"], "without a slash"),
    ):
        assert main(["embed", *flags]) == 2
        assert message in capsys.readouterr().err
