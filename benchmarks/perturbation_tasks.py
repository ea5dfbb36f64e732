"""The perturbation tasks of benchmarks/perturbation.py: real cells with a part held out, fold by fold."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from real_cells import shared_file

from mdsc.data.gene_set_file import read_gmt, sets_of_genes
from mdsc.data.level_features import LevelFeatures, read_features
from mdsc.data.perturbations import CONTROL
from mdsc.errors import UserError
from mdsc.evaluation.perturb_task import PerturbTask
from mdsc.prep.gene_embeddings import term_components
from mdsc.prep.perturbation_task import perturbation_task
from mdsc.prep.perturbation_truth import PerturbationSimulation, random_embeddings
from mdsc.prep.simulated_perturbations import simulate_perturbations

if TYPE_CHECKING:
    from anndata import AnnData

GO = "go_biological_process_2021.gmt"
COMPONENTS = 64


@dataclass(frozen=True, eq=False)
class Fold:
    """Cells with a split, embeddings of their perturbed genes (None: what was done is the same for all), contexts."""

    name: str
    cells: "AnnData"
    features: LevelFeatures | None
    context: str | None = None
    """Column of obs."""
    batch: str | None = None
    oracle: "AnnData | None" = None
    """Predicted cells of who knows the law of all effects, but for what no embedding tells."""

    def task(self) -> PerturbTask:
        """For the harness. GO terms are what its random forest reads."""
        features = self.features
        vectors = None if features is None else dict(zip(features.names, features.values, strict=True))
        has_sets = features is not None and shared_file(GO) is not None
        sets = sets_of_genes(read_gmt(_file(GO)), features.names) if has_sets else None
        return PerturbTask.of_anndata(self.cells, context_column=self.context, vectors=vectors, gene_sets=sets)


def papalexi() -> Iterator[Fold]:
    """25 knocked-out genes in THP-1 cells, a fifth of them held out in each of five folds."""
    import anndata

    cells = anndata.read_h5ad(_file("papalexi2021_crispr.h5ad"))
    cells = cells[cells.obs["guide_top_share"] > 0.8].copy()  # of other cells the guide is in doubt
    genes = sorted(set(cells.obs["perturbation_top"]) - {"non-targeting"})
    features = _go_features(genes)
    for fold in range(5):
        task = perturbation_task(
            cells,
            features,
            say=lambda text: None,
            perturbation_column="perturbation_top",
            control_label="non-targeting",
            control_reference=0.0,
            batch_column="bio_rep",
            split=("folds",),
            num_folds=5,
            fold=fold,
            val_fraction=0.15,
        )
        yield Fold(f"papalexi {fold}", task, features, batch="batch")


def adamson() -> Iterator[Fold]:
    """The pilot: five knocked-down genes in K562 cells, 60 cells each; one is held out at a time."""
    import anndata

    cells = anndata.read_h5ad(_file("adamson2016_pilot.h5ad"))
    genes = sorted(set(cells.obs["guide_gene"]) - {"non-targeting"})
    features = _go_features(genes)
    for fold in range(len(genes)):
        task = perturbation_task(
            cells,
            features,
            say=lambda text: None,
            perturbation_column="guide_gene",
            control_label="non-targeting",
            control_reference=0.0,
            split=("leave-one-out",),
            fold=fold,
            val_fraction=0.0,
        )
        yield Fold(f"adamson {genes[fold]}", task, features)


def kang() -> Iterator[Fold]:
    """Interferon-beta in seven types of blood cells, the stimulated cells of one of them held out at a time."""
    import anndata

    cells = anndata.read_h5ad(_file("kang2018_ifnb.h5ad"))
    for cell_type in sorted(set(cells.obs["cell_type"])):
        task = perturbation_task(
            cells,
            say=lambda text: None,
            perturbation_column="condition",
            control_label="control",
            control_reference=0.0,
            cell_type_column="cell_type",
            split=("cell-type",),
            held_out=(cell_type,),
            num_genes=1000,
        )
        yield Fold(f"kang {cell_type}", task, None, context="cell_type")


def simulated(num_cells: int = 30_000, num_genes: int = 1000) -> Iterator[Fold]:
    """Adamson's 86 perturbations, 22 of them held out as by GEARS, with effects that the gene embeddings tell."""
    embeddings = None
    if (path := shared_file("genept/genept_ada002_adamson86.csv.gz")) is not None:
        embeddings = read_features(path)
    simulation = PerturbationSimulation(num_cells=num_cells, num_genes=num_genes, unexplained=0.1, effect_size=0.7)
    embeddings = random_embeddings(simulation) if embeddings is None else embeddings
    cells, oracle = simulate_perturbations(simulation, embeddings, oracle_cells=500)
    task = perturbation_task(
        cells, embeddings, say=lambda text: None, split=("gears-simulation",), split_seed=1, control_reference=0.0
    )
    genes = [row for row, name in enumerate(embeddings.names) if name != CONTROL]
    features = LevelFeatures(tuple(embeddings.names[row] for row in genes), embeddings.values[genes], embeddings.source)
    yield Fold("simulated", task, features, batch="batch" if "batch" in task.obs else None, oracle=oracle)


TASKS = {"papalexi": papalexi, "adamson": adamson, "kang": kang, "simulated": simulated}
TITLES = {
    "papalexi": "Papalexi et al. 2021: genes held out",
    "adamson": "Adamson et al. 2016, pilot: one gene held out at a time",
    "kang": "Kang et al. 2018: one cell type's stimulated cells held out at a time",
    "simulated": "Simulated: 22 of 86 perturbations held out, effects that embeddings tell",
}


def _file(name: str) -> Path:
    if (path := shared_file(name)) is None:
        raise UserError(f"--only: shared/data/{name} is not beside the repository; leave this task out.")
    return path


def _go_features(genes: list[str]) -> LevelFeatures:
    """Components of the GO terms of all genes, for the perturbed ones that have a term."""
    found = term_components(read_gmt(_file(GO)), COMPONENTS, GO)
    rows = [row for row, name in enumerate(found.names) if name in genes]
    return LevelFeatures(tuple(found.names[row] for row in rows), found.values[rows], GO)
