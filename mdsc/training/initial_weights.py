"""`--init-from`: a new run that starts from a trained checkpoint, whose genes and conditions may be others.

Genes are matched by Ensembl id, else by symbol, and levels of conditions by name; all else is taken over where it has
the same shape. A gene that the checkpoint lacks starts as in a new model, its vectors turned by least squares over the
shared genes into the directions that the checkpoint's have: those of an SVD of other cells mean something else.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mdsc.checkpoint import Checkpoint, checkpoint_folder, checkpoint_name, load_checkpoint
from mdsc.config.schema import TrainConfig
from mdsc.data.genes import GeneVocabulary
from mdsc.data.level_features import FittedFeatures, feature_files, read_features
from mdsc.data.tokenizers import Tokenizer
from mdsc.errors import UserError
from mdsc.model.modeling import MdscModel

SHAPE = (
    *("backbone", "num_latents", "hidden_size", "num_layers", "num_heads", "mlp_ratio", "state_size", "state_pooling"),
    *("factor_size", "condition_rank"),
)
"""Options of the model that its weights have settled."""
GENE_TABLES = (
    *("output_bias.weight", "condition_response.gene.weight", "gene_embedding.weight"),
    *(f"cell_state.{name}" for name in ("gene_value", "log_precision", "mean_count", "gene_in.weight")),
    "cell_state.gene_out.weight",
    *(f"gene_evidence.{name}" for name in ("gene_sd", "gene_level", "gene_mean", "precision", "loadings")),
)
"""A row for each gene of the vocabulary."""
DIRECTIONS = {
    "cell_state.gene_in.weight": "cell_state.gene_in.weight",
    "cell_state.gene_out.weight": "cell_state.gene_out.weight",
    "gene_embedding.weight": "cell_state.gene_in.weight",
    "gene_evidence.loadings": "gene_evidence.loadings",
}
"""Of these, those whose numbers mean directions of the checkpoint's own -> what tells a new gene's."""
CONDITIONS = "conditions."


@dataclass(frozen=True, eq=False)
class Start:
    """A checkpoint to start from, of which the run has the shape."""

    checkpoint: Checkpoint
    name: str

    @classmethod
    def of(cls, init_from: str) -> "Start":
        folder = checkpoint_folder(init_from, "--init-from")
        checkpoint = load_checkpoint(folder)
        if not isinstance(checkpoint.model, MdscModel):
            raise UserError(f"--init-from {init_from} is a Gaussian head: give the checkpoint of a masked model.")
        return cls(checkpoint, checkpoint_name(folder))

    @property
    def shape(self) -> dict[str, Any]:
        config = self.checkpoint.model.config
        shape = {name: getattr(config, name) for name in SHAPE}
        if not config.condition_levels:
            del shape["condition_rank"]  # without conditions it had no say
        return shape

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        own = self.checkpoint.tokenizer
        if (own.name, own.edges) != (tokenizer.name, tokenizer.edges):
            raise UserError(
                f"--init-from {self.name}: its tokenizer is {own.name} of {own.num_tokens} tokens, that of this run is "
                f"{tokenizer.name} of {tokenizer.num_tokens}: give --tokenizer.name {own.name} --tokenizer.num-tokens "
                f"{own.num_tokens}."
            )

    def features(
        self, fitted: Mapping[str, FittedFeatures], files: Collection[str], levels: Collection[str]
    ) -> dict[str, FittedFeatures]:
        """Features of condition columns in the components of the checkpoint, which its weights read; where it has none,
        or features of another length, those of this run's own."""
        paths, found = feature_files(files, "--data.condition-features"), dict(fitted)
        conditions = self.checkpoint.model.conditions
        for name in conditions.table_names:
            table = conditions.table(name)
            known, vectors = list(table.names), table.vectors
            if name in fitted:
                if len(fitted[name].mean) != len(table.mean):
                    continue
                given = read_features(paths[name])
                new = set(given.names)
                others = [row for row, level in enumerate(known) if level not in new]
                vectors = torch.cat([table.reduced(torch.from_numpy(given.values)), vectors[others]])
                known = [*given.names, *(known[row] for row in others)]
            if name in levels:
                arrays = (part.detach().cpu().float().numpy() for part in (vectors, table.mean, table.basis))
                found[name] = FittedFeatures(tuple(known), *arrays)
        return found

    @torch.no_grad()
    def give(self, model: MdscModel, vocabulary: GeneVocabulary) -> str:
        """Put the checkpoint's weights into a new model, and say in a line what came of it."""
        places = matched(vocabulary, self.checkpoint.vocabulary)
        if not (places >= 0).any():
            raise UserError(
                f"--init-from {self.name} has no gene in common with these cells: it has "
                f"{', '.join(self.checkpoint.vocabulary.symbols[:3])}, ..., and they have "
                f"{', '.join(vocabulary.symbols[:3])}, ...."
            )
        old, left = self.checkpoint.model.state_dict(), []
        built = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in DIRECTIONS.values()}
        for name, tensor in model.state_dict().items():
            if name.startswith(CONDITIONS):
                continue  # by their names, below
            source = old.get(name)
            if name in GENE_TABLES and source is not None and source.shape[1:] == tensor.shape[1:]:
                _give_rows(tensor, source, places, built.get(DIRECTIONS.get(name, "")))
            elif source is not None and source.shape == tensor.shape:
                tensor.copy_(source)
            else:
                left.append(name)
        columns, new_levels = self._give_conditions(model)
        number = len(model.state_dict())
        new_genes = [vocabulary.symbols[place] for place in np.flatnonzero(places < 0)]
        gone = [name for name in self.checkpoint.model.conditions.names if name not in columns]
        told = [
            f"{len(places) - len(new_genes):,} of {len(places):,} genes",
            *([f"conditions {', '.join(columns)}"] if columns else []),
        ]
        new = [
            *([f"genes {_some(new_genes)}"] if new_genes else []),
            *(f"levels of {column} {_some(levels)}" for column, levels in new_levels.items() if levels),
            *([f"weights {_some(left)}"] if left else []),
        ]
        text = f"--init-from {self.name}: taken over {' and '.join(told)}, {number - len(left):,} of {number:,} tensors"
        text += f"; new are {'; '.join(new)}" if new else "; nothing is new"
        return text + (f"; not taken: conditions {', '.join(gone)}" if gone else "")

    def _give_conditions(self, model: MdscModel) -> tuple[list[str], dict[str, list[str]]]:
        """The columns that both have, and the levels of each column that the checkpoint lacks."""
        given, old = model.conditions, self.checkpoint.model.conditions
        before = self.checkpoint.model.config.condition_levels or {}
        columns, new_levels = [], {}
        for name, embedding in zip(given.category_names, given.categories, strict=True):
            levels = model.config.condition_levels[name]
            if name not in old.category_names:
                new_levels[name] = list(levels)
                continue
            columns.append(name)
            source = old.categories[old.category_names.index(name)].weight
            row_of = {level: row for row, level in enumerate(before[name], start=1)}
            # A new level starts as an unknown one does.
            embedding.weight.copy_(source[[0, *(row_of.get(level, 0) for level in levels)]])
            new_levels[name] = [level for level in levels if level not in row_of]
        for name, projection in zip(given.vector_names, given.vectors, strict=True):
            if name in old.vector_names:
                source, table = old.vectors[old.vector_names.index(name)], given.table(name)
                if table is None or torch.equal(table.basis.cpu(), old.table(name).basis.cpu()):
                    projection.load_state_dict(source.state_dict())
        return columns, new_levels


