"""The race of backbones: its oracle is exact, its stopwatch leaves validation out, its curves add up."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import nbinom

from mdsc.data.tokenizers import make_tokenizer
from mdsc.prep.simulated_cells import SimulationConfig, Truth, simulate_chunks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from backbones_run import Stopwatch, steps_within
from backbones_tables import all_tables, at, curve
from simulated_oracle import log_probability, oracle_nll, posterior


@pytest.fixture(scope="module")
def simulated() -> tuple[Truth, np.ndarray]:
    config = SimulationConfig(
        num_cells=300, num_genes=30, num_types=4, num_drugs=2, genes_per_drug=10, median_depth=90.0
    )
    truth = Truth.of(config)
    return truth, np.concatenate([chunk.counts.toarray() for chunk in simulate_chunks(truth)])


def hidden_half(counts: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random(counts.shape) < 0.5


def test_the_oracle_is_bayes_rule_with_the_simulators_own_law(simulated):
    truth, counts = simulated
    counts, hidden = counts[:5], hidden_half(counts)[:5]
    tokenizer = make_tokenizer("count", 4096)  # exact to 2,047: the likelihood of a token is that of a count
    found = oracle_nll(truth, tokenizer, counts, hidden)
    depths, _ = posterior(truth, counts, ~hidden)
    for cell, (x, is_hidden) in enumerate(zip(counts, hidden, strict=True)):
        weights, log_p = [], []
        for depth in depths:
            prior = -0.5 * (np.log(depth / truth.config.median_depth) / truth.config.depth_spread) ** 2
            for kind in range(4):
                for drug in range(3):
                    one = (np.array([kind]), np.array([drug]), np.array([depth]))
                    of_genes = truth.log_pmf(x[None], *one)[0]
                    weights.append(prior + of_genes[~is_hidden].sum())
                    log_p.append(of_genes[is_hidden])
        mixed = logsumexp(np.array(log_p) + np.array(weights)[:, None], axis=0) - logsumexp(weights)
        assert found[cell] == pytest.approx(-mixed.mean(), rel=1e-4)


def test_the_grid_of_depths_is_fine_enough(simulated, monkeypatch):
    truth, counts = simulated
    tokenizer = make_tokenizer("count", 64)
    found = oracle_nll(truth, tokenizer, counts[:40], hidden_half(counts)[:40]).mean()
    monkeypatch.setattr("simulated_oracle.DEPTHS", 481)
    assert found == pytest.approx(oracle_nll(truth, tokenizer, counts[:40], hidden_half(counts)[:40]).mean(), abs=1e-5)


def test_what_is_visible_tells_the_oracle_something(simulated):
    truth, counts = simulated
    tokenizer = make_tokenizer("count", 64)
    hidden = hidden_half(counts)
    informed = oracle_nll(truth, tokenizer, counts, hidden).mean()
    shuffled = np.where(hidden, counts, np.roll(counts, 1, axis=0))
    misled = oracle_nll(truth, tokenizer, shuffled, hidden).mean()
    rate = np.stack([np.bincount(column, minlength=counts.max() + 1) for column in counts.T]) + 0.1
    log_p = np.log(rate / rate.sum(axis=1, keepdims=True))
    marginal = -log_p[np.arange(30), counts][hidden].mean()  # fitted to the very cells
    assert informed < marginal - 0.01
    assert misled > informed + 0.1


def test_a_bin_has_the_probability_of_its_counts():
    low, high = np.array([0.0, 16.0, 40.0, 5.0]), np.array([1.0, 21.0, np.inf, 8.0])
    means = np.array([[0.5, 12.0, 30.0, 4.0], [3.0, 90.0, 2.0, 400.0]])
    found = log_probability(low, high, means, 2.0)
    for row, mean_row in zip(found, means, strict=True):
        for value, first, last, mean in zip(row, low, high, mean_row, strict=True):
            counts = np.arange(first, min(last, 3000))
            assert value == pytest.approx(logsumexp(nbinom.logpmf(counts, 2.0, 2.0 / (2.0 + mean))), rel=1e-6)


def test_a_token_that_is_a_bin_costs_less_than_its_count(simulated):
    truth, counts = simulated
    counts = counts[:50]
    exact, coarse = (
        oracle_nll(truth, make_tokenizer("count", size), counts, hidden_half(counts)) for size in (4096, 16)
    )
    assert counts.max() > 8
    assert (coarse <= exact + 1e-9).all()
    assert coarse.mean() < exact.mean() - 0.001


def test_the_stopwatch_leaves_validation_out():
    watch = Stopwatch(4)

    def busy(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    def validate(nll: float, step: int) -> None:
        busy(0.2)
        watch.validated("validation_nll", nll)
        watch.done(step)

    validate(1.0, 0)
    for step in range(1, 5):
        busy(0.02)
        if step % 2 == 0:
            watch.measured({"loss": 1.0, "cells_per_second": 1.0, "model_flops_per_second": 1.0})
            validate(1.0 / step, step)
        else:
            watch.done(step)
    assert [point["step"] for point in watch.points] == [0, 2, 4]
    assert [point["validation_nll"] for point in watch.points] == [1.0, 0.5, 0.25]
    assert [point["cpu_seconds"] for point in watch.points] == pytest.approx([0, 0.04, 0.08], abs=0.015)


def test_steps_fill_the_budget():
    assert steps_within(60.0, 0.5, [0.01, 0.1]) == (3300, 3000)
    assert steps_within(60.0, 0.0, [0.01, 0.02]) == (3000, 0)
    assert steps_within(0.1, 0.5, [0.01, 0.1]) == (12, 5)


def made_up_run(backbone: str, seed: int, nll: float) -> dict:
    points = [{"step": s, "cpu_seconds": 2.0 * s, "validation_nll": nll + 1 / (1 + s)} for s in (0, 5, 10)]
    end = {"cpu_seconds": 20.0, "steps": 10, "pathway_steps": 5, "parameters": 7, "flops": [1e6, 1e9]}
    scores = {"nll": {"0.2": nll, "0.5": nll, "0.8": nll}}
    return {"data": "simulated_2k", "backbone": backbone, "seed": seed, "points": points} | end | scores


def test_tables_pair_seeds_and_put_the_best_first():
    runs = [
        made_up_run(name, seed, base + 0.1 * seed)
        for name, base in [("no transformer", 0.7), ("dit", 0.6)]
        for seed in (0, 1)
    ]
    nll = {"gene_marginal": {"0.2": 0.9, "0.5": 0.9, "0.8": 0.9}, "oracle": {"0.2": 0.5, "0.5": 0.5, "0.8": 0.5}}
    nll["svd"] = nll["gene_marginal"]
    references = {"simulated_2k": {"sizes": {"train": 2000, "genes": 30}, "nll": nll}}
    references["simulated_20k"] = {"sizes": {"train": 20_000, "genes": 30}, "nll": nll}
    runs += [run | {"data": "simulated_20k"} for run in runs]
    end, way, *_, by_size = all_tables(runs, references)
    assert [row[0] for row in end.rows][:3] == ["oracle", "dit", "no transformer"]
    assert end.rows[1][4] == "-0.1000 ± 0.0000"
    assert [row[0] for row in way.rows] == ["dit", "no transformer"]
    assert by_size.rows[0][1] == "+0.1500 ± 0.0707"


def test_a_curve_counts_the_operations_of_both_phases():
    run = made_up_run("dit", 0, 0.5)
    assert curve(run)["flops"].tolist() == [0, 5e6, 5e6 + 5e9]
    assert at(run, "cpu_seconds", 15.0) == pytest.approx((at(run, "step", 5) + at(run, "step", 10)) / 2)
