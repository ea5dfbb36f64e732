"""Shards that nobody should write: each is told by file, row group and column, or read for what it says."""

import decimal
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_shards import FILE, NUM_GENES, cells, described, parquet_shard

from mdsc.config.schema import DataConfig
from mdsc.data.loader import CellLoader
from mdsc.data.row_group_checks import cell_entries
from mdsc.data.shard_file import DamagedFile
from mdsc.data.shards import CorruptRowGroup
from mdsc.data.tokenizers import CLASSES, make_tokenizer

GENES, COUNTS = [[3, 4], [5], []], [[1.0, 2.0], [7.0], []]


def of(values, kind) -> pa.Array:
    return pa.array(values, pa.list_(kind))


def fails(tmp_path, table, told, **options) -> None:
    folder = parquet_shard(tmp_path / "s", table, **options)
    with pytest.raises(CorruptRowGroup) as error:
        folder.read(folder.row_groups()[0])
    message = str(error.value)
    assert message.startswith(f"{folder.path / FILE}, row group 0: ")
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["genes", "expressions", "cell_id", "drug"])
def test_a_missing_column_is_told(tmp_path, name):
    fails(tmp_path, cells(GENES, COUNTS, **{name: None}), f"there is no column {name}")


def test_a_column_that_is_there_twice_is_told(tmp_path):
    table = cells(GENES, COUNTS)
    fails(tmp_path, table.append_column("genes", table["genes"]), "there are 2 columns genes")


STRUCT = pa.array([[{"a": 1}, {"a": 2}], [{"a": 1}], []], pa.list_(pa.struct([("a", pa.int64())])))
WRONG = {
    "strings": of([["3", "4"], ["5"], []], pa.string()),
    "bools": of([[True, False], [True], []], pa.bool_()),
    "list-of-lists": of([[[3], [4]], [[5]], []], pa.list_(pa.int64())),
    "structs": STRUCT,
    "decimals": of([[decimal.Decimal(3), decimal.Decimal(4)], [decimal.Decimal(5)], []], pa.decimal128(9, 2)),
    "fixed-size": pa.array([[3, 4], [5, 6], [7, 8]], pa.list_(pa.int64(), 2)),
    "dates": of([[3, 4], [5], []], pa.timestamp("s")),
    "nulls": of([[None, None], [None], []], pa.null()),
    "no-list": pa.array([3, 4, 5]),
    "bytes": pa.array([b"3", b"4", b"5"]),
    "map": pa.array([[(3, 4)], [(5, 6)], []], pa.map_(pa.int64(), pa.int64())),
    "dictionary": pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 3], pa.int32()), pa.array(["3", "4", "5"]).dictionary_encode()
    ),
}


