"""Every option of a training run, with its default, its unit and what it does. YAML and flags: `yaml_flags`."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dir: str = "data/demo/shards"
    """Folder of shards (made by data_prep/h5ad.py, tahoe.py, demo.py or simulate.py)."""
    num_genes: int = 1024
    """Genes of one training example; all of them where the vocabulary is smaller."""
    gene_draw: Literal["detection", "uniform", "expressed"] = "detection"
    """How these genes are drawn: one set per group of cells, weighted by detection rate or evenly (both independent of
    the cells' values), or only each cell's own expressed genes (the parents' way, which never shows a zero)."""
    uniform_share: float = 0.1
    """Share of a detection draw that is spread evenly over all genes, so that every gene is seen."""
    num_lanes: int = 8
    """Fixed lanes that the data is dealt to; a global step takes the same number of cells from each."""
    window: int = 16
    """Pieces of row groups that a lane shuffles together."""
    validation_fraction: float = 0.05
    """Share of the training cells that is kept for validation, chosen by a hash of the cell's address (shard file, row
    group, row): the same cells for every seed."""
    condition_columns: tuple[str, ...] = ()
    """Condition columns of the shards that the model is told (drug, cell_line, ...)."""
    condition_features: tuple[str, ...] = ()
    """Features of the levels of some of these columns, as COLUMN=FILE (`mdsc prepare features` makes them): levels that
    no training cell has can then be asked for. The checkpoint keeps them."""
    verify: bool = True
    """Compare the hash of each row group that is read with the manifest's."""
    cache_dir: str | None = None
    """Folder for row groups that are read from far away (shards of `mdsc prepare tahoe --stream`); default: `cache` in
    the folder of shards. Runs may share it."""
    cache_bytes: int = 20_000_000_000
    """Most bytes in it; the least recently used row groups go first. 0 keeps none."""
    workers: int = 0
    """Processes that read and tokenise, per training process, each for some of its lanes; 0 leaves that to a thread."""
    on_corrupt: Literal["stop", "quarantine"] = "stop"
    """What a corrupt row group does: end the run, or stay out of it, its cells replaced by those of another one that is
    chosen by a hash. What was quarantined is told, and kept in metrics.jsonl and quarantined.json."""
    prefetch: int = 2
    """Global steps that are read ahead, by a background thread or by the workers."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    name: Literal["rank", "quantile", "count"] = "rank"
    """How counts become tokens; see mdsc.data.tokenizers."""
    num_tokens: int | None = None
    """Size of the token vocabulary, zero included; the tokenizer's own default where not given."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    backbone: Literal["dit", "latent"] = "dit"
    """dit: genes look at each other. latent: visible nonzero genes are read into a few latent tokens, and every gene is
    read out from these; cost is linear in genes, so that a whole transcriptome fits in one pass."""
    num_latents: int = 32
    """Latent tokens of the latent backbone, 16 to 64 as a rule."""
    hidden_size: int = 256
    """Width of the trunk."""
    num_layers: int = 8
    """Blocks, which work on genes or on latents; 0 leaves the backbone out."""
    num_heads: int = 4
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP over hidden_size."""
    state_size: int = 64
    """Size of the cell state that the pathway beside attention carries."""
    condition_rank: int = 32
    """Rank of what conditions add to each gene's logits by themselves; 0 leaves that to the cell state."""
    gene_init: Literal["svd", "random"] = "svd"
    """Start of the gene vectors: a truncated SVD of the training cells, or noise."""
    state_pooling: Literal["posterior", "mean"] = "posterior"
    """How the visible genes become a state: the posterior mean of a factor model, or a plain mean of gene vectors."""
    factor_size: int = 16
    """Factors of the fixed factor model that tells the network what to expect of each gene; 0 leaves it out."""
    cross_fit: bool = True
    """Read a training cell with a factor model of other training cells, so that its own noise does not look like
    knowledge; done where there are fewer than 10,000 cells."""
    state_dropout: float = 0.0
    """Dropout of the features of the cell state; pays where there are few cells."""
    dropout: float = 0.0
    """Dropout of what a block adds, attention and MLP alike."""
    attention: Literal[
        "sdpa",
        "sdpa_flash",
        "sdpa_efficient",
        "sdpa_cudnn",
        "sdpa_math",
        "flash_attention_2",
        "flash_attention_3",
        "flex_attention",
        "eager",
    ] = "sdpa"
    """Kernel of attention: torch's own choice (sdpa) or one of its kernels by name, the flash-attn packages, ...; all
    give the same numbers from the same weights. `mdsc doctor` shows which of them work here, and how fast."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    form: Literal["fixed_k", "continuous"] = "fixed_k"
    """Masked-diffusion loss: exactly k hidden genes with k stratified over the global batch, or continuous time."""
    schedule: Literal["linear", "cosine"] = "linear"
    """alpha_t of the continuous-time form."""
    ordinal: Literal["mean_matching", "crps", "unsquared", "none"] = "mean_matching"
    """Term beside the cross-entropy that knows the order of counts; `unsquared` is the parents' and biased."""
    ordinal_weight: float = 0.1
    """Its weight."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    max_steps: int = 10_000
    """Optimiser steps."""
    global_batch_size: int = 256
    """Cells per optimiser step, over all processes and accumulation."""
    batch_size: int | Literal["auto"] | None = None
    """Cells per process at once; what is missing to the global batch is accumulated. Default: all at once; auto: the
    most that the memory holds (docs/training.md)."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """On matrices of linear layers; never on token tables, gains and biases."""
    gene_weight_decay: float = 0.0
    """On the gene vectors of the cell-state pathway; pays where there are few cells and all genes are often drawn."""
    beta2: float = 0.99
    """AdamW's second beta (the first is 0.9)."""
    warmup_steps: int = 100
    """Linear warm-up, then a cosine to final_lr_fraction of the peak."""
    final_lr_fraction: float = 0.05
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = 1.0
    """Gradients are clipped to this norm."""
    condition_dropout: float = 0.1
    """Share of cells of which all conditions are unknown in a step: guidance needs a model of cells without any."""
    column_dropout: float = 0.1
    """Share of cells of which a condition is unknown, for each of several, so that some may be given without others."""
    level_dropout: float = 0.5
    """Share of cells that are told the features of a level and not which level it is, where a condition has features:
    else a level without cells, which has nothing else, would be like none that was trained on."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, warmed up; these are what is validated, saved and sampled from."""
    ema_device: Literal["device", "cpu"] = "device"
    """Where they are: beside the weights, or in host memory, which spares 4 bytes a weight and slows each step."""
    pathway_learning_rate: float = 4e-3
    """Learning rate of the first pathway_steps."""
    pathway_steps: int = 0
    """Of max_steps, the first ones train the cell-state pathway alone, which is some ten times faster."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 autocast, or not; auto takes bf16 where the device computes it fast."""
    gradient_checkpointing: bool = False
    """Compute the blocks anew in the backward pass: a fraction of the memory, the same gradients, a third more time."""
    compile: bool = False
    """torch.compile of each block; needs a C++ compiler, on GPUs a C compiler, and half a minute at the start."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 200
    """Steps between validations."""
    save_every: int = 1000
    """Steps between checkpoints. Each comes with a state that --resume goes on from, some 16 bytes a parameter."""
    keep_last: int = 3
    """States that are kept in OUTPUT_DIR/state: the last ones, and beside them the one with the best validation."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    mask_ratios: tuple[float, ...] = (0.2, 0.5, 0.8)
    """Share of each validation cell's genes that is hidden."""
    num_cells: int = 256
    """Validation cells scored at most."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    wandb: bool = False
    """Also log to Weights & Biases; metrics.jsonl is always written."""
    project: str = "mdsc"
    """The wandb project."""
    tensorboard: bool = False
    """Also write OUTPUT_DIR/tensorboard, for `tensorboard --logdir`."""
    spike_threshold: float = 8.0
    """A step is told, with its worst cells, if its loss or gradient norm is that many standard deviations above the
    median of the last 128 steps (both robust, and in logarithms); 0 tells of none."""


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    repo: str | None = None
    """Model repository (user/name) that checkpoints are pushed to while the run goes on, and at its end; it is made
    where it is not there. The token is the one of `hf auth login`, or HF_TOKEN."""
    every: int | None = None
    """Steps between pushes, each of the first checkpoint that is saved then; by default every saved checkpoint. The
    last one is always pushed."""
    private: bool = True
    """Whether a repository that is made is private; one that is there stays what it is."""
    license: str = "unknown"
    """Licence of the weights for the model card, as the hub names it (apache-2.0, cc-by-4.0, ...)."""


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """Options of --head gaussian: diffusion of perturbed cells in the latents of log expression."""

    perturbation_column: str = "perturbation"
    """Condition column of the shards that tells the perturbation: symbols of genes, joined by +."""
    control: str = "ctrl"
    """Its value for unperturbed cells."""
    context_columns: tuple[str, ...] = ()
    """Condition columns, such as cell_type, within which cells are compared: unperturbed cells are of the same."""
    batch_column: str | None = None
    """Condition column of the batch, for --gaussian.matching and the pooled unperturbed cells; none where not given."""
    pca_size: int | None = 50
    """Principal components that are the latents; none: all genes, each in standard deviations."""
    pca_fit: Literal["train", "per_split"] = "train"
    """Which cells the components are fitted to. per_split is the parents' way, in which unperturbed cells are read by a
    PCA of their own when cells are predicted: the axes then mean something else, and a warning says so."""
    start: Literal["ridge", "ridge_left_out", "none"] = "ridge"
    """What the diffusion is around, beside the unperturbed cells of a context: the shift that a ridge regression on the
    gene embedding expects (and on the unperturbed cells, where there are several contexts), or nothing. With ridge a
    training perturbation is centred at its own mean, so that the network learns how cells vary about it; with
    ridge_left_out at what the regression of all others expects of it, so that the network learns what the regression
    misses; with none it learns all of the shift."""
    denoiser: Literal["adaln", "mlp", "set"] = "adaln"
    """Network: a residual MLP with adaLN-Zero, the parents' residual MLP, or blocks in which the cells of a set look at
    each other."""
    width: int = 512
    """Its width."""
    num_layers: int = 6
    """Its blocks."""
    dropout: float = 0.0
    """Dropout within its blocks."""
    vector_dropout: float = 0.1
    """Share of the numbers of a gene embedding that a training cell does not see."""
    target: Literal["flow", "v", "edm", "epsilon"] = "v"
    """What the network is asked for: noise - x0 along straight paths, v, EDM's preconditioned x0, or the noise."""
    noise: Literal["auto", "linear", "cosine", "flow", "edm"] = "auto"
    """Noise levels of training; auto: flow for flow, cosine for v, edm for edm, linear (DDPM) for epsilon."""
    set_loss: Literal["none", "mmd", "energy", "noise_mmd"] = "none"
    """Beside the pointwise loss: unbiased MMD or energy distance of the denoised cells of a perturbation to its real
    ones; noise_mmd is the parents' MMD between predicted and true noise, which can vanish with nothing learnt."""
    set_weight: float = 0.1
    """Its weight."""
    set_size: int = 32
    """Cells of one perturbation and context that a batch holds together; it divides --train.batch-size."""
    matching: Literal["batch", "random", "ot"] = "batch"
    """Which unperturbed cell a perturbed one is told of: one of its batch, any of its context, or the one that optimal
    transport gives it (needs POT: pip install "mdsc[perturbation]")."""
    vector_condition: bool = True
    """Whether the network is told the gene embedding; if not, that enters by the ridge regression alone, and of few
    training perturbations the network cannot learn each by heart."""
    pooled_condition: bool = True
    """Whether the network is told the mean of all unperturbed cells of the batch and context; it is what cells are
    centred at in any case."""
    cell_condition: bool = True
    """Whether it is told one of them too, as its difference from that mean."""
    decoder_width: int = 0
    """Width of the network that corrects the exact inverse of the PCA; 0 leaves it out."""
    decoder_weight: float = 1.0
    """Weight of its losses."""
    generated_share: float = 0.25
    """Share of the sets of a step of which the decoder is also given generated latents, at the end of training."""
    generated_from: float = 0.5
    """Share of --train.max-steps after which that begins; it then rises evenly from 0."""
    sampler: Literal["ddpm", "ddim", "dpm++", "unipc", "euler_edm", "heun_edm", "flow_euler"] = "unipc"
    """Sampler of `sample.py`, of validation and of the decoder's generated latents."""
    num_steps: int = 20
    """Its steps."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    head: Literal["masked", "gaussian"] = "masked"
    """What is trained: the masked model of counts (--model, --tokenizer, --objective), or the Gaussian head, which
    predicts perturbed cells in latents of log expression (--gaussian)."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    gaussian: GaussianConfig = field(default_factory=GaussianConfig)
    train: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    output_dir: str = "runs/demo"
    """Folder of the run: checkpoint, config, metrics, plots."""
    seed: int = 0
    """Seeds the start of the weights, the order of the cells, the gene sets and what is hidden."""
    init_from: str | None = None
    """Start from the weights of this checkpoint, a folder or user/name[@revision] of the hub; the model then has its
    shape. Genes and levels of conditions may be others: they are matched by name."""
    resume: str | None = None
    """auto: go on from the newest good state in --output-dir, or start anew where there is none. Or the folder of a
    run, or of one of its states. The number of steps, how often to log, validate and save, micro-batches, processes
    and workers may change; seed, data, model and optimisation may not."""
