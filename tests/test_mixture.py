"""Several folders of shards at once: shares of a batch, genes that are joined, and zeros that were never measured."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from simulated_shards import simulated_counts

from mdsc.cli import main
from mdsc.config.schema import DataConfig
from mdsc.data.genes import GeneVocabulary
from mdsc.data.loader import CellLoader
from mdsc.data.mixed_plan import lane_owners
from mdsc.data.quarantine import Quarantine, Quarantined
from mdsc.data.shard_mixture import ShardMixture, open_shards
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shard_writer import ShardWriter
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import make_tokenizer
from mdsc.errors import UserError
from mdsc.prep.mixture import MixtureConfig, prepare_mixture

SETTINGS = DataConfig(num_genes=100, num_lanes=4, window=2, validation_fraction=0.1)
A_GENES = [f"G{number}" for number in range(40)]
B_GENES = [f"G{number}" for number in range(59, 19, -1)]  # 20 in common, in another order
SIZES = (300, 120)


def write(folder, genes, counts, offset, column):
    """Cell i has i + offset + 1 as the count of its folder's first gene."""
    counts = counts.toarray()
    counts[:, 0] = offset + 1 + np.arange(len(counts))
    vocabulary = GeneVocabulary.of(genes, [f"ENSG{int(name[1:]):011d}" for name in genes])
    names = [f"cell {offset + number}" for number in range(len(counts))]
    with ShardWriter(folder, vocabulary, [column], cells_per_shard=100) as writer:
        heldout = len(counts) - 10
        for split, part in (("train", slice(0, heldout)), ("heldout", slice(heldout, None))):
            labels = [f"{column} {number % 2}" for number in range(len(counts))][part]
            writer.write(split, sp.csr_matrix(counts[part]), {column: labels}, names[part])
    return ShardFolder.open(folder)


@pytest.fixture
def folders(tmp_path):
    a = write(tmp_path / "a", A_GENES, simulated_counts(SIZES[0] + 10, 40, seed=0), 0, "drug")
    b = write(tmp_path / "b", B_GENES, simulated_counts(SIZES[1] + 10, 40, seed=1), 1000, "donor")
    return a, b


@pytest.fixture
def mixture(folders, tmp_path):
    config = MixtureConfig(inputs=tuple(f.path for f in folders), output_dir=tmp_path / "mix", weights=(3.0, 1.0))
    return prepare_mixture(config)[0]


def make_loader(mixture, settings=SETTINGS, **options) -> CellLoader:
    levels = {name: mixture.manifest.conditions[name] for name in mixture.condition_columns}
    options = {"seed": 0, "global_batch_size": 32, "levels": levels} | options
    return CellLoader(mixture, make_tokenizer("count"), settings, **options)


def take(loader, number, start=0):
    batches = loader.iterate(start)
    taken = list(islice(batches, number))
    batches.close()
    return taken


def cell_numbers(batch, mixture) -> np.ndarray:
    """By the first gene of either folder, G0 or G59, of which only one is in a cell's gene set."""
    index = {name: place for place, name in enumerate(mixture.vocabulary.symbols)}
    marks = torch.tensor([index["G0"], index["G59"]])
    is_mark = (batch.gene_ids[:, :, None] == marks).any(dim=2) & ~batch.is_pad
    assert (is_mark.sum(dim=1) == 1).all(), "each cell has genes of its own folder only"
    return batch.counts[is_mark].numpy() - 1


def test_genes_are_joined_and_cells_read_as_they_are(folders, mixture):
    assert isinstance(open_shards(mixture.path), ShardMixture)
    assert set(mixture.vocabulary.symbols) == set(A_GENES + B_GENES)
    for split in ("train", "heldout"):
        whole = mixture.to_anndata(split)
        for folder, column in zip(folders, ("drug", "donor"), strict=True):
            own = folder.to_anndata(split)
            part = whole[own.obs_names]
            assert (part[:, own.var_names].X != own.X).nnz == 0
            assert part.X.sum() == own.X.sum(), "genes of the other folder are empty"
            assert part.obs[column].tolist() == own.obs[column].tolist()
            assert set(part.obs[{"drug": "donor", "donor": "drug"}[column]]) == {""}
    assert mixture.manifest.conditions == {"drug": ("drug 0", "drug 1"), "donor": ("donor 0", "donor 1")}
    ref = mixture.row_groups()[-1]
    told = mixture.read_conditions(ref, ("donor", "drug"))
    assert told["donor"].tolist() == mixture.read(ref).conditions["donor"].tolist()
    assert set(told["drug"]) == {""}


