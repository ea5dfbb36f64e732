"""Gene embeddings of pickles, gene sets and tables; and pickles that would do more than hold numbers."""

import builtins
import contextlib
import gzip
import itertools
import os
import pickle
from collections import OrderedDict

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_file

from mdsc.cli import main as mdsc
from mdsc.data.level_features import LevelFeatures, read_features, write_features
from mdsc.errors import UserError
from mdsc.data.gene_set_file import read_gmt
from mdsc.prep.gene_embeddings import GeneEmbeddingsConfig, main, prepare_gene_embeddings, read_embeddings
from mdsc.prep.pickled_arrays import RefusedPickle
from mdsc.prep.plain_pickle import read_plain, vector_of

RNG = np.random.default_rng(0)
VECTORS = {name: RNG.normal(size=1536).tolist() for name in ("SPI1", "BHLHE40", "ZNF326")}


class Calls:
    """Pickled as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        np.array,
        lambda values: np.array(values, dtype=">f4"),
        lambda values: list(map(np.float32, values)),
        lambda values: [*values[:20], 1, 0, -3, 2**40, *values[24:]],
        lambda values: np.array(values).reshape(1, -1),
    ],
)
def test_pickles_of_numbers_are_read(protocol, kind):
    stored = {name: kind(values) for name, values in VECTORS.items()}
    found = read_plain(pickle.dumps(stored, protocol=protocol))
    assert list(found) == list(VECTORS)
    for name, values in stored.items():
        np.testing.assert_array_equal(vector_of(found[name]), np.asarray(values, dtype=np.float64).ravel())


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    st.integers(3, 5),  # protocol 2 has no bytes, and calls a function for them
)
@settings(max_examples=150, deadline=None)
def test_plain_things_come_back(value, protocol):
    def joined(found):
        """Runs of floats as the floats that they are."""
        if isinstance(found, dict):
            return {name: joined(part) for name, part in found.items()}
        if isinstance(found, list | tuple):
            parts = [part.tolist() if isinstance(part, np.ndarray) else [joined(part)] for part in found]
            return type(found)(itertools.chain.from_iterable(parts))
        return found

    assert joined(read_plain(pickle.dumps(value, protocol=protocol))) == value


def poison(path):
    order = f"import pathlib; pathlib.Path({str(path)!r}).write_text('run')"
    objects = np.empty(1, dtype=object)
    objects[0] = Calls(exec, order)
    structured = np.zeros(2, dtype=[("a", "f8"), ("b", "O")])
    return {
        "os.system": Calls(os.system, f"touch {path}"),
        "eval": Calls(eval, f"open({str(path)!r}, 'w').close()"),
        "exec": Calls(exec, order),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "import": Calls(__import__, "os"),
        "numpy's own loader": Calls(np.lib.format.read_array, None),
        "numpy.load": Calls(np.load, str(path)),
        "objects in an array": objects,
        "objects in a structured array": structured,
        "a frame": pd.DataFrame({"a": [1.0]}),
        "a class": OrderedDict,
        "an ordered dict": OrderedDict(a=1),
        "a set": {1, 2},
        "complex": 1j,
        "in a list": [1.0] * 20 + [Calls(os.system, f"touch {path}")],
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", sorted(poison("x")))
def test_nothing_that_a_pickle_names_is_run(tmp_path, name, protocol):
    data = pickle.dumps({"SPI1": poison(tmp_path / "mark")[name]}, protocol=protocol)
    path = tmp_path / "bad.pickle"
    path.write_bytes(data)
    with pytest.raises(UserError) as raised:
        read_embeddings(path)
    assert str(path) in str(raised.value)
    assert str(raised.value).count("\n") <= 1
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch mark'\ntR.",  # by protocol 0
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R}b.",  # state a dict
        b"\x80\x02cnumpy\nndarray\n(tR.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",
        b"\x80\x02cnumpy\ndtype\nX\x04\x00\x00\x00f8,O\x85R.",
        b"\x80\x02cnumpy\ndtype\n\x85\x81.",  # NEWOBJ
        b"\x80\x02(iposix\nsystem\n.",  # INST
        b"\x80\x02}Q.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension
        b"\x80\x02}}b.",  # BUILD of a dict
        b"\x80\x05\x97.",  # a buffer from elsewhere
        b"",
        b".",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02h\x05.",
        b"\x80\x02(((.",
    ],
)
def test_programs_are_refused(program):
    with pytest.raises(RefusedPickle):
        read_plain(program)


def test_nothing_is_imported_or_called_by_name(monkeypatch):
    """Even what is allowed is never looked up."""
    data = [pickle.dumps({"a": np.arange(3.0), "b": np.float32(1)}, protocol=protocol) for protocol in (2, 4, 5)]

    def refuse(name, *_, **__):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(builtins, "__import__", refuse)
    found = [read_plain(one) for one in data]
    monkeypatch.undo()
    assert all(vector_of(one["a"]).tolist() == [0, 1, 2] for one in found)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_pickles_are_refused_or_plain(data):
    whole = pickle.dumps({"A": [1.0] * 30, "B": np.arange(4.0), "C": ("x", 3)}, protocol=data.draw(st.integers(2, 5)))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RefusedPickle):
        read_plain(bytes(damaged))


def test_genept_pickle_for_the_genes_of_a_task(tmp_path, capsys):
    path = tmp_path / "GenePT_gene_embedding_ada_text.pickle"
    path.write_bytes(pickle.dumps(VECTORS | {"EMPTY": [], "TEXT": "a gene", "OTHER": [0.5] * 1536}))
    obs = pd.DataFrame({"condition": ["ctrl", "SPI1+ctrl", "ctrl+NEW1"]}, index=["a", "b", "c"])
    cells = anndata.AnnData(np.ones((3, 2)), obs=obs)
    cells.var_names = ["ENSG00000000001", "ENSG00000000002"]
    cells.var["gene_name"] = ["ZNF326", "ACTB"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    out, report = tmp_path / "genes.parquet", tmp_path / "without.txt"
    assert (
        mdsc(f"prepare gene-embeddings {path} --output {out} --for {tmp_path}/cells.h5ad --report {report}".split())
        == 0
    )
    told = capsys.readouterr().out
    assert "2 names have no numbers, and are left out: EMPTY, TEXT" in told
    assert "2 of 4 genes have an embedding" in told
    assert "2 have none: ACTB, NEW1 (aliases are not guessed)" in told
    assert report.read_text() == "ACTB\nNEW1\n"
    stored = read_features(out)
    assert stored.names == ("ZNF326", "SPI1")
    np.testing.assert_allclose(stored.values[1], VECTORS["SPI1"], rtol=1e-6)
    main([str(path), "--output", str(out)])
    assert read_features(out).names == (*VECTORS, "OTHER")


def test_gene_sets_become_components(tmp_path):
    names = [f"G{number}" for number in range(40)]
    rng = np.random.default_rng(0)
    one, other = names[:20], names[20:]
    lines = ["\t".join([f"T{t}", "", *rng.choice(one if t % 2 else other, 12, replace=False)]) for t in range(30)]
    path = tmp_path / "sets.gmt.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n".join([*lines, "LONELY\t\tG1", "EMPTY\t"]) + "\n")
    features = read_embeddings(path, num_components=2)
    assert set(features.names) == set(names)
    unit = features.values / np.linalg.norm(features.values, axis=1, keepdims=True)
    of = dict(zip(features.names, unit, strict=True))
    inside = np.mean([of["G0"] @ of[name] for name in one])
    across = np.mean([of["G0"] @ of[name] for name in other])
    assert inside > 0.95
    assert abs(across) < 0.1
    with pytest.raises(UserError, match="30 sets of 2 or more genes, 40 genes in all: give --num-components 1 to 29"):
        read_embeddings(path, num_components=30)
    (tmp_path / "no.gmt").write_text("nothing\n")
    with pytest.raises(UserError, match="holds no gene sets"):
        read_gmt(tmp_path / "no.gmt")


def test_real_gene_sets():
    features = read_embeddings(shared_file("go_biological_process_2021.gmt"), num_components=16)
    assert len(features.names) > 14_000
    of = dict(zip(features.names, features.values, strict=True))

    def cosine(one, other):
        return of[one] @ of[other] / np.linalg.norm(of[one]) / np.linalg.norm(of[other])

    assert cosine("SEC61A1", "SEC61G") > 0.7  # translocation into the ER
    assert cosine("SEC61A1", "CREB1") < 0.4


def test_large_tables_are_written_and_read_without_a_python_number_each(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    write_features(
        LevelFeatures(tuple(f"G{n}" for n in range(50)), values.astype(np.float64), "x"), tmp_path / "f.parquet"
    )
    assert (read_features(tmp_path / "f.parquet").values == values).all()
    table = pq.read_table(tmp_path / "f.parquet")
    assert str(table.schema.field("features").type) == "list<element: float>"
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=7)
    assert (read_features(tmp_path / "f.parquet").values == values).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "x.csv"}, "is to be a .parquet file"),
        ({"genes": "a", "for_cells": "b"}, "give one of them"),
        ({"report": "r.txt"}, "--genes or --for says"),
        ({"genes": "nowhere.txt"}, "there is no file .*nowhere.txt"),
        ({"for_cells": "nowhere.h5ad"}, "there is no file .*nowhere.h5ad"),
        ({"source": "nowhere.pickle"}, "there is no file nowhere.pickle"),
        ({"num_components": 0}, "give 1 or more"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, options, message):
    source = tmp_path / "v.csv"
    source.write_text("name,a,b\nSPI1,1,2\n")
    given = {"source": source, "output": tmp_path / "o.parquet"} | options
    paths = {name: value if name == "num_components" else type(source)(value) for name, value in given.items()}
    with pytest.raises(UserError, match=message):
        prepare_gene_embeddings(GeneEmbeddingsConfig(**paths))


def test_genes_of_another_kind_are_told(tmp_path):
    (tmp_path / "v.csv").write_text("name,a,b\nSPI1,1,2\n")
    (tmp_path / "g.txt").write_text("ENSG00000066336\n\n")
    config = GeneEmbeddingsConfig(source=tmp_path / "v.csv", output=tmp_path / "o.parquet", genes=tmp_path / "g.txt")
    with pytest.raises(UserError, match="has none of these genes: it has SPI1; they are ENSG00000066336"):
        prepare_gene_embeddings(config)
