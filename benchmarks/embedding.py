"""Embeddings of held-out cells: labels carried over by nearest training cells, from `mdsc embed` beside PCA.

    python benchmarks/embedding.py --markdown results.md

Models are trained on training cells without labels. PCA is fitted on these cells, too: of log1p(counts per 10,000), of
the genes that the model has, and of all that are measured. A test cell gets the label that most of its 15 nearest
training cells have. Reads `shared/data/*.h5ad` beside the repository; what is done already stays. Flags after `--` go
to train.py.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import tyro
from finished_steps import once
from inpaint import digest
from jaxtyping import Float32
from labelled_cells import DATA, NO_LABEL, labelled_split, trained
from real_cells import ROOT, SplitCells, shared_file
from result_tables import ResultTable, mean_and_sd, write_markdown
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from mdsc.atomic import replacing
from mdsc.checkpoint import WEIGHTS, load_checkpoint
from mdsc.cli import exit_with
from mdsc.data.anndata_counts import read_counts
from mdsc.sampling.anndata_embedding import MdscEmbedder
from mdsc.sampling.embedding import layers_of

NUM_NEIGHBOURS = 15
NUM_COMPONENTS = 50
BASELINE = f"PCA-{NUM_COMPONENTS}"
Embedding = Float32[np.ndarray, "cells width"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    data: tuple[str, ...] = tuple(DATA)
    """Data sets; of kang2018_across another donor is held out with each seed, of the others 20% of the cells."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: of the split into training and test cells, and of training."""
    configs: tuple[Path, ...] = (ROOT / "configs" / "laptop.yaml",)
    """Options of training, of a model each."""
    tokenizer: str = "count"
    """Its tokens; factors and state read counts."""
    num_genes: int = 2000
    """The most variable genes, chosen on the training cells."""
    work_dir: Path = Path("runs/benchmark_scores")
    """Folder for cells, runs and scores."""
    json: Path | None = None
    """File for the scores."""
    markdown: Path | None = None
    """File for the tables."""


def main(argv: Sequence[str]) -> None:
    end = argv.index("--") if "--" in argv else len(argv)
    config = tyro.cli(BenchmarkConfig, args=argv[:end], description=__doc__)
    results: dict[str, list[dict]] = {}
    for name in config.data:
        for seed in config.seeds:
            folder = config.work_dir.resolve() / f"{name}-seed{seed}"
            if (cells := labelled_split(name, folder, seed, config.num_genes)) is None:
                break
            print(f"{name}, seed {seed}", flush=True)
            results.setdefault(name, []).append(one_split(config, name, folder, cells, seed, argv[end + 1 :]))
    tables = [table_of(name, runs) for name, runs in results.items()]
    for table in tables:
        table.show()
    if config.json is not None:
        with replacing(config.json) as beside:
            beside.write_text(json.dumps(results) + "\n", encoding="utf-8")
    if config.markdown is not None and tables:
        introduction = (
            f"Labels of held-out cells by their {NUM_NEIGHBOURS} nearest training cells (Euclidean distance), and "
            "silhouette of the held-out cells by label; mean ± standard deviation over seeds, each with its own split."
        )
        write_markdown(config.markdown, "Embeddings", introduction, tables)


def one_split(
    config: BenchmarkConfig, name: str, folder: Path, cells: SplitCells, seed: int, flags: Sequence[str]
) -> dict:
    """{"scores": {embedding: {"accuracy", "macro_f1", "silhouette"}}, "size", "seconds"}."""
    train, test = (anndata.read_h5ad(path) for path in (cells.train, cells.test))
    labels = train.obs[DATA[name].label].to_numpy(), test.obs[DATA[name].label].to_numpy()
    scores = {}
    for what, one, other in ((f"{BASELINE}, the model's genes", train, test), (f"{BASELINE}, all genes", None, None)):
        if one is None:
            one, other = whole_cells(name, train, test)
        scores[what] = scored(*principal_components(one, other), *labels)
    seconds = {}
    for path in config.configs:
        run = folder / f"{config.tokenizer}-{path.stem}"
        seconds[path.stem] = trained(run, cells, path, config.tokenizer, seed, flags)
        for layer in layers_of(load_checkpoint(run).model.config):
            settings = {"weights": digest(run / WEIGHTS), "layer": layer}
            done = once(run / f"embedding-{layer}.json", settings, embedding_scores(run, layer, train, test, labels))
            scores[f"{path.stem}: {layer}"] = done["result"]
    return {"scores": scores, "size": cells.size, "seconds": seconds}


def whole_cells(name: str, train, test):
    """The same cells with all genes of the file."""
    cells = read_counts(shared_file(f"{DATA[name].file}.h5ad"))
    place = {cell: row for row, cell in enumerate(cells.obs.index.astype(str))}
    for part in (train, test):
        yield anndata.AnnData(cells.counts[[place[cell] for cell in part.obs_names]])


def principal_components(train, test) -> tuple[Embedding, Embedding]:
    def normalised(cells) -> np.ndarray:
        counts = cells.X.toarray().astype(np.float32)
        return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))

    x = normalised(train)
    pca = PCA(NUM_COMPONENTS, random_state=0).fit(x)
    return pca.transform(x).astype(np.float32), pca.transform(normalised(test)).astype(np.float32)


def embedding_scores(run: Path, layer: str, train, test, labels: tuple[np.ndarray, np.ndarray]) -> Callable[[], dict]:
    def step() -> dict:
        embedder = MdscEmbedder(run, layer=layer)
        embeddings = [embedder.get_embeddings(embedder.process_data(cells)) for cells in (train, test)]
        return scored(*embeddings, *labels)

    return step


def scored(train: Embedding, test: Embedding, train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Cells without a label are left out on both sides."""
    has_label, scored_too = train_labels != NO_LABEL, test_labels != NO_LABEL
    knn = KNeighborsClassifier(NUM_NEIGHBOURS).fit(train[has_label], train_labels[has_label])
    test, true = test[scored_too], test_labels[scored_too]
    predicted = knn.predict(test)
    return {
        "accuracy": float((predicted == true).mean()),
        "macro_f1": float(f1_score(true, predicted, average="macro")),
        "silhouette": float(silhouette_score(test, true)),
    }


def table_of(name: str, runs: Sequence[dict]) -> ResultTable:
    names = list(runs[0]["scores"])
    best = {
        seed: max(run["scores"][one]["accuracy"] for one in names if one.startswith(BASELINE))
        for seed, run in enumerate(runs)
    }
    rows = []
    for one in names:
        scores = [run["scores"][one] for run in runs]
        less = [score["accuracy"] - best[seed] for seed, score in enumerate(scores)]
        columns = [mean_and_sd([score[metric] for score in scores]) for metric in scores[0]]
        rows.append([one, *columns, mean_and_sd(less, signed=True)])
    size = runs[0]["size"]
    seconds = ", ".join(f"{config} {value:.0f} s" for config, value in runs[0]["seconds"].items())
    return ResultTable(
        f"{name}, {size['train']:,} training and {size['test']:,} test cells, {len(runs)} seeds",
        ["embedding", "accuracy", "macro F1", "silhouette", "accuracy less the better PCA's"],
        rows,
        f"Sizes of the first seed; training of its models: {seconds}.",
    )


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
