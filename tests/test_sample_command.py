"""`sample.py`, from files to files: what is written, what is kept, and that no hidden count matters."""

import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from shared_data import ROOT, shared_file
from simulated_shards import simulated_counts, write_shards
from tiny_checkpoint import DRUGS, save_tiny_checkpoint

from mdsc.cli import main
from mdsc.data.genes import GeneVocabulary
from mdsc.data.shard_writer import ShardWriter
from mdsc.diffusion.corruption import hide_fraction

NUM_GENES = 40
GENES = [f"G{number}" for number in range(NUM_GENES)]
IDS = [f"ENSG{number:011d}" for number in range(NUM_GENES)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("runs") / "a", GENES, IDS)


def cells(num_cells: int = 9, num_genes: int = NUM_GENES, *, seed: int = 0) -> AnnData:
    counts = simulated_counts(num_cells, num_genes, seed=seed, mean=2.0)
    obs = pd.DataFrame({"drug": [*DRUGS, "unheard of"][:4] * 5}, index=[f"cell {i}" for i in range(20)])[:num_cells]
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(num_genes)]))


def sample(checkpoint: Path, folder: Path, adata: AnnData, *flags: str, name: str = "filled") -> AnnData:
    """What the command makes of the cells, through files."""
    source, output = folder / f"{name}_input.h5ad", folder / f"{name}.h5ad"
    adata.write_h5ad(source)
    flags = flags or ("--mask-ratio", "0.8")
    steps = () if "--num-steps" in flags else ("--num-steps", "4")
    paths = ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(output)]
    assert main(["sample", *paths, *steps, *flags]) == 0
    assert not [path for path in folder.iterdir() if "partial" in path.name]
    return anndata.read_h5ad(output)


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def layers(adata: AnnData) -> dict[str, np.ndarray]:
    return {name: dense(adata.layers[f"mdsc_{name}"]) for name in ("sampled", "mean", "hidden")}


def same_bits(one, other) -> bool:
    if not sp.issparse(one):
        return type(one) is type(other) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    parts = ("data", "indices", "indptr")
    return type(one) is type(other) and all(
        getattr(one, part).dtype == getattr(other, part).dtype
        and np.array_equal(getattr(one, part), getattr(other, part))
        for part in parts
    )


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_matrix.toarray], ids=["csr", "csc", "dense"])
def test_what_is_written(checkpoint: Path, tmp_path: Path, form, dtype):
    adata = cells()
    adata.X = form(adata.X.astype(dtype))
    adata.obs["batch"] = pd.Categorical(["x", "y", "x"] * 3)
    adata.obs["note"] = np.array(["free text"] * 9, dtype=object)
    adata.var["length"] = np.arange(NUM_GENES) * 1.5
    adata.obsm["X_pca"] = np.ones((9, 2))
    adata.layers["log"] = np.log1p(dense(adata.X).astype(float))
    adata.uns["experiment"] = "one"
    before = adata.copy()
    filled = sample(checkpoint, tmp_path, adata, "--mask-ratio", "0.8", "--seed", "3")
    source = anndata.read_h5ad(tmp_path / "filled_input.h5ad")

    assert same_bits(filled.X, source.X)
    assert same_bits(filled.X, before.X)
    assert same_bits(filled.layers["log"], source.layers["log"])
    pd.testing.assert_frame_equal(filled.obs, source.obs)
    pd.testing.assert_frame_equal(filled.var.drop(columns="mdsc_modelled"), source.var)
    assert filled.uns["experiment"] == "one"
    assert np.array_equal(filled.obsm["X_pca"], source.obsm["X_pca"])

    assert isinstance(filled.layers["mdsc_sampled"], sp.csr_matrix)
    assert filled.layers["mdsc_sampled"].dtype == np.int32
    assert isinstance(filled.layers["mdsc_hidden"], sp.csr_matrix)
    assert filled.layers["mdsc_hidden"].dtype == bool
    assert filled.layers["mdsc_mean"].dtype == np.float32
    sampled, mean, hidden = layers(filled).values()
    counts = dense(before.X)
    assert (hidden.sum(axis=1) == 32).all()
    assert np.array_equal(sampled[~hidden], counts[~hidden])
    assert np.array_equal(mean[~hidden], counts[~hidden])
    assert (sampled >= 0).all()
    assert (sampled[hidden] != counts[hidden]).any()
    assert (mean[hidden] > 0).all()
    assert filled.var["mdsc_modelled"].all()

    about = filled.uns["mdsc"]
    assert (about["task"], about["mask_ratio"], about["seed"], about["num_steps"]) == ("inpaint", 0.8, 3, 4)
    assert about["checkpoint"] == str(checkpoint)
    assert about["tokenizer"] == {"name": "rank", "num_tokens": 12}
    assert list(about["conditions_from_obs"]) == ["drug"]


