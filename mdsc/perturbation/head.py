"""The Gaussian head: latents of perturbed cells from noise, given the perturbed gene and unperturbed cells.

    centre = mean of the unperturbed cells of a context and batch + shift that a ridge regression expects, frozen
    x0 = latent of a perturbed cell - that of the centre
    xt = alpha x0 + sigma noise
    denoiser(xt, log sigma/alpha, [is told, is perturbed, gene vector, unperturbed cells]) -> x0
    expression = PCA's inverse of the latent + what the PCA leaves out of the centre

So where the denoiser adds nothing to the mean, predictions have the mean of the ridge regression, over all genes.

A transformers model. The PCA basis, the gene vectors and the shift are buffers: they come with every checkpoint.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from mdsc.errors import UserError
from mdsc.model.feature_table import FeatureTable
from mdsc.perturbation.configuration import GaussianHeadConfig
from mdsc.perturbation.decoder import Decoder
from mdsc.perturbation.denoisers import init_weights, make_denoiser
from mdsc.perturbation.pca_basis import PcaBasis
from mdsc.perturbation.ridge_shift import RidgeShift
from mdsc.perturbation.targets import network_input, x0_of


@dataclass
class GaussianOutput(ModelOutput):
    output: Float[Tensor, "batch k"] | None = None
    """Of the denoiser, as its target has it (`mdsc.perturbation.targets`)."""
    expression: Float[Tensor, "cells genes"] | None = None
    """Of the decoder."""


class GaussianHead(PreTrainedModel):
    config_class = GaussianHeadConfig
    base_model_prefix = "head"
    main_input_name = "xt"
    _no_split_modules = ()

    def __init__(self, config: GaussianHeadConfig):
        super().__init__(config)
        size, levels = config.latent_size, config.levels or []
        self.basis = PcaBasis(config.num_genes, config.pca_size)
        self.vectors = FeatureTable(levels, config.feature_names or levels, config.num_features, config.vector_size)
        self.ridge = RidgeShift(config.ridge_size, config.num_genes)
        # What each unit of training is centred at: see --gaussian.start.
        self.register_buffer("unit_shift", torch.zeros(config.num_units, config.num_genes))
        self.denoiser = make_denoiser(
            config.denoiser, size, config.condition_size, config.width, config.num_layers, config.dropout
        )
        width = config.decoder_width
        self.decoder = Decoder(size, config.num_genes, width) if width else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, FeatureTable):
            for table in (module.vectors, module.mean, module.basis):
                nn.init.zeros_(table)
        else:
            init_weights(module)

    def forward(
        self,
        xt: Float[Tensor, "batch k"],
        alpha: Float[Tensor, " batch"],
        sigma: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch c"],
        group_size: int = 1,
        latents: Float[Tensor, "cells k"] | None = None,
    ) -> GaussianOutput:
        """The denoiser's output for noisy latents, and the decoder's log expression of clean ones.

        group_size: consecutive cells that are of one set. latents: whole ones, with their centre; what the PCA leaves
        out of it is to be added to the expression.
        """
        scaled, time = network_input(xt, alpha, sigma)
        output = self.denoiser(scaled, time, condition, group_size)
        return GaussianOutput(output, None if latents is None else self.decoder(latents, self.basis))

    def denoised(
        self,
        xt: Float[Tensor, "batch k"],
        alpha: Float[Tensor, " batch"],
        sigma: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch c"],
        group_size: int = 1,
    ) -> Float[Tensor, "batch k"]:
        """x0, the centre still to be added."""
        output = self(xt, alpha, sigma, condition, group_size).output
        return x0_of(output, xt, alpha, sigma, self.config.target)

    def condition(
        self,
        vectors: Float[Tensor, "batch d"],
        is_perturbed: Bool[Tensor, " batch"],
        pooled: Float[Tensor, "batch k"],
        cells: Float[Tensor, "batch k"],
        is_told: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch c"]:
        """What the denoiser is told. vectors: NaN counts as 0, as where a cell is not perturbed or told of it."""
        told = torch.ones_like(is_perturbed) if is_told is None else is_told
        known = (told & is_perturbed)[:, None]
        parts = [told[:, None].float(), known.float()]
        parts += [torch.where(known, vectors.nan_to_num(nan=0.0), 0.0)] if self.config.vector_condition else []
        parts += [pooled] if self.config.pooled_condition else []
        parts += [cells - pooled] if self.config.cell_condition else []
        return torch.cat(parts, dim=1)

    def shift(
        self, vectors: Float[Tensor, "batch d"], is_perturbed: Bool[Tensor, " batch"], context: Float[Tensor, "batch k"]
    ) -> Float[Tensor, "batch genes"]:
        """Change of log expression that the ridge regression expects; 0 for controls, and where the vector is NaN.

        context: latents of the mean of its unperturbed cells, of all batches.
        """
        read = torch.cat([vectors, context], dim=1) if self.config.several_contexts else vectors
        return torch.where(is_perturbed[:, None], self.ridge(read), 0.0)

    def left_out(self, centre: Float[Tensor, "batch genes"]) -> Float[Tensor, "batch genes"]:
        """What the PCA leaves out of a centre."""
        return centre - self.basis.to_genes(self.basis.to_latent(centre))

    def vectors_of_levels(self, levels: Int[Tensor, " batch"]) -> Float[Tensor, "batch d"]:
        """Of training perturbations 1, 2, ...; NaN for the control, 0."""
        return self.vectors.of_levels(levels)

    def to_genes(
        self, latents: Float[Tensor, "cells k"], left_out: Float[Tensor, "cells genes"]
    ) -> Float[Tensor, "cells genes"]:
        """Latents (with their centre) as log expression. Like any PCA's inverse it may be below 0."""
        decoded = self.basis.to_genes(latents) if self.decoder is None else self.decoder(latents, self.basis)
        return decoded + left_out

    def vectors_of(self, names: tuple[str, ...]) -> Float[Tensor, "names d"]:
        """Of perturbations by name, also such as A+B of which each gene is known; UserError for any other."""
        from mdsc.data.condition_levels import near_names
        from mdsc.data.perturbations import perturbed_genes

        row_of = {name: row for row, name in enumerate(self.vectors.names)}
        found = []
        for name in names:
            genes = (name,) if name in row_of else perturbed_genes(name)
            for gene in genes:
                if gene not in row_of:
                    what = "has no gene embedding" if self.config.has_features else "was never trained on"
                    raise UserError(f"--perturbation {gene}: the model {what}; {near_names(gene, row_of)}.")
            rows = torch.tensor([row_of[gene] for gene in genes], device=self.vectors.vectors.device)
            # Vectors are (features - mean) @ basis, and features add up.
            missing = (len(genes) - 1) * (self.vectors.mean @ self.vectors.basis)
            found.append(self.vectors.vectors[rows].sum(dim=0) + missing)
        return torch.stack(found)


AutoModel.register(GaussianHeadConfig, GaussianHead, exist_ok=True)
