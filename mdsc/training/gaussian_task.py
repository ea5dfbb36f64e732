"""The Gaussian head's task: noisy latents of perturbed cells are to be denoised, sets of them to fit the real ones."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from mdsc.config.schema import TrainConfig
from mdsc.diffusion.keyed_random import Stream, keyed_uniform
from mdsc.model.keyed_dropout import keyed_dropout
from mdsc.perturbation.decoder import cellwise_loss, set_losses
from mdsc.perturbation.generation import DrawOptions, draw_latents, keyed_normal
from mdsc.perturbation.head import GaussianHead
from mdsc.perturbation.noise_paths import noise_path
from mdsc.perturbation.paired_batches import PairedBatch
from mdsc.perturbation.set_losses import energy_unbiased, mmd2_biased, mmd2_unbiased
from mdsc.perturbation.targets import noised, pointwise, regression_target, x0_of
from mdsc.training.gaussian_validation import GaussianValidation
from mdsc.training.plots import Curves
from mdsc.training.task import Task


class GaussianTask(Task):
    terms = ("loss", "pointwise", "set", "decoder")
    score = "validation_energy"
    curves = Curves("pointwise", "training, pointwise loss", "validation_", "loss, energy distance, correlation")

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, head: GaussianHead, validation: GaussianValidation
    ):
        self.config = config
        self.head = head
        self.validation = validation
        self.device = accelerator.device
        self.path = noise_path(head.config.noise)
        self.least_cells = config.gaussian.set_size
        self.num_sets = config.train.global_batch_size // config.gaussian.set_size
        self.draw_options = DrawOptions(sampler=config.gaussian.sampler, num_steps=config.gaussian.num_steps)

    def losses(self, model: nn.Module, step: int, cells: PairedBatch) -> dict[str, Tensor]:
        """Loss and its terms of each cell. Terms of a set are the same for all of its cells."""
        options, head, size = self.config.gaussian, self.head, self.config.gaussian.set_size
        is_perturbed = cells.level > 0
        vectors = head.vectors_of_levels(cells.level)
        shift = torch.where(is_perturbed[:, None], head.unit_shift[cells.unit.clamp(min=0)], 0.0)
        centre = cells.pooled + head.basis.effect(shift)
        x0 = cells.latents - centre
        noise = keyed_normal(
            Stream.NOISE,
            self.config.seed,
            step,
            cells.cell_index[:, None],
            torch.arange(x0.shape[1], device=x0.device),
        )
        alpha, sigma = self.path.levels(self._times(step, cells))
        xt = noised(x0, noise, alpha, sigma)
        condition = head.condition(
            self._dropped(vectors, step, cells), is_perturbed, cells.pooled, cells.cells, self._is_told(step, cells)
        )
        decodes = head.decoder is not None
        generated, is_generated = (
            self._generated(step, cells, vectors, is_perturbed, centre) if decodes else (None, None)
        )
        latents = torch.cat([cells.latents, generated]) if decodes else None
        with keyed_dropout(head, seed=self.config.seed, step=step, cell_index=cells.cell_index):
            found = model(xt, alpha, sigma, condition, size, latents)
        wanted = regression_target(x0, noise, alpha, sigma, head.config.target)
        of_cells = pointwise(found.output, wanted)
        of_sets = self._set_loss(found.output, xt, x0, noise, alpha, sigma)
        of_decoder = torch.zeros_like(of_cells)
        if decodes:
            left_out = head.left_out(cells.pooled_expression + shift)
            of_decoder = self._decoder_loss(found.expression, left_out, cells, is_generated)
        loss = of_cells + options.set_weight * of_sets + options.decoder_weight * of_decoder
        return {"loss": loss, "pointwise": of_cells, "set": of_sets, "decoder": of_decoder}

    def validate(
        self,
        model: nn.Module,
        done: int,
        *,
        batch_size: int,
        sum_over_processes: Callable[[Tensor], Tensor],
        wants_stop: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Energy distance, error of the noise beside its floor, and PearsonDelta: see `GaussianValidation`."""
        return self.validation.scores(self.head, self.draw_options, sum_over_processes, wants_stop)

    def _times(self, step: int, cells: PairedBatch) -> Float[Tensor, " batch"]:
        """Stratified over the global batch, so that a set meets all levels evenly; all cells of a set have one level
        where a loss compares sets, as its cells are then of one law."""
        size, place = self.config.gaussian.set_size, cells.cell_index
        first = keyed_uniform(Stream.LEVEL, self.config.seed, step).to(place.device)
        stratum = (place % size) * self.num_sets + place // size
        if self.config.gaussian.set_loss in ("mmd", "energy"):
            stratum = place // size * size
        return ((first + stratum / (size * self.num_sets)) % 1).float()

    def _is_told(self, step: int, cells: PairedBatch) -> Tensor:
        chance = keyed_uniform(Stream.CONDITION, self.config.seed, step, cells.cell_index)
        return chance >= self.config.train.condition_dropout

    def _dropped(self, vectors: Float[Tensor, "batch d"], step: int, cells: PairedBatch) -> Float[Tensor, "batch d"]:
        """Some numbers of the gene embedding as if they were the mean; the same ones within a set."""
        share = self.config.gaussian.vector_dropout
        sets = cells.cell_index // self.config.gaussian.set_size
        number = torch.arange(vectors.shape[1], device=vectors.device)
        kept = keyed_uniform(Stream.VECTOR, self.config.seed, step, sets[:, None], number) >= share
        return torch.where(kept, vectors, 0.0)

    def _set_loss(self, output: Tensor, xt: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of each cell: that of its set, weighted to low noise, where x0-hat is a cell and not a mean of cells."""
        options, size = self.config.gaussian, self.config.gaussian.set_size
        if options.set_loss == "none":
            return torch.zeros_like(alpha)

        def sets(tensor: Tensor) -> Tensor:
            return tensor.unflatten(0, (-1, size))

        if options.set_loss == "noise_mmd":
            # The noise that the output stands for, whatever its target.
            x0_hat = x0_of(output, xt, alpha, sigma, self.head.config.target)
            noise_hat = (xt - alpha[:, None] * x0_hat) / sigma[:, None].clamp(min=1e-3)
            return mmd2_biased(sets(noise_hat), sets(noise)).repeat_interleave(size)
        x0_hat = x0_of(output, xt, alpha, sigma, self.head.config.target)
        distance = mmd2_unbiased if options.set_loss == "mmd" else energy_unbiased
        weight = alpha.square() / (alpha.square() + sigma.square())
        return weight * distance(sets(x0_hat), sets(x0)).repeat_interleave(size)

    def _generated(
        self, step: int, cells: PairedBatch, vectors: Tensor, is_perturbed: Tensor, centre: Tensor
    ) -> tuple[Float[Tensor, "generated k"], Tensor]:
        """Latents that the head draws for some of the sets, and whose they are; more of them as training goes on."""
        size = self.config.gaussian.set_size
        sets = cells.cell_index // size
        chosen = keyed_uniform(Stream.REVEAL, self.config.seed, step, sets) < self._generated_share(step)
        rows = chosen.nonzero().flatten()
        if not len(rows):
            return cells.latents[:0], chosen
        was_training = self.head.training
        self.head.eval()
        drawn = draw_latents(
            self.head,
            vectors[rows],
            is_perturbed[rows],
            cells.pooled[rows],
            cells.cells[rows],
            centre[rows],
            options=self.draw_options,
            seed=self.config.seed + step,
            keys=cells.cell_index[rows],
        )
        self.head.train(was_training)
        return drawn.detach(), chosen

    def _generated_share(self, step: int) -> float:
        options, steps = self.config.gaussian, self.config.train.max_steps
        begin = options.generated_from * steps
        return options.generated_share * max(0.0, min(1.0, (step - begin) / max(steps - begin, 1)))

    def _decoder_loss(self, expression: Tensor, left_out: Tensor, cells: PairedBatch, is_generated: Tensor) -> Tensor:
        size = self.config.gaussian.set_size
        real, generated = expression[: len(cells)] + left_out, expression[len(cells) :] + left_out[is_generated]
        loss = cellwise_loss(real, cells.expression)
        if len(generated):
            sets = (values.unflatten(0, (-1, size)) for values in (generated, cells.expression[is_generated]))
            of_sets = sum(set_losses(*sets, self.head.basis).values())
            loss = loss.index_add(0, is_generated.nonzero().flatten(), of_sets.repeat_interleave(size))
        return loss
