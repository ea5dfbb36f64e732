"""What a size is called is what it has: the numbers of the shipped configs, counted on networks without memory."""

import re
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_model

from mdsc.config.schema import TrainConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import parse
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.model.trunk_size import attention_flops, matrix_flops, training_flops, trunk_parameters

SIZES = {"tiny": 33e3, "small": 30e6, "base": 100e6, "large": 400e6, "xl": 1e9}


@pytest.mark.parametrize("size", SIZES)
def test_a_config_tells_the_size_of_its_trunk(size: str):
    path = shipped_config(size)
    options = parse(TrainConfig, ["--config", str(path)]).model
    with torch.device("meta"):
        model = MdscModel(
            MdscConfig(
                num_genes=100,
                num_tokens=10,
                hidden_size=options.hidden_size,
                num_layers=options.num_layers,
                num_heads=options.num_heads,
                mlp_ratio=options.mlp_ratio,
                state_size=options.state_size,
            )
        )
    number = trunk_parameters(model.blocks)
    told = re.match(r"# Trunk: ([\d,.]+)M parameters", Path(path).read_text())[1]
    decimals = len(told.partition(".")[2])
    assert f"{number / 1e6:,.{decimals}f}" == told
    assert abs(number / SIZES[size] - 1) < 0.06
    if size != "tiny":
        assert options.hidden_size // options.num_heads in (64, 128)  # what fast kernels are written for


def test_flops_are_those_that_torch_counts():
    """Of the blocks forward, with adaLN taken out: a third of a training step."""
    from torch.utils.flop_counter import FlopCounterMode

    from mdsc.model.attention import Attending

    model = tiny_model(num_layers=2, attn_implementation="eager")
    batch, genes, width = 3, 20, model.config.hidden_size
    x, condition = torch.randn(batch, genes, width), torch.randn(batch, width)
    with FlopCounterMode(display=False) as counter:
        for block in model.blocks:
            x = block(x, condition, Attending("eager", None))
    modulation = 2 * 2 * batch * width * 6 * width
    biases = sum(layer.numel() for name, layer in model.blocks.named_parameters() if name.endswith("bias"))
    biases -= 2 * 6 * width
    per_gene = matrix_flops(trunk_parameters(model.blocks) - biases) + attention_flops(2, width, genes)
    assert counter.get_total_flops() - modulation == batch * genes * per_gene / 3
    assert training_flops(model, genes) == genes * (per_gene + matrix_flops(biases))