def test_each_folder_has_its_share_of_a_batch_and_epochs_of_its_own(mixture):
    loader = make_loader(mixture)
    batches = take(loader, 3 * loader.steps_per_epoch)
    numbers = [cell_numbers(batch, mixture) for batch in batches]
    assert {int((of_batch >= 1000).sum()) for of_batch in numbers} == {8}, "a quarter of 32"
    seen = np.concatenate(numbers)
    for first, plan in zip((0, 1000), loader.plan.plans, strict=True):
        own = seen[(seen >= 1000) == (first == 1000)]
        served = plan.steps_per_epoch * plan.cells_per_lane * plan.num_lanes
        for start in range(0, len(own) - served + 1, served):
            assert len(set(own[start : start + served].tolist())) == served, "each once in an epoch of its folder"


@pytest.mark.parametrize("draw", ["detection", "uniform"])
def test_genes_that_were_not_measured_are_in_no_gene_set(mixture, draw):
    loader = make_loader(mixture, replace(SETTINGS, gene_draw=draw))
    names = np.array(mixture.vocabulary.symbols)
    for batch in [*take(loader, 4), loader.validation_batch(40)]:
        for cell, number in enumerate(cell_numbers(batch, mixture)):
            genes = names[batch.gene_ids[cell][~batch.is_pad[cell]].numpy()]
            assert set(genes) == set(A_GENES if number < 1000 else B_GENES)
    assert (cell_numbers(loader.validation_batch(40), mixture) >= 1000).any()


def test_tokens_do_not_depend_on_processes_workers_or_restarts(mixture):
    whole = take(make_loader(mixture), 12)
    for start, world, workers in ((0, 2, 0), (5, 4, 0), (7, 2, 2)):
        settings = replace(SETTINGS, workers=workers)
        shares = [take(make_loader(mixture, settings, rank=r, world_size=world), 3, start) for r in range(world)]
        for step in range(3):
            index = torch.cat([share[step].cell_index for share in shares])
            tokens = torch.cat([share[step].tokens for share in shares])[index.argsort()]
            assert torch.equal(tokens, whole[start + step].tokens[whole[start + step].cell_index.argsort()])


def test_statistics_are_those_of_the_cells_that_were_measured(folders, mixture):
    statistics = shard_statistics(mixture, make_tokenizer("count"), rank=5, validation_fraction=0.0)
    logs, measured = [], []
    for folder in folders:
        adata = folder.to_anndata("train")
        whole = np.zeros((adata.n_obs, len(mixture.vocabulary)))
        places = [mixture.vocabulary.symbols.index(name) for name in adata.var_names]
        whole[:, places] = adata.X.toarray()
        is_measured = np.zeros_like(whole, dtype=bool)
        is_measured[:, places] = True
        logs.append(np.log1p(whole))
        measured.append(is_measured)
    logs, measured = np.concatenate(logs), np.concatenate(measured)
    mean = np.array([logs[measured[:, gene], gene].mean() for gene in range(logs.shape[1])])
    sd = np.array([logs[measured[:, gene], gene].std() for gene in range(logs.shape[1])])
    np.testing.assert_allclose(statistics.factors.gene_mean, mean, atol=1e-12)
    np.testing.assert_allclose(statistics.factors.gene_sd, sd, atol=1e-7)
    mean_count = [np.expm1(logs[measured[:, gene], gene]).mean() for gene in range(logs.shape[1])]
    np.testing.assert_allclose(statistics.mean_count, mean_count)
    np.testing.assert_allclose(statistics.token_frequency.sum(axis=1), measured.sum(axis=0))
    zeros = [((logs[:, gene] == 0) & measured[:, gene]).sum() for gene in range(logs.shape[1])]
    np.testing.assert_allclose(statistics.token_frequency[:, 0], zeros)
    centred = (logs - mean) * measured
    _, size, right = np.linalg.svd(centred, full_matrices=False)
    vectors = statistics.factors.gene_vectors * np.sqrt(len(logs))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0)[:3], size[:3], rtol=1e-3)
    assert np.abs((vectors[:, 0] / size[0]) @ right[0]) > 0.999
    rates = mixture.statistics.detection_rate
    place = mixture.vocabulary.symbols.index("G25")
    own = [f.statistics.detection_rate[f.vocabulary.symbols.index("G25")] for f in folders]
    assert rates[place] == pytest.approx((3 * own[0] + own[1]) / 4)


