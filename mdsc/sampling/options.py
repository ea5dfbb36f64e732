"""How hidden counts are drawn and answered: what every command and function that samples lets its user choose."""

from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

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
INTERVAL = (0.05, 0.5, 0.95)


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


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    edit_fraction: float | None = None
    """With --perturbation and a masked model: make cells out of real control cells, of which this share of the genes
    is hidden at a time and drawn as under the perturbation; by default cells are generated from nothing."""
    keep_visible: bool = False
    """With --edit-fraction: hide once, and keep the counts that stay visible, which are those of a control cell. Else
    as often as it takes to draw each gene anew, given the others of the control cell."""
    cells_per_perturbation: int | None = None
    """Cells of each perturbation; by default as many as there are control cells, 500 at most."""
    latent_sampler: Literal["ddpm", "ddim", "dpm++", "unipc", "euler_edm", "heun_edm", "flow_euler"] | None = None
    """Sampler of a Gaussian head; by default its own choice."""
    latent_steps: int | None = None
    """Steps of the sampler of a Gaussian head; by default its own choice."""

    def __post_init__(self) -> None:
        if self.edit_fraction is not None and not 0 < self.edit_fraction <= 1:
            raise UserError(f"--edit-fraction is {self.edit_fraction}; it takes a share above 0, 1 at most, e.g. 0.5.")
        if self.keep_visible and self.edit_fraction is None:
            raise UserError("--keep-visible keeps counts of control cells that are edited: give --edit-fraction too.")
        for name in ("cells_per_perturbation", "latent_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it takes 1 or more.")

    @property
    def of_masked(self) -> tuple[str, ...]:
        """Flags that are given and that a Gaussian head does not read."""
        given = {"--edit-fraction": self.edit_fraction is not None, "--keep-visible": self.keep_visible}
        return tuple(flag for flag, is_given in given.items() if is_given)

    @property
    def of_gaussian(self) -> tuple[str, ...]:
        """Flags that are given and that a masked model does not read."""
        given = {"--latent-sampler": self.latent_sampler, "--latent-steps": self.latent_steps}
        return tuple(flag for flag, value in given.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    num_draws: int = 1
    """Times that each cell is drawn: layers mdsc_sampled, mdsc_sampled_1, ... With 2 or more the standard deviation
    and quantiles of each hidden count are written too. 0 draws nothing: expected counts alone, in one pass."""
    quantiles: tuple[float, ...] | None = None
    """Write mdsc_sd and these quantiles of each hidden count, e.g. 0.05 0.5 0.95; exact, whatever --num-draws is."""
    mean_floor: float = 0.01
    """Hidden genes of a lower expected count are left out of mdsc_mean and mdsc_sd, as if it were 0; with 0 none are,
    and both are dense."""

    def __post_init__(self) -> None:
        if self.num_draws < 0:
            raise UserError(f"--num-draws is {self.num_draws}; it takes 0 or more.")
        for level in self.quantiles or ():
            if not 0 < level < 1:
                raise UserError(f"--quantiles: {level:g} is not between 0 and 1; give e.g. 0.05 0.5 0.95.")
        if not 0 <= self.mean_floor < float("inf"):
            raise UserError(f"--mean-floor is {self.mean_floor:g}; it takes an expected count, e.g. 0.01, or 0.")

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(sorted(set(self.quantiles or (INTERVAL if self.num_draws > 1 else ()))))

    @property
    def with_sd(self) -> bool:
        return bool(self.levels)

    @property
    def layers(self) -> dict[str, type]:
        """Names and types of the layers."""
        draws = {draw_name(draw): np.int32 for draw in range(self.num_draws)}
        spread = {"mdsc_sd": np.float32} if self.with_sd else {}
        quantiles = {quantile_name(level): np.int32 for level in self.levels}
        return draws | {"mdsc_mean": np.float32} | spread | quantiles | {"mdsc_hidden": np.bool_}

    @property
    def dense(self) -> tuple[str, ...]:
        """Those that are arrays, and not CSR."""
        return () if self.mean_floor else tuple(name for name in ("mdsc_mean", "mdsc_sd") if name in self.layers)


def draw_name(draw: int) -> str:
    return f"mdsc_sampled_{draw}" if draw else "mdsc_sampled"


def quantile_name(level: float) -> str:
    return f"mdsc_q{100 * level:g}"
