"""`--init-from`: a new run starts as the checkpoint that it is given, whatever else its genes and conditions are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from simulated_shards import simulated_counts
from tiny_run import flags, tiny_config

from mdsc.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mdsc.cli import main
from mdsc.config.yaml_flags import parse
from mdsc.data.genes import GeneVocabulary
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.data.shard_writer import ShardWriter
from mdsc.errors import UserError
from mdsc.training.initial_weights import Start, flags_given, matched, settled

NUM_GENES = 48
SYMBOLS = [f"G{number}" for number in range(NUM_GENES)]
COUNTS = simulated_counts(240, NUM_GENES, mean=2.0)
DRUGS = ("a", "b", "ctrl")
FEATURES = np.random.default_rng(1).normal(size=(4, 3))


def write(folder: Path, order: np.ndarray, drugs: tuple[str, ...], more: int = 0, ensembl_ids=None) -> Path:
    """Shards of the same cells with their genes in this order, and `more` new genes."""
    new = simulated_counts(240, more, seed=5, mean=2.0) if more else sp.csr_matrix((240, 0), dtype=np.int32)
    counts = sp.hstack([COUNTS[:, order], new], format="csr").astype(np.int32)
    symbols = [SYMBOLS[place] for place in order] + [f"NEW{number}" for number in range(more)]
    names = [drugs[row % len(drugs)] for row in range(240)]
    with ShardWriter(folder, GeneVocabulary.of(symbols, ensembl_ids), ["drug"], cells_per_shard=28_000) as writer:
        writer.write("train", counts, {"drug": names}, [f"cell {row}" for row in range(240)])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Shards, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("init")
    write(folder / "shards", np.arange(NUM_GENES), DRUGS)
    write_features(LevelFeatures(("a", "b", "ctrl", "x"), FEATURES, "here"), folder / "drugs.parquet")
    assert train(folder, folder / "shards", folder / "run") == 0
    return folder


def train(
    folder: Path, shards: Path, run: Path, *options: str, steps: int = 8, shape: bool = True, features: str = "drugs"
) -> int:
    given = flags(tiny_config(folder, max_steps=steps))
    if not shape:
        given = [text for flag, value in zip(given[::2], given[1::2], strict=True) if "model." not in flag
                 for text in (flag, value)]  # fmt: skip
    given += ["--data.condition-columns", "drug"]
    if features:
        given += ["--data.condition-features", f"drug={folder / features}.parquet"]
    return main(["train", *given, "--data.dir", str(shards), "--output-dir", str(run), *options])


def at_step_0(folder: Path, shards: Path, run: Path, init_from: Path, features: str = "drugs") -> Checkpoint:
    """The new model as it starts: a learning rate of next to nothing moves no weight by more than rounding."""
    still = ["--train.learning-rate", "1e-30", "--train.weight-decay", "0", "--train.ema-decay", "0"]
    assert (
        train(folder, shards, run, "--init-from", str(init_from), *still, steps=1, shape=False, features=features) == 0
    )
    return load_checkpoint(run)


def logits(checkpoint: Checkpoint, drug: str, symbols: list[str] = SYMBOLS) -> torch.Tensor:
    """Of 5 cells of which every third gene is visible; of these genes in this order."""
    places = torch.from_numpy(checkpoint.vocabulary.match(symbols))
    counts = torch.from_numpy(COUNTS[:5].toarray())
    visible = (torch.arange(NUM_GENES) % 3 == 0).expand(5, -1)
    tokens = checkpoint.tokenizer.encode_visible(counts * visible, visible)
    level = checkpoint.model.config.condition_levels["drug"].index(drug) + 1
    given = (places.expand(5, -1), tokens, counts * visible, None, {"drug": torch.full((5,), level)})
    with torch.no_grad():
        return checkpoint.model(*given).logits


@pytest.mark.parametrize("kind", ["the same", "permuted"])
def test_where_nothing_is_new_the_first_model_is_the_old_one(folder: Path, tmp_path: Path, kind: str, capsys):
    order = np.arange(NUM_GENES) if kind == "the same" else np.random.default_rng(2).permutation(NUM_GENES)
    shards = write(tmp_path / "shards", order, DRUGS)
    found = at_step_0(folder, shards, tmp_path / "run", folder / "run")
    old = load_checkpoint(folder / "run")
    for drug in DRUGS:
        torch.testing.assert_close(logits(found, drug), logits(old, drug), rtol=1e-5, atol=1e-5)
    assert (logits(old, "a") - logits(old, "b")).abs().max() > 1e-4
    said = capsys.readouterr().out
    assert "taken over 48 of 48 genes and conditions drug" in said
    assert "nothing is new" in said
    assert found.config.init_from == str(folder / "run")
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert starts[0]["options"]["init_from"] == str(folder / "run")
    assert found.config.model.state_size == old.model.config.state_size == 4


def test_new_genes_are_finite_and_old_ones_as_they_were(folder: Path, tmp_path: Path, capsys):
    shards = write(tmp_path / "shards", np.arange(NUM_GENES)[::-1], DRUGS, more=6)
    found = at_step_0(folder, shards, tmp_path / "run", folder / "run")
    # The transformer looks at the genes of a cell alone, and these are the old ones.
    torch.testing.assert_close(logits(found, "a"), logits(load_checkpoint(folder / "run"), "a"), rtol=1e-5, atol=1e-5)
    new = [f"NEW{number}" for number in range(6)]
    of_new = logits(found, "a", new + SYMBOLS[: NUM_GENES - 6])[:, :6]
    assert of_new.isfinite().all()
    assert of_new.std(dim=-1).min() > 0
    assert "genes NEW0, NEW1, NEW2 and 3 more" in capsys.readouterr().out


def test_a_gene_that_the_checkpoint_lacks_starts_along_its_directions(folder: Path, tmp_path: Path):
    """Trained without six genes, and then given them: their vectors are near those of a run that had them, whichever
    directions the checkpoint's factors happen to have."""
    without = write(tmp_path / "without", np.arange(6, NUM_GENES), DRUGS)
    assert train(folder, without, tmp_path / "first") == 0
    first = load_checkpoint(tmp_path / "first")
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    first.model.gene_evidence.loadings.copy_(first.model.gene_evidence.loadings @ turn)
    save_checkpoint(tmp_path / "first", first)
    found = at_step_0(folder, folder / "shards", tmp_path / "run", tmp_path / "first")
    evidence, whole = found.model.gene_evidence, load_checkpoint(folder / "run").model.gene_evidence
    covariance = evidence.loadings @ evidence.loadings.T
    expected = whole.loadings @ whole.loadings.T
    new, old = covariance[:6, 6:].flatten(), expected[:6, 6:].flatten()
    assert torch.corrcoef(torch.stack([new, old]))[0, 1] > 0.9


