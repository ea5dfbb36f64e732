"""`mdsc likelihood`, from files to files: what is scored, what is written, and that no other gene matters."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from simulated_shards import simulated_counts
from tiny_checkpoint import DRUGS, save_tiny_checkpoint, tiny_checkpoint

from mdsc import likelihood_anndata
from mdsc.cli import main
from mdsc.errors import UserError
from mdsc.sampling import anndata_likelihood

NUM_GENES = 16
GENES = [f"G{number}" for number in range(NUM_GENES)]
IDS = [f"ENSG{number:011d}" for number in range(NUM_GENES)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("runs") / "a", GENES, IDS, tokenizer="count")


@pytest.fixture
def adata() -> AnnData:
    obs = pd.DataFrame({"drug": [*DRUGS, "unheard of"] * 2, "batch": 1.5}, index=[f"cell {i}" for i in range(8)])
    var = pd.DataFrame({"length": 7}, index=GENES)
    return AnnData(simulated_counts(8, NUM_GENES, seed=0, mean=3.0), obs=obs, var=var)


def score(checkpoint: Path, folder: Path, adata: AnnData, *flags: str, name: str = "scored.h5ad") -> Path:
    source = folder / "cells.h5ad"
    adata.write_h5ad(source)
    paths = ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(folder / name)]
    assert main(["likelihood", *paths, "--num-samples", "4", *flags]) == 0
    assert not [path for path in folder.iterdir() if "partial" in path.name]
    return folder / name


def test_the_file_is_a_copy_with_two_columns_more(checkpoint, adata, tmp_path, capsys):
    scored = anndata.read_h5ad(score(checkpoint, tmp_path, adata))
    assert list(scored.obs) == ["drug", "batch", "mdsc_nll", "mdsc_nll_se"]
    assert (scored.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(scored.var, adata.var)
    pd.testing.assert_frame_equal(scored.obs[["drug", "batch"]].astype(str), adata.obs.astype(str))
    assert (scored.obs["mdsc_nll"] > 0).all()
    assert (scored.obs["mdsc_nll_se"] > 0).all()
    settings = scored.uns["mdsc_likelihood"]
    assert settings["of"].startswith("counts: -log p(token) - log p(count | token)")
    assert (settings["num_target_genes"], settings["num_given_genes"]) == (16, 0)
    printed = capsys.readouterr().out
    assert f"-log p = {scored.obs['mdsc_nll'].mean():.4f}" in printed
    assert "nats per gene" in printed
    assert "of counts" in printed
    # Once more, into itself as it were: columns are replaced, and not there twice.
    (tmp_path / "again").mkdir()
    again = anndata.read_h5ad(score(checkpoint, tmp_path / "again", scored))
    pd.testing.assert_frame_equal(again.obs, scored.obs)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_has_the_columns_alone(checkpoint, adata, tmp_path, suffix):
    path = score(checkpoint, tmp_path, adata, name=f"scores{suffix}")
    table = pd.read_csv(path, index_col=0) if suffix == ".csv" else pd.read_parquet(path)
    scored = likelihood_anndata(checkpoint, adata, num_samples=4)
    assert list(table.index) == list(adata.obs_names)
    np.testing.assert_allclose(table["mdsc_nll"], scored.obs["mdsc_nll"], rtol=1e-6)
    np.testing.assert_allclose(table["mdsc_nll_se"], scored.obs["mdsc_nll_se"], rtol=1e-4)


def test_only_the_given_genes_matter(checkpoint, adata, tmp_path):
    """Counts of genes that are in neither list change nothing, and neither does the order of the genes."""
    (tmp_path / "given.txt").write_text("G3\n\nG4 \nG5\n")
    flags = ("--target-genes", "G0", "G1", "G9", "--given-genes", str(tmp_path / "given.txt"), "--information")
    scored = anndata.read_h5ad(score(checkpoint, tmp_path, adata, *flags)).obs
    other = adata.copy()
    other.X = other.X.toarray()
    others = [gene for gene in range(NUM_GENES) if gene not in (0, 1, 9, 3, 4, 5)]
    other.X[:, others] = 50
    turned = anndata.read_h5ad(score(checkpoint, tmp_path, other[:, ::-1].copy(), *flags)).obs
    columns = ["mdsc_nll", "mdsc_nll_se", "mdsc_information", "mdsc_information_se"]
    np.testing.assert_allclose(turned[columns], scored[columns], rtol=1e-4, atol=1e-6)
    other.X[:, 4] += 9
    changed = likelihood_anndata(checkpoint, other, target_genes=["G0", "G1", "G9"], given_genes=["G3", "G4", "G5"])
    assert (abs(changed.obs["mdsc_nll"] - scored["mdsc_nll"]) > 1e-3).any()


def test_information_is_the_difference_of_two_likelihoods(checkpoint, adata):
    both = {"target_genes": ["G0", "G7", "G8"], "num_samples": 8}
    scored = likelihood_anndata(checkpoint, adata, given_genes=["G2"], information=True, **both).obs
    alone = likelihood_anndata(checkpoint, adata, **both).obs
    np.testing.assert_allclose(scored["mdsc_information"], alone["mdsc_nll"] - scored["mdsc_nll"], rtol=1e-4, atol=1e-6)
    assert (scored["mdsc_information"].abs() > 1e-3).all()


def test_the_chain_of_one_gene_is_its_loss(checkpoint, adata):
    """One target: the model's own -log p(count | G2), by hand."""
    loaded = tiny_checkpoint(GENES, IDS, tokenizer="count")
    scored = likelihood_anndata(
        checkpoint, adata, target_genes=["G5"], given_genes=["G2"], estimator="chain", num_samples=2
    ).obs
    counts = torch.from_numpy(adata.X.toarray()[:, [2, 5]].astype(np.int32, order="C"))
    tokenizer = loaded.tokenizer
    tokens = tokenizer.encode_visible(counts, torch.tensor([True, False]).expand(8, 2))
    drug = torch.tensor([1, 2, 3, 0] * 2)
    with torch.no_grad():
        logits = loaded.model(
            torch.tensor([[2, 5]] * 8), tokens, counts * torch.tensor([1, 0]), None, {"drug": drug}
        ).logits
    target = tokenizer.encode_visible(counts, torch.ones(8, 2, dtype=torch.bool))[:, 1]
    nll = -logits[:, 1].log_softmax(-1).gather(1, target[:, None])[:, 0]
    nll = nll + tokenizer.log_count_given_token(counts)[:, 1]
    np.testing.assert_allclose(scored["mdsc_nll"], nll.numpy(), rtol=1e-5)
    assert (scored["mdsc_nll_se"] < 1e-6).all()
    by_bound = likelihood_anndata(checkpoint, adata, target_genes=["G5"], given_genes=["G2"], num_samples=2).obs
    np.testing.assert_allclose(by_bound["mdsc_nll"], nll.numpy(), rtol=1e-5)
    assert by_bound["mdsc_nll_se"].isna().all()


