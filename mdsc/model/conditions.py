"""What is known of a cell beside its counts: categorical and vector conditions, summed into one vector."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Conditions(nn.Module):
    """Sum of an embedding per categorical condition (id 0: unknown) and a projection per vector condition."""

    def __init__(self, levels: dict[str, list[str]], vector_sizes: dict[str, int], size: int):
        super().__init__()
        self.size = size
        # Lists, because a column may be called `type` or `a.b`, which no submodule can.
        self.category_names, self.vector_names = tuple(levels), tuple(vector_sizes)
        self.categories = nn.ModuleList([nn.Embedding(len(names) + 1, size) for names in levels.values()])
        self.vectors = nn.ModuleList([nn.Linear(length, size) for length in vector_sizes.values()])

    def forward(
        self,
        categories: dict[str, Int[Tensor, " batch"]] | None,
        vectors: dict[str, Float[Tensor, "batch _"]] | None,
        batch_size: int,
        device: torch.device,
    ) -> Float[Tensor, "batch size"]:
        """What is not given is unknown: category 0, and no vector at all."""
        categories, vectors = categories or {}, vectors or {}
        unknown = sorted((categories.keys() - set(self.category_names)) | (vectors.keys() - set(self.vector_names)))
        if unknown:
            raise ValueError(f"the model has no condition named {', '.join(unknown)}")
        total = torch.zeros(batch_size, self.size, device=device)
        for name, embedding in zip(self.category_names, self.categories, strict=True):
            ids = categories.get(name)
            total = total + embedding(torch.zeros_like(total[:, 0], dtype=torch.long) if ids is None else ids)
        for name, projection in zip(self.vector_names, self.vectors, strict=True):
            if name in vectors:
                total = total + projection(vectors[name])
        return total