def test_levels_go_by_their_names_and_a_new_one_starts_as_an_unknown_one(folder: Path, tmp_path: Path, capsys):
    shards = write(tmp_path / "shards", np.arange(NUM_GENES), ("ctrl", "x", "a"))
    found, old = at_step_0(folder, shards, tmp_path / "run", folder / "run"), load_checkpoint(folder / "run")
    assert found.model.config.condition_levels == {"drug": ["a", "ctrl", "x"]}
    for drug in ("a", "ctrl"):
        torch.testing.assert_close(logits(found, drug), logits(old, drug), rtol=1e-5, atol=1e-5)
    rows = found.model.conditions.categories[0].weight
    before = old.model.conditions.categories[0].weight
    torch.testing.assert_close(rows, before[[0, 1, 3, 0]])
    assert "levels of drug x" in capsys.readouterr().out
    # Its features are read in the checkpoint's components.
    table, of_old = found.model.conditions.table("drug"), old.model.conditions.table("drug")
    assert torch.equal(table.basis, of_old.basis)
    torch.testing.assert_close(table.vectors, of_old.vectors)
    assert table.row_of_level.tolist() == [-1, 0, 2, 3]


def test_features_of_another_length_are_a_new_condition(folder: Path, tmp_path: Path):
    write_features(LevelFeatures(("a", "b", "ctrl"), FEATURES[:3, :2], "here"), folder / "two.parquet")
    shards, run = folder / "shards", folder / "run"
    assert at_step_0(folder, shards, tmp_path / "two", run, "two").model.config.feature_sizes == {"drug": 2}
    kept, old = at_step_0(folder, shards, tmp_path / "none", run, ""), load_checkpoint(run)
    assert kept.model.config.feature_names == {"drug": ["a", "b", "ctrl", "x"]}, "the checkpoint has them"
    torch.testing.assert_close(logits(kept, "a"), logits(old, "a"), rtol=1e-5, atol=1e-5)


