"""Counts to tokens and back: `rank` (default), `quantile` (the parents' bins, zero kept apart) and `count`.

Token 0 is count 0, and nothing else is. Tokens of a cell depend on the counts of that cell alone, so that a cell gets
the same tokens alone and in any batch. What is decoded depends on the visible counts alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int, Int16, Int64, Integer
from torch import Tensor

from mdsc.data.cell_ranks import counts_below, csr_counts_below, csr_dense_rank_tokens, dense_ranks
from mdsc.errors import UserError


@dataclass(frozen=True)
class Tokenizer(ABC):
    """What the three have in common. `edges[t]` is the smallest rank, bin or count of token t, `edges[0] == 0`."""

    name: ClassVar[str]
    edges: tuple[int, ...]
    token_values: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        """V: tokens of data are 0..V-1."""
        return len(self.edges)

    @property
    def mask_token(self) -> int:
        return self.num_tokens

    @property
    def pad_token(self) -> int:
        return self.num_tokens + 1

    @cached_property
    def values(self) -> Float64[np.ndarray, " tokens"]:
        """Typical count of each token over the training cells: 0 for token 0, then strictly increasing."""
        values = np.array(self.token_values, dtype=np.float64)
        values.setflags(write=False)
        return values

    @abstractmethod
    def encode(
        self, counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
    ) -> Int16[np.ndarray, " nnz"]:
        """Tokens of the nonzero counts of whole cells, stored one cell after the other (CSR)."""

    @abstractmethod
    def _encode_rows(self, counts: Int[Tensor, "batch genes"]) -> Int64[Tensor, "batch genes"]:
        """Tokens of rows of counts, each a whole cell."""

    @abstractmethod
    def decode_table(
        self, counts: Int[Tensor, "batch genes"], visible: Bool[Tensor, "batch genes"]
    ) -> Float64[Tensor, "batch tokens"]:
        """The count that each token stands for in each cell, from its visible counts only.

        Column 0 is 0; rows never decrease.
        """

    def encode_visible(
        self, counts: Int[Tensor, "batch genes"], visible: Bool[Tensor, "batch genes"]
    ) -> Int64[Tensor, "batch genes"]:
        """Tokens as if the visible counts were the whole cell; `mask_token` where a count is not visible."""
        return self._encode_rows(counts * visible).masked_fill(~visible, self.mask_token)

    def decode(
        self,
        tokens: Int[Tensor, "batch genes"],
        counts: Int[Tensor, "batch genes"],
        visible: Bool[Tensor, "batch genes"],
    ) -> Int64[Tensor, "batch genes"]:
        """Counts that `tokens` (all below V) stand for in cells of which `counts` are known where `visible`."""
        table = self.decode_table(counts, visible).round().long()
        table[:, 1:].clamp_(min=1)
        return table.gather(1, tokens.long())

    def with_values(self, values: Float64[np.ndarray, " tokens"]) -> "Tokenizer":
        """The same tokenizer with typical counts fitted on training cells: the mean count of each token.

        NaN marks a token that no training cell has: it keeps its distance (as a ratio) from the token below.
        """
        assert values.shape == (self.num_tokens,), values.shape
        fitted = [0.0]
        for token in range(1, self.num_tokens):
            value = values[token]
            if np.isnan(value):
                step = self.values[token] / max(self.values[token - 1], 1.0)
                value = max(fitted[-1], 1.0) * step
            # Means of few cells may fall where they should rise; the ordinal losses need an order.
            fitted.append(max(float(value), fitted[-1] * (1 + 1e-6)))
        return replace(self, token_values=tuple(fitted))


@dataclass(frozen=True)
class RankTokenizer(Tokenizer):
    """Dense rank of a nonzero count among the cell's distinct nonzero counts; high ranks share log-spaced tokens.

    Cells have no gaps at low counts, so that rank r mostly *is* count r, and a cell's depth moves the tail only.
    """

    name: ClassVar[str] = "rank"

    def encode(
        self, counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
    ) -> Int16[np.ndarray, " nnz"]:
        return csr_dense_rank_tokens(counts, indptr, _token_table(self.edges[-1], self.edges))

    def _encode_rows(self, counts: Int[Tensor, "batch genes"]) -> Int64[Tensor, "batch genes"]:
        return _bucket(dense_ranks(counts), self.edges)

    def decode_table(
        self, counts: Int[Tensor, "batch genes"], visible: Bool[Tensor, "batch genes"]
    ) -> Float64[Tensor, "batch tokens"]:
        """The r-th distinct count of the whole cell is at least r, and at most the r-th distinct *visible* count.

        So ranks are decoded exactly as far as all of 1, 2, ..., r are visible. Beyond, the fitted value of the token
        is taken, kept within these bounds.
        """
        counts = counts * visible
        ranks = dense_ranks(counts)
        last_rank = torch.tensor([*self.edges[1:], 2 * self.edges[-1]], device=counts.device) - 1
        distinct = torch.full((len(counts), int(last_rank[-1]) + 2), torch.inf, dtype=torch.float64)
        distinct = distinct.to(counts.device).scatter_(1, ranks.clamp(max=distinct.shape[1] - 1), counts.double())
        # Ranks above the last token's share one column, and which of them is left there is arbitrary: no bound.
        distinct[:, -1] = torch.inf
        distinct[:, 0] = 0
        lower = torch.tensor(self.edges, dtype=torch.float64, device=counts.device)
        values = torch.tensor(self.values, device=counts.device)
        return torch.minimum(torch.maximum(lower, values), distinct[:, last_rank])


@dataclass(frozen=True)
class QuantileTokenizer(Tokenizer):
    """Bins of equal size over the cell's nonzero counts: a count with a share f of them below it is in bin floor(51 f).

    Ties share a token, so that few of the bins are in use: 70% of the nonzero counts are mostly ones: token 1.
    These are the bins of scGPT and of tahoe-x1, with zero kept apart.
    """

    name: ClassVar[str] = "quantile"

    def encode(
        self, counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
    ) -> Int16[np.ndarray, " nnz"]:
        num_nonzero = np.repeat(np.diff(indptr), np.diff(indptr))
        below = csr_counts_below(counts, indptr)
        return (1 + below * (self.num_tokens - 1) // np.maximum(num_nonzero, 1)).astype(np.int16)

    def _encode_rows(self, counts: Int[Tensor, "batch genes"]) -> Int64[Tensor, "batch genes"]:
        num_nonzero = (counts > 0).sum(dim=1, keepdim=True).clamp(min=1)
        bins = counts_below(counts) * (self.num_tokens - 1) // num_nonzero
        return torch.where(counts > 0, 1 + bins, 0)

    def decode_table(
        self, counts: Int[Tensor, "batch genes"], visible: Bool[Tensor, "batch genes"]
    ) -> Float64[Tensor, "batch tokens"]:
        """Mean visible count of each token that the visible counts have, and straight lines between.

        Above the highest of these it is the fitted value, if that is higher; without a visible nonzero count, always.
        """
        counts = counts * visible
        tokens = self._encode_rows(counts)
        shape = (len(counts), self.num_tokens)
        total = torch.zeros(shape, dtype=torch.float64, device=counts.device)
        number = torch.zeros_like(total)
        total.scatter_add_(1, tokens, counts.double())
        number.scatter_add_(1, tokens, torch.ones_like(counts, dtype=torch.float64))
        known = number > 0
        known[:, 0] = True
        mean = total / number.clamp(min=1)

        index = torch.arange(self.num_tokens, device=counts.device).expand(shape)
        before = torch.where(known, index, 0).cummax(dim=1).values
        after = torch.where(known, index, self.num_tokens).flip(1).cummin(dim=1).values.flip(1)
        has_after = after < self.num_tokens
        after = after.clamp(max=self.num_tokens - 1)
        low, high = mean.gather(1, before), mean.gather(1, after)
        between = low + (high - low) * (index - before) / (after - before).clamp(min=1)
        fallback = torch.tensor(self.values, device=counts.device).expand(shape)
        return torch.where(has_after, between, torch.maximum(low, fallback))


@dataclass(frozen=True)
class CountTokenizer(Tokenizer):
    """Exact counts to a bound, then log-spaced bins of counts, the last one open.

    The only one of the three whose tokens mean the same in every cell, and that gives a likelihood of counts:
    -log p(count) = -log p(token) - log p(count | token).
    """

    name: ClassVar[str] = "count"

    def encode(
        self, counts: Integer[np.ndarray, " nnz"], indptr: Integer[np.ndarray, " cells_plus_one"]
    ) -> Int16[np.ndarray, " nnz"]:
        return _tokens_of(counts, self.edges)

    def _encode_rows(self, counts: Int[Tensor, "batch genes"]) -> Int64[Tensor, "batch genes"]:
        return _bucket(counts, self.edges)

    def decode_table(
        self, counts: Int[Tensor, "batch genes"], visible: Bool[Tensor, "batch genes"]
    ) -> Float64[Tensor, "batch tokens"]:
        return torch.tensor(self.values, device=counts.device).repeat(len(counts), 1)

    def with_values(self, values: Float64[np.ndarray, " tokens"]) -> "Tokenizer":
        """As for every tokenizer; but a token's value stays inside its bin."""
        lowest = np.array(self.edges, dtype=np.float64)
        highest = np.array([*self.edges[1:], np.inf]) - 1
        return super().with_values(np.clip(values, lowest, highest))

    def log_count_given_token(self, counts: Int[Tensor, "batch genes"]) -> Float64[Tensor, "batch genes"]:
        """-log p(count | its token), in nats: 0 for exact tokens, log(width) within a bin (uniform), and a geometric
        law with the fitted mean in the open bin."""
        edges = torch.tensor(self.edges, device=counts.device)
        token = torch.bucketize(counts.long(), edges, right=True) - 1
        uniform = (edges[1:] - edges[:-1]).double().log()
        mean_excess = max(float(self.values[-1]) - self.edges[-1], 1e-3)
        stop = 1 / (1 + mean_excess)
        excess = (counts - self.edges[-1]).double()
        open_bin = -np.log(stop) - excess * np.log1p(-stop)
        return torch.where(token == self.num_tokens - 1, open_bin, uniform[token.clamp(max=self.num_tokens - 2)])


