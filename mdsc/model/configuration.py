"""What a checkpoint's config.json holds: the shape of the network and the conditions that it knows."""

from transformers import AutoConfig, PreTrainedConfig


class MdscConfig(PreTrainedConfig):
    """Shape of an `MdscModel`. Sizes are numbers of features; `num_layers=0` leaves the backbone out."""

    model_type = "mdsc"
    # transformers makes a dataclass of this whose __init__ takes more than its fields; jaxtyping's check cannot know.
    __no_type_check__ = True

    num_genes: int = 0
    """Genes of the vocabulary (rows of the gene tables)."""
    num_tokens: int = 0
    """Data tokens, zero included; the mask is token `num_tokens`, padding `num_tokens + 1`."""
    backbone: str = "dit"
    """What works on the genes: "dit", where each looks at all, or "latent", which has a few tokens between them."""
    num_latents: int = 32
    """Latent tokens of the latent backbone."""
    hidden_size: int = 256
    num_layers: int = 8
    num_heads: int = 4
    mlp_ratio: float = 4.0
    state_size: int = 64
    """Features of the cell state that runs beside attention."""
    state_pooling: str = "posterior"
    """How the visible genes become a state: "posterior" of a factor model, or a plain "mean"."""
    factor_size: int = 16
    """Factors of the fixed model that tells what to expect of each gene; 0 leaves it out."""
    state_dropout: float = 0.0
    """Dropout of the features of that state."""
    dropout: float = 0.0
    """Dropout of what a block adds, attention and MLP alike."""
    condition_levels: dict[str, list[str]] | None = None
    """Levels of each categorical condition, in the order of their ids 1, 2, ...; id 0 is the null."""
    vector_sizes: dict[str, int] | None = None
    """Length of each vector condition."""
    feature_names: dict[str, list[str]] | None = None
    """Columns of which the levels have vectors: the names that have one, levels of training cells and others."""
    feature_sizes: dict[str, int] | None = None
    """Features of each of these columns, as they were before they became vectors."""
    condition_rank: int = 0
    """Rank of what conditions add to each gene's logits by themselves; 0 leaves it out."""

    def __post_init__(self, **kwargs):
        # transformers keeps unknown keys silently; a misspelt size would then leave its default in place.
        known = set(PreTrainedConfig.__dataclass_fields__) | {
            "architectures", "transformers_version", "attn_implementation", "torch_dtype", "name_or_path",
        }  # fmt: skip
        unknown = sorted(key for key in kwargs if key not in known and not key.startswith("_"))
        if unknown:
            raise ValueError(f"config.json has keys that mdsc does not know: {', '.join(unknown)}")
        super().__post_init__(**kwargs)
        if self.num_heads < 1:
            raise ValueError(f"num_heads is {self.num_heads}; it takes 1 or more")
        for name in ("dropout", "state_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        if self.backbone not in ("dit", "latent"):
            raise ValueError(f"backbone is {self.backbone!r}; it is 'dit' or 'latent'")
        if self.num_latents < 1:
            raise ValueError(f"num_latents is {self.num_latents}; it takes 1 or more")
        if self.state_pooling not in ("posterior", "mean"):
            raise ValueError(f"state_pooling is {self.state_pooling!r}; it is 'posterior' or 'mean'")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")

    @property
    def mask_token(self) -> int:
        return self.num_tokens

    @property
    def pad_token(self) -> int:
        return self.num_tokens + 1


AutoConfig.register(MdscConfig.model_type, MdscConfig, exist_ok=True)
