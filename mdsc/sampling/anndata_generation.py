"""New cells as an AnnData: counts drawn from the model with nothing known but conditions.

`Generation` gives them a portion at a time, which the command writes to a file at constant memory, and
`generate_anndata` collects.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.sampling.conditions import given_ids
from mdsc.sampling.filled_layers import Portion, joined
from mdsc.sampling.inpaint import generate
from mdsc.sampling.keyword_options import taken_from
from mdsc.sampling.loaded_model import opened, predictor, provenance
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.pass_size import PassOptions, PassSize, pass_size
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Generation:
    """What is settled before the first cell is drawn."""

    checkpoint: Checkpoint
    num_cells: int
    places: Int64[np.ndarray, " genes"]
    """In the vocabulary, in the order of the columns."""
    condition: Mapping[str, str]
    ids: Mapping[str, int]
    sampling: SamplerOptions
    size: PassSize
    seed: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        num_cells: int,
        *,
        condition: Mapping[str, str],
        genes: Sequence[str] | None,
        seed: int,
        sampling: SamplerOptions,
        passes: PassOptions,
    ) -> "Generation":
        """UserError for what cannot be generated."""
        if num_cells < 1:
            raise UserError(f"--num-cells is {num_cells}; it takes 1 or more.")
        vocabulary = checkpoint.vocabulary
        ids = given_ids(checkpoint.model.config.condition_levels or {}, condition)
        places = np.arange(len(vocabulary)) if genes is None else _places(vocabulary, genes)
        size = pass_size(checkpoint, len(places), passes)
        return cls(checkpoint, num_cells, places, condition, ids, sampling, size, seed)

    @property
    def symbols(self) -> list[str]:
        return [self.checkpoint.vocabulary.symbols[place] for place in self.places]

    @property
    def var(self) -> dict[str, list[str]]:
        """Columns of var."""
        return {"ensembl_id": [self.checkpoint.vocabulary.ensembl_ids[place] for place in self.places]}

    def names(self, first: int, number: int) -> list[str]:
        return [f"generated_{row}" for row in range(first, first + number)]

    def progress(self, *, show: bool) -> SamplingProgress:
        return SamplingProgress("generating", self.num_cells, self.sampling.num_steps, show=show)

    def portions(self, progress: SamplingProgress, first: int = 0) -> Iterator[Portion]:
        """The cells from `first` on, as many at once as a pass takes: layer "X"."""
        import scipy.sparse as sp

        # In the order of the vocabulary, so that a gene gets the same draws wherever it was listed.
        order = np.argsort(self.places)
        device = self.checkpoint.model.device
        gene_ids = torch.from_numpy(self.places[order]).to(device)
        predict = progress.watch(predictor(self.checkpoint, self.size.genes))
        assert first % self.size.cells == 0
        progress.done(first)
        for start in range(first, self.num_cells, self.size.cells):
            number = min(self.size.cells, self.num_cells - start)
            counts = generate(
                predict,
                self.checkpoint.tokenizer,
                gene_ids,
                number,
                self.sampling,
                first_cell=start,
                categories={name: torch.full((number,), level, device=device) for name, level in self.ids.items()},
                seed=self.seed,
            )
            listed = np.empty((number, len(order)), dtype=np.int32)
            listed[:, order] = counts.cpu().numpy()
            yield Portion({"X": sp.csr_matrix(listed)}, np.array([number, 0.0, 0.0, 0.0]))
            progress.done(start + number)

    def about(self) -> dict:
        """How it is made, in types that h5ad keeps."""
        settings = {"task": "generate", "seed": self.seed, "conditions": dict(self.condition)}
        passes = {"genes_per_pass": self.size.genes or len(self.places)}
        return settings | self.sampling.record() | passes | provenance(self.checkpoint)


def generate_anndata(
    checkpoint: str | Path | Checkpoint,
    num_cells: int,
    *,
    condition: Mapping[str, str] | None = None,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    show_progress: bool = False,
    **options,
) -> "AnnData":
    """Draw cells: counts in X (CSR int32), the conditions in obs, how it was made in uns["mdsc"].

    Args:
        checkpoint: folder, or a checkpoint that is loaded.
        condition: e.g. {"drug": "DMSO_TF"}; what is not given is unknown to the model.
        genes: symbols or Ensembl ids; by default the whole vocabulary. Counts of fewer genes follow the same law as
            those genes would in whole cells, as far as the model has learnt it.
        seed: the draws of a cell depend on the seed and its row, not on `num_cells`.
        show_progress: draw a bar, if the output is a terminal.
        options: fields of `SamplerOptions` (e.g. num_steps=64) and `PassOptions` (batch_size, genes_per_pass,
            max_memory).
    """
    import pandas as pd
    from anndata import AnnData

    sampling, passes = taken_from(options, SamplerOptions, PassOptions)
    generation = Generation.of(
        opened(checkpoint), num_cells, condition=condition or {}, genes=genes, seed=seed, sampling=sampling,
        passes=passes,
    )  # fmt: skip
    with generation.progress(show=show_progress) as progress:
        counts = joined([portion.layers["X"] for portion in generation.portions(progress)])
    obs = pd.DataFrame(generation.condition, index=generation.names(0, num_cells), dtype="category")
    var = pd.DataFrame(generation.var, index=generation.symbols)
    return AnnData(counts, obs=obs, var=var, uns={"mdsc": generation.about()})


def _places(vocabulary: GeneVocabulary, genes: Sequence[str]) -> Int64[np.ndarray, " genes"]:
    if not genes:
        raise UserError("--genes lists no gene.")
    places = vocabulary.match(genes, "--genes")
    if unknown := [name for name, place in zip(genes, places, strict=True) if place < 0]:
        more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
        raise UserError(f"--genes: the model does not know {', '.join(unknown[:5])}{more}; leave them out.")
    return places
