"""Cells under perturbations from a masked model: generated or edited, by Python and by the command."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from simulated_shards import simulated_counts

import mdsc
from mdsc.checkpoint import Checkpoint, save_checkpoint
from mdsc.cli import main
from mdsc.data.genes import GeneStatistics, GeneVocabulary
from mdsc.data.level_features import LevelFeatures, write_features
from mdsc.data.log_expression import log_normalised
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import Evidence
from mdsc.errors import UserError
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.sampling.conditions import CellConditions, KnownConditions
from mdsc.sampling.masked_prediction import Editing
from mdsc.sampling.predicted_cells import chosen_rows

GENES = [f"G{number}" for number in range(20)]
FEATURES = np.random.default_rng(3).normal(size=(4, 6))
FEATURED = ("SPI1", "KLF1", "CEBPA", "ctrl")


def perturbation_checkpoint(*, with_control: bool = True) -> Checkpoint:
    """Knows cells of SPI1, BHLHE40 and ctrl, and features of SPI1 and of KLF1 and CEBPA, which have no cells."""
    torch.manual_seed(0)
    levels = ["BHLHE40", "SPI1", *(["ctrl"] if with_control else [])]
    tokenizer = make_tokenizer("count", 12)
    model = MdscModel(
        MdscConfig(
            num_genes=20,
            num_tokens=12,
            hidden_size=16,
            num_layers=0,
            num_heads=2,
            state_size=4,
            factor_size=3,
            condition_levels={"perturbation": levels, "cell_type": ["K562", "T"]},
            vector_sizes={"perturbation": 5},
            feature_names={"perturbation": list(FEATURED[: 4 if with_control else 3])},
            feature_sizes={"perturbation": 6},
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.output_bias.weight[:, 0] += 1
        model.gene_evidence.loadings.normal_()
        table = model.conditions.table("perturbation")
        table.mean.copy_(torch.randn(6))
        table.basis.copy_(torch.randn(6, 5))
        table.vectors.copy_(table.reduced(torch.tensor(FEATURES[: len(table.names)]).float()))
    rate = np.full(20, 0.5)
    vocabulary = GeneVocabulary.of(GENES)
    return Checkpoint(model.eval(), tokenizer, vocabulary, GeneStatistics(rate, rate, rate), None)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return perturbation_checkpoint()


def controls(number: int = 7) -> AnnData:
    """Genes in another order, with one that the model does not know; two cells are not of the control."""
    adata = AnnData(simulated_counts(number + 2, 20, mean=2.0)[:, ::-1].tocsr())
    adata.var_names = ["NEW", *GENES[:0:-1]]
    adata.obs_names = [f"cell{row}" for row in range(number + 2)]
    types = np.where(np.arange(number + 2) % 2, "K562", "T")
    adata.obs = pd.DataFrame(
        {"perturbation": ["ctrl"] * number + ["SPI1"] * 2, "cell_type": types, "depth": 1.5, "split": "train"},
        index=adata.obs_names,
    )
    return adata


def predict(checkpoint: Checkpoint, names: list[str], adata: AnnData | None = None, **options) -> AnnData:
    return mdsc.predict_perturbations(checkpoint, adata or controls(), names, num_steps=3, **options)


def of(adata: AnnData, name: str) -> AnnData:
    return adata[(adata.obs["perturbation"] == name).to_numpy()]


def test_generated_cells_stand_beside_the_real_controls(checkpoint: Checkpoint):
    made = predict(checkpoint, ["SPI1", "BHLHE40"])
    assert made.obs["perturbation"].value_counts().to_dict() == {"ctrl": 7, "SPI1": 7, "BHLHE40": 7}
    assert list(made.var_names) == GENES[1:], "those that both know"
    real, control = of(made, "ctrl"), controls()[:7, GENES[1:]]
    assert (real.layers["counts"] != control.X).nnz == 0
    assert list(real.obs_names) == list(control.obs_names)
    for part in (real, of(made, "SPI1")):
        np.testing.assert_allclose(part.X.toarray(), log_normalised(part.layers["counts"]).toarray(), rtol=1e-6)
    assert made.X.dtype == np.float32
    assert set(made.layers) == {"counts"}
    assert set(made.obs) == {"perturbation", "cell_type", "control_cell"}
    types = control.obs["cell_type"].astype(str)
    assert (of(made, "SPI1").obs["cell_type"].to_numpy() == types[of(made, "SPI1").obs["control_cell"]]).all()
    assert sorted(of(made, "SPI1").obs["control_cell"]) == sorted(control.obs_names), "each once"
    assert made.uns["mdsc"]["task"] == "perturbation"
    assert (made.uns["mdsc"]["how"], made.uns["mdsc"]["head"]) == ("generated", "masked")
    assert (of(made, "SPI1").layers["counts"] != of(made, "BHLHE40").layers["counts"]).nnz > 0


def test_what_is_drawn_of_a_perturbation_depends_on_no_other(checkpoint: Checkpoint):
    for options in ({}, {"edit_fraction": 0.5}):
        alone = of(predict(checkpoint, ["BHLHE40"], **options), "BHLHE40")
        beside = of(predict(checkpoint, ["SPI1", "BHLHE40", "BHLHE40+ctrl"], **options), "BHLHE40")
        assert (alone.layers["counts"] != beside.layers["counts"]).nnz == 0


def test_the_cell_type_is_that_of_the_control_cell_or_the_one_given(checkpoint: Checkpoint):
    adata = controls()
    adata.obs["cell_type"] = "K562"
    one = predict(checkpoint, ["SPI1"], adata)
    given = predict(checkpoint, ["SPI1"], condition={"cell_type": "K562"})
    assert (of(one, "SPI1").layers["counts"] != of(given, "SPI1").layers["counts"]).nnz == 0
    assert (of(given, "SPI1").obs["cell_type"] == "K562").all()
    other = predict(checkpoint, ["SPI1"], condition={"cell_type": "T"})
    assert (of(other, "SPI1").layers["counts"] != of(given, "SPI1").layers["counts"]).nnz > 0


def test_editing_hides_every_gene_once_and_never_more_than_its_share():
    shape, nothing = (3, 20), CellConditions({}, {}, {}, {})
    cells = Evidence(
        gene_ids=torch.arange(20).expand(shape),
        counts=torch.zeros(shape, dtype=torch.int32),
        visible=torch.ones(shape, dtype=torch.bool),
        is_pad=torch.zeros(shape, dtype=torch.bool),
        cell_index=torch.arange(3),
    )
    for fraction, times in ((0.5, 2), (0.9, 2), (0.3, 4), (1.0, 1), (0.001, 20)):
        sets = list(Editing(fraction, False, nothing).hidden(cells, seed=1))
        assert len(sets) == times
        assert all((hidden.sum(dim=1) == max(1, round(20 * fraction))).all() for hidden, _ in sets)
        assert (sum(kept.int() for _, kept in sets) == 1).all()
        assert all((hidden | ~kept).all() for hidden, kept in sets)
    (hidden, kept), *others = Editing(0.3, True, nothing).hidden(cells, seed=1)
    assert not others
    assert torch.equal(hidden, kept)
    assert not torch.equal(hidden[0], hidden[1]), "each cell has its own"


def test_edited_cells_are_drawn_anew_gene_by_gene(checkpoint: Checkpoint):
    adata = controls(60)
    made = predict(checkpoint, ["SPI1"], adata, edit_fraction=0.5)
    assert set(made.layers) == {"counts", "expected"}
    cells, before = of(made, "SPI1"), adata[of(made, "SPI1").obs["control_cell"], GENES[1:]]
    changed = (cells.layers["counts"].toarray() != before.X.toarray()).mean(axis=0)
    assert (changed > 0).all(), "every gene is drawn in some cell"
    control = of(made, "ctrl")
    np.testing.assert_array_equal(control.layers["expected"], control.X.toarray())
    # What is expected is the mean of what is drawn.
    depth = np.expm1(cells.layers["expected"]).sum(axis=1)
    np.testing.assert_allclose(depth, 1e4, rtol=1e-3)
    kept = of(predict(checkpoint, ["SPI1"], adata, edit_fraction=0.25, keep_visible=True), "SPI1")
    same = (kept.layers["counts"].toarray() == before.X.toarray()).sum(axis=1)
    assert (same >= 19 - round(0.25 * 19)).all()


def test_an_edited_cell_is_read_as_the_control_cell_that_it_was(checkpoint: Checkpoint, monkeypatch):
    """And the counts that are hidden have no way into what is drawn."""
    adata = controls(4)
    told = []
    forward = checkpoint.model.forward

    def spy(*arguments, seen_under, **options):
        told.append((arguments, seen_under))
        return forward(*arguments, seen_under=seen_under, **options)

    monkeypatch.setattr(checkpoint.model, "forward", spy)
    predict(checkpoint, ["SPI1"], adata, edit_fraction=0.5)
    known = KnownConditions(checkpoint.model)
    control, spi1 = (known.levels["perturbation"].index(name) + 1 for name in ("ctrl", "SPI1"))
    assert told
    for (gene_ids, tokens, counts, _, categories, _), seen in told:
        assert (categories["perturbation"] == spi1).all()
        assert (seen.categories["perturbation"] == control).all()
        assert torch.equal(seen.categories["cell_type"], categories["cell_type"])
        assert (counts[tokens >= 12] == 0).all()
        # First and second time, what was seen is half of the cell.
        assert set(seen.positions.sum(dim=1).tolist()) <= {9, 10, 19 - 9, 19 - 10}
        assert gene_ids.shape == seen.positions.shape


def test_a_gene_without_cells_and_a_pair_are_told_by_features(checkpoint: Checkpoint, tmp_path: Path):
    made = predict(checkpoint, ["KLF1", "SPI1+KLF1", "KLF1+CEBPA"])
    assert set(made.obs["perturbation"]) == {"ctrl", "KLF1", "KLF1+SPI1", "CEBPA+KLF1"}
    # The sum brought as a level of its own is the same.
    total = FEATURES[1] + FEATURES[2]
    write_features(LevelFeatures(("SUM",), total[None], "here"), tmp_path / "sum.parquet")
    known = KnownConditions(checkpoint.model, {"perturbation": tmp_path / "sum.parquet"})
    known.add_sum("perturbation", "CEBPA+KLF1", ("KLF1", "CEBPA"))
    known.add_sum("perturbation", "nothing", ())
    one, other, nothing, control = (
        known.given({"perturbation": name}, 1).block(slice(0, 1))["vectors"]["perturbation"]
        for name in ("CEBPA+KLF1", "SUM", "nothing", "SPI1")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    zero = checkpoint.model.conditions.table("perturbation").reduced(torch.zeros(1, 6))
    torch.testing.assert_close(nothing, zero)
    assert not torch.allclose(control, zero)
    brought = predict(checkpoint, ["SUM"], condition_features={"perturbation": tmp_path / "sum.parquet"})
    assert len(of(brought, "SUM")) == 7


def test_without_control_cells_in_training_their_features_are_0():
    checkpoint = perturbation_checkpoint(with_control=False)
    made = predict(checkpoint, ["SPI1"], edit_fraction=0.5)
    assert len(of(made, "SPI1")) == 7


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["SPI"], {}, "--perturbation SPI: the model knows no such perturbation; perhaps you meant SPI1"),
        (["KLF1+BHLHE40"], {}, "the model has no features of BHLHE40; perhaps you meant"),
        (["SPI1+NOGENE"], {}, "no features of NOGENE"),
        (["ctrl"], {}, "control cells are not predicted"),
        (["SPI1+"], {}, "is no perturbation"),
        ([], {}, "lists none"),
        (["SPI1"], {"condition": {"perturbation": "KLF1"}}, "given by --perturbation"),
        (["SPI1"], {"condition": {"cell_type": "K56"}}, "perhaps you meant K562"),
        (["SPI1"], {"edit_fraction": 0.0}, "takes a share above 0"),
        (["SPI1"], {"edit_fraction": 1.5}, "takes a share above 0"),
        (["SPI1"], {"keep_visible": True}, "give --edit-fraction too"),
        (["SPI1"], {"cells_per_perturbation": 0}, "takes 1 or more"),
        (["SPI1"], {"latent_steps": 5}, "--latent-steps is not read by a masked model"),
    ],
)
def test_what_cannot_be_predicted_is_told(checkpoint: Checkpoint, names: list[str], options: dict, words: str):
    with pytest.raises(UserError) as error:
        predict(checkpoint, names, **options)
    assert words in str(error.value)


def test_control_cells_are_found_and_a_misspelt_label_is_told(checkpoint: Checkpoint):
    said: list[str] = []
    predict(checkpoint, ["SPI1"], say=said.append)
    assert any("7 control cells; 2 cells of other perturbations are left out" in line for line in said)
    adata = controls()
    del adata.obs["perturbation"]
    made = predict(checkpoint, ["SPI1"], adata, say=said.append)
    assert len(of(made, "ctrl")) == 9
    assert any("all of its 9 cells are taken for control cells" in line for line in said)
    adata = controls()
    adata.obs["perturbation"] = "cntrl"
    with pytest.raises(UserError, match=r"no cell has obs.*ctrl; perhaps you meant cntrl"):
        predict(checkpoint, ["SPI1"], adata)


def test_a_model_without_perturbations_is_told():
    from tiny_checkpoint import tiny_checkpoint

    with pytest.raises(UserError, match=r"trained without the condition 'perturbation'.*it has: drug"):
        predict(tiny_checkpoint(GENES), ["SPI1"])


def test_control_cells_are_chosen_evenly():
    assert len(set(chosen_rows(1000, 300, 0))) == 300
    assert len(chosen_rows(1000, None, 0)) == 500
    assert sorted(chosen_rows(30, None, 0)) == list(range(30))
    assert np.bincount(chosen_rows(10, 25, 0)).tolist().count(3) == 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint: Checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("predicted")
    save_checkpoint(folder / "run", checkpoint)
    controls().write_h5ad(folder / "controls.h5ad")
    return folder


def sample(folder: Path, *flags: str) -> int:
    return main(["sample", "--checkpoint", str(folder / "run"), "--num-steps", "3", *flags])


@pytest.mark.parametrize("edit", [[], ["--edit-fraction", "0.5"]])
def test_the_command_writes_what_python_gives(folder: Path, checkpoint: Checkpoint, edit: list[str]):
    output = folder / "out.h5ad"
    names = ["--perturbation", "SPI1", "CEBPA+KLF1", "--cells-per-perturbation", "9", "--guidance", "1.5"]
    given = ["--input", str(folder / "controls.h5ad"), "--output", str(output), "--condition", "cell_type=K562"]
    assert sample(folder, *names, *given, *edit) == 0
    found = anndata.read_h5ad(output)
    fraction = {"edit_fraction": 0.5} if edit else {}
    expected = predict(
        checkpoint,
        ["SPI1", "KLF1+CEBPA"],
        cells_per_perturbation=9,
        guidance=1.5,
        condition={"cell_type": "K562"},
        **fraction,
    )
    assert isinstance(found.X, sp.csr_matrix)
    assert abs(found.X - expected.X).max() < 1e-5
    assert (found.layers["counts"] != expected.layers["counts"]).nnz == 0
    assert set(found.layers) == set(expected.layers)
    if edit:
        np.testing.assert_allclose(found.layers["expected"], expected.layers["expected"], atol=1e-4)
    assert list(found.obs_names) == list(expected.obs_names)
    for name in expected.obs:
        assert found.obs[name].astype(str).tolist() == expected.obs[name].astype(str).tolist()
    assert found.uns["mdsc"]["perturbations"].tolist() == ["SPI1", "CEBPA+KLF1"]
    assert found.uns["mdsc"]["checkpoint"] == str(folder / "run")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--perturbation", "SPI1"], "give them by --input"),
        (["--perturbation", "SPI", "--input", "controls.h5ad"], "perhaps you meant SPI1"),
        (["--perturbation", "SPI1", "--input", "controls.h5ad", "--mask-ratio", "0.5"], "--mask-ratio does not go"),
        (["--perturbation", "SPI1", "--input", "controls.h5ad", "--num-cells", "5"], "give --cells-per-perturbation"),
        (["--edit-fraction", "0.5", "--input", "controls.h5ad", "--mask-ratio", "0.5"], "are for --perturbation"),
        (["--perturbation", "SPI1", "--input", "none.h5ad"], "there is no file none.h5ad"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(folder: Path, flags: list[str], words: str, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert sample(folder, *flags, "--output", "wrong.h5ad") == 2
    assert words in capsys.readouterr().err
    assert not list(folder.glob("*wrong*"))


def test_a_gaussian_head_reads_none_of_the_masked_models_options(folder: Path, tmp_path: Path, checkpoint: Checkpoint):
    """Which head a folder holds is told by its config.json, before anything else of it is read."""
    (tmp_path / "config.json").write_text('{"model_type": "mdsc_gaussian"}')
    with pytest.raises(UserError, match="--edit-fraction is not read by a Gaussian head"):
        mdsc.predict_perturbations(tmp_path, controls(), ["SPI1"], edit_fraction=0.5)
    with pytest.raises(UserError, match="has samplers of its own"):
        predict(tmp_path, ["SPI1"])
