"""Gene sets: the law that they are drawn by, and what they must not depend on."""

import numpy as np
import pytest

from mdsc.data import gene_sets
from mdsc.data.gene_sets import GeneSets, draw_expressed, gene_weights
from mdsc.data.keyed_streams import Purpose, stream


def key(*address):
    return stream(Purpose.GENE_SET, 0, *address)


def test_weights_mix_detection_and_an_even_share():
    weights = gene_weights(np.array([0.0, 0.1, 0.3]), uniform_share=0.3)
    np.testing.assert_allclose(weights, [0.1, 0.1 + 0.7 * 0.25, 0.1 + 0.7 * 0.75])
    np.testing.assert_allclose(gene_weights(np.zeros(4), 0.1), np.full(4, 0.25))
    np.testing.assert_allclose(gene_weights(np.array([0.0, 0.5]), 1.0), [0.5, 0.5])


@pytest.mark.parametrize("by_race", [True, False])
def test_draws_follow_successive_sampling(monkeypatch, by_race: bool):
    """Probability of every ordered pair of three drawn in turn: w_i * w_j / (1 - w_i), summed over the two orders."""
    weights = np.array([0.5, 0.3, 0.15, 0.05])
    monkeypatch.setattr(gene_sets, "_enough_draws", lambda probability, num_genes: 4 if by_race else 3)
    sets = GeneSets(2.5 * weights, 2)
    draws = 8000
    counts = np.zeros((4, 4))
    for number in range(draws):
        i, j = sets.draw(key(number))
        counts[i, j] += 1
    for i in range(4):
        for j in range(i + 1, 4):
            expected = weights[i] * weights[j] * (1 / (1 - weights[i]) + 1 / (1 - weights[j]))
            assert abs(counts[i, j] / draws - expected) < 4.5 * np.sqrt(expected * (1 - expected) / draws)


@pytest.mark.parametrize(("num_genes", "by_race"), [(400, False), (3000, True)])
def test_inclusion_frequencies_of_a_large_panel(num_genes: int, by_race: bool):
    """Poisson approximation: P(gene in set) = 1 - exp(-w * T) with T such that these sum to the size of the set."""
    weights = gene_weights(np.random.default_rng(1).pareto(1.5, 4000), 0.1)
    sets, draws = GeneSets(weights, num_genes), 2000
    assert sets._by_race == by_race
    times = np.geomspace(1, 1e6, 20_000)
    size = np.array([-np.expm1(-weights * t).sum() for t in times[::10]])
    deadline = np.interp(num_genes, size, times[::10])
    expected = -np.expm1(-weights * deadline)
    seen = np.bincount(np.concatenate([sets.draw(key(n)) for n in range(draws)]), minlength=4000) / draws
    z = (seen - expected) / np.sqrt(np.maximum(expected * (1 - expected), 1e-4) / draws)
    assert abs(z.mean()) < 0.15
    assert z.std() < 1.1
    assert np.corrcoef(seen, expected)[0, 1] > 0.99


def test_enough_candidates_are_drawn_at_once():
    weights = gene_weights(np.random.default_rng(1).pareto(1.0, 5000), 0.1)
    sets = GeneSets(weights, 200)
    assert 200 < sets._num_candidates < 5000
    for number in range(300):
        assert len(np.unique(sets._candidates(key(number)))) >= 200


def test_alias_table_has_the_probabilities():
    probability = np.random.default_rng(0).pareto(1.0, 1000)
    probability[:50] = 0
    probability /= probability.sum()
    threshold, alias = gene_sets._alias_table(probability)
    own = threshold / 2.0**32
    np.testing.assert_allclose((own + np.bincount(alias, 1 - own, minlength=1000)) / 1000, probability, atol=1e-12)
    assert (own[:50] == 0).all()


def test_every_gene_can_be_drawn():
    """Also a gene that no cell expresses, thanks to the even share."""
    detection = np.zeros(300)
    detection[:100] = 0.5
    sets = GeneSets(gene_weights(detection, 0.1), 50)
    seen = np.unique(np.concatenate([sets.draw(key(n)) for n in range(3000)]))
    np.testing.assert_array_equal(seen, np.arange(300))


def test_uniform_draws_are_even():
    sets, draws = GeneSets(gene_weights(np.random.default_rng(0).random(64), 1.0), 16), 4000
    seen = np.bincount(np.concatenate([sets.draw(key(n)) for n in range(draws)]), minlength=64) / draws
    assert np.abs(seen - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / draws)


@pytest.mark.parametrize("num_genes", [pytest.param(12, id="as many"), pytest.param(1024, id="more than there are")])
def test_small_panels_are_taken_whole(num_genes):
    sets = GeneSets(gene_weights(np.linspace(0, 1, 12), 0.1), num_genes)
    np.testing.assert_array_equal(sets.draw(key(0)), np.arange(12))


def test_genes_without_weight_are_never_drawn():
    weights = np.array([0.0, 0.5, 0.0, 0.25, 0.25])
    assert not {0, 2} & set(np.concatenate([GeneSets(weights, 2).draw(key(n)) for n in range(100)]).tolist())
    np.testing.assert_array_equal(GeneSets(weights, 4).draw(key(0)), [1, 3, 4])


def test_sets_are_distinct_ids_that_their_address_decides():
    sets = GeneSets(gene_weights(np.random.default_rng(0).random(500), 0.1), 64)
    drawn = sets.draw(key(2, 7, 3))
    assert len(np.unique(drawn)) == 64
    np.testing.assert_array_equal(drawn, sets.draw(key(2, 7, 3)))
    for other in (key(3, 7, 3), key(2, 8, 3), key(2, 7, 4), stream(Purpose.GENE_SET, 1, 2, 7, 3)):
        assert (sets.draw(other) != drawn).any()


def test_expressed_draw():
    np.testing.assert_array_equal(draw_expressed(6, 6, key(0)), np.arange(6))
    share = np.bincount(np.concatenate([draw_expressed(6, 2, key(n)) for n in range(3000)]), minlength=6) / 3000
    assert np.abs(share - 1 / 3).max() < 4.5 * np.sqrt(2 / 9 / 3000)
    assert (np.diff(draw_expressed(6, 4, key(1))) > 0).all()


def test_negative_seeds_are_seeds_of_their_own():
    first = [stream(Purpose.GENE_SET, seed, 2, 3).random_raw() for seed in (0, -1, -2, 2**32)]
    assert len(set(first)) == 4
