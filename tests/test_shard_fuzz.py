"""Any table in any parquet, and any JSON for a manifest: read back exactly, or a `UserError`; nothing else."""

import copy
import json
import math
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from parquet_shards import FILE, NUM_GENES, cells, parquet_shard

from mdsc.data.shards import ShardFolder
from mdsc.errors import UserError

SETTINGS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # examples are small; shrinking them takes minutes
)
INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
OTHERS = [pa.string(), pa.bool_(), pa.binary(), pa.decimal128(12, 3), pa.null(), pa.timestamp("us")]


def of_type(kind: pa.DataType, values):
    """The values as this type, or None where they do not fit it."""
    if pa.types.is_integer(kind):
        low, high = (np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max)
        fits = [
            value is None or (math.isfinite(value) and low <= value <= high and value == int(value)) for value in values
        ]
        return [None if value is None else int(value) for value in values] if all(fits) else None
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            return [None if value is None else kind.to_pandas_dtype()(value) for value in values]
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return [None if value is None else str(value) for value in values]
    return [None] * len(values)


@st.composite
def lists(draw, lengths, values, likely):
    """A list column of some type, with rows of these lengths."""
    number = sum(lengths)
    flat = draw(st.lists(values, min_size=number, max_size=number))
    kind = draw(st.sampled_from([likely, likely, *INTEGERS, *FLOATS, *OTHERS]))
    stored = of_type(kind, flat)
    if stored is None:
        kind, stored = likely, of_type(likely, flat) or [1] * number
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    rows = [stored[start:stop] for start, stop in pairwise(offsets)]
    if draw(st.integers(0, 15)) == 0 and rows:
        rows[draw(st.integers(0, len(rows) - 1))] = None
    return pa.array(rows, draw(st.sampled_from([pa.list_, pa.large_list]))(kind))


@st.composite
def tables(draw):
    """Mostly right cells, with something wrong now and then."""
    number = draw(st.integers(0, 12))
    rows = [
        draw(st.lists(st.integers(3, NUM_GENES + 2), max_size=5, unique=draw(st.integers(0, 9)) > 0))
        for _ in range(number)
    ]
    lengths = [len(row) for row in rows]
    if draw(st.booleans()):
        genes = pa.array(rows, pa.list_(draw(st.sampled_from(INTEGERS))))
    else:
        ids = st.one_of(
            st.integers(3, NUM_GENES + 2), st.integers(-3, 20), st.sampled_from([2**31, 2**40, -(2**50), None])
        )
        genes = draw(lists(lengths, ids, pa.int64()))
    right = st.integers(1, 100)
    odd = st.sampled_from([0, -1, -2, 0.5, 2**31, 2**33, 1e300, math.nan, math.inf, None])
    values = right if draw(st.booleans()) else st.one_of(right, right, right, odd)
    if draw(st.integers(0, 9)) == 0:
        lengths = [draw(st.integers(0, 3)) for _ in lengths]
    expressions = draw(lists(lengths, values, pa.float32()))
    texts = st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["a", "b"]))
    drug = pa.array(draw(st.lists(texts, min_size=number, max_size=number)), pa.string())
    if draw(st.booleans()):
        drug = drug.dictionary_encode()
    elif draw(st.integers(0, 9)) == 0:
        drug = draw(
            st.sampled_from([pa.nulls(number), pa.array([[1]] * number, pa.list_(pa.int8())), pa.array(range(number))])
        )
    return cells(genes, expressions, drug=drug, cell_id=pa.array([f"c{row}" for row in range(number)], pa.string()))


OPTIONS = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 13),
        "compression": st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "version": st.sampled_from(["1.0", "2.4", "2.6"]),
        "use_dictionary": st.booleans(),
        "data_page_size": st.sampled_from([16, 1 << 20]),
        "write_statistics": st.booleans(),
        "write_page_index": st.booleans(),
        "write_page_checksum": st.booleans(),
        "store_schema": st.booleans(),
    }
)


