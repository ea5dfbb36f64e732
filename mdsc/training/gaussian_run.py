"""Cells, head and task of a run that trains the Gaussian head."""

from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import set_seed

from mdsc.config.schema import TrainConfig
from mdsc.data.level_features import feature_files, read_features
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.perturbation.building import build_head, training_units
from mdsc.perturbation.paired_batches import LatentCells, PairedBatches
from mdsc.perturbation.perturbed_cells import training_and_validation
from mdsc.training.gaussian_task import GaussianTask
from mdsc.training.gaussian_validation import GaussianValidation
from mdsc.training.prepared import Prepared
from mdsc.training.resume import SavedState


def prepare_gaussian(
    config: TrainConfig,
    accelerator: Accelerator,
    folder: ShardFolder,
    state: SavedState | None,
    say: Callable[[str], None],
) -> Prepared:
    """`state`: what the run goes on from, of which the head gets its shape here, and its numbers later."""
    options = config.gaussian
    cells, held_out = training_and_validation(folder, options, config.data.validation_fraction)
    if state is not None:
        head = state.build(config.model.attention)[0]
    else:
        if options.pca_fit == "per_split":
            say(
                "warning: --gaussian.pca-fit per_split is the parents' way: cells to predict from are read along axes "
                "of their own, which are not those of training"
            )
        if options.target == "epsilon" and options.sampler != "ddpm":
            # Its x0 is off by up to 157 times its own error at the noisy end; only ddpm forgets that on the way.
            say(
                f"warning: --gaussian.sampler {options.sampler} keeps the errors of a network that learnt the noise "
                "(--gaussian.target epsilon): --gaussian.sampler ddpm --gaussian.num-steps 1000 does not"
            )
        set_seed(config.seed)
        head = build_head(options, cells, _features(config), seed=config.seed, say=say)
    latent_cells = LatentCells(cells, head)
    batches = PairedBatches(
        latent_cells,
        training_units(cells, head),
        matching=options.matching,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    validation = GaussianValidation(
        latent_cells,
        held_out,
        most_cells=config.validation.num_cells,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    task = GaussianTask(config, accelerator, head, validation)
    return Prepared(head, task, batches.iterate, batches.addresses, lambda: ())


def _features(config: TrainConfig):
    """Embeddings of the perturbed genes, where there are some."""
    files = feature_files(config.data.condition_features, "--data.condition-features")
    column = config.gaussian.perturbation_column
    if others := [name for name in files if name != column]:
        raise UserError(
            f"--data.condition-features {others[0]}={files[others[0]]}: the Gaussian head reads embeddings of "
            f"{column} (--gaussian.perturbation-column) alone."
        )
    return read_features(files[column]) if files else None