def settled(
    config: TrainConfig, saved: Mapping[str, Any] | None, given: Collection[str]
) -> tuple[TrainConfig, Start | None]:
    """The options with the shape of the checkpoint that the run starts, or has started, from; and that checkpoint.

    saved: options of the state that is to be resumed, which goes before. given: names of the options that were given
    as flags; one that asks for another shape is a UserError.
    """
    if saved is not None:
        before = saved.get("init_from")
        config = replace(config, init_from=before)
        return (config if before is None else _with_shape(config, saved["model"], given)), None
    if config.init_from is None:
        return config, None
    if config.head != "masked":
        raise UserError("--init-from starts a masked model from another one; leave it out with --head gaussian.")
    start = Start.of(config.init_from)
    return _with_shape(replace(config, init_from=start.name), start.shape, given), start


def _with_shape(config: TrainConfig, shape: Mapping[str, Any], given: Collection[str]) -> TrainConfig:
    shape = {name: value for name, value in shape.items() if name in SHAPE}
    asked = asdict(config.model)
    for name, value in shape.items():
        flag = f"--model.{name.replace('_', '-')}"
        if flag in given and asked[name] != value:
            raise UserError(
                f"{flag} is {asked[name]}, but it is {value} in --init-from {config.init_from}, of which a run has the "
                "shape: leave the flag out."
            )
    return replace(config, model=replace(config.model, **shape))


def flags_given(argv: Collection[str]) -> set[str]:
    """Names of the flags of a command line, as --help writes them."""
    return {text.partition("=")[0].replace("_", "-") for text in argv if text.startswith("--")}


def matched(vocabulary: GeneVocabulary, other: GeneVocabulary) -> Int64[np.ndarray, " genes"]:
    """Place in `other` of each gene, by Ensembl id where both have one, else by symbol; -1 where it has none."""
    by_id = {name: place for place, name in enumerate(other.ensembl_ids) if name}
    by_symbol = {name: place for place, name in enumerate(other.symbols)}
    places = np.full(len(vocabulary), -1, dtype=np.int64)
    taken = set()
    for gene, (symbol, ensembl_id) in enumerate(zip(vocabulary.symbols, vocabulary.ensembl_ids, strict=True)):
        place = by_id.get(ensembl_id, -1) if ensembl_id else -1
        if place < 0:
            place = by_symbol.get(symbol, -1)
            if place >= 0 and ensembl_id and other.ensembl_ids[place]:
                continue  # a symbol that has come to mean another gene
        if place >= 0 and place not in taken:
            places[gene] = place
            taken.add(place)
    return places


def _give_rows(
    table: Float[Tensor, "genes ..."],
    source: Float[Tensor, "others ..."],
    places: Int64[np.ndarray, " genes"],
    built: Float[Tensor, "genes directions"] | None,
) -> None:
    """built: vectors of this run's own SVD, of which those of new genes are made; None leaves the rows of these."""
    shared, new = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
    table[shared] = source[places[shared]].to(table)
    # Of a few shared genes the directions cannot be told.
    if built is not None and len(new) and len(shared) >= 4 * built.shape[1]:
        turn = torch.linalg.lstsq(built[shared].double().cpu(), table[shared].double().cpu(), driver="gelsd").solution
        table[new] = (built[new].double().cpu() @ turn).to(table)


def _some(names: Collection[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