def test_a_substitute_is_of_the_same_folder(mixture):
    source = Quarantine(mixture, validation_fraction=0.1, on_corrupt="quarantine")
    for ref in mixture.row_groups():
        others = list(source._candidates(ref))
        assert others
        assert {other.file.split("/")[0] for other in others} == {ref.file.split("/")[0]}
    record = Quarantined("a/train-00001.parquet", 0, "why", "b/train-00001.parquet", 0)
    with pytest.raises(UserError, match="stands in for a/train-00001"):
        Quarantine(mixture, validation_fraction=0.1, recorded=[record])


def test_lanes_follow_the_weights():
    assert lane_owners([1.0], 5) == [0] * 5
    owner = lane_owners([3.0, 1.0], 8)
    assert (owner.count(0), owner.count(1)) == (6, 2)
    assert [lane_owners([5.0, 3.0, 2.0], 10).count(number) for number in range(3)] == [5, 3, 2]
    with pytest.raises(UserError, match="num-lanes 4 is too few"):
        lane_owners([100.0, 1.0], 4)


def test_a_model_is_trained_and_scored_on_a_mixture(mixture, tmp_path, capsys):
    small = "--model.hidden-size 16 --model.num-layers 1 --model.num-heads 2 --model.state-size 4 --model.factor-size 2"
    run = "--train.max-steps 3 --train.global-batch-size 16 --data.num-lanes 4 --train.pathway-steps 1"
    flags = f"--data.dir {mixture.path} --output-dir {tmp_path}/run {small} {run}"
    assert main(["train", *flags.split(), "--data.condition-columns", "drug", "donor"]) == 0
    assert main(["sample", "--checkpoint", f"{tmp_path}/run", "--mask-ratio", "0.5"]) == 0
    assert "20 heldout cells" in capsys.readouterr().out


def test_mistakes_are_told(folders, mixture, tmp_path, capsys):
    a, b = (str(folder.path) for folder in folders)
    out = ["--output-dir", str(tmp_path / "other")]
    for arguments, told in (
        ([a, *out], "two folders"),
        ([a, a, *out], "given twice"),
        ([a, b, "--weights", "1", *out], "--weights"),
        ([a, b, "--weights", "1", "0", *out], "--weights"),
        ([a, b, "--weights", "100000", "1", *out], "the smallest share is below 0.0001"),
        ([a, str(mixture.path), *out], "is a mixture itself"),
        ([a, str(tmp_path / "none"), *out], "no folder"),
        ([a, b, "--output-dir", a], "holds other files"),
    ):
        assert main(["prepare", "mixture", *arguments]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
    (mixture.path / "notes.txt").write_text("mine")
    assert main(["prepare", "mixture", a, b, "--output-dir", str(mixture.path)]) == 2
    assert "no part of it: notes.txt" in capsys.readouterr().err
    (mixture.path / "notes.txt").unlink()
    assert main(["verify", str(mixture.path)]) == 0
    told = capsys.readouterr().out
    assert all(f"{folder.path} is fine" in told for folder in folders)
    assert "fits the folders that it is made of" in told
    assert main(["prepare", "mixture", a, b, *out]) == 0
    assert "300 training cells" in capsys.readouterr().out


def test_a_folder_that_was_prepared_anew_and_a_damaged_mixture_are_told(folders, mixture):
    path = mixture.path / "mixture.json"
    stored = json.loads(path.read_text())
    for change in ({"weight": 0}, {"weight": "3"}, {"path": 5}, {"name": "a/b"}, {"digest": ""}, {"weight": 10**400},
                   {"name": "\ud800"}):  # fmt: skip
        path.write_text(json.dumps(stored | {"members": [stored["members"][0] | change, stored["members"][1]]}))
        with pytest.raises(UserError, match=r"mixture\.json is damaged"):
            open_shards(mixture.path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"mixture\.json is damaged"):
        open_shards(mixture.path)
    path.write_text(json.dumps(stored | {"members": [stored["members"][0] | {"path": "a" * 400}]}))
    with pytest.raises(UserError, match="there is no folder"):
        open_shards(mixture.path)
    path.write_text(json.dumps(stored))
    write(folders[1].path, B_GENES, simulated_counts(60, 40, seed=2), 1000, "donor")
    with pytest.raises(UserError, match="was prepared anew"):
        open_shards(mixture.path)
