"""The cells of the race of backbones: real ones of `shared/data`, and simulated ones whose best likelihood is known."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from finished_steps import once
from real_cells import prepare_split, shared_file, split_paths
from simulated_oracle import oracle_nll

from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import CountTokenizer, Tokenizer
from mdsc.diffusion.corruption import hide_fraction
from mdsc.evaluation.cell_sources import read_h5ad, read_shards
from mdsc.evaluation.inpaint import HeldOutCells
from mdsc.prep.simulate import simulate_shards
from mdsc.prep.simulated_cells import SimulationConfig, Truth

NUM_GENES = 1000
MASK_RATIOS = (0.2, 0.5, 0.8)
HIDING_SEED = 0
SIMULATED = {"simulated_2k": 2000, "simulated_20k": 20_000, "simulated_200k": 200_000}
"""Name -> training cells, about; all of one truth."""
TEST_CELLS = 2000
"""Simulated cells beside these, about."""
FEW = "--train.gene-weight-decay 0.3 --model.state-dropout 0.1"
MANY = "--train.gene-weight-decay 0 --model.state-dropout 0"


@dataclass(frozen=True)
class RaceCells:
    """Where the cells of a data set are."""

    name: str
    shards: Path
    test: Path | None
    """h5ad file of the held-out cells; None where they are a split of the shards."""
    flags: str
    """Options of training that go with the data, the same for all backbones."""

    def held_out(self, most: int) -> HeldOutCells:
        folder = ShardFolder.open(self.shards)
        if self.test is not None:
            cells = read_h5ad(self.test, folder.vocabulary, most=most)
        else:
            cells = read_shards(folder, folder.held_out_split, folder.vocabulary, most=most)
        return HeldOutCells(cells.counts, cells.places)

    def oracle(self, tokenizer: Tokenizer, most: int) -> dict[str, list[float]] | None:
        """Mean over the held-out cells by mask ratio; None where the truth is not known."""
        if self.name not in SIMULATED:
            return None
        assert isinstance(tokenizer, CountTokenizer)
        counts = self.held_out(most).counts.toarray()
        truth = Truth.load(self.shards / "truth.safetensors")
        index, nothing = torch.arange(len(counts)), torch.zeros(counts.shape, dtype=torch.bool)
        hidden = [hide_fraction(nothing, ratio, seed=HIDING_SEED, cell_index=index).numpy() for ratio in MASK_RATIOS]
        return {
            f"{ratio:g}": float(oracle_nll(truth, tokenizer, counts, of_ratio).mean())
            for ratio, of_ratio in zip(MASK_RATIOS, hidden, strict=True)
        }


def prepare(name: str, work_dir: Path) -> RaceCells | None:
    """The cells of a data set, made where they are not there yet; None where the file is missing."""
    folder = work_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    if name in SIMULATED:
        return _simulated(name, folder)
    if (source := shared_file(f"{name}.h5ad")) is None:
        print(f"{name}: left out, because there is no shared/data/{name}.h5ad beside the repository")
        return None
    note = {"source": name, "num_genes": NUM_GENES, "bytes": source.stat().st_size}
    size = once(folder / "split.json", note, lambda: prepare_split(source, folder, NUM_GENES))["result"]
    paths = split_paths(folder, size)
    return RaceCells(name, paths.shards, paths.test, f"--tokenizer.name rank {FEW}")


def simulation(num_train: int) -> SimulationConfig:
    """40 types in a space of 12 programs, 10 drugs that change 60 genes each: no few factors of log counts hold it."""
    return SimulationConfig(
        num_cells=num_train + TEST_CELLS,
        num_genes=NUM_GENES,
        num_types=40,
        num_programs=12,
        num_drugs=10,
        genes_per_drug=60,
        drug_effect=1.5,
        heldout_fraction=TEST_CELLS / (num_train + TEST_CELLS),
    )


def _simulated(name: str, folder: Path) -> RaceCells:
    config = simulation(SIMULATED[name])

    def step() -> dict:
        made = simulate_shards(Truth.of(config), folder / "shards")
        return {"train": made.num_cells("train"), "test": made.num_cells("heldout")}

    once(folder / "simulated.json", asdict(config), step)
    few = SIMULATED[name] < 10_000
    return RaceCells(name, folder / "shards", None, f"--tokenizer.name count {FEW if few else MANY}")


def sizes(cells: RaceCells) -> dict[str, int]:
    folder = ShardFolder.open(cells.shards)
    return {"train": folder.num_cells("train"), "genes": len(folder.vocabulary)}


def training_counts(cells: RaceCells, most: int):
    """At most `most` training cells, for baselines; validation cells of the runs among them."""
    folder = ShardFolder.open(cells.shards)
    return read_shards(folder, "train", folder.vocabulary, most=most).counts
