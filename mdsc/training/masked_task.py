"""The masked model's task: hidden genes of cells are to be told from the others."""

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mdsc.config.schema import TrainConfig
from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import Tokenizer
from mdsc.diffusion.corruption import corrupt
from mdsc.diffusion.evidence import hide
from mdsc.diffusion.losses import objective
from mdsc.model.keyed_dropout import keyed_dropout
from mdsc.model.latent import most_nonzero
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_size import training_flops
from mdsc.training.condition_dropout import drop_conditions
from mdsc.training.plots import Curves
from mdsc.training.precision import uses_bf16
from mdsc.training.task import Task
from mdsc.training.validation import record, share_of, validate


class MaskedTask(Task):
    terms = ("loss", "nll", "ordinal")
    score = "validation_nll"
    curves = Curves("nll", "training, any mask ratio", "validation_nll_at_", "nats per hidden gene")

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: MdscModel,
        tokenizer: Tokenizer,
        validation_cells: CellBatch,
    ):
        """`model` is the one that is trained; `validation_cells` are all of them, on every process."""
        self.config = config
        self.model = model
        self.tokenizer = tokenizer
        self.device = accelerator.device
        self.uses_bf16 = uses_bf16(config.train.precision, self.device)
        self.values = torch.tensor(tokenizer.values, dtype=torch.float32, device=self.device)
        self.has_pads = config.data.gene_draw == "expressed"
        self.max_nonzero: int | None = None
        self._validation_max_nonzero = self._max_nonzero(validation_cells)
        mine = share_of(validation_cells, accelerator.process_index, accelerator.num_processes)
        self.validation_cells = mine.to(self.device)

    def receive(self, batch: CellBatch) -> None:
        """What the latent backbone would have to ask the device for."""
        self.max_nonzero = self._max_nonzero(batch)

    def losses(self, model: nn.Module, step: int, cells: CellBatch) -> dict[str, Tensor]:
        """Loss, nll and ordinal term of each cell, in nats per gene."""
        cells, options = cells.widened(), self.config.objective
        corruption = corrupt(
            cells.is_pad,
            cells.cell_index,
            global_batch_size=self.config.train.global_batch_size,
            seed=self.config.seed,
            step=step,
            form=options.form,
            schedule=options.schedule,
        )
        predict = partial(self._predict, model, self.phase(step), fold=cells.fold, max_nonzero=self.max_nonzero)
        vectors = self.model.conditions.vectors_of(cells.categories)
        told = drop_conditions(cells, vectors, self.config.train, seed=self.config.seed, step=step)
        with keyed_dropout(self.model, seed=self.config.seed, step=step, cell_index=cells.cell_index):
            logits = hide(told, corruption.hidden).predict(predict, self.tokenizer)
        return objective(logits, cells.tokens, corruption.hidden, corruption.weight, cells.is_pad, self.values, options)

    def validate(
        self,
        model: nn.Module,
        done: int,
        *,
        batch_size: int,
        sum_over_processes: Callable[[Tensor], Tensor],
        wants_stop: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Likelihood and accuracy at the mask ratios of `config.validation`."""
        pathway_only = 0 < self.config.train.pathway_steps >= done
        scores = validate(
            partial(self._predict, model, pathway_only, max_nonzero=self._validation_max_nonzero),
            self.validation_cells,
            self.tokenizer,
            self.config.validation.mask_ratios,
            batch_size=batch_size,
            sum_over_processes=sum_over_processes,
            wants_stop=wants_stop,
        )
        return None if scores is None else record(scores)

    def phase(self, step: int) -> bool:
        """Whether the cell-state pathway is trained alone."""
        return step < self.config.train.pathway_steps

    def flops(self, step: int, batch: CellBatch) -> int:
        return 0 if self.phase(step) else training_flops(self.model, batch.tokens.shape[1])

    def _predict(
        self,
        model: nn.Module,
        pathway_only: bool,
        gene_ids: Tensor,
        tokens: Tensor,
        counts: Tensor,
        is_pad: Tensor,
        *rest,
        **options,
    ) -> Tensor:
        is_pad = is_pad if self.has_pads else None  # attention is faster without a mask
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.uses_bf16):
            return model(gene_ids, tokens, counts, is_pad, *rest, pathway_only=pathway_only, **options).logits

    def _max_nonzero(self, cells: CellBatch) -> int | None:
        is_latent = self.config.model.backbone == "latent"
        return most_nonzero(cells.tokens.cpu().numpy(), self.tokenizer.num_tokens) if is_latent else None
