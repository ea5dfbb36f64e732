"""A known distribution of tiny cells, with its exact conditionals as the model.

With them every claim can be checked against arithmetic: the bound is the entropy, the sampler's law is the joint's, and
what a sampler does in few steps can be summed up over all ways it could go.
"""

from itertools import pairwise, product

import numpy as np
import torch

from mdsc.data.batch import CellBatch
from mdsc.data.tokenizers import CountTokenizer
from mdsc.diffusion.evidence import Evidence


class ExactJoint:
    """A random, strongly correlated joint of `length` genes with counts 0 .. num_tokens - 1."""

    def __init__(self, length: int, num_tokens: int = 3, *, concentration: float = 1.5, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.length, self.num_tokens = length, num_tokens
        self.cells = torch.tensor(list(product(range(num_tokens), repeat=length)))
        p = np.exp(concentration * rng.standard_normal(len(self.cells)))
        self.p = torch.tensor(p / p.sum())
        self.tokenizer = CountTokenizer(tuple(range(num_tokens)), tuple(float(x) for x in range(num_tokens)))
        # Conditionals of every state (num_tokens where hidden), looked up by the state read as a number.
        states = torch.tensor(list(product(range(num_tokens + 1), repeat=length)))
        agree = ((states[:, None] == self.cells) | (states[:, None] == num_tokens)).all(-1)  # (states, cells)
        is_token = torch.nn.functional.one_hot(self.cells, num_tokens).double()  # (cells, genes, V)
        joint = torch.einsum("sc,c,cgv->sgv", agree.double(), self.p, is_token)
        self.conditionals = joint / joint.sum(-1, keepdim=True)
        self.calls: list[torch.Tensor] = []

    @property
    def entropy(self) -> float:
        """Nats per cell."""
        return -(self.p * self.p.log()).sum().item()

    def code(self, states: torch.Tensor, base: int) -> torch.Tensor:
        """Index of each row among all rows of `length` digits."""
        return (states * base ** torch.arange(self.length - 1, -1, -1)).sum(-1)

    def predict(self, gene_ids, tokens, counts, is_pad, categories, vectors):
        """Logits of the exact conditionals at hidden positions, in whatever order the genes stand; elsewhere anything.

        It refuses what a state of the tokenizer cannot be, and counts that are not those of the visible tokens.
        """
        self.calls.append(tokens)
        assert ((tokens == self.num_tokens + 1) == is_pad).all()
        seen = torch.where(tokens < self.num_tokens, tokens, 0)
        assert torch.equal(counts.long(), seen)
        # Real genes go to their places; a pad's entry goes to a place of its own, which is cut off.
        place = torch.where(is_pad, self.length, gene_ids)
        state = torch.full((len(tokens), self.length + 1), self.num_tokens).scatter(1, place, tokens)[:, : self.length]
        p = self.conditionals[self.code(state, self.num_tokens + 1)]
        logits = p.clamp(min=1e-300).log().float()
        logits = logits.gather(1, gene_ids[..., None].expand(*gene_ids.shape, self.num_tokens))
        # Visible positions and pads are nobody's business: a large wrong answer there must not matter.
        wrong = torch.tensor([0.0, -20.0, 20.0])[: self.num_tokens]
        return torch.where((tokens == self.num_tokens)[..., None], logits, wrong)

    def batch(self, tokens: torch.Tensor, num_pads: int = 0) -> CellBatch:
        """CellBatch of these cells, with pads at the end."""
        shape = (len(tokens), self.length + num_pads)
        is_pad = torch.arange(shape[1]).expand(shape) >= self.length
        padded = torch.zeros(shape, dtype=torch.long)
        padded[:, : self.length] = tokens
        return CellBatch(
            gene_ids=torch.arange(shape[1]).expand(shape).masked_fill(is_pad, 0),
            counts=padded.int(),
            tokens=padded.masked_fill(is_pad, self.num_tokens + 1),
            is_pad=is_pad,
            cell_index=torch.arange(len(tokens)),
            fold=torch.zeros(len(tokens), dtype=torch.long),
        )

    def nothing_known(self, num_cells: int) -> Evidence:
        batch = self.batch(torch.zeros(num_cells, self.length, dtype=torch.long))
        return Evidence(
            gene_ids=batch.gene_ids,
            counts=batch.counts,
            visible=torch.zeros_like(batch.is_pad),
            is_pad=batch.is_pad,
            cell_index=batch.cell_index,
        )

    def total_variation(self, counts: torch.Tensor, law: torch.Tensor | None = None) -> float:
        """Between the frequencies of sampled cells and `law` (the joint itself where not given)."""
        frequency = torch.bincount(self.code(counts, self.num_tokens), minlength=len(self.p)) / len(counts)
        return 0.5 * (frequency - (self.p if law is None else law)).abs().sum().item()

    def noise_floor(self, num_samples: int, law: torch.Tensor | None = None) -> float:
        """Largest total variation that 200 sets of exact samples have."""
        law = self.p if law is None else law
        frequency = np.random.default_rng(0).multinomial(num_samples, law.numpy(), size=200) / num_samples
        return 0.5 * np.abs(frequency - law.numpy()).sum(1).max()

    def law_of_ancestral(self, times: list[float]) -> torch.Tensor:
        """Exact law of the cells that the ancestral sampler ends with, over all ways that it could go.

        At each time every hidden position is revealed with chance 1 - s/t, by the conditionals of the state before.
        """
        mask = self.num_tokens
        law = {(mask,) * self.length: 1.0}
        for t, s in pairwise(times):
            after: dict[tuple[int, ...], float] = {}
            for state, weight in law.items():
                conditional = self.conditionals[self.code(torch.tensor(state), mask + 1)]
                options = [
                    [(mask, s / t), *((v, (1 - s / t) * conditional[i, v].item()) for v in range(mask))]
                    if token == mask
                    else [(token, 1.0)]
                    for i, token in enumerate(state)
                ]
                for choice in product(*options):
                    key = tuple(v for v, _ in choice)
                    after[key] = after.get(key, 0.0) + weight * np.prod([p for _, p in choice])
            law = {state: weight for state, weight in after.items() if weight > 0}
        return torch.tensor([law.get(tuple(cell.tolist()), 0.0) for cell in self.cells])
