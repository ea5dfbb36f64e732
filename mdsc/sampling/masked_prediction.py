"""A masked model on the perturbation task: cells generated under a perturbation, or real control cells edited to it.

Edited: a share f of a control cell's genes is hidden and drawn as under the perturbation, given the others, which are
read as those of a control cell (`SeenUnder`). That is done ceil(1 / f) times, each time with other genes hidden, so
that every gene is drawn anew given genes of the real cell; what those say of the cell is kept, their counts are not.
Generated: all genes are hidden, and of a control cell only its other conditions are taken (cell type, batch, ...).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64
from torch import Tensor

from mdsc.checkpoint import Checkpoint
from mdsc.data.anndata_counts import CellCounts
from mdsc.data.condition_levels import near_names
from mdsc.data.genes import known_columns
from mdsc.data.log_expression import log_normalised
from mdsc.data.perturbations import COLUMN, CONTROL, canonical, perturbed_genes
from mdsc.diffusion.evidence import Evidence, Predict, SeenUnder
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.errors import UserError
from mdsc.sampling.conditions import CellConditions, Features, KnownConditions
from mdsc.sampling.guidance import guided
from mdsc.sampling.inpaint import generate
from mdsc.sampling.loaded_model import predictor
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.pass_size import PassOptions, pass_size
from mdsc.sampling.posterior import posterior
from mdsc.sampling.predicted_cells import PredictedCells, chosen_rows, seed_of
from mdsc.sampling.samplers import draw_hidden

if TYPE_CHECKING:
    import scipy.sparse as sp

    from mdsc.sampling.progress import SamplingProgress


def predict_masked(
    checkpoint: Checkpoint,
    controls: CellCounts,
    perturbations: Sequence[str],
    *,
    num_cells: int | None,
    guidance: float,
    seed: int,
    features: Features,
    say: Callable[[str], None],
    condition: Mapping[str, str],
    edit_fraction: float | None,
    keep_visible: bool,
    sampling: SamplerOptions,
    passes: PassOptions,
    progress: "SamplingProgress | None" = None,
) -> Iterator[PredictedCells]:
    """One portion of cells for each perturbation. What cannot be predicted is a UserError before the first.

    features: of levels of conditions that the model has none for. condition: levels for all cells, in place of what the
    control cells' obs say. The other options are those of `mdsc sample`.
    """
    places = checkpoint.vocabulary.match_var(controls.var, "the control cells")
    columns = known_columns(places)
    known = PerturbationLevels(checkpoint, features)
    asked = known.asked(perturbations)
    rows = chosen_rows(len(controls.obs), num_cells, seed)
    contexts = known.conditions.of_cells(controls.obs.iloc[rows].drop(columns=COLUMN, errors="ignore"), condition, say)
    size = pass_size(checkpoint, len(columns), passes)
    predict = guided(predictor(checkpoint, size.genes), guidance)
    if progress is not None:
        predict = progress.watch(predict)
    counts = controls.counts[rows][:, columns]
    editing = None
    if edit_fraction is not None:
        before = known.told(contexts, known.control(), len(rows))
        editing = Editing(edit_fraction, keep_visible, before)
        say(editing.said(len(columns)))
    maker = _Maker(checkpoint, predict, torch.from_numpy(places[columns]), size.cells, sampling)
    return _portions(maker, asked, known, contexts, rows, columns, counts, editing, seed, progress)


class PerturbationLevels:
    """The perturbations that a model knows, by cells or by features."""

    def __init__(self, checkpoint: Checkpoint, features: Features):
        self.conditions = KnownConditions(checkpoint.model, features)
        if COLUMN not in self.conditions.levels:
            knows = ", ".join(self.conditions.names) or "none"
            raise UserError(
                f"--perturbation: the model was trained without the condition {COLUMN!r} (it has: {knows}); "
                f"train it with --data.condition-columns {COLUMN}."
            )
        # A user's own data may have called them SPI1+ctrl.
        self._level_of = {_name(level): level for level in reversed(self.conditions.of(COLUMN))}

    def asked(self, names: Sequence[str]) -> dict[str, str]:
        """Perturbation by canonical name -> its level; of what is known by its genes alone, a level is made."""
        names = list(dict.fromkeys(canonical(name) for name in names))
        if CONTROL in names:
            raise UserError(f"--perturbation {CONTROL}: control cells are not predicted, real ones are in the output.")
        return {name: self._level(name) for name in names}

    def control(self) -> str:
        """The level of control cells; where none was trained on, that of features which are 0."""
        if CONTROL not in self._level_of:
            if COLUMN not in self.conditions.row_of:
                raise UserError(
                    f"--edit-fraction: the model knows no {CONTROL} cells (--data.condition-columns {COLUMN}), and "
                    "cannot read them; leave it out to generate cells."
                )
            self._add_sum(CONTROL, ())
        return self._level_of[CONTROL]

    def told(self, contexts: CellConditions, level: str, num_cells: int) -> CellConditions:
        """The conditions of cells of this level."""
        return self.conditions.but_for(contexts, {COLUMN: level}, num_cells, "--perturbation")

    def _level(self, name: str) -> str:
        if name in self._level_of:
            return self._level_of[name]
        genes, with_features = perturbed_genes(name), self.conditions.row_of.get(COLUMN, {})
        parts = {gene: self._level_of.get(gene) for gene in genes}
        unknown = [gene for gene, level in parts.items() if level not in with_features]
        if len(genes) > 1 and not unknown:
            self._add_sum(name, tuple(parts.values()))
            return name
        wanted = unknown[0] if len(genes) > 1 else name
        options = [known for known in self._level_of if known != CONTROL]
        why = f" has no features of {wanted}" if len(genes) > 1 else " knows no such perturbation"
        raise UserError(
            f"--perturbation {name}: the model{why}; {near_names(wanted, options)}.\n"
            f"Features of a gene are brought by --condition-features {COLUMN}=FILE, if the model was trained with such."
        )

    def _add_sum(self, name: str, parts: Sequence[str]) -> None:
        self.conditions.add_sum(COLUMN, name, parts)
        self._level_of[name] = name


def _name(level: str) -> str:
    return "+".join(perturbed_genes(level)) or CONTROL


@dataclass(frozen=True, eq=False)
class Editing:
    fraction: float
    keep_visible: bool
    before: CellConditions
    """Under which the control cells were seen."""

    def number_hidden(self, num_genes: int) -> int:
        return max(1, round(self.fraction * num_genes))

    def hidden(self, evidence: Evidence, seed: int) -> Iterator[tuple[Bool[Tensor, "cells genes"], ...]]:
        """For each time: what is hidden, and what of it is kept of the draws."""
        scores = keyed_uniform(Stream.HIDE, seed, evidence.cell_index[:, None], evidence.gene_ids)
        place = scores.argsort(dim=1).argsort(dim=1)
        num_genes = place.shape[1]
        number = self.number_hidden(num_genes)
        for start in range(0, number if self.keep_visible else num_genes, number):
            hidden = (place - start) % num_genes < number
            yield hidden, hidden & (place >= start)

    def said(self, num_genes: int) -> str:
        number = self.number_hidden(num_genes)
        if self.keep_visible:
            return f"hiding {number:,} of the {num_genes:,} genes of each control cell, the others stay as they are"
        times = -(-num_genes // number)
        return f"hiding {number:,} of the {num_genes:,} genes of each control cell, {times} times: all are drawn"


@dataclass(frozen=True, eq=False)
class _Maker:
    checkpoint: Checkpoint
    predict: Predict
    gene_ids: Int[Tensor, " genes"]
    num_at_once: int
    sampling: SamplerOptions

    def generated(self, told: CellConditions, rows: slice, seed: int) -> Int[Tensor, "cells genes"]:
        device = self.checkpoint.model.device
        return generate(
            self.predict,
            self.checkpoint.tokenizer,
            self.gene_ids.to(device),
            rows.stop - rows.start,
            self.sampling,
            first_cell=rows.start,
            **told.block(rows, device),
            seed=seed,
        ).cpu()

    def edited(
        self, whole: Int[Tensor, "cells genes"], told: CellConditions, editing: Editing, rows: slice, seed: int
    ) -> tuple[Int[Tensor, "cells genes"], Float32[Tensor, "cells genes"]]:
        """Drawn counts, and expected ones."""
        device, tokenizer = self.checkpoint.model.device, self.checkpoint.tokenizer
        whole = whole.to(device)
        cell_index = torch.arange(rows.start, rows.stop, device=device)
        all_visible = Evidence(
            gene_ids=self.gene_ids.to(device).expand(whole.shape),
            counts=whole,
            visible=torch.ones_like(whole, dtype=torch.bool),
            is_pad=torch.zeros_like(whole, dtype=torch.bool),
            cell_index=cell_index,
            **told.block(rows, device),
        )
        drawn, expected = whole.clone(), whole.float()
        for time, (hidden, kept) in enumerate(editing.hidden(all_visible, seed)):
            seen = SeenUnder(positions=~hidden, **editing.before.block(rows, device))
            evidence = Evidence(
                gene_ids=all_visible.gene_ids,
                counts=whole * ~hidden,
                visible=~hidden,
                is_pad=all_visible.is_pad,
                cell_index=cell_index,
                categories=all_visible.categories,
                vectors=all_visible.vectors,
                seen_under=seen,
            )
            counts = draw_hidden(self.predict, evidence, tokenizer, self.sampling, seed=seed, draw_index=time)
            mean = posterior(self.predict, tokenizer, evidence).mean
            drawn, expected = torch.where(kept, counts, drawn), torch.where(kept, mean, expected)
        return drawn.cpu(), expected.cpu()


def _portions(
    maker: _Maker,
    asked: Mapping[str, str],
    known: PerturbationLevels,
    contexts: CellConditions,
    rows: Int64[np.ndarray, " cells"],
    columns: Int64[np.ndarray, " genes"],
    counts: "sp.csr_matrix",
    editing: Editing | None,
    seed: int,
    progress: "SamplingProgress | None",
) -> Iterator[PredictedCells]:
    """counts: (cells, genes) of the control cells at `rows` and genes at `columns`."""
    import scipy.sparse as sp

    for number, (name, level) in enumerate(asked.items()):
        told = known.told(contexts, level, len(rows))
        drawn, expected = [], []
        for start in range(0, len(rows), maker.num_at_once):
            block = slice(start, min(start + maker.num_at_once, len(rows)))
            if editing is None:
                made = maker.generated(told, block, seed_of(seed, name))
            else:
                whole = torch.from_numpy(counts[block].toarray())
                made, mean = maker.edited(whole, told, editing, block, seed_of(seed, name))
                expected.append(log_expression(mean.numpy()))
            drawn.append(sp.csr_matrix(made.numpy().astype(np.int32)))
            if progress is not None:
                progress.done(number * len(rows) + block.stop)
        cells = sp.vstack(drawn, format="csr")
        yield PredictedCells(
            name,
            rows,
            columns,
            log_normalised(cells).astype(np.float32).toarray(),
            cells,
            np.concatenate(expected) if expected else None,
        )


def log_expression(counts: Float32[np.ndarray, "cells genes"]) -> Float32[np.ndarray, "cells genes"]:
    """`log_normalised` of counts that are no whole numbers."""
    import scipy.sparse as sp

    return log_normalised(sp.csr_matrix(counts)).astype(np.float32).toarray()
