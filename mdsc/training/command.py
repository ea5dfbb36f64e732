"""`mdsc train`, `accelerate launch train.py`: from options to a trained run folder."""

import multiprocessing
import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from mdsc.checkpoint import WEIGHTS
from mdsc.config.schema import DataConfig, TrainConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import parse
from mdsc.data.range_cache import RangeCache
from mdsc.data.shard_mixture import open_shards
from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError
from mdsc.publish.uploads import Uploads
from mdsc.training.auto_batch import settle_batch_size
from mdsc.training.background_writer import BackgroundWriter, cannot_write
from mdsc.training.compiled_blocks import told_failed_compilation
from mdsc.training.cpu_processes import start_missing_processes
from mdsc.training.gaussian_run import prepare_gaussian
from mdsc.training.initial_weights import flags_given, settled
from mdsc.training.masked_run import prepare_masked
from mdsc.training.memory_errors import told_out_of_memory
from mdsc.training.option_checks import check
from mdsc.training.plots import plot_losses
from mdsc.training.precision import uses_bf16
from mdsc.training.process_talk import largest, on_main
from mdsc.training.progress import RunProgress
from mdsc.training.quarantine_log import QuarantineLog
from mdsc.training.resume import state_to_resume
from mdsc.training.run_lock import RunLock
from mdsc.training.run_record import start_of
from mdsc.training.run_saver import RunSaver
from mdsc.training.sharding import asked_for_sharding, make_accelerator
from mdsc.training.state_files import set_aside
from mdsc.training.stop_signals import StopSignals
from mdsc.training.tracking import Tracker
from mdsc.training.trainer import Trainer
from mdsc.training.trainer_state import restore

DESCRIPTION = (
    "Train a model on a folder of shards. Without --config, configs/tiny.yaml is taken. A YAML file goes before the "
    "defaults that are shown here, and a flag before both."
)
SECONDS_AFTER_STOP = 10
"""For a last push, of the 30 that a run has from a signal to its end."""


