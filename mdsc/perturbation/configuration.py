"""What config.json of the Gaussian head holds: its shape, and the perturbations that it knows."""

from transformers import AutoConfig, PreTrainedConfig

MODEL_TYPE = "mdsc_gaussian"


class GaussianHeadConfig(PreTrainedConfig):
    """Shape of a `GaussianHead`."""

    model_type = MODEL_TYPE
    # transformers makes a dataclass of this whose __init__ takes more than its fields; jaxtyping's check cannot know.
    __no_type_check__ = True

    num_genes: int = 0
    """Genes of the vocabulary."""
    pca_size: int | None = None
    """Principal components; None: latents are genes."""
    pca_fit: str = "train"
    """"per_split": unperturbed cells are read by a PCA of their own when cells are predicted."""
    perturbation_column: str = "perturbation"
    control: str = "ctrl"
    levels: list[str] | None = None
    """Perturbations of the training cells, ids 1, 2, ...; the control is id 0."""
    context_columns: list[str] | None = None
    batch_column: str | None = None
    feature_names: list[str] | None = None
    """Perturbations that have a vector, those of training cells and others."""
    num_features: int = 1
    """Numbers of a gene embedding, as it is given."""
    vector_size: int = 1
    """Numbers of it that the network reads."""
    has_features: bool = False
    """Whether vectors come from gene embeddings; else they say which training perturbation it is."""
    start: str = "ridge"
    several_contexts: bool = False
    """Whether the ridge regression reads the context's unperturbed cells too."""
    num_units: int = 0
    """Perturbations in contexts that it was fitted to."""
    vector_condition: bool = True
    pooled_condition: bool = True
    cell_condition: bool = True
    denoiser: str = "adaln"
    width: int = 512
    num_layers: int = 6
    dropout: float = 0.0
    target: str = "v"
    noise: str = "cosine"
    set_size: int = 32
    decoder_width: int = 0
    sampler: str = "unipc"
    num_steps: int = 20

    def __post_init__(self, **kwargs):
        known = set(PreTrainedConfig.__dataclass_fields__) | {
            "architectures", "transformers_version", "attn_implementation", "torch_dtype", "name_or_path",
        }  # fmt: skip
        unknown = sorted(key for key in kwargs if key not in known and not key.startswith("_"))
        if unknown:
            raise ValueError(f"config.json has keys that mdsc does not know: {', '.join(unknown)}")
        super().__post_init__(**kwargs)

    @property
    def latent_size(self) -> int:
        return self.num_genes if self.pca_size is None else self.pca_size

    @property
    def condition_size(self) -> int:
        """is told, is perturbed, gene vector, pooled unperturbed cells, and one of them."""
        latents = self.latent_size * (self.pooled_condition + self.cell_condition)
        return 2 + self.vector_size * self.vector_condition + latents

    @property
    def ridge_size(self) -> int:
        return self.vector_size + (self.latent_size if self.several_contexts else 0)


AutoConfig.register(GaussianHeadConfig.model_type, GaussianHeadConfig, exist_ok=True)
