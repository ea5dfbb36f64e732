"""Features of levels: out of files of several kinds, fitted so that what training never saw vary has no say."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from shared_data import shared_file

from mdsc.cli import main
from mdsc.data.condition_levels import condition_features
from mdsc.data.level_features import LevelFeatures, feature_files, fit_features, read_features, write_features
from mdsc.errors import UserError

NAMES = ("aspirin", "007", "DMSO_TF")
VALUES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32).astype(np.float64)


def as_csv(path: Path, delimiter: str = ",") -> Path:
    lines = [delimiter.join(["", *map(str, range(5))])]
    lines += [delimiter.join([name, *map(repr, map(float, row))]) for name, row in zip(NAMES, VALUES, strict=True)]
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_columns(path: Path) -> Path:
    columns = {"drug": list(NAMES), "x": VALUES[:, 0], **{f"f{n}": VALUES[:, n] for n in range(1, 5)}}
    pq.write_table(pa.table(columns), path)
    return path


def as_tensors(path: Path) -> Path:
    save_file({name: row.copy() for name, row in zip(NAMES, VALUES, strict=True)}, path)
    return path


def as_written(path: Path) -> Path:
    write_features(LevelFeatures(NAMES, VALUES, "here"), path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.csv", as_csv),
        ("a.csv.gz", as_csv),
        ("a.tsv", lambda path: as_csv(path, "\t")),
        ("columns.parquet", as_columns),
        ("ours.parquet", as_written),
        ("a.safetensors", as_tensors),
    ],
)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, name: str, write):
    features = read_features(write(tmp_path / name))
    order = [features.names.index(known) for known in NAMES]
    assert len(features.names) == 3
    np.testing.assert_array_equal(features.values[order], VALUES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,x\na,1\na,2\n", "several rows for a"),
        ("name,x,note\na,1,hello\n", "column 'note' holds no numbers"),
        ("name,x\na,1\nb,\n", "features of b are not all numbers"),
        ("name\na\n", "has no features"),
        ("name,x\na,1,5,6\n", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(tmp_path: Path, text: str, words: str):
    path = tmp_path / "f.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_features(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("name", "words"), [("f.npy", "read from .parquet"), ("g.parquet", "cannot be read")])
def test_files_of_other_kinds_and_damaged_ones(tmp_path: Path, name: str, words: str):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=words):
        read_features(tmp_path / name)
    with pytest.raises(UserError, match="there is no file"):
        read_features(tmp_path / "missing.csv")


def test_fitted_vectors_keep_the_geometry_of_the_training_levels():
    """Distances among training levels are the features' own up to one scale; their mean square is 1."""
    values = np.random.default_rng(1).normal(size=(8, 40))
    features = LevelFeatures(tuple("abcdefgh"), values, "here")
    levels = tuple("abcdef")
    fitted = fit_features(features, levels, "drug")
    assert fitted.vectors.shape == (8, 5)
    of_levels = fitted.vectors[:6]
    np.testing.assert_allclose(np.square(of_levels).mean(), 1, rtol=1e-5)
    np.testing.assert_allclose(of_levels.mean(axis=0), 0, atol=1e-6)
    apart, before = (np.linalg.norm(x[:6, None] - x[None, :6], axis=-1) for x in (fitted.vectors, values))
    ratio = apart[np.triu_indices(6, 1)] / before[np.triu_indices(6, 1)]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    np.testing.assert_allclose((values - fitted.mean) @ fitted.basis, fitted.vectors, atol=1e-5)


def test_what_no_training_level_tells_apart_has_no_say():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(6, 10))
    values[:5, 7] = 3.0  # of one value for all training levels
    changed = values.copy()
    changed[5, 7] = 99.0
    one, other = (
        fit_features(LevelFeatures(tuple("abcdef"), x, "here"), tuple("abcde"), "drug") for x in (values, changed)
    )
    np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-4)


