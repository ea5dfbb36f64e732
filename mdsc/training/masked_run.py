"""Loader, model and task of a run that trains the masked model."""

from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import set_seed

from mdsc.config.schema import TrainConfig
from mdsc.data.condition_levels import condition_features, condition_levels
from mdsc.data.level_features import FittedFeatures
from mdsc.data.loader import CellLoader
from mdsc.data.shard_statistics import shard_statistics
from mdsc.data.shards import ShardFolder
from mdsc.data.tokenizers import Tokenizer, make_tokenizer
from mdsc.model.initialisation import build_model
from mdsc.model.modeling import MdscModel
from mdsc.training.initial_weights import Start
from mdsc.training.masked_task import MaskedTask
from mdsc.training.prepared import Prepared
from mdsc.training.resume import SavedState


def prepare_masked(
    config: TrainConfig,
    accelerator: Accelerator,
    folder: ShardFolder,
    state: SavedState | None,
    say: Callable[[str], None],
    start: Start | None = None,
) -> Prepared:
    """`state`: what the run goes on from, of which the model gets its shape here, and its weights later.

    `start`: what a new run gets its weights from.
    """
    levels = condition_levels(folder, config.data.condition_columns)
    tokenizer = make_tokenizer(config.tokenizer.name, config.tokenizer.num_tokens)
    loader = CellLoader(
        folder,
        tokenizer,
        config.data,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        levels=levels,
        quarantined=state.quarantined if state else (),
    )
    validation_cells = loader.validation_batch(config.validation.num_cells)
    if state is not None:
        model, tokenizer = state.build(config.model.attention)
    else:
        features = condition_features(config.data.condition_features, levels, say)
        if start is not None:
            start.check_tokenizer(tokenizer)
            features = start.features(features, config.data.condition_features, levels)
        model, tokenizer = _new_model(config, loader, levels, features, is_first=start is None)
        if start is not None:
            say(start.give(model, folder.vocabulary))
    task = MaskedTask(config, accelerator, model, tokenizer, validation_cells)
    return Prepared(model, task, loader.iterate, loader.plan.addresses, loader.quarantined)


def _new_model(
    config: TrainConfig, loader: CellLoader, levels: dict, features: dict[str, FittedFeatures], *, is_first: bool
) -> tuple[MdscModel, Tokenizer]:
    """A model that starts from the statistics of the training cells, and the tokenizer with its fitted values.

    is_first: no other's weights follow, whose tables know nothing of these cells, so that they need no folds.
    """
    folder, tokenizer = loader.folder, loader.tokenizer
    statistics = shard_statistics(
        folder,
        tokenizer,
        rank=max(config.model.state_size, config.model.factor_size),
        validation_fraction=config.data.validation_fraction,
        cross_fit=is_first and config.model.cross_fit and config.model.factor_size > 0,
        quarantine=loader.quarantine,
    )
    # The loader need not know the fitted values: they are for losses and decoding, and change no token.
    tokenizer = tokenizer.with_values(statistics.token_mean_count)
    set_seed(config.seed)
    return build_model(config.model, tokenizer, statistics, levels, features), tokenizer
