"""A backbone that gets the genes in blocks: what it sees, and what stays whole."""

import pytest
import torch
from tiny_model import tiny_cells, tiny_model

from mdsc.model.gene_blocks import gene_blocks


def test_blocks_are_a_partition_into_nearly_equal_parts():
    gene_ids = torch.stack([torch.randperm(50) for _ in range(3)])
    blocks = gene_blocks(gene_ids, 8)
    assert [block.shape for block in blocks] == [(3, 8)] + [(3, 7)] * 6
    assert (torch.cat(blocks, dim=1).sort(dim=1).values == torch.arange(50)).all()
    assert len(gene_blocks(gene_ids, 50)) == 1
    # Not by id: neighbours in the vocabulary, such as isoforms, are not always together.
    assert not torch.equal(blocks[0][0].sort().values, torch.arange(8))


def test_a_genes_block_does_not_depend_on_the_order():
    gene_ids = torch.stack([torch.arange(50), torch.randperm(50)])
    for block in gene_blocks(gene_ids, 8):
        first, second = (set(gene_ids[row, block[row]].tolist()) for row in range(2))
        assert first == second


@pytest.mark.parametrize("backbone", ["dit", "latent"])
def test_the_backbone_sees_a_block_and_the_rest_sees_all(backbone: str):
    """Logits against the same sums, made of the backbone's answers to each block alone."""
    model, cells = tiny_model(backbone=backbone), tiny_cells()
    with torch.no_grad():
        alone = model(**cells, pathway_only=True).logits
        found = model(**cells, genes_per_pass=6).logits
        taken = []
        inner = model._backbone
        model._backbone = lambda x, *others: taken.append((x, *others)) or inner(x, *others)
        again = model(**cells, genes_per_pass=6).logits
        assert torch.equal(again, found)
        expected = alone.clone()
        blocks = gene_blocks(cells["gene_ids"], 6)
        assert len(taken) == len(blocks) == 4
        model._backbone = inner
        whole = []
        model._backbone = lambda x, *others: whole.append((x, *others)) or inner(x, *others)
        model(**cells)
        [(x, tokens, condition, is_pad, most, _)] = whole
        model._backbone = inner
        for place in blocks:
            here = (torch.arange(len(x))[:, None], place)
            expected[here] += inner(x[here], tokens[here], condition, is_pad[here], most)
    torch.testing.assert_close(found, expected)
    assert (found - alone).abs().max() > 0.01
    with torch.no_grad():
        assert torch.equal(model(**cells, genes_per_pass=20).logits, model(**cells).logits)
        assert not torch.allclose(found, model(**cells).logits, atol=1e-3)


def test_all_visible_genes_reach_every_block():
    """A count in another block matters, through the pathway."""
    model, cells = tiny_model(), tiny_cells()
    blocks = gene_blocks(cells["gene_ids"], 6)
    inside = blocks[0][0]
    outside = next(place for place in blocks[1][0].tolist() if cells["tokens"][0, place] < model.config.num_tokens)
    with torch.no_grad():
        before = model(**cells, genes_per_pass=6).logits[0, inside]
        cells["counts"][0, outside] += 50
        after = model(**cells, genes_per_pass=6).logits[0, inside]
    assert ((before - after).abs().amax(dim=-1) > 1e-4).all()
