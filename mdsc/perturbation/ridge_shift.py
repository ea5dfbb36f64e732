"""The linear baseline as the starting point: the mean effect of a perturbation on each gene, by ridge regression.

The diffusion head learns what is around it. Its penalty is chosen by leaving out one perturbation at a time, so where
features tell nothing of effects, all perturbations get nearly the mean shift.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

PENALTIES = np.logspace(-4, 4, 33)
"""Times the mean square of a feature vector about the mean, so that the features' unit does not matter."""


class RidgeShift(nn.Module):
    """effect = vector @ weight + bias. Buffers, not parameters: it is frozen. An unfitted one shifts nothing."""

    def __init__(self, num_features: int, latent_size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_features, latent_size))
        self.register_buffer("bias", torch.zeros(latent_size))

    @classmethod
    def fit(
        cls,
        features: Float[np.ndarray, "perturbations d"],
        effects: Float[np.ndarray, "perturbations k"],
    ) -> "RidgeShift":
        """A shift for each row of the training perturbations (effect: their mean latent less that of the controls).

        By sklearn's RidgeCV: the squared error of leaving out one row, over all k, chooses among PENALTIES. Of fewer
        than three rows none can be left out; they give their mean. ValueError where a value is not finite.
        """
        features, effects = np.asarray(features, np.float64), np.asarray(effects, np.float64)
        for name, values in (("feature vector", features), ("effect", effects)):
            if len(bad := np.flatnonzero(~np.isfinite(values).all(axis=1))):
                raise ValueError(f"the {name} is not finite for {len(bad)} perturbations, the first in row {bad[0]}")
        if len(features) != len(effects) or not len(features):
            raise ValueError(f"{len(features)} feature vectors for {len(effects)} effects of perturbations")
        shift = cls(features.shape[1], effects.shape[1])
        spread = np.square(features - features.mean(axis=0)).sum(axis=1).mean()
        if len(features) < 3 or spread == 0:
            shift.bias.copy_(torch.from_numpy(effects.mean(axis=0)))
            return shift
        from sklearn.linear_model import RidgeCV

        ridge = RidgeCV(alphas=PENALTIES * spread).fit(features, effects)
        # One column of effects comes back without its axis.
        shift.weight.copy_(torch.from_numpy(ridge.coef_.reshape(effects.shape[1], -1).T))
        shift.bias.copy_(torch.from_numpy(np.atleast_1d(ridge.intercept_)))
        return shift

    def forward(self, vectors: Float[Tensor, "batch d"]) -> Float[Tensor, "batch k"]:
        """0 where the vector, or a part of it, is NaN: of such a perturbation nothing is known."""
        unknown = vectors.isnan().any(dim=1, keepdim=True)
        with torch.autocast(vectors.device.type, enabled=False):
            shift = vectors.to(self.weight.dtype).nan_to_num(nan=0.0) @ self.weight + self.bias
        return shift.masked_fill(unknown, 0.0)
