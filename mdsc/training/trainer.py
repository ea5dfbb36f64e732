"""The training loop: the same losses and gradients on any number of processes and with any accumulation.

A step's loss is the sum over the cells of the global batch, divided by their number. What is random in it is keyed by
(seed, step, place in the global batch), so that neither the share of a process nor the size of a micro-batch changes
it. What the losses are is a task's to say (`mdsc.training.task`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from mdsc.config.schema import TrainConfig
from mdsc.data.cell_tensors import CellTensors
from mdsc.training.bad_batches import BadBatches
from mdsc.training.batch_shares import micro_batch_size
from mdsc.training.compiled_blocks import set_up_blocks, uncompiled
from mdsc.training.ema import Ema
from mdsc.training.finite_guard import FiniteGuard, is_admitted
from mdsc.training.loss_spikes import LossSpikes
from mdsc.training.optimizer import clip_gradients, learning_rate, make_optimizer, set_learning_rate, step_if
from mdsc.training.peak_flops import peak_of_run
from mdsc.training.phases import prepare_phase
from mdsc.training.progress import RunProgress
from mdsc.training.sharding import place, without_sync
from mdsc.training.step_averages import StepAverages
from mdsc.training.step_outcomes import StepOutcomes
from mdsc.training.task import Task
from mdsc.training.tracking import Tracker


class Trainer:
    """Trains `model` on batches (this process's share of each global batch); the result is what `ema` averages."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        task: Task,
        *,
        progress: RunProgress,
        tracker: Tracker | None = None,
        wants_stop: Callable[[], bool] = lambda: False,
        addresses: Callable[[int, Sequence[int]], list[str]] = lambda step, places: ["?"] * len(places),
    ):
        """Take over the model, the one that `task` was made for. The tracker is the main process's.

        `wants_stop()` says whether this process was asked to stop: all stop after the same step. `addresses(step,
        places)` tells where these cells of a global batch lie.
        """
        self.config = config
        self.accelerator = accelerator
        self.task = task
        self.progress = progress
        self.tracker = tracker
        self.device = accelerator.device
        self.model_class = type(model)  # sharding makes another one of it
        self.micro_batch_size = micro_batch_size(config.train, accelerator.num_processes)
        self.uses_bf16 = task.uses_bf16
        self.model = place(model, accelerator, in_bf16=self.uses_bf16).train()
        set_up_blocks(self.model, config.train)
        self.wrapped_model = self.model  # for several processes, once a phase begins
        self.ema = Ema(self.model, config.train.ema_decay, on_host=config.train.ema_device == "cpu")
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(self.model, config.train)
        self.guard = FiniteGuard()
        peak = peak_of_run(self.device, bf16=self.uses_bf16, num_processes=accelerator.num_processes)
        self.averages = StepAverages((*task.terms, "grad_norm"), self.device, config.train.global_batch_size, peak)
        self.outcomes = StepOutcomes(self.device)
        self.bad_batches = BadBatches(accelerator, config.train.global_batch_size, addresses, progress, tracker)
        self.spikes = LossSpikes(config, accelerator, addresses, progress, tracker)
        self.wants_stop = wants_stop
        self.is_stopping = False  # all processes have agreed to
        self.done = 0
        self.is_validation_due = True
        self.last_validation: dict[str, float | int | None] | None = None
        self.best_validation: dict[str, float | int | None] | None = None
        self._phase: tuple = ()  # none yet

    def run(
        self,
        batches: Iterator[CellTensors],
        save: Callable[[int], None],
        logged: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Train until max_steps are done, or a process wants to stop. `batches` begin with that of step `self.done`.

        `save(steps done)` is called on every process, every save_every steps and at the end; `logged(steps done)`
        likewise, every log_every steps and at the end.
        """
        train = self.config.train
        with closing(batches):
            if self.is_validation_due:
                self._validate(self.done)
                if self.done or self.is_stopping:  # it was stopped in this validation, or is now
                    save(self.done)
            elif self.done >= train.max_steps:  # the checkpoint may lack what the state has
                save(self.done)
            self.progress.done(self.done)
            while self.done < train.max_steps and not self.is_stopping:
                self.step(self.done, next(batches))
                self._end_step(save, logged)

    def _end_step(self, save: Callable[[int], None], logged: Callable[[int], None]) -> None:
        self.done += 1
        train, done, is_last = self.config.train, self.done, self.done == self.config.train.max_steps
        is_logging = done % train.log_every == 0 or is_last
        is_validating = done % train.validate_every == 0 or is_last
        is_saving = done % train.save_every == 0 or is_last
        self._hear(all_steps=is_logging or is_validating or is_saving)
        if is_logging:
            self._log(done)
            logged(done)
        if is_validating:
            self._validate(done)
        if self.is_stopping:
            self._hear(all_steps=True)
        if is_saving or self.is_stopping:
            with self.averages.paused():
                save(done)
        self.progress.done(done)

    def step(self, step: int, batch: CellTensors) -> None:
        """One optimiser step on this process's share of global batch `step`. The host does not wait for the device."""
        train = self.config.train
        self.task.receive(batch)
        batch = batch.to(self.device, non_blocking=True)
        self._enter_phase(step, batch)
        micro_batches = batch.split(self.micro_batch_size)
        terms = self.task.terms
        totals = torch.zeros(len(terms) + 1, dtype=torch.float64, device=self.device)  # the last one: who wants to stop
        cell_losses = []
        for number, cells in enumerate(micro_batches, start=1):
            with nullcontext() if number == len(micro_batches) else without_sync(self.wrapped_model):
                losses = self.task.losses(self.wrapped_model, step, cells)
                # Wrapped models average gradients over processes, but a step's loss is a sum over cells.
                self.accelerator.backward(
                    losses["loss"].sum() * self.accelerator.num_processes / train.global_batch_size
                )
            totals[:-1] += torch.stack([losses[name].detach().sum(dtype=torch.float64) for name in terms])
            cell_losses.append(losses["loss"].detach())
        if self.wants_stop():
            totals[-1].fill_(1)
        totals = self.accelerator.reduce(totals, "sum") / train.global_batch_size
        norm = clip_gradients(self.parameters, train.clip_norm)
        is_finite = is_admitted(totals[0], norm)
        set_learning_rate(self.optimizer, learning_rate(step, train))
        step_if(is_finite, self.optimizer)
        self.optimizer.zero_grad()
        self.ema.update()
        self.averages.add(torch.cat([totals[:-1], norm.double()[None]]), is_finite, self._step_flops)
        told = torch.stack([totals[0], norm.double(), is_finite.double(), totals[-1]])
        self.outcomes.add(step + 1, told, torch.cat(cell_losses), batch.cell_index)

    def _hear(self, *, all_steps: bool = False) -> None:
        """Learn what became of the last steps. On all processes at the same step, as these may speak of it."""
        for outcome in self.outcomes.take(all_steps=all_steps):
            what = "" if outcome.is_finite else self.bad_batches.tell(outcome)
            self.guard.heard(outcome.step, outcome.is_finite, what)
            self.spikes.heard(outcome)
            self.is_stopping |= outcome.is_stopping

    def _enter_phase(self, step: int, batch: CellTensors) -> None:
        phase = (self.task.phase(step),)
        if phase == self._phase:
            return
        self._phase = phase
        self._step_flops = self.config.train.global_batch_size * self.task.flops(step, batch)
        few_cells = batch.select(slice(0, self.task.least_cells))
        del self.wrapped_model  # the last phase's hooks go with it
        with uncompiled(self.config):
            self.wrapped_model = prepare_phase(
                self.accelerator,
                self.model,
                self.optimizer,
                lambda model: self.task.losses(model, step, few_cells)["loss"].sum(),
            )

    def _log(self, done: int) -> None:
        values = self.averages.take()
        values["learning_rate"] = learning_rate(done - 1, self.config.train)
        values["skipped_steps"] = self.guard.skipped
        values["loss_spikes"] = self.spikes.window.count
        self.progress.measured(values)
        if self.tracker is not None:
            self.tracker.log(done, values)

    def _validate(self, done: int) -> None:
        """Score the averaged weights; where a process wants to stop, it is left for the run that goes on."""
        self.is_validation_due = True
        with self.averages.paused(), uncompiled(self.config), self.ema.applied() as averaged:
            values = self.task.validate(
                averaged,
                done,
                batch_size=self.micro_batch_size,
                sum_over_processes=partial(self.accelerator.reduce, reduction="sum"),
                wants_stop=self.wants_stop,
            )
        if values is None:
            self.is_stopping = True
            return
        self.is_validation_due = False
        self._keep_score(done, values[self.task.score])
        self.progress.validated(self.task.score, values[self.task.score])
        if self.tracker is not None:
            self.tracker.log(done, values)

    def _keep_score(self, done: int, score: float) -> None:
        self.last_validation = {"step": done, "score": score if math.isfinite(score) else None}
        best = self.best_validation
        if math.isfinite(score) and (best is None or score < best["score"]):
            self.best_validation = self.last_validation
