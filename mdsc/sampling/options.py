"""How hidden counts are drawn: what every command and function that samples lets its user choose."""

from dataclasses import dataclass
from typing import Literal

from mdsc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    num_steps: int = 32
    """Forward passes that sampling takes at most: more follow the model more closely."""
    grid: Literal["cosine", "uniform"] = "cosine"
    """Times of the steps: cosine starts with small steps while little is visible."""
    temperature: float = 1.0
    """The logits are divided by it; 1 samples the model's own distribution."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"--num-steps is {self.num_steps}; it takes 1 or more.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}; it takes a number above 0.")
