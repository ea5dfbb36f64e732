"""Layers that start at zero, so that a part of the network which they close adds nothing at first.

Classes of their own because transformers initialises modules by their type: it would draw a plain nn.Linear anew, and
it never asks about modules that hold no parameters themselves, such as a whole block.
"""

from torch import nn


class ZeroLinear(nn.Linear):
    """adaLN-Zero, heads."""


class ZeroEmbedding(nn.Embedding):
    """A table of genes or levels."""
