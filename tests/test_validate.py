"""`mdsc validate`: what it finds in good and bad files."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from shared_data import shared_file

from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.prep.validate import ValidateConfig, main, validate


@pytest.fixture
def path(tmp_path):
    counts = np.random.default_rng(0).poisson(0.7, (40, 6)).astype(np.float32)
    counts[3] = 0
    obs = pd.DataFrame({"drug": "a"}, index=[f"c{i}" for i in range(40)])
    var = pd.DataFrame({"gene_ids": [f"ENSG0000000000{i}.2" for i in range(6)]}, index=list("ABCDEF"))
    layers = {"counts": sp.csr_matrix(counts)}
    anndata.AnnData(np.log1p(counts), obs=obs, var=var, layers=layers).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def found(path, **options):
    return {finding.what: (finding.state, finding.text) for finding in validate(ValidateConfig(input=path, **options))}


def test_logs_in_x_are_a_fault_and_counts_in_a_layer_are_shown(path, capsys):
    findings = found(path)
    assert "no integers" in findings["X"][1]
    assert findings["counts"] == ("good", "counts")
    assert findings["usable?"][0] == "fault"
    assert "--layer counts" in findings["usable?"][1]
    with pytest.raises(SystemExit, match="1"):
        main([str(path)])
    assert "not usable" in capsys.readouterr().out


def test_a_usable_file(path, capsys):
    main([str(path), "--layer", "counts"])
    assert capsys.readouterr().out.endswith("usable\n")
    findings = found(path, layer="counts")
    assert findings["cells"] == ("warning", findings["cells"][1])
    assert "40 cells x 6 genes" in findings["cells"][1]
    assert "1 cells have no counts" in findings["cells"][1]
    assert findings["genes"] == ("good", "A, B, C, ...; Ensembl ids of 6 of 6")
    assert "drug" in findings["obs"][1]


def test_match_to_a_vocabulary(path, tmp_path):
    GeneVocabulary.of(["A", "C", "X", "Y", "Z"]).save(tmp_path)
    state, text = found(path, layer="counts", checkpoint_genes=tmp_path)["match"]
    assert state == "warning"
    assert "2 of the file's 6 genes are known to the model, by var_names: 40% of its 5" in text
    GeneVocabulary.of(["P", "Q"]).save(tmp_path)
    assert "no gene in common" in found(path, layer="counts", checkpoint_genes=tmp_path)["usable?"][1]
    with pytest.raises(UserError, match=r"--checkpoint-genes .*none: there is no folder of that name"):
        found(path, checkpoint_genes=tmp_path / "none")


def test_columns_for_one_gene_may_be_added_up(path):
    twice = anndata.read_h5ad(path)
    twice.var_names = list("ABCDEA")
    twice.write_h5ad(path)
    state, text = found(path, layer="counts")["genes"]
    assert state == "fault"
    assert "several columns for the same gene: A" in text
    assert "--duplicate-genes sum" in text


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        main([str(tmp_path / "none.h5ad")])


def test_a_real_file():
    findings = found(shared_file("kang2018_donors.h5ad"))
    assert all(state == "good" for state, _ in findings.values())
    assert "8,684 cells x 2,511 genes" in findings["cells"][1]
    assert "Ensembl ids of 2,511 of 2,511" in findings["genes"][1]
