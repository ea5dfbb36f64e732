"""The gene vocabulary, and matching a user's names to it."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_data import shared_file

from mdsc.data.genes import GeneStatistics, GeneVocabulary, gene_identifiers, without_version
from mdsc.errors import UserError

SYMBOLS = ("CD3E", "MS4A1", "NKG7", "LYZ")
IDS = ("ENSG00000198851", "ENSG00000156738", "ENSG00000105374", "")


@pytest.fixture
def vocabulary():
    return GeneVocabulary.of(SYMBOLS, IDS)


@pytest.mark.parametrize(
    ("names", "places"),
    [
        pytest.param(["LYZ", "ACTB", "CD3E"], [3, -1, 0], id="symbols"),
        pytest.param(["ENSG00000105374.7", "ENSG00000000003.1"], [2, -1], id="ids-with-version"),
        pytest.param(["ENSG00000105374", "ENSG00000198851", "LYZ"], [2, 0, -1], id="whichever-matches-more"),
    ],
)
def test_match(vocabulary, names, places):
    assert vocabulary.match(names).tolist() == places


def test_match_tells_of_duplicates_and_of_strangers(vocabulary):
    with pytest.raises(UserError, match=r"cells\.h5ad has several columns for the same gene: NKG7"):
        vocabulary.match(["NKG7", "LYZ", "NKG7"], "cells.h5ad")
    with pytest.raises(UserError, match="same gene: CD3E"):
        vocabulary.match(["ENSG00000198851.1", "ENSG00000198851.2"])
    with pytest.raises(UserError) as told:
        vocabulary.match(["Cd3e", "Xkr4", "Actb"], "cells.h5ad")
    for part in ("cells.h5ad", "Cd3e, Xkr4, Actb", "CD3E, MS4A1, NKG7, ENSG00000198851", "another species"):
        assert part in str(told.value)
    with pytest.raises(UserError, match="begin with ENSMUSG are of another species than ENSG"):
        vocabulary.match(["ENSMUSG00000051951.6", "ENSMUSG00000025902"])


def test_a_few_names_in_common_by_chance_are_another_species_too():
    human = [f"GENE{number}" for number in range(40)]
    mouse = [name.title() for name in human]
    with pytest.raises(UserError, match=r"cells has 2 genes in common .* 40 match but for capitals: is it another"):
        GeneVocabulary.of(human).match([*human[:2], *mouse[2:]], "cells")
    with pytest.raises(UserError, match="40 match but for capitals"):
        GeneVocabulary.of(mouse).match(human)
    assert (GeneVocabulary.of(human).match([*human[:5], *mouse[5:]]) >= 0).sum() == 5


def test_match_var_takes_a_column_where_it_matches_more(vocabulary):
    var = pd.DataFrame({"gene_ids": ["ENSG00000105374.3", "ENSG00000156738"]}, index=["a", "LYZ"])
    assert vocabulary.match_var(var).tolist() == [2, 1]
    assert vocabulary.match_var(pd.DataFrame(index=["a", "LYZ"])).tolist() == [-1, 3]


def test_identifiers_of_an_anndata():
    ids = ["ENSG00000105374.3", "ENSG00000156738.1"]
    stripped = [without_version(name) for name in ids]
    by_symbol = pd.DataFrame({"gene_ids": ids}, index=["NKG7", "MS4A1"])
    assert gene_identifiers(by_symbol) == (["NKG7", "MS4A1"], stripped)
    by_id = pd.DataFrame({"feature_name": ["NKG7", "MS4A1"]}, index=ids)
    assert gene_identifiers(by_id) == (["NKG7", "MS4A1"], stripped)
    repeated = pd.DataFrame({"feature_name": ["NKG7", "NKG7"]}, index=ids)
    assert gene_identifiers(repeated) == (stripped, stripped)
    assert gene_identifiers(pd.DataFrame(index=["NKG7", "MS4A1"])) == (["NKG7", "MS4A1"], ["", ""])


def test_saved_and_loaded(vocabulary, tmp_path):
    rng = np.random.default_rng(0)
    statistics = GeneStatistics(rng.random(4), rng.random(4), rng.random(4))
    vocabulary.save(tmp_path, statistics)
    again = GeneVocabulary.load(tmp_path)
    assert (again.symbols, again.ensembl_ids, again.digest) == (SYMBOLS, IDS, vocabulary.digest)
    assert (again.token_ids == [3, 4, 5, 6]).all()
    assert again.index_of_token.tolist() == [-1, -1, -1, 0, 1, 2, 3]
    assert (GeneStatistics.load(tmp_path).mean_log1p == statistics.mean_log1p).all()
    assert GeneVocabulary.of(SYMBOLS[::-1]).digest != vocabulary.digest


def test_unreadable_files_are_told(vocabulary, tmp_path):
    with pytest.raises(UserError, match=r"genes\.parquet is missing"):
        GeneVocabulary.load(tmp_path)
    vocabulary.save(tmp_path)
    with pytest.raises(UserError, match=r"genes\.parquet cannot be read"):
        GeneStatistics.load(tmp_path)
    (tmp_path / "genes.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"genes\.parquet cannot be read"):
        GeneVocabulary.load(tmp_path)
    with pytest.raises(UserError, match="A, B"):
        GeneVocabulary.of(["A", "B", "A", "B", "C"])


@pytest.mark.parametrize(
    ("column", "values"),
    [
        pytest.param("token_id", pa.array([3, 4, 6, 5]), id="no-order"),
        pytest.param("token_id", pa.array([2, 3, 4, 5]), id="special-token"),
        pytest.param("token_id", pa.array([3, 4, 5, 2**40]), id="giant-token"),
        pytest.param("token_id", pa.array([None, 4, 5, 6], pa.int64()), id="no-token"),
        pytest.param("token_id", pa.array(["a", "b", "c", "d"]), id="text-for-tokens"),
        pytest.param("gene_symbol", pa.array(["A", None, "B", "C"]), id="no-symbol"),
        pytest.param("gene_symbol", pa.array([1, 2, 3, 4]), id="numbers-for-symbols"),
        pytest.param("ensembl_id", pa.array([None] * 4, pa.string()), id="no-id"),
        pytest.param("detection_rate", pa.array([0.1, np.nan, 0.1, 0.1]), id="nan-rate"),
        pytest.param("detection_rate", pa.array([0.1, None, 0.1, 0.1]), id="no-rate"),
        pytest.param("mean_count", pa.array([0.1, 0.1, 0.1, -1.0]), id="negative-mean"),
        pytest.param("mean_log1p", pa.array(["a", "b", "c", "d"]), id="text-for-means"),
    ],
)
def test_a_damaged_column_is_named(vocabulary, tmp_path, column: str, values: pa.Array):
    vocabulary.save(tmp_path, GeneStatistics(*[np.ones(4)] * 3))
    table = pq.read_table(tmp_path / "genes.parquet")
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), tmp_path / "genes.parquet")
    reader = GeneStatistics if column in GeneStatistics.COLUMNS else GeneVocabulary
    with pytest.raises(UserError, match=rf"genes\.parquet is damaged: .*{column}"):
        reader.load(tmp_path)


def test_a_flipped_bit_is_told_or_means_nothing(vocabulary, tmp_path):
    vocabulary.save(tmp_path, GeneStatistics(*np.random.default_rng(0).random((3, 4))))
    digest, statistics = vocabulary.digest, GeneStatistics.load(tmp_path)
    path = tmp_path / "genes.parquet"
    whole, told = path.read_bytes(), 0
    for place in range(0, len(whole), 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 7)]) + whole[place + 1 :])
        try:
            assert GeneVocabulary.load(tmp_path).digest == digest
            again = GeneStatistics.load(tmp_path)
            assert all(np.array_equal(getattr(again, name), getattr(statistics, name)) for name in again.COLUMNS)
        except UserError:
            told += 1
    assert told > 100


def test_a_vocabulary_without_genes_is_damaged(tmp_path):
    GeneVocabulary.of([]).save(tmp_path)
    with pytest.raises(UserError, match="it has no genes"):
        GeneVocabulary.load(tmp_path)


def test_tahoe_genes_match_real_cells():
    table = pq.read_table(shared_file("tahoe100m_metadata/gene_metadata.parquet")).to_pydict()
    tahoe = GeneVocabulary(
        tuple(table["gene_symbol"]), tuple(table["ensembl_id"]), np.array(table["token_id"], dtype=np.int64)
    )
    assert len(tahoe) == 62_710
    import anndata

    donors = anndata.read_h5ad(shared_file("kang2018_donors.h5ad"), backed="r").var
    assert (tahoe.match_var(donors) >= 0).mean() > 0.95
    pilot = anndata.read_h5ad(shared_file("adamson2016_pilot.h5ad"), backed="r").var
    assert (tahoe.match_var(pilot) >= 0).mean() > 0.95
    mouse = anndata.read_h5ad(shared_file("mouse_brain_10k.h5ad"), backed="r").var
    with pytest.raises(UserError, match="another species"):
        tahoe.match(mouse.index[mouse.index.str.islower() | mouse.index.str.istitle()].tolist())