def main(argv: list[str]) -> None:
    """Train with these options. Runs in every process of `accelerate launch`."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker of --data.workers runs the script that started it, as far as that is not guarded.
        raise UserError(f"{sys.argv[0]} trains whenever it is imported: put the call under if __name__ == '__main__'")
    config = parse(TrainConfig, argv, default_yaml=shipped_config("tiny"), description=DESCRIPTION)
    start_missing_processes()
    accelerator = make_accelerator()
    progress = RunProgress(config.train.max_steps, show=accelerator.is_main_process)
    for line in defaults_taken(config, argv):
        progress.say(line)
    check(config, accelerator.num_processes)
    _prepare_embedded_cells(config, accelerator, progress)
    pushes = config.hub.repo is not None and accelerator.is_main_process
    uploads = Uploads(config.hub, Path(config.output_dir), progress.say) if pushes else None
    # Around all else: the last push may take long, and no other process waits for it.
    with uploads or nullcontext():
        number = train(config, accelerator, progress, uploads, given=flags_given(argv))
        if number and uploads is not None:
            uploads.close(patience=SECONDS_AFTER_STOP)
    accelerator.end_training()
    if number:
        raise SystemExit(128 + number)


def train(
    config: TrainConfig,
    accelerator: Accelerator,
    progress: RunProgress,
    uploads: Uploads | None = None,
    given: Collection[str] = (),
) -> int:
    """Train and leave checkpoint, states, metrics.jsonl, run.json and loss.png in `config.output_dir`.

    Checkpoints are given to `uploads`, if there are any, on the main process; `config.hub` is not read here. Gives the
    number of the signal that has stopped the run before its end, or 0. `given`: the flags of the command line.
    """
    check(config, accelerator.num_processes)
    cache = RangeCache(Path(config.data.cache_dir or Path(config.data.dir) / "cache"), config.data.cache_bytes)
    # In quarantine a truncated file is one with corrupt row groups.
    stops = config.data.on_corrupt == "stop"
    folder = open_shards(config.data.dir, verify=config.data.verify, check_sizes=stops, cache=cache)
    run_folder = Path(config.output_dir)
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(run_folder, progress.say))
        on_main(accelerator, lock.take)
        state = state_to_resume(config, accelerator, progress.say)
        config, start = settled(config, state and state.facts["options"], given)
        if state is not None:
            state.require_same(config, folder.digest)
            progress.say(f"going on from step {state.step:,}: {_short(state.folder)}")
            if state.step >= config.train.max_steps:
                progress.say(f"that is all of --train.max-steps {config.train.max_steps}: give more to train on")
        if config.head == "masked":
            prepared = prepare_masked(config, accelerator, folder, state, progress.say, start)
        else:
            prepared = prepare_gaussian(config, accelerator, folder, state, progress.say)
        progress.say(_summary(config, accelerator, folder, prepared.model))
        if config.head == "masked" and config.model.num_layers and config.train.pathway_steps >= config.train.max_steps:
            progress.say("--train.pathway-steps takes all of --train.max-steps: the blocks will not be trained")

        if state is None and (run_folder / WEIGHTS).is_file():
            progress.say(f"{run_folder} holds an earlier run, which this one replaces")
        tracker = on_main(
            accelerator,
            lambda: stack.enter_context(Tracker(config, state, start_of(config, accelerator, folder.digest, state))),
        )
        on_main(accelerator, lock.take)  # of a new folder
        stack.enter_context(progress)
        writer = stack.enter_context(BackgroundWriter(run_folder))
        signals = stack.enter_context(StopSignals())
        trainer = Trainer(
            config,
            accelerator,
            prepared.model,
            prepared.task,
            progress=progress,
            tracker=tracker,
            wants_stop=lambda: signals.number > 0 or writer.has_failed,
            addresses=prepared.addresses,
        )
        if state is not None:
            restore(trainer, state.facts, state.folder if accelerator.is_main_process else None)
            progress.starts_at(trainer.done)
        if config.head == "masked":
            settle_batch_size(trainer, progress.say)
        if accelerator.is_main_process and (state is None or state.run != run_folder.resolve()):
            set_aside(run_folder)
        saver = RunSaver(trainer, accelerator, folder, writer, tracker, uploads)
        quarantine_log = QuarantineLog(
            accelerator, prepared.quarantined, progress, tracker, known=state.quarantined if state else ()
        )

        def save(done: int) -> None:
            saver.save(done, quarantine_log.update(done))

        quarantine_log.update(trainer.done)
        with told_out_of_memory(config, accelerator.num_processes), told_failed_compilation(config):
            trainer.run(prepared.batches(trainer.done, accelerator.device), save, logged=quarantine_log.update)
        saver.finish()
        if trainer.is_stopping:
            number = largest(accelerator, signals.number)
            progress.say(
                f"stopped by {signal.Signals(number).name} after step {trainer.done:,} of {config.train.max_steps:,}, "
                "which is saved: the same command with --resume auto goes on"
            )
            return number
    if accelerator.is_main_process:
        try:
            picture = plot_losses(run_folder, prepared.task.curves, config.train.pathway_steps)
        except OSError as error:
            raise cannot_write(run_folder, error) from error
        progress.say(f"wrote {run_folder / WEIGHTS} and {picture}")
        if uploads is not None:
            uploads.saved(config.train.max_steps, is_last=True)
    accelerator.wait_for_everyone()
    return 0


def train_to_the_end(config: TrainConfig, accelerator: Accelerator, progress: RunProgress) -> Path:
    """Train, and give the run's folder. A signal that stops the run is a KeyboardInterrupt here."""
    if train(config, accelerator, progress):
        raise KeyboardInterrupt
    return Path(config.output_dir)


def defaults_taken(config: TrainConfig, argv: list[str]) -> Iterator[str]:
    """Say what a run took because nothing else was asked for."""
    given = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    if "--config" not in given:
        yield f"--config is not given: taking {_short(shipped_config('tiny'))}"
    if "--data.dir" not in given and config.data.dir == DataConfig().dir:
        yield f"--data.dir is not given: taking the embedded cells, {config.data.dir}"
    if "--output-dir" not in given and config.output_dir == TrainConfig().output_dir:
        yield f"--output-dir is not given: taking {config.output_dir}"


def _prepare_embedded_cells(config: TrainConfig, accelerator: Accelerator, progress: RunProgress) -> None:
    """Make the shards of the demo where they are asked for and not there yet."""
    shards = Path(DataConfig().dir)
    if Path(config.data.dir) == shards and not shards.exists():
        if accelerator.is_main_process:
            from mdsc.prep.demo import DemoConfig, prepare_demo

            progress.say(f"{shards} is not there: preparing the embedded cells")
            prepare_demo(DemoConfig(output_dir=shards.parent))
        accelerator.wait_for_everyone()


def _summary(config: TrainConfig, accelerator: Accelerator, folder: ShardFolder, model: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    has_bf16 = config.head == "masked" and uses_bf16(config.train.precision, accelerator.device)
    precision = "bf16" if has_bf16 else "fp32"
    sharded = "" if asked_for_sharding() is None else " (weights sharded)"
    return (
        f"{folder.num_cells('train'):,} cells x {len(folder.vocabulary):,} genes, {parameters / 1e6:.1f}M parameters, "
        f"{accelerator.num_processes} x {accelerator.device.type}{sharded}, {precision}"
    )


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