@pytest.mark.parametrize("column", ["genes", "expressions"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_types_are_told(tmp_path, column, kind):
    fails(tmp_path, cells(GENES, COUNTS, **{column: WRONG[kind]}), f"column {column} is ")


def test_ids_of_fractions_are_told(tmp_path):
    fails(tmp_path, cells(GENES, COUNTS, genes=of(GENES, pa.float64())), "column genes is list<element: double>")


@pytest.mark.parametrize("column", ["genes", "expressions"])
@pytest.mark.parametrize("values", [[[3, None], [5], []], [[3, 4], [5], None]], ids=["entry", "row"])
def test_missing_values_are_told(tmp_path, column, values):
    fails(tmp_path, cells(GENES, COUNTS, **{column: of(values, pa.int64())}), f"column {column}: a value is missing")


@pytest.mark.parametrize(
    ("ids", "kind", "told"),
    [
        pytest.param([3, -1], pa.int64(), "not in genes.parquet (-1)", id="negative"),
        pytest.param([3, -9], pa.int8(), "not in genes.parquet (-9)", id="negative-of-the-table"),
        pytest.param([3, 15], pa.int64(), "not in genes.parquet (15)", id="one-too-many"),
        pytest.param([3, 2**31 + 5], pa.int64(), f"({2**31 + 5})", id="beyond-int32"),
        pytest.param([3, 2**32 + 4], pa.int64(), f"({2**32 + 4})", id="wraps-to-a-gene"),
        pytest.param([3, 2**63 + 4], pa.uint64(), f"({2**63 + 4})", id="beyond-int64"),
        pytest.param([3, 2**64 - 1], pa.uint64(), f"({2**64 - 1})", id="largest"),
        pytest.param([3, 0], pa.int64(), "id 0 is no gene", id="pad"),
        pytest.param([0, 3], pa.int64(), "id 0 is no gene", id="pad-first"),
        pytest.param([3, 1], pa.int64(), "id 1 is no gene", id="CLS-inside"),
        pytest.param([2, 3], pa.uint8(), "id 2 is no gene", id="end-first"),
        pytest.param([1, 1], pa.int64(), "id 1 is no gene", id="CLS-twice"),
    ],
)
@pytest.mark.parametrize("value", [1.0, -2.0])
def test_ids_that_are_no_genes_are_told(tmp_path, ids, kind, told, value):
    genes = of([[5], [], ids], kind)
    starts = [value if token < 3 else 1.0 for token in ids]
    # Counts are checked first: only the CLS entry's is negative, and only where it may stand.
    if value < 0 and any(token < 3 and (token, place) != (1, 0) for place, token in enumerate(ids)):
        told = "positive integers"
    fails(tmp_path, cells(genes, [[1.0], [], starts]), told)


def test_the_entry_that_starts_a_cell_of_tahoe_is_dropped_where_it_is_that(tmp_path):
    folder = parquet_shard(tmp_path / "s", cells([[1, 3], [1], [], [4]], [[-2, 5], [-2], [], [6]]))
    group = folder.read(folder.row_groups()[0])
    assert group.indptr.tolist() == [0, 1, 1, 1, 2]
    assert group.gene_index.tolist() == [0, 1]
    fails(tmp_path, cells([[1, 3], [4]], [[3, 5], [6]]), "id 1 is no gene")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("value", [-1, 0, 0.5, -0.0, np.nan, np.inf, -np.inf])
def test_values_that_are_no_counts_are_told(tmp_path, kind, value):
    counts = of([[1, 2], [np.float16(value)], []], kind)
    fails(tmp_path, cells(GENES, counts), "column expressions: not all values are positive integers")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (2**31, pa.int64()), (2**32 + 1, pa.int64()), (2**63 - 1, pa.int64()), (-(2**63), pa.int64()),
        (2**32 + 1, pa.uint64()), (2**64 - 1, pa.uint64()), (2**31, pa.uint32()), (2.0**31, pa.float32()),
        (2.0**32 + 1, pa.float64()), (1e300, pa.float64()), (1 + 2**-40, pa.float64()),
    ],
)  # fmt: skip
def test_values_beyond_int32_are_told(tmp_path, value, kind):
    fails(tmp_path, cells(GENES, of([[1, 2], [value], []], kind)), "not all values are positive integers")


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()],
    ids=str,
)
@pytest.mark.parametrize("lists", [pa.list_, pa.large_list])
def test_counts_and_ids_of_any_width_are_read(tmp_path, kind, lists):
    ids = pa.int16() if pa.types.is_floating(kind) else kind
    genes, counts = pa.array(GENES, lists(ids)), pa.array([[1, 2], [7], []], lists(kind))
    folder = parquet_shard(tmp_path / "s", cells(genes, counts))
    group = folder.read(folder.row_groups()[0])
    assert (group.counts.tolist(), group.gene_index.tolist()) == ([1, 2, 7], [0, 1, 2])
    assert group.indptr.tolist() == [0, 2, 3, 3]
    assert (group.counts.dtype, group.gene_index.dtype) == (np.int32, np.int32)