def test_levels_without_features_are_told_and_too_few_are_an_error(tmp_path: Path):
    path, said = as_csv(tmp_path / "f.csv"), []
    levels = {"drug": ("007", "aspirin", "other")}
    fitted = condition_features([f"drug={path}"], levels, said.append)
    assert fitted["drug"].names == NAMES
    assert said == [f"{path} has no features of 1 of the 3 levels of drug (other): they are told by name alone"]
    with pytest.raises(UserError) as error:
        condition_features([f"drug={path}"], {"drug": ("Aspirin", "Dmso", "007")}, said.append)
    assert "features of 1 of the 3 levels" in str(error.value)
    with pytest.raises(UserError, match="perhaps you meant drug"):
        condition_features([f"drugs={path}"], levels, said.append)


@pytest.mark.parametrize("texts", [["drug"], ["=f"], ["drug="], ["drug=a", "drug=b"]])
def test_what_is_no_pair_of_column_and_file(texts: list[str]):
    with pytest.raises(UserError, match=r"--data\.condition-features"):
        feature_files(texts, "--data.condition-features")


def test_prepare_features_of_numbers(tmp_path: Path, capsys):
    out = tmp_path / "out.parquet"
    assert main(["prepare", "features", str(as_csv(tmp_path / "a.csv.gz")), "--output", str(out)]) == 0
    assert "3 names x 5 features" in capsys.readouterr().out
    np.testing.assert_array_equal(read_features(out).values, VALUES)
    source = as_columns(tmp_path / "b.parquet")
    assert main(["prepare", "features", str(source), "--columns", "f1", "f2", "--output", str(out)]) == 0
    np.testing.assert_array_equal(read_features(out).values, VALUES[:, 1:3])
    assert main(["prepare", "features", str(source), "--columns", "f11", "--output", str(out)]) == 2
    assert "no column 'f11': perhaps you meant f1" in capsys.readouterr().err


def test_prepare_features_of_genept(tmp_path: Path):
    source, out = shared_file("genept/genept_ada002_adamson86.csv.gz"), tmp_path / "out.parquet"
    assert main(["prepare", "features", str(source), "--output", str(out)]) == 0
    features = read_features(out)
    assert features.values.shape == (87, 1536)  # the 86 genes and ctrl
    assert not features.values[features.names.index("ctrl")].any()


def test_prepare_features_of_smiles(tmp_path: Path, capsys):
    chem = pytest.importorskip("rdkit.Chem")
    source, out = tmp_path / "drugs.csv", tmp_path / "out.parquet"
    source.write_text("drug,smiles\nethanol,CCO\nalcohol,OCC\nbenzene,c1ccccc1\nnothing,\nwrong,C(C\n")
    flags = ["--smiles-column", "smiles", "--bits", "256", "--output", str(out)]
    assert main(["prepare", "features", str(source), *flags]) == 0
    told = capsys.readouterr().out
    assert "1 names have no SMILES and are left out: nothing" in told
    assert "1 names have SMILES that rdkit cannot read and are left out: wrong" in told
    features = read_features(out)
    assert features.names == ("ethanol", "alcohol", "benzene")
    assert features.values.shape == (3, 256)
    assert (features.values[0] == features.values[1]).all(), "one molecule, written in two ways"
    # Morgan's environments of ethanol: three atoms, two of radius 1 that differ beside the whole.
    assert chem.MolFromSmiles("CCO").GetNumAtoms() == 3
    assert 4 <= features.values[0].sum() <= 6
    assert (features.values[0] != features.values[2]).any()


def test_without_rdkit_it_says_what_to_install(tmp_path: Path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "rdkit", None)
    source = tmp_path / "drugs.csv"
    source.write_text("drug,smiles\nethanol,CCO\n")
    flags = ["--smiles-column", "smiles", "--output", str(tmp_path / "out.parquet")]
    assert main(["prepare", "features", str(source), *flags]) == 2
    assert "pip install 'mdsc[chem]'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()