def outcome(folder: ShardFolder, ref):
    """The row group, or None and what was told."""
    try:
        return folder.read(ref), ""
    except UserError as error:
        return None, str(error)


def as_text(value) -> str:
    return "" if value is None else str(value)


def expected(table: pa.Table):
    """Cells of a table, a row at a time, or None where one is wrong: written down once more, slowly."""
    found = []
    for row in table.to_pylist():
        genes, counts = row["genes"], row["expressions"]
        if genes is None or counts is None or len(genes) != len(counts):
            return None
        if genes and (genes[0], counts[0]) == (1, -2):
            genes, counts = genes[1:], counts[1:]
        for gene in genes:
            if isinstance(gene, bool) or not isinstance(gene, int) or not 3 <= gene < 3 + NUM_GENES:
                return None
        for count in counts:
            if isinstance(count, bool | str | bytes) or count is None or not 1 <= count < 2**31 or count != int(count):
                return None
        if len(set(genes)) < len(genes) or isinstance(row["drug"], list):
            return None
        found.append(
            ([gene - 3 for gene in genes], [int(count) for count in counts], as_text(row["drug"]), row["cell_id"])
        )
    return found


@SETTINGS
@given(table=tables(), options=OPTIONS)
def test_a_table_comes_back_as_it_was_written_or_is_an_error(table, options, tmp_path):
    folder = parquet_shard(Path(tempfile.mkdtemp(dir=tmp_path)), table, **options)
    for group, rows in enumerate(folder.manifest.shards[0].row_groups):
        first = sum(folder.manifest.shards[0].row_groups[:group])
        truth = expected(table.slice(first, rows))
        refs = [ref for ref in folder.row_groups() if ref.group == group]
        if not rows:
            assert refs == []
            continue
        read, error = outcome(folder, refs[0])
        if read is None:
            assert error.startswith(f"{folder.path / FILE}, row group {group}: ")
            assert "\n" not in error
            lists_are_numbers = all(
                pa.types.is_integer(kind) or (pa.types.is_floating(kind) and name == "expressions")
                for name in ("genes", "expressions")
                for kind in [table.schema.field(name).type.value_type]
            )
            is_text = not pa.types.is_list(table.schema.field("drug").type)
            assert truth is None or not lists_are_numbers or not is_text, error
            continue
        assert truth is not None
        bounds = read.indptr.tolist()
        got = [
            (read.gene_index[start:stop].tolist(), read.counts[start:stop].tolist(), drug, name)
            for start, stop, drug, name in zip(
                bounds[:-1], bounds[1:], read.conditions["drug"].tolist(), read.cell_ids.tolist(), strict=True
            )
        ]
        assert got == truth


@SETTINGS
@given(data=st.data())
def test_flipped_bytes_of_a_file_without_hashes_are_cells_or_an_error(data, tmp_path):
    """Nothing but what must hold of cells stands between the decoder and the model here."""
    folder = parquet_shard(tmp_path / "s", cells([[3, 4], [5], []] * 4, [[1.0, 2.0], [7.0], []] * 4), row_group_size=5)
    path = folder.path / FILE
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    shutil.rmtree(tmp_path / "t", ignore_errors=True)
    # Footers are remembered by path and size: each example has its own.
    other = tmp_path / f"t{abs(hash(bytes(content)))}"
    shutil.copytree(folder.path, other)
    (other / FILE).write_bytes(content)
    for ref in ShardFolder.open(other).row_groups():
        read, error = outcome(ShardFolder.open(other), ref)
        if read is None:
            assert f"row group {ref.group}: " in error
            continue
        assert len(read.indptr) == ref.rows + 1
        assert read.counts.min(initial=1) >= 1
        assert ((read.gene_index >= 0) & (read.gene_index < NUM_GENES)).all()
    shutil.rmtree(other)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        st.sampled_from([2**31, 2**63, 10**30, -1, 0.5, 1e308]),
        st.text(max_size=4),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)
