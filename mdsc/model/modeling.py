"""MdscModel: logits of every gene's token from the visible tokens of a cell.

- gene-conditioned: a gene is told by its id, never by its position; permuting the genes permutes the output
- conditions are the prior mean of what the visible genes are evidence of, before they are anything else
- logits = log of the gene's token frequencies + low-rank head of the cell state + response to the conditions +
  response to the gene's own evidence + head of the backbone (DiT or latent); all but the first start at zero, so that
  step 0 is the gene-marginal baseline
- no time input: for absorbing diffusion it is redundant (Zheng et al. 2024, arXiv 2409.02908)
- the mask is an input token only: the head has no output for it, so p(mask) = 0 (MDLM's SUBS, arXiv 2406.07524)
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_flash_attention_utils import lazy_import_flash_attention
from transformers.utils import ModelOutput

from mdsc.diffusion.evidence import SeenUnder
from mdsc.hub.download import MODEL_FILES, download
from mdsc.hub.repository import Repository, as_repository, name_of_cached
from mdsc.model.attention import BACKENDS, attending, missing, require, say_once
from mdsc.model.blocks import DiTBlock, FinalLayer
from mdsc.model.cell_state import CellState
from mdsc.model.condition_prior import ConditionPrior, Moved
from mdsc.model.conditions import ConditionResponse, Conditions
from mdsc.model.configuration import MdscConfig
from mdsc.model.feature_table import FeatureTable
from mdsc.model.gene_blocks import gene_blocks
from mdsc.model.gene_evidence import NUM_FEATURES, GeneEvidence, GeneResponse
from mdsc.model.latent import LatentRead, LatentReadout
from mdsc.model.zero_start import ZeroEmbedding, ZeroLinear

ALIGNMENT = 64
"""Bytes; where torch puts its own tensors."""
DOWNLOAD_OPTIONS = ("token", "cache_dir", "local_files_only", "force_download")


@dataclass
class MdscOutput(ModelOutput):
    """logits: (batch, genes, num_tokens) float32. cell_state: (batch, state_size) float32.

    hidden_states: where asked for, what goes into the first block and what comes out of each, (batch, genes or latents,
    hidden_size); of the latent backbone also the genes as they are read out; of a model without layers none.
    """

    logits: Tensor | None = None
    cell_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class MdscModel(PreTrainedModel):
    """A backbone over the genes of a cell, beside a cell-state pathway; without layers, the pathway alone."""

    config_class = MdscConfig
    base_model_prefix = "mdsc"
    main_input_name = "tokens"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ("DiTBlock", "LatentRead", "LatentReadout")

    def __init__(self, config: MdscConfig):
        super().__init__(config)
        size = config.hidden_size
        self.output_bias = nn.Embedding(config.num_genes, config.num_tokens)
        self.conditions = Conditions(
            config.condition_levels or {},
            config.vector_sizes or {},
            size,
            config.feature_names,
            config.feature_sizes,
        )
        if config.condition_rank:
            self.condition_response = ConditionResponse(
                config.num_genes, config.num_tokens, size, config.condition_rank
            )
        self.cell_state = CellState(
            config.num_genes, config.num_tokens, config.state_size, size, config.state_dropout, config.state_pooling
        )
        if config.condition_levels or config.vector_sizes:
            self.condition_prior = ConditionPrior(size, config.state_size, config.factor_size)
        if config.factor_size:
            self.gene_evidence = GeneEvidence(config.num_genes, config.num_tokens, config.factor_size)
            self.gene_response = GeneResponse(config.num_tokens)
        if config.num_layers:
            self.gene_embedding = nn.Embedding(config.num_genes, size)
            self.token_embedding = nn.Embedding(config.num_tokens + 2, size)
            self.state_to_genes = nn.Linear(config.state_size, size)
            if config.factor_size:
                self.evidence_to_genes = nn.Linear(NUM_FEATURES + 1, size, bias=False)
            self.state_to_condition = nn.Linear(2 * config.state_size + 1, size)
            self.blocks = nn.ModuleList([DiTBlock(config) for _ in range(config.num_layers)])
            if config.backbone == "latent":
                self.latent_read = LatentRead(config)
                self.latent_readout = LatentReadout(config)
            self.final = FinalLayer(config)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *arguments, output_loading_info: bool = False, **options
    ):
        """As in transformers, but from safetensors alone, so that nothing is unpickled, and whole.

        The name is a folder, or `user/name[@revision]` of a hub (UserError where it cannot be had). Raises
        ValueError where the file lacks a weight; transformers would draw it at random. With `output_loading_info` the
        answer is (model, what was found), and judging it is left to the caller. An `attn_implementation` that is given
        here must be there; one that config.json names may be replaced by sdpa.
        """
        if (name := options.get("attn_implementation")) in BACKENDS:
            require(name, missing(name))
        if options.setdefault("use_safetensors", True) is not True:
            raise ValueError("mdsc reads weights from safetensors alone: leave use_safetensors out")
        pretrained = pretrained_model_name_or_path
        if not Path(pretrained).is_dir() and (repository := as_repository(str(pretrained))) is not None:
            # transformers would look for weights of all kinds, and offer to convert pickles.
            revision = options.pop("revision", None) or repository.revision
            wanted = {name: options.pop(name) for name in DOWNLOAD_OPTIONS if name in options}
            pretrained = download(Repository(repository.name, revision), MODEL_FILES, **wanted)
        model, found = super().from_pretrained(pretrained, *arguments, output_loading_info=True, **options)
        _align(model)
        model.name_or_path = name_of_cached(Path(pretrained)) or str(pretrained)
        if output_loading_info:
            return model, found
        if found["missing_keys"]:
            raise ValueError(f"the weights file lacks {', '.join(sorted(found['missing_keys']))}")
        return model

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        """What transformers asks before it takes an attention; for a missing one it would go to its hub of kernels."""
        name = attn_implementation or "sdpa"
        if name not in BACKENDS:
            return super()._check_and_adjust_attn_implementation(name, is_init_check, allow_all_kernels)
        reason = missing(name)
        if reason is None:
            if name.startswith("flash"):
                lazy_import_flash_attention(name)  # within torch.compile it could not be imported
            return name
        if not is_init_check:  # set_attn_implementation
            require(name, reason)
        say_once(f"attention {name}: {reason}; sdpa takes its place and gives the same numbers")
        return "sdpa"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        match module:
            case ZeroLinear():
                nn.init.zeros_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.Linear():
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case ZeroEmbedding():
                nn.init.zeros_(module.weight)
            case nn.Embedding():
                nn.init.normal_(module.weight, std=0.5)
            case LatentRead():
                nn.init.normal_(module.latents, std=0.5)
                nn.init.normal_(module.null, std=0.5)
            case CellState():
                for parameter in (module.gene_value, module.log_precision, module.log_prior):
                    nn.init.zeros_(parameter)
                nn.init.ones_(module.mean_count)
            case GeneEvidence():
                for table in (module.gene_level, module.gene_mean, module.loadings):
                    nn.init.zeros_(table)
                for table in (module.gene_sd, module.precision):
                    nn.init.ones_(table)
            case FeatureTable():
                for table in (module.vectors, module.mean, module.basis):
                    nn.init.zeros_(table)

    def forward(
        self,
        gene_ids: Int[Tensor, "batch genes"],
        tokens: Int[Tensor, "batch genes"],
        counts: Int[Tensor, "batch genes"],
        is_pad: Bool[Tensor, "batch genes"] | None,
        categories: dict[str, Int[Tensor, " batch"]] | None = None,
        vectors: dict[str, Float[Tensor, "batch _"]] | None = None,
        *,
        seen_under: SeenUnder | None = None,
        fold: Int[Tensor, " batch"] | None = None,
        pathway_only: bool = False,
        max_nonzero: int | None = None,
        genes_per_pass: int | None = None,
        output_hidden_states: bool = False,
    ) -> MdscOutput:
        """Logits of each gene's token.

        Args:
            gene_ids: rows of the vocabulary; any value at pads.
            tokens: visible tokens, `mask_token` where a count is hidden, `pad_token` at pads.
            counts: raw counts where visible; 0 where a count is hidden, and at pads.
            is_pad: None says that there is no padding, which spares attention its mask.
            categories: ids of categorical conditions, 0 (or no entry) for unknown.
            vectors: vector conditions; no entry, or NaN, for unknown. Those of columns with a table of features are
                found by the model, where categories tell the level.
            seen_under: which of the visible counts were seen under other conditions than those above, and under which
                (mdsc/model/condition_prior.py). Exact in the pathway; a backbone reads these counts as they are.
            fold: of a training cell while it is trained on (`mdsc.data.folds`); None and 0 are for other cells.
            pathway_only: leave the backbone out, as if the model had no layers.
            max_nonzero: no cell has more genes of which a count above 0 is visible. The latent backbone finds out where
                it is not told, for which the host waits for a GPU.
            output_hidden_states: hand them out too; else none is kept.
        """
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None
        condition = self.conditions(categories, vectors, len(tokens), tokens.device)
        prior = self.condition_prior(condition) if self.conditions.names else None
        moved = None
        if seen_under is not None and prior is not None:
            before = self.conditions(seen_under.categories, seen_under.vectors, len(tokens), tokens.device)
            moved = Moved.of(prior, self.condition_prior(before), seen_under.positions)
        summary, state = self.cell_state(gene_ids, tokens, counts, condition, prior, moved)
        logits = self.output_bias(gene_ids) + self.cell_state.logits(gene_ids, summary, state)
        if self.config.condition_rank:
            logits = logits + self.condition_response(gene_ids, condition)
        if self.config.factor_size:
            evidence, surprise = self.gene_evidence(gene_ids, tokens, counts, summary[:, -1], fold, prior, moved)
            logits = logits + self.gene_response(evidence)
        if self.config.num_layers and not pathway_only:
            x = self.gene_embedding(gene_ids) + self.token_embedding(tokens)
            x = x + self.state_to_genes(state)[:, None, :]
            if self.config.factor_size:
                x = x + self.evidence_to_genes(torch.cat([evidence, surprise], dim=-1))
            condition = F.silu(self.state_to_condition(torch.cat([summary, state], dim=-1)) + condition)
            if genes_per_pass is None or genes_per_pass >= x.shape[1]:
                logits = logits + self._backbone(x, tokens, condition, is_pad, max_nonzero, hidden_states)
            else:
                assert hidden_states is None, "hidden states are of all genes at once"
                for place in gene_blocks(gene_ids, genes_per_pass):
                    here = (torch.arange(len(x), device=x.device)[:, None], place)
                    pads = None if is_pad is None else is_pad[here]
                    logits[here] += self._backbone(x[here], tokens[here], condition, pads, max_nonzero)
        return MdscOutput(logits, state, None if hidden_states is None else tuple(hidden_states))

    def _backbone(
        self,
        x: Float[Tensor, "batch genes hidden"],
        tokens: Int[Tensor, "batch genes"],
        condition: Float[Tensor, "batch hidden"],
        is_pad: Bool[Tensor, "batch genes"] | None,
        max_nonzero: int | None,
        hidden_states: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch genes tokens"]:
        """What it adds to the logits of these genes; hidden_states: a list that gets the states on the way."""
        is_latent = self.config.backbone == "latent"
        how = attending(self.config._attn_implementation, x, None if is_latent else is_pad)
        between = self.latent_read(x, tokens, condition, how.implementation, max_nonzero) if is_latent else x
        for block in self.blocks:
            if hidden_states is not None:
                hidden_states.append(between)
            between = block(between, condition, how)  # (batch, genes or latents, hidden)
        x = self.latent_readout(x, between, condition, how) if is_latent else between
        if hidden_states is not None:
            hidden_states += [between, x] if is_latent else [x]
        return self.final(x, condition)


def _align(model: nn.Module) -> None:
    """Copy what a weights file has put at odd addresses: a product is rounded by where its factors begin.

    After that a model that is read gives the very bits of the model that was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


AutoModel.register(MdscConfig, MdscModel, exist_ok=True)