def test_many_cells_pass_a_few_at_a_time(checkpoint, adata, monkeypatch):
    """Whatever the chunks of the file and of the model, a cell scores the same."""
    whole = likelihood_anndata(checkpoint, adata, num_samples=4).obs
    monkeypatch.setattr("mdsc.sampling.anndata_cells.CHUNK_ROWS", 3)
    sizes = []
    original = anndata_likelihood.nelbo
    monkeypatch.setattr(
        anndata_likelihood, "nelbo", lambda *args, **options: sizes.append(len(args[2])) or original(*args, **options)
    )
    parts = likelihood_anndata(checkpoint, adata, num_samples=4, batch_size=2).obs
    assert max(sizes) == 2
    assert sum(sizes) == 8
    np.testing.assert_allclose(parts["mdsc_nll"], whole["mdsc_nll"], rtol=1e-5)


def test_tokens_that_are_no_counts_are_said_to_be_none(adata, capsys):
    scored = likelihood_anndata(tiny_checkpoint(GENES), adata, num_samples=4, say=print)
    assert "not comparable" in scored.uns["mdsc_likelihood"]["of"]
    assert "of tokens" in capsys.readouterr().out
    assert "mdsc_nll" not in adata.obs
    with pytest.raises(UserError, match=r"--information .* depend on which genes are there"):
        likelihood_anndata(tiny_checkpoint(GENES), adata, given_genes=["G1"], information=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_genes": ["G1", "GG2"]}, r"--target-genes: the model does not know GG2; perhaps you meant G2"),
        ({"target_genes": ["G1"], "given_genes": ["ENSG00000000001"]}, "both name G1"),
        ({"given_genes": GENES}, "none is left to score"),
        ({"num_samples": 5}, "--num-samples is 5; it takes an even number"),
        ({"num_samples": 0, "estimator": "chain"}, "--num-samples is 0"),
        ({"information": True}, "--information is what the given genes tell"),
        ({"condition": {"drug": "Imatinip"}}, "perhaps you meant Imatinib"),
    ],
)
def test_mistakes_are_told(checkpoint, adata, options, message):
    with pytest.raises(UserError, match=message):
        likelihood_anndata(checkpoint, adata, **options)


def test_mistakes_of_files_are_told_before_anything_is_read(checkpoint, adata, tmp_path, capsys):
    source = tmp_path / "cells.h5ad"
    adata[:, :10].copy().write_h5ad(source)
    for flags, message in (
        (["--output", "scores.txt"], "ends in none of .h5ad, .csv, .parquet"),
        (["--output", str(source)], "is the input itself"),
        (["--output", str(tmp_path / "o.h5ad"), "--target-genes", "no/such.txt"], "there is no file no/such.txt"),
        (["--output", str(tmp_path / "o.h5ad"), "--target-genes", "G12"], "has no gene G12"),
    ):
        assert main(["likelihood", "--checkpoint", str(checkpoint), "--input", str(source), *flags]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