def test_the_hidden_genes_are_the_keyed_ones(checkpoint: Path, tmp_path: Path):
    """The design's `hide_fraction`, over the genes in the order of the vocabulary."""
    import torch

    hidden = layers(sample(checkpoint, tmp_path, cells(), "--mask-ratio", "0.55", "--seed", "4"))["hidden"]
    no_pads = torch.zeros(9, NUM_GENES, dtype=torch.bool)
    assert np.array_equal(hidden, hide_fraction(no_pads, 0.55, seed=4, cell_index=torch.arange(9)).numpy())


@pytest.mark.parametrize("tokenizer", ["rank", "quantile", "count"])
def test_hidden_counts_never_matter(tmp_path: Path, tokenizer: str):
    """New counts where they are hidden, and genes that the model does not know: the same file but for these."""
    checkpoint = save_tiny_checkpoint(tmp_path / "run", GENES, tokenizer=tokenizer)
    adata = cells(num_genes=NUM_GENES + 3)
    first = sample(checkpoint, tmp_path, adata, name="first")
    hidden = layers(first)["hidden"].copy()
    assert not hidden[:, NUM_GENES:].any()
    hidden[:, NUM_GENES:] = True
    changed = dense(adata.X).copy()
    changed[hidden] = np.random.default_rng(0).permutation(changed[hidden]) * 50 + 7
    other = sample(checkpoint, tmp_path, AnnData(sp.csr_matrix(changed), adata.obs, adata.var), name="other")

    known = np.arange(NUM_GENES)
    assert not same_bits(first.X, other.X)
    for name, values in layers(first).items():
        assert np.array_equal(values[:, known], layers(other)[name][:, known]), name


def test_a_visible_count_matters(checkpoint: Path, tmp_path: Path):
    """The same for one visible count: else the test above would pass for a model that looks at nothing."""
    adata = cells()
    first = sample(checkpoint, tmp_path, adata, name="first")
    hidden = layers(first)["hidden"]
    changed = dense(adata.X).copy()
    gene = np.flatnonzero(~hidden[0])[0]
    changed[0, gene] += 5
    other = sample(checkpoint, tmp_path, AnnData(sp.csr_matrix(changed), adata.obs, adata.var), name="other")
    here, there = layers(first)["mean"], layers(other)["mean"]
    assert (here[0, hidden[0]] != there[0, hidden[0]]).all()
    assert np.array_equal(here[1:], there[1:])


def test_genes_may_stand_in_any_order_among_unknown_ones(checkpoint: Path, tmp_path: Path, capsys):
    adata = cells(num_genes=NUM_GENES + 5)
    order = np.random.default_rng(0).permutation(NUM_GENES + 5)
    first = sample(checkpoint, tmp_path, adata[:, :NUM_GENES].copy(), name="first")
    other = sample(checkpoint, tmp_path, adata[:, order].copy(), name="other")
    assert "5 are unknown to the model" in capsys.readouterr().out
    back = np.argsort(order)
    for name, values in layers(other).items():
        assert np.array_equal(values[:, back][:, :NUM_GENES], layers(first)[name]), name
    assert np.array_equal(other.var["mdsc_modelled"], order < NUM_GENES)
    unknown = ~other.var["mdsc_modelled"].to_numpy()
    counts = dense(other.X)[:, unknown]
    assert counts.any()
    assert np.array_equal(layers(other)["sampled"][:, unknown], counts)
    assert np.array_equal(layers(other)["mean"][:, unknown], counts)
    assert not layers(other)["hidden"][:, unknown].any()
    assert other.uns["mdsc"]["genes_not_modelled"] == 5


def test_genes_may_be_named_by_ensembl_id(checkpoint: Path, tmp_path: Path):
    adata = cells()
    first = sample(checkpoint, tmp_path, adata, name="first")
    adata.var_names = [f"{name}.7" for name in IDS]
    other = sample(checkpoint, tmp_path, adata, name="other")
    assert np.array_equal(layers(first)["sampled"], layers(other)["sampled"])