def test_the_largest_count_is_read(tmp_path):
    folder = parquet_shard(tmp_path / "s", cells([[3]], of([[2**31 - 1]], pa.int64())))
    assert folder.read(folder.row_groups()[0]).counts.tolist() == [2**31 - 1]


def test_lists_of_unequal_length_are_told(tmp_path):
    fails(tmp_path, cells(GENES, [[1.0], [7.0, 1.0], []]), "columns genes and expressions differ in length")


@pytest.mark.parametrize("rows", [[2], [4], [3, 1], [3_000_000]])
def test_rows_that_differ_from_the_manifest_are_told(tmp_path, rows):
    folder = parquet_shard(tmp_path / "s", cells(GENES, COUNTS), rows=rows)
    with pytest.raises(
        CorruptRowGroup, match=r"a\.parquet, row group \d: (it has 3 rows and should|the file has 1 row)"
    ):
        folder.read(folder.row_groups()[-1])


@pytest.mark.parametrize(
    ("column", "text"),
    [
        pytest.param(pa.array([1, 2, None]), ["1", "2", ""], id="ints"),
        pytest.param(pa.array([True, False, None]), ["true", "false", ""], id="bools"),
        pytest.param(pa.nulls(3), ["", "", ""], id="nothing"),
        pytest.param(pa.array(["a", None, "é"]).dictionary_encode(), ["a", "", "é"], id="dictionary"),
        pytest.param(pa.array([4, 5, None]).dictionary_encode(), ["4", "5", ""], id="dictionary-of-ints"),
        pytest.param(pa.array(["a", "b", None], pa.large_string()), ["a", "b", ""], id="large"),
        pytest.param(pa.array([b"a", b"\xc3\xa9", None]), ["a", "é", ""], id="bytes"),
        pytest.param(pa.array(["a\0b", "", "x" * 10_000]), ["a\0b", "", "x" * 10_000], id="odd-text"),
    ],
)
@pytest.mark.parametrize("name", ["drug", "cell_id"])
def test_text_columns_of_other_types_are_read_as_text(tmp_path, column, text, name):
    folder = parquet_shard(tmp_path / "s", cells(GENES, COUNTS, **{name: column}))
    group = folder.read(folder.row_groups()[0])
    assert (group.cell_ids if name == "cell_id" else group.conditions["drug"]).tolist() == text


@pytest.mark.parametrize(
    ("column", "told"),
    [
        pytest.param(of([["a"], [], []], pa.string()), "column drug is list<element: string>, not text", id="lists"),
        pytest.param(pa.array([{"a": "x"}] * 3), "column drug is struct<a: string>, not text", id="structs"),
        pytest.param(pa.array([b"\xff", b"a", b"b"]), "column drug is binary, not text", id="bytes"),
        pytest.param(
            pa.array([b"\xff\xfe", b"a", b"b"]).view(pa.string()), "column drug has text that is not UTF-8", id="latin"
        ),
    ],
)
def test_columns_that_are_no_text_are_told(tmp_path, column, told):
    fails(tmp_path, cells(GENES, COUNTS, drug=column), told)


def test_row_groups_and_files_without_rows(tmp_path):
    table = cells(GENES, COUNTS)
    (tmp_path / "s").mkdir()
    with pq.ParquetWriter(tmp_path / "s" / FILE, table.schema) as writer:
        for rows in (table, table.slice(0, 0), table):
            writer.write_table(rows)
    folder = described(tmp_path / "s")
    assert folder.manifest.shards[0].row_groups == (3, 0, 3)
    assert [(ref.group, ref.rows) for ref in folder.row_groups()] == [(0, 3), (2, 3)]
    assert [folder.read(ref).counts.sum() for ref in folder.row_groups()] == [10, 10]
    with pq.ParquetWriter(tmp_path / "s" / FILE, table.schema):
        pass
    folder = described(tmp_path / "s")
    assert folder.row_groups() == []
    assert folder.num_cells() == 0


