"""benchmarks/train_step.py: the reference is the layer that it says to be, all variants learn, figures add up."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mdsc.errors import UserError
from mdsc.model.trunk_size import matrix_flops

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import train_step
from reference_dit import ReferenceDit, rotate
from train_step_measure import Stepper
from train_step_variants import MODEL, REFERENCE, STEP, TRUNK, UNROTATED, WHAT, Shape, make_variant

CPU = torch.device("cpu")
SHAPE = Shape(width=32, layers=2, heads=2, state=8, genes=24, cells=3, vocabulary=50)


def test_rotated_products_depend_on_distances_alone():
    head, genes = 8, 12
    angles = torch.arange(genes)[:, None] * 10_000.0 ** (-torch.arange(0, head, 2) / head)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    query, key = (torch.randn(1, 1, 1, head).expand(1, 1, genes, head) for _ in range(2))
    products = (rotate(query, cos, sin) @ rotate(key, cos, sin).mT)[0, 0]
    for distance in range(-genes + 1, genes):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(query, cos, sin).norm(dim=-1), query.norm(dim=-1))


def test_the_reference_never_predicts_the_mask_and_scores_hidden_positions_alone():
    torch.manual_seed(0)
    reference = ReferenceDit(50, 6, 16, 1, 2, rotary=True)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    genes, targets = torch.arange(10).repeat(2, 1), torch.randint(6, (2, 10))
    hidden = torch.rand(2, 10) < 0.5
    tokens = targets.masked_fill(hidden, 6)
    weight = torch.tensor([1.0, 3.0])
    nll = F.cross_entropy(reference(genes, tokens)[..., :6].flatten(0, 1), targets.flatten(), reduction="none")
    expected = (nll.view(2, 10) * hidden * weight[:, None]).mean()
    torch.testing.assert_close(reference.loss(genes, tokens, targets, weight), expected)


def test_at_equal_width_the_trunks_are_as_large_but_for_biases_and_gains():
    sizes = {name: make_variant(name, SHAPE, CPU).trunk for name in WHAT}
    assert sizes[TRUNK] == sizes[MODEL] == sizes[STEP]
    assert sizes[REFERENCE] == sizes[UNROTATED]
    biases, gains = SHAPE.layers * 4 * SHAPE.width, SHAPE.layers * 2 * SHAPE.width
    assert sizes[TRUNK] - biases == sizes[REFERENCE] - gains


@pytest.mark.parametrize("name", WHAT)
def test_every_variant_learns_its_cells(name: str):
    stepper = Stepper(make_variant(name, SHAPE, CPU), CPU)
    with torch.no_grad():
        before = stepper.variant.loss()
    for _ in range(12):
        stepper.step()
    with torch.no_grad():
        assert stepper.variant.loss() < before
    assert stepper.saved_bytes() > 4 * SHAPE.cells * SHAPE.genes * SHAPE.width


def test_figures_of_a_run_add_up(tmp_path: Path):
    path, markdown = tmp_path / "out.json", tmp_path / "out.md"
    small = "--sizes tiny --genes 16 --cells 2 --modes eager --precisions fp32 --repeats 2"
    train_step.main([*small.split(), "--json", str(path), "--markdown", str(markdown)])
    result = json.loads(path.read_text())
    assert [run["name"] for run in result["runs"]] == list(WHAT)
    table = train_step.speed_tables(result)[0]
    columns = dict(zip(table.columns, table.rows[2], strict=True))
    run, seconds = result["runs"][2], sorted(result["runs"][2]["seconds"])
    rate = 2 * 16 / (sum(seconds) / 2)
    assert float(columns["genes/s"].replace(",", "")) == pytest.approx(rate, rel=0.01)
    assert float(columns["MFU"].rstrip("%")) == pytest.approx(
        100 * matrix_flops(run["trunk"]) * rate / result["peak_flops"]["fp32"], abs=0.06
    )
    assert table.rows[0][7] == table.rows[0][8] == "1.00"
    assert "reference DiT (MDLM)" in markdown.read_text()


def test_what_does_not_fit_into_memory_is_a_row_of_the_table(monkeypatch):
    def measured(name: str, *_, **__) -> dict:
        if name == TRUNK:
            return {"failure": "out of memory"}
        return {"seconds": [2.0, 1.0], "memory_bytes": 2**20, "trunk": 10, "first_seconds": 3.0}

    monkeypatch.setattr(train_step, "measure_in_turns", lambda names, *_, **__: {n: measured(n) for n in names})
    monkeypatch.setattr(train_step, "operators", lambda name, *_, **__: {} if name == TRUNK else {"aten::mm": 0.5})
    config = train_step.TrainStepBenchmarkConfig(cells=(2, 4), precisions=("fp32",), modes=("eager",))
    result = train_step.run(config)
    tables = train_step.speed_tables(result)
    assert len(tables) == 2
    assert [row[2] for row in tables[0].rows if row[0] == TRUNK] == ["out of memory"]
    assert len({len(row) for row in tables[0].rows}) == 1
    assert [len(table.columns) for table in train_step.profile_tables(result)] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--attentions", "flash"], "there is no 'flash'"),
        (["--variants", "mdsc"], "there is no 'mdsc'"),
        pytest.param(
            ["--device", "cuda"],
            "no CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU"),
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(arguments: list[str], words: str):
    with pytest.raises(UserError, match=words):
        train_step.main(arguments)
