"""New cells as an AnnData: counts drawn from the model with nothing known but conditions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64

from mdsc.checkpoint import Checkpoint
from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.sampling.conditions import Features, KnownConditions
from mdsc.sampling.guidance import guided, require_conditions
from mdsc.sampling.inpaint import generate
from mdsc.sampling.loaded_model import cells_per_pass, opened, predictor, provenance
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.progress import SamplingProgress

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
    batch_size: int | None = None,
    say: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **sampling,
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
        batch_size: cells at once; by default what suits the device. It changes no result but by rounding.
        say: told what is worth knowing, a line at a time, e.g. `print`.
        show_progress: draw a bar, if the output is a terminal.
        sampling: fields of `SamplerOptions`, e.g. num_steps=64.
    """
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    if num_cells < 1:
        raise UserError(f"--num-cells is {num_cells}; it takes 1 or more.")
    options = SamplerOptions(**sampling)
    checkpoint = opened(checkpoint)
    vocabulary, model, condition = checkpoint.vocabulary, checkpoint.model, dict(condition or {})
    known = KnownConditions(model, condition_features)
    if conditions_from is None:
        conditions, obs = known.given(condition, num_cells), pd.DataFrame(condition, index=range(num_cells))
    else:
        taken = conditions_from.iloc[np.arange(num_cells) % len(conditions_from)]
        conditions = known.of_cells(taken, condition, say or (lambda text: None))
        obs = pd.DataFrame({name: condition.get(name, taken.get(name)) for name in conditions.level_ids})
    require_conditions(guidance, known.names, conditions.names)
    places = np.arange(len(vocabulary)) if genes is None else _places(vocabulary, genes)

    # In the order of the vocabulary, so that a gene gets the same draws wherever it was listed.
    order = np.argsort(places)
    gene_ids = torch.from_numpy(places[order]).to(model.device)
    blocks = []
    size = cells_per_pass(len(places), batch_size, model.device)
    with SamplingProgress("generating", num_cells, options.num_steps, show=show_progress) as progress:
        predict = progress.watch(guided(predictor(checkpoint), guidance))
        for start in range(0, num_cells, size):
            number = min(size, num_cells - start)
            counts = generate(
                predict,
                checkpoint.tokenizer,
                gene_ids,
                number,
                options,
                first_cell=start,
                **conditions.block(slice(start, start + number), model.device),
                seed=seed,
            )
            listed = np.empty_like(counts.cpu().numpy())
            listed[:, order] = counts.cpu().numpy()
            blocks.append(sp.csr_matrix(listed))
            progress.done(start + number)

    obs.index = [f"generated_{row}" for row in range(num_cells)]
    var = pd.DataFrame(
        {"ensembl_id": [vocabulary.ensembl_ids[place] for place in places]},
        index=[vocabulary.symbols[place] for place in places],
    )
    settings = {"task": "generate", "seed": seed, "conditions": condition, "guidance": guidance} | asdict(options)
    return AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var, uns={"mdsc": settings | provenance(checkpoint)})


def _places(vocabulary: GeneVocabulary, genes: Sequence[str]) -> Int64[np.ndarray, " genes"]:
    if not genes:
        raise UserError("--genes lists no gene.")
    places = vocabulary.match(genes, "--genes")
    if unknown := [name for name, place in zip(genes, places, strict=True) if place < 0]:
        more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
        raise UserError(f"--genes: the model does not know {', '.join(unknown[:5])}{more}; leave them out.")
    return places
