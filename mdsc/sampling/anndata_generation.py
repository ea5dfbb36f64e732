"""New cells as an AnnData: counts drawn from the model with nothing known but conditions.

`Generation` gives them a portion at a time, which the command writes to a file at constant memory, and
`generate_anndata` collects.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.progress import say_nothing
from mdsc.sampling.conditions import CellConditions, ConditionRequest, Features, KnownConditions
from mdsc.sampling.filled_layers import Portion, joined
from mdsc.sampling.guidance import guided
from mdsc.sampling.inpaint import generate
from mdsc.sampling.keyword_options import taken_from
from mdsc.sampling.loaded_model import opened, predictor, provenance
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.pass_size import PassOptions, PassSize, pass_size
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class Generation:
    """What is settled before the first cell is drawn."""

    checkpoint: Checkpoint
    num_cells: int
    places: Int64[np.ndarray, " genes"]
    """In the vocabulary, in the order of the columns."""
    asked: ConditionRequest
    conditions: CellConditions
    sampling: SamplerOptions
    size: PassSize
    seed: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        num_cells: int,
        *,
        asked: ConditionRequest,
        conditions_from: "pd.DataFrame | None" = None,
        genes: Sequence[str] | None,
        seed: int,
        sampling: SamplerOptions,
        passes: PassOptions,
        say: Callable[[str], None],
    ) -> "Generation":
        """UserError for what cannot be generated; `say` is told what is worth knowing."""
        if num_cells < 1:
            raise UserError(f"--num-cells is {num_cells}; it takes 1 or more.")
        vocabulary = checkpoint.vocabulary
        known = KnownConditions(checkpoint.model, asked.features)
        if conditions_from is None:
            conditions = known.given(asked.condition, num_cells)
        elif len(conditions_from) == 0:
            raise UserError("--conditions-from has no cells to take conditions from.")
        else:
            rows = np.arange(num_cells) % len(conditions_from)
            conditions = known.of_cells(conditions_from.iloc[rows], asked.condition, say)
        asked.check_guidance(known, conditions)
        places = np.arange(len(vocabulary)) if genes is None else _places(vocabulary, genes)
        size = pass_size(checkpoint, len(places), passes)
        return cls(checkpoint, num_cells, places, asked, conditions, sampling, size, seed)

    @property
    def symbols(self) -> list[str]:
        return [self.checkpoint.vocabulary.symbols[place] for place in self.places]

    @property
    def var(self) -> dict[str, list[str]]:
        """Columns of var."""
        return {"ensembl_id": [self.checkpoint.vocabulary.ensembl_ids[place] for place in self.places]}

    def names(self, first: int, number: int) -> list[str]:
        return [f"generated_{row}" for row in range(first, first + number)]

    def labels(self, rows: slice) -> dict[str, list[str | None]]:
        """Columns of obs: the conditions that some cells are made under; None for unknown."""
        return {name: [label or None for label in text[rows]] for name, text in self.conditions.labels.items()}

    def progress(self, *, show: bool) -> SamplingProgress:
        return SamplingProgress("generating", self.num_cells, self.sampling.num_steps, show=show)

    def portions(self, progress: SamplingProgress, first: int = 0) -> Iterator[Portion]:
        """The cells from `first` on, as many at once as a pass takes: layer "X"."""
        import scipy.sparse as sp

        # In the order of the vocabulary, so that a gene gets the same draws wherever it was listed.
        order = np.argsort(self.places)
        device = self.checkpoint.model.device
        gene_ids = torch.from_numpy(self.places[order]).to(device)
        predict = progress.watch(guided(predictor(self.checkpoint, self.size.genes), self.asked.guidance))
        assert first % self.size.cells == 0 or first == self.num_cells
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
                **self.conditions.block(slice(start, start + number), device),
                seed=self.seed,
            )
            listed = np.empty((number, len(order)), dtype=np.int32)
            listed[:, order] = counts.cpu().numpy()
            yield Portion({"X": sp.csr_matrix(listed)}, np.array([number, 0.0, 0.0, 0.0]))
            progress.done(start + number)

    def about(self) -> dict:
        """How it is made, in types that h5ad keeps."""
        settings = {
            "task": "generate",
            "seed": self.seed,
            "conditions": dict(self.asked.condition),
            "guidance": self.asked.guidance,
        }
        passes = {"genes_per_pass": self.size.genes or len(self.places)}
        return settings | self.sampling.record() | passes | provenance(self.checkpoint)


def generate_anndata(
    checkpoint: str | Path | Checkpoint,
    num_cells: int,
    *,
    condition: Mapping[str, str] | None = None,
    conditions_from: "pd.DataFrame | None" = None,
    condition_features: Features | None = None,
    guidance: float = 1.0,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options,
) -> "AnnData":
    """Draw cells: counts in X (CSR int32), the conditions in obs, how it was made in uns["mdsc"].

    Args:
        checkpoint: folder, or a checkpoint that is loaded.
        condition: e.g. {"drug": "DMSO_TF"}; what is not given is unknown to the model.
        conditions_from: obs of cells whose conditions the new ones take, row by row, and from the first one again where
            there are fewer; `condition` goes before its columns.
        condition_features: features of levels that the model has not seen, e.g. {"drug": "new_drugs.parquet"}.
        guidance: how much conditions count: 1 is the model itself, 0 leaves them out (`mdsc.sampling.guidance`).
        genes: symbols or Ensembl ids; by default the whole vocabulary. Counts of fewer genes follow the same law as
            those genes would in whole cells, as far as the model has learnt it.
        seed: the draws of a cell depend on the seed and its row, not on `num_cells`.
        say: told what is worth knowing, a line at a time, e.g. `print`.
        show_progress: draw a bar; an output that is no terminal gets a line now and then.
        options: fields of `SamplerOptions` (e.g. num_steps=64) and `PassOptions` (batch_size, genes_per_pass,
            max_memory).
    """
    import pandas as pd
    from anndata import AnnData

    sampling, passes = taken_from(options, SamplerOptions, PassOptions)
    generation = Generation.of(
        opened(checkpoint),
        num_cells,
        asked=ConditionRequest(condition or {}, condition_features or {}, guidance),
        conditions_from=conditions_from,
        genes=genes,
        seed=seed,
        sampling=sampling,
        passes=passes,
        say=say or say_nothing,
    )
    with generation.progress(show=show_progress) as progress:
        counts = joined([portion.layers["X"] for portion in generation.portions(progress)])
    obs = {name: pd.Categorical(list(labels)) for name, labels in generation.labels(slice(0, num_cells)).items()}
    obs = pd.DataFrame(obs, index=generation.names(0, num_cells))
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