def test_seeds(checkpoint: Path, tmp_path: Path):
    once, again, other = (
        layers(sample(checkpoint, tmp_path, cells(), "--mask-ratio", "0.5", "--seed", seed, name=f"{number}"))
        for number, seed in enumerate(("1", "1", "2"))
    )
    for name in once:
        assert np.array_equal(once[name], again[name])
        assert not np.array_equal(once[name], other[name])


def test_cells_do_not_depend_on_those_beside_them(checkpoint: Path, tmp_path: Path):
    adata = cells(20)
    whole = layers(sample(checkpoint, tmp_path, adata, name="whole"))
    ratio = ("--mask-ratio", "0.8")
    for name, part, size in (("apart", adata, "1"), ("by 3", adata, "3"), ("first 7", adata[:7].copy(), "20")):
        other = layers(sample(checkpoint, tmp_path, part, *ratio, "--batch-size", size, name=name))
        assert np.array_equal(other["hidden"], whole["hidden"][: len(other["hidden"])])
        assert np.array_equal(other["sampled"], whole["sampled"][: len(other["hidden"])])
        np.testing.assert_allclose(other["mean"], whole["mean"][: len(other["hidden"])], rtol=1e-4)


def test_zeros_can_be_imputed(checkpoint: Path, tmp_path: Path):
    adata = cells()
    filled = sample(checkpoint, tmp_path, adata, "--mask-ratio", "0", "--impute-zeros")
    sampled, mean, hidden = layers(filled).values()
    counts = dense(adata.X)
    assert np.array_equal(hidden, counts == 0)
    assert np.array_equal(sampled[counts > 0], counts[counts > 0])
    assert (mean[counts == 0] > 0).all()
    assert filled.uns["mdsc"]["task"] == "impute_zeros"


def test_everything_can_be_hidden(checkpoint: Path, tmp_path: Path):
    adata = cells()
    first = sample(checkpoint, tmp_path, adata, "--mask-ratio", "1", name="first")
    adata.X = adata.X * 0
    other = sample(checkpoint, tmp_path, adata, "--mask-ratio", "1", name="other")
    assert layers(first)["hidden"].all()
    assert np.array_equal(layers(first)["sampled"], layers(other)["sampled"])


def test_counts_in_a_layer_or_in_raw(checkpoint: Path, tmp_path: Path):
    adata = cells()
    first = layers(sample(checkpoint, tmp_path, adata, name="first"))
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = adata.X.astype(np.float32).log1p()
    ratio = ("--mask-ratio", "0.8", "--layer")
    in_layer = sample(checkpoint, tmp_path, adata, *ratio, "counts", name="layer")
    in_raw = sample(checkpoint, tmp_path, adata[:, :30].copy(), *ratio, "raw", name="raw")
    assert same_bits(in_layer.X, adata.X)
    assert same_bits(in_raw.X, adata.layers["counts"])
    assert in_layer.uns["mdsc"]["counts"] == "counts"
    for filled in (in_layer, in_raw):
        assert np.array_equal(layers(filled)["sampled"], first["sampled"])


def test_conditions_come_from_obs_unless_given(checkpoint: Path, tmp_path: Path, capsys):
    adata = cells()
    assert list(adata.obs["drug"][:4]) == [*DRUGS, "unheard of"]
    from_obs = layers(sample(checkpoint, tmp_path, adata, name="obs"))["mean"]
    told = capsys.readouterr().out
    assert "--condition drug is not given: taking obs['drug']" in told
    assert "obs['drug'] of 2 cells is unknown to the model (unheard of): they are taken as cells without drug" in told
    ratio = ("--mask-ratio", "0.8")
    given = layers(sample(checkpoint, tmp_path, adata, *ratio, "--condition", f"drug={DRUGS[1]}", name="given"))["mean"]
    adata.obs["drug"] = np.nan
    unknown = layers(sample(checkpoint, tmp_path, adata, name="unknown"))["mean"]
    same = [np.array_equal(*pair) for pair in zip(from_obs, given, strict=True)]
    assert same == (cells().obs["drug"] == DRUGS[1]).tolist()
    same = [np.array_equal(*pair) for pair in zip(from_obs, unknown, strict=True)]
    assert same == (cells().obs["drug"] == "unheard of").tolist()


def generate(checkpoint: Path, output: Path, *flags: str) -> AnnData:
    fixed = ["--checkpoint", str(checkpoint), "--output", str(output), "--num-steps", "4"]
    assert main(["sample", *fixed, *flags]) == 0
    return anndata.read_h5ad(output)


