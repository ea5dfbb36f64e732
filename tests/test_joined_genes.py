"""Genes of several files: joined by id, else by symbol; what is told of it; columns for one gene."""

import pytest

from mdsc.data.genes import GeneVocabulary
from mdsc.errors import UserError
from mdsc.prep.joined_genes import FileGenes, join_genes

E1, E2, E3, E4 = (f"ENSG{number:011d}" for number in range(1, 5))


def file(name: str, **genes: str) -> FileGenes:
    return FileGenes(name, list(genes), list(genes.values()))


def names(joined) -> list[tuple[str, str]]:
    return list(zip(joined.vocabulary.symbols, joined.vocabulary.ensembl_ids, strict=True))


def test_an_old_symbol_with_the_same_id_is_the_same_gene():
    joined = join_genes([file("a", OLD=E1, B=E2), file("b", NEW=E1, C=E3)])
    assert names(joined) == [("OLD", E1), ("B", E2), ("C", E3)]
    assert [places.tolist() for places in joined.places] == [[0, 1], [0, 2]]
    assert "1 are in all 2 files, 2 only in some; all are joined by Ensembl id" in joined.report[0]
    assert f"symbols of 1 genes disagree: OLD or NEW ({E1})" in joined.report[1]


def test_a_file_with_symbols_alone_joins_by_either_symbol_wherever_it_stands():
    by_id = [file("a", OLD=E1, B=E2), file("b", NEW=E1)]
    plain = file("c", NEW="", B="", D="")
    last, first = join_genes([*by_id, plain]), join_genes([plain, *by_id])
    assert last.places[2].tolist() == [0, 1, 2]
    assert set(names(last)) == set(names(first)) == {("OLD", E1), ("B", E2), ("D", "")}
    assert "0 are joined by Ensembl id, and 3 by symbol" in last.report[0]


def test_ids_alone_take_their_symbols_from_other_files():
    joined = join_genes([FileGenes("a", [E1, E2], ["", ""]), file("b", A=E1)])
    assert names(joined) == [("A", E1), (E2, E2)]
    assert len(joined.report) == 1  # an id is no symbol that could disagree


def test_one_symbol_of_two_ids_in_two_files_stays_two_genes():
    joined = join_genes([file("a", X=E1, B=E2), file("b", X=E3, B=E2)])
    assert names(joined) == [("X", E1), ("B", E2), (E3, E3)]


@pytest.mark.parametrize(
    ("symbols", "ids", "pair"),
    [
        pytest.param(["A", "B", "C"], [E1, E2, E1], f"column 0 (A, {E1}) and column 2 (C, {E1})", id="id"),
        pytest.param(["A", "B", "A"], [E1, E2, E3], f"column 0 (A, {E1}) and column 2 (A, {E3})", id="symbol"),
        pytest.param(["A", "B", "A"], ["", "", ""], "column 0 (A) and column 2 (A)", id="symbol-without-id"),
        pytest.param(["A", "B", "A"], ["", "", E1], f"column 0 (A) and column 2 (A, {E1})", id="symbol-later-id"),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_columns_for_one_gene(symbols, ids, pair, given):
    files = [FileGenes("a.h5ad", symbols, ids)]
    vocabulary = GeneVocabulary.of(["Z", "A", "B"], ["", E1, E2 if any(ids) else ""]) if given else None
    with pytest.raises(UserError, match="--duplicate-genes sum") as error:
        join_genes(files, vocabulary)
    assert f"a.h5ad has several columns for the same gene: {pair}.\n" in str(error.value)
    joined = join_genes(files, vocabulary, "sum")
    places = joined.places[0].tolist()
    assert places[0] == places[2] != places[1]
    assert "a.h5ad: 1 genes have several columns, whose counts are added up" in joined.report


def test_a_given_vocabulary_stays_and_what_it_lacks_is_told():
    vocabulary = GeneVocabulary.of(["A", "B", "C", "D"], [E1, E2, "", E4])
    # C by symbol; another id's B is another gene.
    joined = join_genes([file("a.h5ad", OLD=E1, C=E3, B="", X=""), file("b.h5ad", B=E4 + "9", A=E1)], vocabulary)
    assert joined.vocabulary is vocabulary
    assert [places.tolist() for places in joined.places] == [[0, 2, 1, -1], [-1, 0]]
    assert joined.report == (
        "a.h5ad: 1 of 4 genes are not in the vocabulary and left out: X",
        "b.h5ad: 1 of 2 genes are not in the vocabulary and left out: B",
        "vocabulary: 3 of 4 genes are measured; 1 are in no file",
    )
    with pytest.raises(UserError, match=r"c.h5ad has no gene in common with the vocabulary .*--vocabulary"):
        join_genes([file("c.h5ad", X="", Y=E3)], vocabulary)


def test_files_that_nothing_connects_are_told():
    a, b, c = file("a", A="", B=""), file("b", C="", D=""), file("c", B="", C="")
    assert len(join_genes([a, b, c]).vocabulary) == 4  # a and b meet in c
    with pytest.raises(UserError, match=r"b has no gene in common with a: it has C, D, ..., not A, B"):
        join_genes([a, b])
