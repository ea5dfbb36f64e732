"""Conditions with features from end to end: training, checkpoint, resuming, and levels that no training cell had."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from run_files import differences
from simulated_shards import simulated_counts
from tiny_model import NUM_GENES, tiny_cells, tiny_model
from tiny_run import NUM_GENES as RUN_GENES
from tiny_run import flags, tiny_config, tiny_shards

from mdsc import generate_anndata
from mdsc.checkpoint import Checkpoint, load_checkpoint
from mdsc.cli import main
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.errors import UserError
from mdsc.sampling.conditions import KnownConditions
from mdsc.sampling.guidance import guided

# "drug 2" has no features, "drug 7" no cells.
NAMES = ("drug 0", "drug 7", "drug 1")
VALUES = np.array([[1.0, 0.0, 2.0], [0.5, 0.25, 1.0], [0.0, 1.0, 2.0]])
TABLE = {
    "condition_levels": {"drug": ["a", "b"]},
    "vector_sizes": {"drug": 3},
    "feature_names": {"drug": ["b", "new"]},
    "feature_sizes": {"drug": 4},
}


def model_with_table():
    model = tiny_model(**TABLE)
    table = model.conditions.table("drug")
    generator = torch.Generator().manual_seed(9)
    for buffer in (table.vectors, table.mean, table.basis):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return model


def test_the_model_finds_the_vector_of_a_level_by_itself():
    model, cells = model_with_table(), tiny_cells()
    ids = torch.tensor([0, 2, 1])
    table = model.conditions.table("drug")
    given = torch.full((3, 3), torch.nan)
    given[1] = table.vectors[0]  # level b is row 0; level a and the unknown one have no vector
    found, expected = (
        model(**cells, categories={"drug": ids}),
        model(**cells, categories={"drug": ids}, vectors={"drug": given}),
    )
    assert torch.equal(found.logits, expected.logits)
    without = model(**cells, categories={"drug": ids}, vectors={"drug": torch.full((3, 3), torch.nan)})
    assert torch.equal(found.logits[[0, 2]], without.logits[[0, 2]])
    assert (found.logits[1] - without.logits[1]).abs().max() > 1e-3


def test_a_saved_model_keeps_its_conditions_apart_whatever_their_order(tmp_path: Path):
    """config.json sorts their names; two columns of as many levels would change places without a word."""
    model = tiny_model(
        condition_levels={"lane": ["l1", "l2"], "drug": ["a", "b"]},
        vector_sizes={"lane": 3, "drug": 3},
        feature_names={"lane": ["l1", "l2"], "drug": ["b", "new"]},
        feature_sizes={"lane": 4, "drug": 4},
    )
    for name in ("lane", "drug"):
        model.conditions.table(name).vectors.copy_(
            torch.randn(2, 3, generator=torch.Generator().manual_seed(len(name)))
        )
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    cells = tiny_cells()
    for name in ("lane", "drug"):
        categories = {name: torch.tensor([1, 2, 0])}
        assert torch.equal(model(**cells, categories=categories).logits, again(**cells, categories=categories).logits)


def test_without_conditions_a_model_is_told_no_vector_either():
    model, cells = model_with_table(), tiny_cells()
    vectors = {"drug": torch.ones(3, 3)}

    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        return model(gene_ids, tokens, counts, is_pad, categories, vectors).logits

    free = guided(predict, 0.0)(*cells.values(), {}, vectors)
    assert torch.equal(free, predict(*cells.values(), {}, {}))
    assert not torch.equal(free, predict(*cells.values(), {}, vectors))


def test_features_are_reduced_as_those_of_training_were():
    table = model_with_table().conditions.table("drug")
    features = torch.arange(8.0).reshape(2, 4)
    torch.testing.assert_close(table.reduced(features), (features - table.mean) @ table.basis)


def test_a_vector_with_a_nan_is_no_vector_and_spoils_no_gradient():
    model, cells = model_with_table(), tiny_cells()
    nothing = torch.full((3, 3), torch.nan)
    nothing[:, 1:] = 1.0
    found = model(**cells, vectors={"drug": nothing}).logits
    assert torch.equal(found, model(**cells).logits)
    found.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def test_conditions_shift_the_genes_even_where_the_cell_state_cannot():
    """The response to a condition is a function of the gene, and adds up over conditions."""
    columns = {"drug": ["a", "b"], "type": ["x", "y"]}
    model = tiny_model(num_layers=0, factor_size=0, condition_levels=columns, condition_rank=4)
    cells = tiny_cells() | {"gene_ids": torch.arange(20).expand(3, 20)}
    with torch.no_grad():
        for told in (model.cell_state.condition, model.condition_prior.mean):  # the cell state is told nothing
            told.weight.zero_()
        model.conditions.categories[1].weight[0].zero_()

    def logits(drug: int, kind: int) -> torch.Tensor:
        ids = {"drug": torch.full((3,), drug), "type": torch.full((3,), kind)}
        return model(**cells, categories=ids).logits

    change = logits(1, 0) - logits(0, 0)
    assert change.std(dim=1).min() > 1e-3, "genes move each by its own"
    torch.testing.assert_close(logits(1, 2) - logits(0, 2), change, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    tiny_shards(folder)
    write_features(LevelFeatures(NAMES, VALUES, "here"), folder / "drugs.parquet")
    return folder


def train(folder: Path, run: Path, *options: str) -> int:
    given = flags(tiny_config(folder, max_steps=8))
    given += ["--data.condition-columns", "drug", "--data.condition-features", f"drug={folder / 'drugs.parquet'}"]
    dropout = ["--train.condition-dropout", "0.2", "--train.save-every", "4", "--model.dropout", "0.1"]
    return main(["train", *given, *dropout, "--output-dir", str(run), *options])


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    assert train(folder, folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Checkpoint:
    return load_checkpoint(run)


def test_the_checkpoint_has_names_and_vectors(checkpoint: Checkpoint):
    config = checkpoint.model.config
    assert config.feature_names == {"drug": list(NAMES)}
    assert config.feature_sizes == {"drug": 3}
    table = checkpoint.model.conditions.table("drug")
    assert table.row_of_level.tolist() == [-1, 0, 2, -1]
    # Of two training levels one direction is left: they lie at both ends of it, the third between.
    assert config.vector_sizes == {"drug": 1}
    assert table.vectors.abs().flatten().tolist() == pytest.approx([1, 0.25, 1], abs=1e-6)
    torch.testing.assert_close(table.reduced(torch.tensor(VALUES)), table.vectors)


def test_a_resumed_run_is_the_same_to_the_bit_and_needs_no_file_of_features(folder: Path, run: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "state" / "step-00000008")
    features = folder / "drugs.parquet"
    aside = features.rename(tmp_path / "aside.parquet")
    try:
        assert train(folder, copy, "--resume", "auto") == 0
    finally:
        aside.rename(features)
    assert not differences(run, copy)


def test_other_dropout_of_conditions_is_another_run(folder: Path, run: Path, capsys):
    assert train(folder, run, "--resume", "auto", "--train.level-dropout", "0.1") == 2
    assert "--train.level-dropout is 0.1, but it was 0.5" in capsys.readouterr().err


def test_a_level_without_cells_is_told_by_its_vector_alone(checkpoint: Checkpoint):
    known = KnownConditions(checkpoint.model)
    assert known.of("drug") == ["drug 0", "drug 1", "drug 2", "drug 7"]
    block = known.given({"drug": "drug 7"}, 2).block(slice(0, 2))
    assert block["categories"]["drug"].tolist() == [0, 0]
    expected = checkpoint.model.conditions.table("drug").vectors[1]
    assert torch.equal(block["vectors"]["drug"], expected.expand(2, -1))
    block = known.given({"drug": "drug 2"}, 1).block(slice(0, 1))
    assert block["categories"]["drug"].tolist() == [3]
    assert block["vectors"]["drug"].isnan().all()
    block = known.given({"drug": "drug 1"}, 1).block(slice(0, 1))
    assert (block["categories"]["drug"].tolist(), block["vectors"]["drug"].isnan().any()) == ([2], False)


def test_cells_of_levels_with_and_without_cells_are_generated(checkpoint: Checkpoint):
    made = {
        drug: generate_anndata(checkpoint, 8, condition={"drug": drug}, num_steps=3) for drug in ("drug 0", "drug 7")
    }
    assert (made["drug 0"].X != made["drug 7"].X).nnz > 0
    assert (made["drug 7"].obs["drug"] == "drug 7").all()


def test_further_features_may_be_brought(checkpoint: Checkpoint, tmp_path: Path):
    """A level with the features of another one that is known by features alone gets the same cells."""
    write_features(LevelFeatures(("drug 9",), VALUES[1:2], "here"), tmp_path / "more.parquet")
    options = {"condition_features": {"drug": tmp_path / "more.parquet"}, "num_steps": 3}
    one = generate_anndata(checkpoint, 8, condition={"drug": "drug 9"}, **options)
    other = generate_anndata(checkpoint, 8, condition={"drug": "drug 7"}, num_steps=3)
    assert (one.X != other.X).nnz == 0


@pytest.mark.parametrize(
    ("condition", "features", "words"),
    [
        ({"drug": "drug 77"}, {}, "--condition drug=drug 77: the model knows no such level; perhaps you meant drug 7"),
        ({"drugs": "drug 7"}, {}, "no condition 'drugs'; perhaps you meant drug"),
        ({}, {"drugs": VALUES}, "knows no features of 'drugs'; perhaps you meant drug"),
        ({}, {"drug": VALUES[:, :2]}, "has 2 features of each name, and the model was trained with 3"),
    ],
)
def test_wrong_names_are_told_with_near_ones(checkpoint: Checkpoint, condition: dict, features: dict, words: str):
    given = {name: LevelFeatures(("x", "y", "z"), values, "here") for name, values in features.items()}
    with pytest.raises(UserError) as error:
        generate_anndata(checkpoint, 2, condition=condition, condition_features=given)
    assert words in str(error.value)


def cells() -> AnnData:
    adata = AnnData(simulated_counts(5, RUN_GENES, mean=2.0))
    adata.var_names = [f"G{number}" for number in range(RUN_GENES)]
    adata.obs = pd.DataFrame({"drug": ["drug 7", "drug 2", np.nan, "unheard of", "drug 0"]}, index=adata.obs_names)
    return adata


def test_conditions_of_cells_come_from_obs_levels_without_cells_too(checkpoint: Checkpoint):
    said: list[str] = []
    conditions = KnownConditions(checkpoint.model).of_cells(cells().obs, {}, said.append)
    assert conditions.level_ids["drug"].tolist() == [0, 3, 0, 0, 1]
    assert conditions.vector_rows["drug"].tolist() == [1, -1, -1, -1, 0]
    assert conditions.names == ("drug",)
    assert any("1 cells is unknown to the model (unheard of)" in line for line in said)
    assert any("of 1 cells is missing" in line for line in said)


def test_the_evaluation_tells_the_model_of_levels_without_cells(run: Path, tmp_path: Path):
    nll, held_out = {}, cells()
    command = ["evaluate", "inpaint", "--checkpoint", str(run), "--input", str(tmp_path / "cells.h5ad")]
    command += ["--mask-ratios", "0.5", "--pooled-steps", "0", "--json", str(tmp_path / "scores.json")]
    for drug in ("drug 7", "unheard of"):
        held_out.obs["drug"] = drug
        held_out.write_h5ad(tmp_path / "cells.h5ad")
        assert main(command) == 0
        nll[drug] = json.loads((tmp_path / "scores.json").read_text())["model"]["0.5"]["nll"]
    assert nll["drug 7"] != nll["unheard of"]


def test_the_command_samples_what_it_is_told(run: Path, folder: Path, tmp_path: Path, capsys):
    write_features(LevelFeatures(("drug 9",), VALUES[1:2], "here"), tmp_path / "more.parquet")
    cells().write_h5ad(tmp_path / "cells.h5ad")
    output = tmp_path / "out.h5ad"
    command = ["sample", "--checkpoint", str(run), "--output", str(output), "--num-steps", "2"]
    more = ["--condition-features", f"drug={tmp_path / 'more.parquet'}", "--guidance", "2"]
    assert main([*command, "--num-cells", "4", "--condition", "drug=drug 9", *more]) == 0
    made = anndata.read_h5ad(output)
    assert made.obs["drug"].tolist() == ["drug 9"] * 4
    assert made.uns["mdsc"]["guidance"] == 2

    assert main([*command, "--conditions-from", str(tmp_path / "cells.h5ad")]) == 0
    made = anndata.read_h5ad(output)
    assert made.obs["drug"].tolist()[:2] == ["drug 7", "drug 2"]
    assert main([*command, "--conditions-from", str(tmp_path / "cells.h5ad"), "--num-cells", "7"]) == 0
    assert anndata.read_h5ad(output).obs["drug"].tolist()[4:] == ["drug 0", "drug 7", "drug 2"]
    capsys.readouterr()
    for flags_, words in (
        (["--num-cells", "3", "--guidance", "2"], "give --condition NAME=LEVEL"),
        (["--num-cells", "3", "--condition", "drug=drug 9"], "perhaps you meant drug"),
        (["--conditions-from", str(tmp_path / "none.h5ad")], "there is no file"),
        (["--num-cells", "3", "--condition-features", "drug"], "COLUMN=FILE"),
    ):
        assert main([*command, *flags_]) == 2
        assert words in capsys.readouterr().err


def test_a_model_without_conditions_takes_no_guidance(tmp_path: Path):
    from tiny_checkpoint import tiny_checkpoint

    checkpoint = tiny_checkpoint([f"G{n}" for n in range(NUM_GENES)])
    checkpoint.model.config.condition_levels = {}
    with pytest.raises(UserError, match="trained without conditions"):
        generate_anndata(checkpoint, 2, guidance=2.0)
