"""What a size is called is what it has: the numbers of the shipped configs, counted on networks without memory."""

import re
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from mdsc.config.schema import TrainConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import parse
from mdsc.model.attention import Attending
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


@pytest.mark.parametrize("genes", [256, 512])
def test_flops_of_the_latent_backbone_are_those_that_torch_counts(genes: int):
    """Without adaLN and without biases. The columns that are read are the nonzero genes here, but for the null's."""
    model = tiny_model(num_layers=2, attn_implementation="eager", backbone="latent", num_latents=24)
    config, batch, columns = model.config, 3, 128
    x, condition = torch.randn(batch, genes, config.hidden_size), torch.randn(batch, config.hidden_size)
    tokens = torch.zeros(batch, genes, dtype=torch.long)
    tokens[:, : columns - 1] = 1
    with FlopCounterMode(display=False) as counter:
        between = model.latent_read(x, tokens, condition, "eager", None)
        for block in model.blocks:
            between = block(between, condition, Attending("eager", None))
        model.latent_readout(x, between, condition, Attending("eager", None))
    modulation = 2 * batch * config.hidden_size * config.hidden_size * (4 + 2 * 6 + 8)
    found = (counter.get_total_flops() - modulation) * 3 / batch
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.bias = None
    assert training_flops(model, genes, nonzero_share=columns / genes) == found


def test_the_latent_backbone_is_linear_in_genes():
    model = tiny_model(backbone="latent")
    at = [training_flops(model, genes) for genes in (8000, 16_000, 24_000)]
    assert at[2] - at[1] == at[1] - at[0] > 0
    assert training_flops(tiny_model(backbone="latent", num_layers=0), 8000) == 0