def test_generated_cells(checkpoint: Path, tmp_path: Path):
    made = generate(checkpoint, tmp_path / "new" / "made.h5ad", "--num-cells", "12", "--condition", "drug=Imatinib")
    assert made.shape == (12, NUM_GENES)
    assert isinstance(made.X, sp.csr_matrix)
    assert made.X.dtype == np.int32
    assert made.X.nnz > 0
    assert made.var_names.tolist() == GENES
    assert made.var["ensembl_id"].tolist() == IDS
    assert made.obs["drug"].tolist() == ["Imatinib"] * 12
    assert made.uns["mdsc"]["task"] == "generate"
    assert made.uns["mdsc"]["conditions"] == {"drug": "Imatinib"}
    fewer = generate(checkpoint, tmp_path / "5.h5ad", "--num-cells", "5", "--batch-size", "2", "--condition",
                     "drug=Imatinib")  # fmt: skip
    assert np.array_equal(dense(fewer.X), dense(made.X)[:5])
    free = generate(checkpoint, tmp_path / "free.h5ad", "--num-cells", "5")
    assert free.obs.shape[1] == 0
    assert not np.array_equal(dense(free.X), dense(fewer.X))
    other = generate(checkpoint, tmp_path / "other.h5ad", "--num-cells", "5", "--seed", "1")
    assert not np.array_equal(dense(free.X), dense(other.X))


def test_generated_genes_can_be_chosen(checkpoint: Path, tmp_path: Path):
    chosen = ["G7", "G3", "G30"]
    (tmp_path / "genes.txt").write_text("G7\n\nG3\nG30\n")
    (tmp_path / "other.txt").write_text("G30\nG7\nG3")
    made = generate(checkpoint, tmp_path / "a.h5ad", "--num-cells", "6", "--genes", str(tmp_path / "genes.txt"))
    assert made.var_names.tolist() == chosen
    other = generate(checkpoint, tmp_path / "b.h5ad", "--num-cells", "6", "--genes", str(tmp_path / "other.txt"))
    assert np.array_equal(dense(other[:, chosen].X), dense(made.X))


