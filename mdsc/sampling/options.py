"""How hidden counts are drawn: what every command and function that samples lets its user choose."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

from mdsc.errors import UserError

READ_BY: dict[str, tuple[str, ...]] = {
    "grid": ("ancestral", "first_hitting", "remdm"),
    "entropy_budget": ("entropy_bounded",),
    "remask": ("remdm",),
    "remask_strength": ("remdm",),
}
"""Options that not all samplers read -> the samplers that do."""
REMASK_STRENGTH = {"cap": 0.05, "rescale": 0.1}
"""Where --remask-strength is not given."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    sampler: Literal["ancestral", "first_hitting", "entropy_bounded", "remdm", "one_shot"] = "first_hitting"
    """Which hidden counts a step draws at once. first_hitting: the next ones of a random order; ancestral: each with
    the chance that the grid gives; entropy_bounded: those that the model is surest of; remdm: as ancestral, and drawn
    ones may be hidden and drawn again; one_shot: all of them."""
    num_steps: int = 32
    """Forward passes that sampling takes at most: more follow the model more closely."""
    grid: Literal["cosine", "uniform"] | None = None
    """Times of the steps: cosine (where none is given) starts with small steps while little is visible."""
    temperature: float = 1.0
    """The logits are divided by it; 1 samples the model's own distribution."""
    entropy_budget: float | None = None
    """entropy_bounded: nats that the positions of a step may have beside the most uncertain of them; 0 draws one at a
    time. By default what all hidden ones have, divided by the steps that are left."""
    remask: Literal["cap", "rescale"] | None = None
    """remdm: how many drawn counts a step hides again: cap (where none is given) min(eta, the most that it may);
    rescale: eta of the most."""
    remask_strength: float | None = None
    """remdm: eta, between 0 and 1; 0 hides nothing again. By default 0.05 for cap and 0.1 for rescale."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"--num-steps is {self.num_steps}; it takes 1 or more.")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature is {self.temperature}; it takes a number above 0.")
        for name, samplers in READ_BY.items():
            if getattr(self, name) is not None and self.sampler not in samplers:
                raise UserError(
                    f"--{name.replace('_', '-')} is for --sampler {' or '.join(samplers)}; "
                    f"--sampler {self.sampler} does not read it: leave it out."
                )
        if self.entropy_budget is not None and not self.entropy_budget >= 0:
            raise UserError(f"--entropy-budget is {self.entropy_budget}; it takes 0 or more nats.")
        if self.remask_strength is not None and not 0 <= self.remask_strength <= 1:
            raise UserError(f"--remask-strength is {self.remask_strength}; it takes a number from 0 to 1.")

    def resolved(self) -> "SamplerOptions":
        """With a value for each option that was left to the sampler."""
        remask = self.remask or "cap"
        defaults = {"grid": "cosine", "remask": remask, "remask_strength": REMASK_STRENGTH[remask]}
        read = {name: value for name, value in defaults.items() if self.sampler in READ_BY[name]}
        return replace(self, **{name: value for name, value in read.items() if getattr(self, name) is None})

    def record(self) -> dict[str, str | int | float]:
        """The options that the sampler reads, to be kept beside what was sampled."""
        return {name: value for name, value in asdict(self.resolved()).items() if value is not None}


DEFAULTS = SamplerOptions()