CLASSES: dict[str, type[Tokenizer]] = {kind.name: kind for kind in (RankTokenizer, QuantileTokenizer, CountTokenizer)}


def make_tokenizer(name: str, num_tokens: int | None = None) -> Tokenizer:
    """A tokenizer that has seen no cells yet. By default 64 tokens, exact to 31; 52 (51 bins) for quantiles."""
    if name not in CLASSES:
        raise UserError(f"tokenizer.name is {name!r}; the tokenizers are {', '.join(CLASSES)}")
    if num_tokens is not None and not 4 <= num_tokens <= 4096:
        raise UserError(f"tokenizer.num_tokens is {num_tokens}; give 4 to 4096")
    if name == "quantile":
        size = num_tokens or 52
        return QuantileTokenizer(tuple(range(size)), (0.0, *np.geomspace(1, 64, size - 1).tolist()))
    edges = _log_edges(num_tokens or 64, top=1024 if name == "rank" else 65536)
    upper = (*edges[1:], round(1.25 * edges[-1]) + 1)
    middle = tuple((low + high - 1) / 2 for low, high in zip(edges, upper, strict=True))
    return CLASSES[name](edges, middle)


def _log_edges(num_tokens: int, top: int) -> tuple[int, ...]:
    """Smallest member of each token: 0, 1, 2, ... for half of the tokens, then growing by a factor up to `top`."""
    num_exact = num_tokens // 2
    edges = list(range(num_exact))
    for value in np.geomspace(num_exact, top, num_tokens - num_exact):
        edges.append(max(edges[-1] + 1, round(float(value))))
    return tuple(edges)


def _tokens_of(numbers: Integer[np.ndarray, " nnz"], edges: tuple[int, ...]) -> Int16[np.ndarray, " nnz"]:
    top = min(int(numbers.max(initial=0)), edges[-1])
    return _token_table(top, edges)[np.minimum(numbers, top)]


@cache
def _token_table(top: int, edges: tuple[int, ...]) -> Int16[np.ndarray, " numbers"]:
    """Token of each number from 0 to `top`."""
    return (np.searchsorted(edges, np.arange(top + 1), side="right") - 1).astype(np.int16)


def _bucket(numbers: Int[Tensor, "batch genes"], edges: tuple[int, ...]) -> Int64[Tensor, "batch genes"]:
    return torch.bucketize(numbers.long(), _edges_on(numbers.device, edges), right=True) - 1


@cache
def _edges_on(device: torch.device, edges: tuple[int, ...]) -> Int64[Tensor, " tokens"]:
    """Sent once: a host that sends numbers of its own waits until a GPU has done all that it was given before."""
    return torch.tensor(edges, device=device)
