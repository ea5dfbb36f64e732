"""How much memory a pass takes, and that memory does not grow with the cells that stream through."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from anndata import AnnData
from shared_data import ROOT
from simulated_shards import simulated_counts
from tiny_checkpoint import save_tiny_checkpoint, tiny_checkpoint

from mdsc.checkpoint import Checkpoint
from mdsc.cli import main
from mdsc.config.schema import DataConfig, TrainConfig
from mdsc.errors import UserError
from mdsc.sampling import finished_cells
from mdsc.sampling.pass_size import PassOptions, pass_size

GENES = [f"G{number}" for number in range(200)]

MEASURED = """
import json, os, sys, torch
from peak_memory import high_water
from mdsc.data.tokenizers import make_tokenizer
from mdsc.diffusion.evidence import Evidence
from mdsc.model.configuration import MdscConfig
from mdsc.model.modeling import MdscModel
from mdsc.sampling.inpaint import fill
from mdsc.sampling.options import SamplerOptions
from mdsc.sampling.pass_size import bytes_per_cell
torch.set_num_threads(1)
def measure(shape, cells, genes, block):
    config = MdscConfig(num_genes=genes, **shape)
    model, tokenizer = MdscModel(config).eval(), make_tokenizer("rank", config.num_tokens)
    def predict(gene_ids, tokens, counts, is_pad, categories, vectors):
        return model(gene_ids, tokens, counts, None, genes_per_pass=block).logits
    def run(cells):
        counts = torch.randint(0, 3, (cells, genes), dtype=torch.int32)
        visible = torch.rand(cells, genes) < 0.2
        ids = torch.arange(genes).expand(cells, genes)
        evidence = Evidence(ids, counts * visible, visible, torch.zeros_like(visible), torch.arange(cells))
        fill(predict, tokenizer, evidence, SamplerOptions(num_steps=1), with_sd=True, levels=(0.5,))
    run(1)
    open("/proc/self/clear_refs", "w").write("5")
    before = high_water("VmRSS")
    run(cells)
    print(high_water("VmHWM") - before, cells * bytes_per_cell(config, genes, block), flush=True)
for task in json.loads(sys.argv[1]):
    if not os.fork():
        measure(*task)
        os._exit(0)
    assert os.wait()[1] == 0
"""
SMALL = {"num_tokens": 32, "hidden_size": 64, "num_heads": 2, "state_size": 32}
PASSES = {
    "pathway": (SMALL | {"num_layers": 0}, 8, 4000, None),
    "blocks": (SMALL | {"num_layers": 1}, 8, 4000, 1024),
    "wide": (SMALL | {"num_layers": 1, "hidden_size": 256, "num_tokens": 64}, 4, 2000, None),
    "latent": (SMALL | {"num_layers": 1, "backbone": "latent"}, 8, 4000, None),
    "all-pairs": (SMALL | {"num_layers": 1, "attn_implementation": "eager"}, 2, 2000, None),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[int, int]]:
    """Bytes that each of PASSES takes, and what was told. One process does the imports, and forks one for each."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURED, json.dumps(list(PASSES.values()))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    pairs = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    return dict(zip(PASSES, pairs, strict=True))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_takes_is_known(measured: dict[str, tuple[int, int]], name: str):
    taken, told = measured[name]
    assert 0.2 * told < taken <= told


def test_memory_does_not_grow_with_the_cells(tmp_path: Path, monkeypatch):
    """Every array of numpy is counted; with all layers dense or in draws, as many bytes a cell as there can be."""
    checkpoint = save_tiny_checkpoint(tmp_path / "run", GENES)
    monkeypatch.setattr(finished_cells, "MAX_BYTES", 100_000)
    monkeypatch.setattr("mdsc.sampling.anndata_inpainting.READ_POSITIONS", 2000)
    peaks = []
    for number in (100, 300, 900):
        obs = pd.DataFrame(index=[f"c{row}" for row in range(number)])
        adata = AnnData(simulated_counts(number, 200, mean=1.0), obs=obs, var=pd.DataFrame(index=GENES))
        adata.write_h5ad(tmp_path / "cells.h5ad")
        del adata
        files = ["--input", str(tmp_path / "cells.h5ad"), "--output", str(tmp_path / "filled.h5ad")]
        flags = ["--mask-ratio", "0.8", "--num-steps", "1", "--mean-floor", "0", "--quantiles", "0.5"]
        tracemalloc.start()
        assert main(["sample", "--checkpoint", str(checkpoint), *files, *flags, "--batch-size", "10"]) == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The first has what libraries import. Names of cells take some 200 bytes each; one layer that is held takes 800.
    assert peaks[2] - peaks[1] < 500 * 600


def with_config(checkpoint: Checkpoint, num_genes: int) -> Checkpoint:
    data = TrainConfig(data=DataConfig(num_genes=num_genes))
    return Checkpoint(checkpoint.model, checkpoint.tokenizer, checkpoint.vocabulary, checkpoint.statistics, data)


def test_a_transformer_gets_as_many_genes_as_it_was_trained_on():
    checkpoint = with_config(tiny_checkpoint(GENES), 64)
    assert pass_size(checkpoint, 200, PassOptions()).genes == 64
    assert pass_size(checkpoint, 64, PassOptions()).genes is None
    assert pass_size(checkpoint, 200, PassOptions(genes_per_pass=100)).genes == 100
    assert pass_size(checkpoint, 200, PassOptions(genes_per_pass=5000)).genes is None
    checkpoint.model.config.backbone = "latent"
    assert pass_size(checkpoint, 200, PassOptions()).genes is None


def test_the_bound_sets_the_number_of_cells():
    checkpoint = tiny_checkpoint(GENES)
    assert pass_size(checkpoint, 200, PassOptions()).cells == 2**15 // 200
    few = pass_size(checkpoint, 200, PassOptions(max_memory="3 MB")).cells
    assert 1 < few < 2**15 // 200
    assert pass_size(checkpoint, 200, PassOptions(max_memory="1.5m")).cells == few // 2
    assert pass_size(checkpoint, 200, PassOptions(batch_size=7)).cells == 7
    assert pass_size(checkpoint, 200, PassOptions(), all_genes=2**19).cells == 2
    with pytest.raises(UserError, match="--max-memory is 1kB, but one cell of 200 genes may take some"):
        pass_size(checkpoint, 200, PassOptions(max_memory="1kB"))
    with pytest.raises(UserError, match=r"100 cells at once \(--batch-size\)"):
        pass_size(checkpoint, 200, PassOptions(max_memory="3MB", batch_size=100))


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "2GiB5", ""])
def test_a_size_is_a_number_with_a_unit(text: str):
    with pytest.raises(UserError, match="--max-memory is"):
        PassOptions(max_memory=text)