NAMES = [
    "../a.parquet",
    "/etc/passwd",
    "x/../../a.parquet",
    "",
    ".",
    "..",
    "a\0b",
    "a" * 300,
    "\ud800",
    "none.parquet",
    "s/",
    "~",
]


def places(value, path=()):
    """The paths of all that is in a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = parquet_shard(tmp_path_factory.mktemp("fuzz") / "s", cells([[3, 4], [5], []], [[1.0, 2.0], [7.0], []]))
    stored = json.loads((folder.path / "manifest.json").read_text())
    del stored["digest"]  # which would tell of every change
    stored["shards"][0] |= {"hashes": ["0" * 32] * 2, "heldout": ["40"]}
    stored["lookups"] = {"dose": {"column": "drug", "values": {"a": "1 uM"}}}
    stored["conditions"]["dose"] = ["1 uM"]
    stored["sources"] = [{"file": "a.h5ad", "cells": 3}]
    (folder.path / "good.json").write_text(json.dumps(stored))
    return folder.path


@SETTINGS
@given(data=st.data())
def test_any_json_is_a_manifest_or_an_error(data, good):
    stored = json.loads((good / "good.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in places(stored) if path]))
        holder = stored
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = data.draw(st.one_of(JSON, st.sampled_from(NAMES)))
    (good / "manifest.json").write_text(json.dumps(stored))
    message = "none"
    try:
        folder = ShardFolder.open(good, verify=data.draw(st.booleans()))
        assert len(folder.digest) == 64
        for shard in folder.manifest.shards:
            assert folder.location(shard.file).resolve().is_relative_to(good.resolve())
        for split in folder.splits:
            for ref in folder.row_groups(split):
                assert len(folder.read(ref).cell_ids) == ref.rows
    except UserError as error:
        message = str(error)
    assert 1 <= len(message.splitlines()) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder_or_are_none_are_refused(good, name):
    stored = json.loads((good / "good.json").read_text())
    stored["shards"][0]["file"] = name
    (good / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"manifest\.json is damaged|is missing, though"):
        ShardFolder.open(good)


@pytest.mark.parametrize(
    "change",
    [
        {"hashes": ["xy" * 16] * 2},
        {"hashes": ["0" * 32]}, {"hashes": [1, 2]}, {"heldout": ["4"]}, {"heldout": ["zz"]},
        {"heldout": ["4040"]}, {"heldout": ["40", "40"]}, {"row_groups": [-3]}, {"row_groups": [3.0]},
        {"row_groups": [2**26 + 1]}, {"row_groups": [True]}, {"row_groups": "3"}, {"row_groups": 3}, {"bytes": -1},
        {"bytes": "9"}, {"bytes": None},
        {"split": ""}, {"split": None}, {"rows": 3}, {"hashes": None},
    ],
    ids=str,
)  # fmt: skip
def test_entries_that_cannot_be_are_told_of_their_file(good, change):
    stored = json.loads((good / "good.json").read_text())
    stored["shards"][0] |= change
    (good / "manifest.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(wrong (\w+ of a\.parquet|entry: 'rows')"):
        ShardFolder.open(good)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"format": "mdsc-shards"', "\ufeff{}", "NaN", '"x"', "1" * 5000, '{"a": ' * 9000],
    ids=lambda text: text[:9],
)
def test_texts_that_are_no_json_are_told(good, text):
    (good / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardFolder.open(good)
    (good / "manifest.json").write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardFolder.open(good)


def test_a_file_that_is_listed_twice_and_a_root_that_is_not_absolute_are_told(good):
    stored = json.loads((good / "good.json").read_text())
    for change in ({"shards": stored["shards"] * 2}, {"root": "../.."}, {"conditions": {"drug": "ab"}}):
        (good / "manifest.json").write_text(json.dumps(copy.deepcopy(stored) | change))
        with pytest.raises(UserError, match=r"manifest\.json is damaged \(wrong"):
            ShardFolder.open(good)