def test_a_fine_tuned_run_is_resumed_without_its_checkpoint(folder: Path, tmp_path: Path, capsys):
    first = tmp_path / "first"
    shutil.copytree(folder / "run", first)
    run = tmp_path / "run"
    save = ["--train.save-every", "2"]
    assert train(folder, folder / "shards", run, "--init-from", str(first), *save, steps=4, shape=False) == 0
    shutil.rmtree(first)
    for more in ([], ["--init-from", str(first)]):
        again = [*more, *save, "--resume", "auto"]
        assert train(folder, folder / "shards", run, *again, steps=6, shape=False) == 0
    assert load_checkpoint(run).config.init_from == str(first)
    assert load_checkpoint(run).model.config.state_size == 4
    capsys.readouterr()
    assert train(folder, folder / "shards", run, "--resume", "auto", "--model.state-size", "5", shape=False) == 2
    assert "--model.state-size is 5, but it is 4 in --init-from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.state-size", "5"], "--model.state-size is 5, but it is 4 in --init-from"),
        (["--tokenizer.name", "count"], "give --tokenizer.name rank --tokenizer.num-tokens"),
        (["--init-from", "none"], "--init-from: there is no folder none"),
    ],
)
def test_what_does_not_fit_is_told(folder: Path, tmp_path: Path, options: list[str], words: str, capsys):
    given = options if "--init-from" in options else ["--init-from", str(folder / "run"), *options]
    assert train(folder, folder / "shards", tmp_path / "run", *given, shape=False) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_checkpoint_of_other_genes_is_told(folder: Path, tmp_path: Path):
    old = load_checkpoint(folder / "run")
    others = GeneVocabulary.of([f"mouse{number}" for number in range(NUM_GENES)])
    save_checkpoint(tmp_path, replace(old, vocabulary=others))
    with pytest.raises(UserError, match="has no gene in common"):
        Start.of(str(tmp_path)).give(old.model, old.vocabulary)


def test_genes_are_matched_by_ensembl_id_first():
    old = GeneVocabulary.of(["A", "B", "C", "D"], ["ENSG00000000001", "ENSG00000000002", "", "ENSG00000000004"])
    new = GeneVocabulary.of(
        ["B", "renamed", "C", "D", "E"],
        ["", "ENSG00000000001", "ENSG00000000003", "ENSG00000000009", "ENSG00000000002"],
    )
    # B by its symbol, and then E has its id: a gene of the checkpoint is given once. D's id is another gene's.
    assert matched(new, old).tolist() == [1, 0, 2, -1, -1]


def test_the_shape_is_the_checkpoints_whatever_the_yaml_says(folder: Path):
    from mdsc.config.schema import TrainConfig

    config = parse(TrainConfig, ["--init-from", str(folder / "run"), "--model.hidden-size", "16"])
    assert config.model.state_size == 64
    found, start = settled(config, None, flags_given(["--model.hidden_size=16"]))
    assert found.model.state_size == 4
    assert start is not None
    assert found.model.dropout == config.model.dropout
    assert settled(replace(config, init_from=None), None, ()) == (replace(config, init_from=None), None)