def test_a_file_without_columns_is_told(tmp_path):
    fails(tmp_path, pa.table({"a": [1, 2]}).select([]), "a.parquet", rows=[2])


def test_a_file_that_is_written_anew_is_not_read_by_its_old_footer(tmp_path):
    """Footers are remembered; without a hash a new file of the same size would be read by the wrong one."""
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    one, other = cells([[3, 4], [5], []], [[1, 2], [7], []]), cells([[3], [5], [4]], [[1], [2], [7]])
    for number, table in enumerate((one, other, one)):
        folder = parquet_shard(tmp_path / "s", table.replace_schema_metadata({"x": "y"}), **options)
        path = folder.path / FILE
        os.utime(path, ns=(number * 10**9, number * 10**9))
        group = folder.read(folder.row_groups()[0])
        assert np.diff(group.indptr).tolist() == [len(row) for row in table["genes"].to_pylist()]


def test_offsets_beyond_32_bits():
    """Lists that start after 2^31 entries; the memory before them is never touched, and so never there."""
    first = 2**31 + 7
    ids, counts = np.zeros(first + 5, np.uint8), np.zeros(first + 5, np.uint8)
    ids[first:], counts[first:] = [3, 4, 3, 5, 6], [1, 2, 3, 4, 5]
    offsets = pa.array(np.array([0, 2, 2, 5]) + first, pa.int64())
    table = pa.table(
        {
            "genes": pa.LargeListArray.from_arrays(offsets, pa.array(ids)),
            "expressions": pa.LargeListArray.from_arrays(offsets, pa.array(counts)),
        }
    )
    table_of_genes = np.array([-1, -1, -1, 0, 1, 2, 3], dtype=np.int32)
    found, places, indptr = cell_entries(table, table_of_genes)
    assert (found.tolist(), places.tolist()) == ([1, 2, 3, 4, 5], [0, 1, 0, 2, 3])
    assert indptr.tolist() == [0, 2, 2, 5]
    # A row group of more entries than 32 bits can count comes as several chunks.
    chunks = pa.concat_tables([table, table.slice(1), table.slice(0, 0)])
    found, _, indptr = cell_entries(chunks, table_of_genes)
    assert found.tolist() == [1, 2, 3, 4, 5, 3, 4, 5]
    assert indptr.tolist() == [0, 2, 2, 5, 5, 8]
    with pytest.raises(DamagedFile, match=r"not in genes\.parquet \(6\)"):
        cell_entries(table, table_of_genes[:6])


@pytest.mark.parametrize("draw", ["detection", "expressed"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_cells_without_counts_are_cells(tmp_path, draw, name):
    """They are zeros of every gene drawn, or with only expressed genes drawn nothing but pads."""
    genes = [[3, 4], [], [], [], [], [5], [], []] * 8
    counts = [[1, 2], [], [], [], [], [3], [], []] * 8
    table = cells([[]] * 64, [[]] * 64) if name == "count" else cells(genes, counts)
    folder = parquet_shard(tmp_path / "s", table, row_group_size=16)
    from mdsc.data.genes import GeneStatistics

    rate = np.full(NUM_GENES, 0.1)
    folder.vocabulary.save(folder.path, GeneStatistics(rate, rate, rate))
    settings = DataConfig(num_genes=6, num_lanes=2, window=2, validation_fraction=0.0, gene_draw=draw, prefetch=0)
    loader = CellLoader(folder, make_tokenizer(name), settings, seed=0, global_batch_size=16)
    batches = loader.iterate()
    for _ in range(2 * loader.steps_per_epoch):
        batch = next(batches)
        empty = batch.counts.sum(dim=1) == 0
        assert empty.any()
        assert ((batch.tokens == 0) == ((batch.counts == 0) & ~batch.is_pad)).all()
        if draw == "expressed":
            assert batch.is_pad[empty].all()
        else:
            assert not batch.is_pad.any()
    batches.close()
