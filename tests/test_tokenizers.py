"""Counts to tokens and back, for the three tokenizers."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mdsc.data.tokenizer_file import load_tokenizer, save_tokenizer
from mdsc.data.tokenizers import make_tokenizer
from mdsc.errors import UserError

ALL = [pytest.param(name, id=name) for name in ("rank", "quantile", "count")]


def random_counts(num_cells=12, num_genes=90, seed=0, largest=None):
    """Cells of very different depth; one empty, one with a single nonzero, one with a giant count."""
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(0.4, 0.4 / (0.4 + rng.gamma(1, 3, (num_cells, 1)) * rng.gamma(1, 1, num_genes)))
    counts[0] = 0
    counts[1] = 0
    counts[1, 5] = 3
    if largest:
        counts[2, 7] = largest
    return counts.astype(np.int32)


def encode(tokenizer, counts):
    """`encode` of dense counts, by way of CSR and back."""
    csr = sp.csr_matrix(counts)
    tokens = tokenizer.encode(csr.data, csr.indptr)
    assert tokens.dtype == np.int16
    # Not through scipy's constructor, which would not tell an explicit 0 from a missing entry.
    dense = np.zeros(counts.shape, dtype=np.int64)
    dense[np.repeat(np.arange(len(counts)), np.diff(csr.indptr)), csr.indices] = tokens
    return dense


def encode_whole(tokenizer, counts):
    counts = torch.as_tensor(counts)
    return tokenizer.encode_visible(counts, torch.ones_like(counts, dtype=torch.bool))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("largest", [pytest.param(n, id=f"max{n}") for n in (None, 5_000, 100_000, 2**31 - 1)])
def test_token_zero_is_count_zero_and_order_is_kept(name, largest):
    tokenizer, counts = make_tokenizer(name), random_counts(largest=largest)
    tokens = encode(tokenizer, counts)
    assert ((tokens == 0) == (counts == 0)).all()
    assert tokens.max() < tokenizer.num_tokens
    assert tokenizer.mask_token == tokenizer.num_tokens
    assert tokenizer.pad_token == tokenizer.num_tokens + 1
    for row, row_tokens in zip(counts, tokens, strict=True):
        order = np.argsort(row, kind="stable")
        assert (np.diff(row_tokens[order]) >= 0).all()
        assert all(len(set(row_tokens[row == value])) == 1 for value in set(row.tolist()))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("largest", [pytest.param(n, id=f"max{n}") for n in (None, 5_000, 100_000, 2**31 - 1)])
def test_numpy_and_torch_agree_alone_and_in_a_batch(name, largest):
    tokenizer, counts = make_tokenizer(name), random_counts(largest=largest)
    batch = encode(tokenizer, counts)
    assert (encode_whole(tokenizer, counts).numpy() == batch).all()
    for row in range(len(counts)):
        assert (encode(tokenizer, counts[row : row + 1])[0] == batch[row]).all()
        assert (encode_whole(tokenizer, counts[row : row + 1]).numpy()[0] == batch[row]).all()


@pytest.mark.parametrize("name", ALL)
def test_nothing_at_all(name):
    tokenizer = make_tokenizer(name)
    assert tokenizer.encode(np.zeros(0, np.int32), np.zeros(1, np.int64)).shape == (0,)
    assert tokenizer.encode(np.zeros(0, np.int32), np.zeros(4, np.int64)).shape == (0,)
    assert (encode_whole(tokenizer, np.zeros((2, 3), np.int32)) == 0).all()


def test_rank_counts_distinct_values_without_gaps():
    tokenizer = make_tokenizer("rank")
    assert encode(tokenizer, np.array([[0, 7, 2, 2, 40, 7, 1]])).tolist() == [[0, 3, 2, 2, 4, 3, 1]]


def test_rank_compresses_the_tail():
    tokenizer = make_tokenizer("rank", 16)
    counts = np.arange(0, 3000, dtype=np.int32)[None]
    tokens = encode(tokenizer, counts)[0]
    assert (tokens[:8] == np.arange(8)).all()  # half of the tokens are exact
    assert set(tokens.tolist()) == set(range(16))
    widths = np.bincount(tokens)[8:]
    assert (np.diff(widths) > 0).all()
    assert make_tokenizer("rank").edges[:33] == tuple(range(33))


def test_quantile_bins_and_ties():
    tokenizer = make_tokenizer("quantile")
    assert tokenizer.num_tokens == 52
    # 37 ones of 51 nonzeros: the lowest bin, whatever their share; what lies above starts in bin 37 (token 38).
    counts = np.array([[0] * 9 + [1] * 37 + [2] * 8 + [3] * 6])
    assert sorted(set(encode(tokenizer, counts)[0].tolist())) == [0, 1, 38, 46]
    distinct = np.arange(52)[None]
    assert (encode(tokenizer, distinct) == distinct).all()


def test_count_is_exact_then_bins():
    tokenizer = make_tokenizer("count")
    counts = np.arange(0, 70_000, dtype=np.int32)[None]
    tokens = encode(tokenizer, counts)[0]
    assert (tokens[:33] == np.arange(33)).all()
    starts = np.searchsorted(tokens, np.arange(64))
    assert tuple(starts) == tokenizer.edges


@pytest.mark.parametrize("name", ALL)
def test_decoding_sees_visible_counts_only(name):
    tokenizer, rng = make_tokenizer(name), np.random.default_rng(1)
    counts = torch.as_tensor(random_counts())
    visible = torch.as_tensor(rng.random(counts.shape) < 0.4)
    other = torch.where(visible, counts, torch.as_tensor(rng.integers(0, 500, counts.shape), dtype=torch.int32))
    assert torch.equal(tokenizer.decode_table(counts, visible), tokenizer.decode_table(other, visible))
    assert torch.equal(tokenizer.encode_visible(counts, visible), tokenizer.encode_visible(other, visible))
    assert (tokenizer.encode_visible(counts, visible)[~visible] == tokenizer.mask_token).all()


@pytest.mark.parametrize("name", ALL)
def test_decode_table_starts_at_zero_and_never_decreases(name):
    tokenizer, rng = make_tokenizer(name), np.random.default_rng(2)
    counts = torch.as_tensor(random_counts(largest=100_000))
    for share in (0.0, 0.1, 0.5, 1.0):
        visible = torch.as_tensor(rng.random(counts.shape) < share)
        table = tokenizer.decode_table(counts, visible)
        assert (table[:, 0] == 0).all()
        assert (table[:, 1:] >= 1).all()
        assert (table.diff(dim=1) >= 0).all()
        tokens = torch.arange(tokenizer.num_tokens).expand(len(counts), -1)[:, : counts.shape[1]]
        padded = torch.nn.functional.pad(tokens, (0, counts.shape[1] - tokens.shape[1]))
        decoded = tokenizer.decode(padded, counts, visible)
        assert ((decoded == 0) == (padded == 0)).all()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        pytest.param("rank", [[0, 1, 2, 3, 4, 3, 5]], id="rank-without-gaps"),
        pytest.param("quantile", [[0, 1, 1, 1, 1, 2, 2, 9, 40]], id="quantile"),
        pytest.param("count", [[0, 1, 2, 3, 30, 31]], id="count"),
    ],
)
def test_round_trip_of_a_whole_cell(name, counts):
    tokenizer, counts = make_tokenizer(name), torch.tensor(counts)
    visible = torch.ones_like(counts, dtype=torch.bool)
    decoded = tokenizer.decode(tokenizer.encode_visible(counts, visible), counts, visible)
    assert torch.equal(decoded, counts)


def test_rank_decodes_within_what_the_visible_counts_allow():
    tokenizer = make_tokenizer("rank").with_values(np.arange(64) ** 1.5)
    counts = torch.tensor([[1, 2, 3, 6, 50, 5]])
    visible = torch.tensor([[True, True, True, True, True, False]])
    table = tokenizer.decode_table(counts, visible)[0]
    assert table[:4].tolist() == [0, 1, 2, 3]  # 1, 2 and 3 are visible: nothing can come between
    assert table[4] == 6  # the whole cell's fourth value is at most the fourth visible one (fitted: 8)
    assert table[5] == pytest.approx(5**1.5)  # fitted, below the visible 50
    assert table[6] == pytest.approx(6**1.5)


def test_quantile_decodes_between_visible_values():
    tokenizer = make_tokenizer("quantile", 5)  # 4 bins
    counts = torch.tensor([[1, 3, 5, 7, 100]])
    visible = torch.tensor([[True, True, True, True, False]])
    assert tokenizer.decode_table(counts, visible)[0].tolist() == [0, 1, 3, 5, 7]
    few = torch.tensor([[True, False, True, False, False]])
    assert tokenizer.decode_table(counts, few)[0].tolist() == [0, 1, 3, 5, tokenizer.values[4]]


@pytest.mark.parametrize("name", ALL)
def test_values_are_fitted_saved_and_loaded(name, tmp_path):
    tokenizer = make_tokenizer(name)
    mean = np.full(tokenizer.num_tokens, np.nan)  # tokens that no cell has
    mean[1:6] = [1.0, 2.0, 2.0, 4.5, 4.0]
    mean[20] = 20.5
    tokenizer = tokenizer.with_values(mean)
    values = tokenizer.values
    assert values[0] == 0
    assert values[1] == 1
    assert (np.diff(values) > 0).all()
    assert values[4] == pytest.approx(4 if name == "count" else 4.5)  # exact tokens stay exact
    assert values[20] == pytest.approx(20 if name == "count" else 20.5, rel=0.2)
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    assert again == tokenizer
    assert (again.values == values).all()
    assert again != make_tokenizer(name)


def test_count_likelihood_sums_to_one_within_each_token():
    tokenizer = make_tokenizer("count", 12)
    counts = torch.arange(350_000)[None]
    tokens = encode_whole(tokenizer, counts)[0]
    mass = torch.exp(-tokenizer.log_count_given_token(counts)[0])
    total = torch.zeros(12, dtype=torch.float64).scatter_add_(0, tokens, mass)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_wrong_names_and_sizes_are_told(tmp_path):
    with pytest.raises(UserError, match="rank, quantile, count"):
        make_tokenizer("ranks")
    with pytest.raises(UserError, match=r"tokenizer\.num_tokens is 2"):
        make_tokenizer("rank", 2)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="copy the checkpoint again"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"edges": [0, 2, 1, 3]}, id="no-order"),
        pytest.param({"edges": [1, 2, 3, 4]}, id="no-zero"),
        pytest.param({"edges": [0, 1, 2, 2.5]}, id="broken-edge"),
        pytest.param({"edges": [0, 1, 2, 10**30]}, id="giant-edge"),
        pytest.param({"edges": []}, id="no-edges"),
        pytest.param({"token_values": [0, 1, 2]}, id="a-value-less"),
        pytest.param({"token_values": [0, 1, 2, float("nan")]}, id="nan"),
        pytest.param({"token_values": [0, 1, 2, float("inf")]}, id="infinite"),
        pytest.param({"token_values": "0123"}, id="text"),
        pytest.param({"token_values": [0, 1, 2, None]}, id="null"),
    ],
)
def test_a_damaged_tokenizer_is_told(tmp_path, change):
    save_tokenizer(make_tokenizer("rank", 4), tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer of mdsc"):
        load_tokenizer(tmp_path)
