"""How many cells a pass of the model takes within a memory bound, and how many genes its transformer compares at once.

A gene needs the same memory whatever the others are, but for attention between genes: with kernels that keep all pairs
(`eager`) it grows with their square. All that is not attention always sees all genes of a cell at once.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdsc.config.schema import DataConfig
from mdsc.errors import UserError

if TYPE_CHECKING:  # flags are read before torch is imported
    from mdsc.checkpoint import Checkpoint
    from mdsc.model.configuration import MdscConfig

MAX_POSITIONS = {"cpu": 2**15, "cuda": 2**17}
"""Cells times genes of a pass: more are no faster. A CPU is 20% faster with fewer, which stay in its caches."""
MAX_WRITTEN = 2**20
"""Cells times genes of the layers of a pass, which are dense for a moment: some 20 bytes each."""
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    batch_size: int | None = None
    """Cells at once; by default what suits the device, within --max-memory. It changes no result but by rounding."""
    genes_per_pass: int | None = None
    """Genes that a transformer compares with each other at once, of cells that have more; by default as many as it was
    trained on, where its cost grows with their square (--model.backbone dit), else all."""
    max_memory: str = "2GB"
    """Most memory that a pass of the model takes, beside its weights, e.g. 500MB; sets the number of cells at once."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "genes_per_pass"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it takes 1 or more.")
        self.max_bytes  # noqa: B018  # says what is wrong with it

    @property
    def max_bytes(self) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)b?", self.max_memory.strip().lower())
        if not found or not float(found[1]):
            raise UserError(f"--max-memory is {self.max_memory!r}; it takes a size such as 2GB or 500MB.")
        return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class PassSize:
    cells: int
    genes: int | None
    """Of which the transformer sees all at once; None: of all."""


def pass_size(checkpoint: "Checkpoint", num_genes: int, options: PassOptions, *, all_genes: int = 0) -> PassSize:
    """For cells of `num_genes` genes; UserError where not even one cell keeps to the bound.

    all_genes: those of the file, with the ones that the model does not know: layers have them too.
    """
    config = checkpoint.model.config
    genes = options.genes_per_pass
    if genes is None and config.num_layers and config.backbone == "dit":
        genes = (DataConfig() if checkpoint.config is None else checkpoint.config.data).num_genes
    if genes is not None and genes >= num_genes:
        genes = None
    of_one = bytes_per_cell(config, num_genes, genes)
    bound = options.max_bytes // of_one
    if not bound or (options.batch_size or 1) > bound:
        which = "one cell" if not bound else f"{options.batch_size} cells at once (--batch-size)"
        needed = of_one * (options.batch_size or 1)
        raise UserError(
            f"--max-memory is {options.max_memory}, but {which} of {num_genes:,} genes may take some "
            f"{needed / 1e6:,.0f} MB: give that or more."
        )
    fast = max(1, MAX_POSITIONS.get(checkpoint.model.device.type, MAX_POSITIONS["cpu"]) // num_genes)
    written = max(1, MAX_WRITTEN // max(all_genes, num_genes))
    return PassSize(options.batch_size or min(fast, bound, written), genes)


def bytes_per_cell(config: "MdscConfig", num_genes: int, genes_per_pass: int | None) -> int:
    """What a pass without gradients takes for a cell at most, drawing its counts included; somewhat too much."""
    # Logits in float32, and of the positions that are drawn now in float64 with their sums.
    of_gene = 4 * 3 * config.num_tokens + 8 * 3 * config.num_tokens
    of_gene += 4 * (4 * config.state_size + 6 * config.factor_size + 64)
    attended = 0
    if config.num_layers:
        together = min(genes_per_pass or num_genes, num_genes)
        of_gene += 4 * 4 * config.hidden_size
        attended = together * 4 * config.hidden_size * (8 + 2 * config.mlp_ratio)
        if config.backbone == "dit" and config._attn_implementation in ("eager", "sdpa_math"):
            attended += 3 * 4 * config.num_heads * together**2
    return int(num_genes * of_gene + attended)
