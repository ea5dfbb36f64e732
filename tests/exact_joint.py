"""A known distribution of tiny cells, with its exact conditionals as the model.

With them every claim can be checked against arithmetic: the bound is the entropy, the sampler's law is the joint's, and
what a sampler does in few steps can be summed up over all ways it could go.
"""

from collections.abc import Iterable
from itertools import pairwise, product

import numpy as np
import torch
from torch.nn.functional import one_hot

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
        is_token = one_hot(self.cells, num_tokens).double()  # (cells, genes, V)
        joint = torch.einsum("sc,c,cgv->sgv", agree.double(), self.p, is_token)
        self.conditionals = joint / joint.sum(-1, keepdim=True)
        self.states = states
        """(states, length): every one that a cell can be in; the last one has nothing visible."""
        self.sets = torch.tensor(list(product([False, True], repeat=length)))
        """(2^length, length): every set of positions."""
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

    def law_of(self, steps: Iterable[torch.Tensor]) -> torch.Tensor:
        """Exact law of the cells that a sampler ends with that knows nothing at first, over all ways that it could go.

        steps: (states, 2^length) each: in a state, the chance of each set of positions (`self.sets`) to be touched. Of
        these, hidden ones are drawn by the conditionals of the state before, independently, and visible ones hidden.
        """
        mask = self.num_tokens
        drawn = torch.cat([self.conditionals, torch.zeros(*self.states.shape, 1)], dim=-1)  # never the mask
        kept, hidden_again = (one_hot(state, mask + 1).double() for state in (self.states, self.states * 0 + mask))
        is_hidden = (self.states == mask)[..., None]
        touched = torch.where(is_hidden, drawn, hidden_again)[:, None]
        # (states, sets, positions, tokens), then (states, sets, states after).
        per_position = torch.where(self.sets[None, :, :, None], touched, kept[:, None])
        move = torch.ones(len(self.states), len(self.sets), len(self.states), dtype=torch.float64)
        for position in range(self.length):
            move *= per_position[:, :, position, self.states[:, position]]
        law = torch.zeros(len(self.states), dtype=torch.float64)
        law[-1] = 1
        for chance_of_set in steps:
            law = torch.einsum("s,se,sea->a", law, chance_of_set, move)
        return law[self.code(self.cells, mask + 1)]

    def sets_by_chance(self, reveal: float, remask: float = 0.0) -> torch.Tensor:
        """(states, 2^length): hidden positions are touched with chance `reveal`, visible ones with `remask`."""
        chance = torch.where(self.states == self.num_tokens, reveal, remask)[:, None].double()
        return torch.where(self.sets, chance, 1 - chance).prod(dim=-1)

    def law_of_ancestral(self, times: list[float]) -> torch.Tensor:
        """At each time every hidden position is revealed with chance 1 - s/t."""
        return self.law_of(self.sets_by_chance(1 - s / t) for t, s in pairwise(times))