def test_without_input_the_held_out_cells_of_the_newest_run(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    counts = simulated_counts(12, NUM_GENES, mean=2.0)
    with ShardWriter("data/shards", GeneVocabulary.of(GENES), ["drug"]) as writer:
        for split, part in (("train", slice(0, 7)), ("heldout", slice(7, 12))):
            names = [f"cell {i}" for i in range(12)][part]
            writer.write(split, counts[part], {"drug": ["Imatinib"] * len(names)}, names)
    save_tiny_checkpoint(Path("runs/old"), GENES)
    os.utime("runs/old/model.safetensors", (1, 1))
    save_tiny_checkpoint(Path("runs/new"), GENES, shards=Path("data/shards"))
    assert main(["sample", "--mask-ratio", "0.8", "--num-steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "--checkpoint is not given: taking runs/new" in said
    assert "--input is not given: taking the 5 heldout cells of data/shards" in said
    assert "--output is not given: writing runs/new/filled.h5ad" in said
    filled = anndata.read_h5ad("runs/new/filled.h5ad")
    assert filled.obs_names.tolist() == [f"cell {i}" for i in range(7, 12)]
    assert np.array_equal(dense(filled.X), dense(counts[7:]))
    monkeypatch.setattr("mdsc.sampling.held_out_cells.MAX_CELLS", 2)
    assert main(["sample", "--mask-ratio", "0.8", "--num-steps", "2"]) == 0
    assert "the first 2 of the 5 heldout cells" in capsys.readouterr().out
    assert np.array_equal(dense(anndata.read_h5ad("runs/new/filled.h5ad").layers["mdsc_sampled"]),
                          dense(filled.layers["mdsc_sampled"])[:2])  # fmt: skip


def wrong(change=lambda adata: None, *flags: str, words: str, name: str):
    return pytest.param(change, flags, words, id=name)


def log_normalise(adata: AnnData) -> None:
    adata.X = adata.X.astype(np.float32).log1p()


def spoil(value: float):
    def change(adata: AnnData) -> None:
        adata.X = adata.X.astype(np.float32)
        adata.X.data[3] = value

    return change


def rename(names: list[str]):
    def change(adata: AnnData) -> None:
        adata.var_names = names

    return change


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        wrong(log_normalise, words="input.h5ad: X holds values that are no integers", name="log-normalised"),
        wrong(spoil(-1), words="input.h5ad: X holds negative values", name="negative"),
        wrong(spoil(np.nan), words="input.h5ad: X holds NaN", name="nan"),
        wrong(rename([f"{name}x" for name in GENES]), words="input.h5ad has no gene in common", name="no-common-gene"),
        wrong(rename(["G0", *GENES[:-1]]), words="input.h5ad has several columns for the same gene: G0", name="twice"),
        wrong(lambda adata: None, "--layer", "counts", words="has no layer 'counts' (--layer)", name="no-layer"),
        wrong(lambda adata: None, "--mask-ratio", "1.5", words="--mask-ratio is 1.5", name="ratio-above-1"),
        wrong(lambda adata: None, "--mask-ratio", "-0.1", words="--mask-ratio is -0.1", name="ratio-below-0"),
        wrong(lambda adata: None, "--mask-ratio", "nan", words="--mask-ratio is nan", name="ratio-nan"),
        wrong(lambda adata: None, "--mask-ratio", "0", words="--impute-zeros", name="nothing-to-hide"),
        wrong(lambda adata: None, "--mask-ratio", "0.001", words="hides none of the 40", name="too-little-to-hide"),
        wrong(lambda adata: None, "--impute-zeros", words="--mask-ratio 0, not 0.8", name="zeros-and-ratio"),
        wrong(lambda adata: None, "--num-steps", "0", words="--num-steps is 0", name="no-steps"),
        wrong(lambda adata: None, "--batch-size", "0", words="--batch-size is 0", name="no-batch"),
        wrong(lambda adata: None, "--genes-per-pass", "0", words="--genes-per-pass is 0", name="no-genes-per-pass"),
        wrong(lambda adata: None, "--max-memory", "much", words="--max-memory is 'much'", name="no-size"),
        wrong(lambda adata: None, "--max-memory", "1kB", words="--max-memory is 1kB, but one cell", name="too-small"),
        wrong(lambda adata: None, "--num-draws", "-1", words="--num-draws is -1", name="no-draws"),
        wrong(lambda adata: None, "--quantiles", "5", "95", words="--quantiles: 5 is not between", name="percent"),
        wrong(lambda adata: None, "--mean-floor", "nan", words="--mean-floor is nan", name="no-floor"),
        wrong(rename([name.lower() for name in GENES]), words="40 match but for capitals: is it another", name="mouse"),
        wrong(lambda adata: None, "--num-cells", "3", words="give one of the two", name="fill-and-generate"),
        wrong(lambda adata: None, "--genes", "genes.txt", words="--genes", name="genes-and-fill"),
        wrong(lambda adata: None, "--condition", "drug=imatinip", words="meant Imatinib", name="near-level"),
        wrong(lambda adata: None, "--condition", "Drugs=x", words="meant drug", name="near-condition"),
        wrong(lambda adata: None, "--condition", "drug", words="NAME=LEVEL", name="no-level"),
        wrong(lambda adata: None, "--condition", "drug=a", "--condition", "drug=b", words="twice", name="level-twice"),
        wrong(lambda adata: None, "--checkpoint", "empty", words="empty", name="no-checkpoint"),
        wrong(lambda adata: None, "--input", "none.h5ad", words="there is no file none.h5ad", name="no-file"),
        wrong(lambda adata: None, "--input", "text.h5ad", words="text.h5ad is no h5ad file", name="no-h5ad"),
        wrong(lambda adata: None, "--output", "filled.csv", words="--output: filled.csv", name="unknown-suffix"),
        wrong(lambda adata: None, "--output", "input.h5ad", words="is the input itself", name="onto-the-input"),
        wrong(lambda adata: None, "--output", "text.h5ad/a.h5ad", words="--output: text.h5ad/a.h5ad", name="no-folder"),
        wrong(lambda adata: None, "--output", "folder.h5ad", words="is a folder", name="onto-a-folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_a_message_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch, capsys, change, flags, words: str
):
    monkeypatch.chdir(tmp_path)
    adata = cells()
    change(adata)
    adata.write_h5ad("input.h5ad")
    Path("text.h5ad").write_text("no h5ad")
    Path("folder.h5ad").mkdir()
    Path("empty").mkdir()
    expect_mistake(checkpoint, tmp_path, capsys, ("--input", "input.h5ad", "--mask-ratio", "0.8", *flags), words)


def expect_mistake(checkpoint: Path, folder: Path, capsys, flags: tuple[str, ...], words: str) -> None:
    """The later of two equal flags counts."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["sample", "--checkpoint", str(checkpoint), "--output", "out/filled.h5ad", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") <= 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_no_cells(checkpoint: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells()[:0].copy().write_h5ad("input.h5ad")
    flags = ("--input", "input.h5ad", "--mask-ratio", "0.8")
    expect_mistake(checkpoint, tmp_path, capsys, flags, "input.h5ad has no cells")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(("--num-cells", "0"), "--num-cells is 0", id="no-cells"),
        pytest.param(("--num-cells", "3", "--condition", "drug=DMSO"), "DMSO_TF", id="near-level"),
        pytest.param(("--num-cells", "3", "--condition", "dose=1"), "it knows drug", id="unknown-condition"),
        pytest.param(("--num-cells", "3", "--genes", "none.txt"), "none.txt", id="no-gene-file"),
        pytest.param(("--num-cells", "3", "--genes", "genes.txt"), "does not know BRCA1", id="unknown-gene"),
        pytest.param(("--num-cells", "3", "--quantiles", "0.5"), "--quantiles is for filling in", id="no-quantiles"),
        pytest.param(("--num-cells", "3", "--num-draws", "2"), "--num-draws is for filling in", id="no-draws"),
        pytest.param((), "nothing to do", id="nothing-to-do"),
        pytest.param(("--mask-ratio", "0.8"), "training.yaml", id="no-shards-known"),
    ],
)
def test_wrong_flags_without_input(
    checkpoint: Path, tmp_path: Path, monkeypatch, capsys, flags: tuple[str, ...], words: str
):
    monkeypatch.chdir(tmp_path)
    Path("genes.txt").write_text("G1\nBRCA1\n")
    expect_mistake(checkpoint, tmp_path, capsys, flags, words)


def test_a_checkpoint_without_weights_is_never_sampled(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = save_tiny_checkpoint(tmp_path / "run", GENES)
    (run / "model.safetensors").unlink()
    cells().write_h5ad("input.h5ad")
    expect_mistake(run, tmp_path, capsys, ("--input", "input.h5ad", "--mask-ratio", "0.8"), "model.safetensors")


def test_shards_that_have_gone_or_hold_training_cells_alone(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = save_tiny_checkpoint(tmp_path / "run", GENES, shards=tmp_path / "shards")
    expect_mistake(run, tmp_path, capsys, ("--mask-ratio", "0.8"), "shards) are not here")
    write_shards(tmp_path / "shards", simulated_counts(5, NUM_GENES))
    expect_mistake(run, tmp_path, capsys, ("--mask-ratio", "0.8"), "no held-out cells")


def test_the_script(checkpoint: Path, tmp_path: Path):
    """A process of its own, as a user starts it: piped, it prints lines and no bar."""
    output = tmp_path / "made.h5ad"
    flags = ["--checkpoint", str(checkpoint), "--num-cells", "2", "--num-steps", "2", "--output", str(output)]
    done = subprocess.run([sys.executable, "sample.py", *flags], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"wrote {output}: 2 new cells x 40 genes")
    assert output.is_file()


@pytest.mark.parametrize(
    ("file", "form"),
    [
        pytest.param("adamson2016_pilot.h5ad", sp.csc_matrix, id="adamson-csc"),
        pytest.param("kang2018_donors.h5ad", sp.csr_matrix, id="kang-ensembl"),
    ],
)
def test_real_cells(tmp_path: Path, file: str, form):
    adata = anndata.read_h5ad(shared_file(file))[:40].copy()
    assert isinstance(adata.X, form)
    known = adata.var_names[::2].tolist()
    is_ensembl = known[0].startswith("ENSG")
    symbols = [f"S{number}" for number in range(len(known))] if is_ensembl else known
    checkpoint = save_tiny_checkpoint(tmp_path / "run", symbols, known if is_ensembl else None)
    filled = sample(checkpoint, tmp_path, adata, "--mask-ratio", "0.8", "--num-steps", "2")
    assert same_bits(filled.X, adata.X)
    sampled, mean, hidden = layers(filled).values()
    counts = dense(adata.X)
    assert np.array_equal(sampled[~hidden], counts[~hidden])
    assert np.array_equal(mean[~hidden], counts[~hidden])
    assert (hidden[:, ::2].sum(axis=1) == round(0.8 * len(known))).all()
    assert not hidden[:, 1::2].any()
