"""A command that was killed goes on where it was, to the bit; and what else can go wrong on the way to a file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pytest
from shared_data import ROOT
from simulated_shards import simulated_counts
from test_sample_command import GENES, cells, dense, layers, same_bits
from tiny_checkpoint import save_tiny_checkpoint

from mdsc.cli import main
from mdsc.sampling import finished_cells
from mdsc.sampling.filled_layers import Portion
from mdsc.sampling.finished_cells import FinishedCells

FLAGS = ("--num-steps", "3", "--batch-size", "4", "--num-draws", "2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("runs") / "a", GENES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Cells in a file, and portions that are saved at once."""
    cells(19).write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(finished_cells, "SECONDS", 0.0)
    return tmp_path


def command(checkpoint: Path, folder: Path, *flags: str, output: str = "filled.h5ad") -> list[str]:
    files = ["--checkpoint", str(checkpoint), "--input", str(folder / "cells.h5ad"), "--output", str(folder / output)]
    return ["sample", *files, "--mask-ratio", "0.8", *FLAGS, *flags]


def stop_after(monkeypatch, number: int, error: BaseException) -> None:
    """The first command fails once so many portions are saved."""
    saved = FinishedCells._save

    def save(self) -> None:
        saved(self)
        if len(self._saved) == number:
            monkeypatch.setattr(FinishedCells, "_save", saved)
            raise error

    monkeypatch.setattr(FinishedCells, "_save", save)


def assert_same(one: Path, other: Path) -> None:
    first, second = anndata.read_h5ad(one), anndata.read_h5ad(other)
    assert list(first.layers) == list(second.layers)
    for name in first.layers:
        assert same_bits(first.layers[name], second.layers[name]), name
    assert first.uns["mdsc"]["mean_left_out"] == second.uns["mdsc"]["mean_left_out"]


def test_a_killed_command_goes_on_to_the_same_bits(checkpoint: Path, folder: Path, capsys):
    """kill -9 in a process of its own, as soon as some portions are there."""
    parts = folder / ".filled.h5ad.parts"
    code = (
        "import sys, time; from mdsc.cli import main; from mdsc.sampling import finished_cells as f\n"
        "f.SECONDS = 0.0; add = f.FinishedCells.add\n"
        "f.FinishedCells.add = lambda self, portion: (add(self, portion), time.sleep(0.5))\n"
        f"main({command(checkpoint, folder)!r})"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.DEVNULL)
    while not list(parts.glob("*-000000008.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "filled.h5ad").exists()

    assert main(command(checkpoint, folder)) == 0
    said = capsys.readouterr().out
    assert "going on after" in said
    assert not parts.exists()
    assert main(command(checkpoint, folder, output="unbroken.h5ad")) == 0
    assert "going on after" not in capsys.readouterr().out
    assert_same(folder / "filled.h5ad", folder / "unbroken.h5ad")


def test_only_what_is_missing_is_computed(checkpoint: Path, folder: Path, monkeypatch, capsys):
    stop_after(monkeypatch, 3, KeyboardInterrupt())
    assert main(command(checkpoint, folder)) == 130
    assert "interrupted; 12 cells are kept" in capsys.readouterr().err
    firsts = []
    add = FinishedCells.add
    monkeypatch.setattr(FinishedCells, "add", lambda self, portion: (firsts.append(self.num_cells), add(self, portion)))
    assert main(command(checkpoint, folder)) == 0
    assert firsts == [12, 16]
    assert "going on after 12 cells" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["seed", "steps", "draws", "weights", "cells", "batch"])
def test_another_task_begins_anew(checkpoint: Path, folder: Path, monkeypatch, capsys, change: str):
    stop_after(monkeypatch, 2, KeyboardInterrupt())
    main(command(checkpoint, folder))
    flags = {
        "seed": ("--seed", "1"), "steps": ("--num-steps", "2"), "draws": ("--num-draws", "1"),
        "batch": ("--batch-size", "5"),
    }.get(change, ())  # fmt: skip
    if change == "weights":
        checkpoint = save_tiny_checkpoint(folder / "other", GENES, tokenizer="count")
    if change == "cells":
        cells(19, seed=1).write_h5ad(folder / "cells.h5ad")
    capsys.readouterr()
    assert main(command(checkpoint, folder, *flags)) == 0
    said = capsys.readouterr().out
    assert "with other options, cells or weights: beginning anew" in said
    assert "going on" not in said
    assert main(command(checkpoint, folder, *flags, output="unbroken.h5ad")) == 0
    assert_same(folder / "filled.h5ad", folder / "unbroken.h5ad")


def test_a_part_that_is_missing_is_computed_again(checkpoint: Path, folder: Path, monkeypatch, capsys):
    stop_after(monkeypatch, 4, KeyboardInterrupt())
    main(command(checkpoint, folder))
    sorted((folder / ".filled.h5ad.parts").glob("*.safetensors"))[1].unlink()
    assert main(command(checkpoint, folder)) == 0
    assert "going on after 4 cells" in capsys.readouterr().out
    assert main(command(checkpoint, folder, output="unbroken.h5ad")) == 0
    assert_same(folder / "filled.h5ad", folder / "unbroken.h5ad")


def test_generation_goes_on(checkpoint: Path, folder: Path, monkeypatch, capsys):
    def generate(output: str) -> list[str]:
        flags = ["--num-cells", "18", "--condition", "drug=Imatinib", "--num-steps", "3", "--batch-size", "4"]
        return ["sample", "--checkpoint", str(checkpoint), "--output", str(folder / output), *flags]

    stop_after(monkeypatch, 2, KeyboardInterrupt())
    assert main(generate("made.h5ad")) == 130
    assert main(generate("made.h5ad")) == 0
    assert "going on after 8 cells" in capsys.readouterr().out
    assert main(generate("unbroken.h5ad")) == 0
    one, other = (anndata.read_h5ad(folder / name) for name in ("made.h5ad", "unbroken.h5ad"))
    assert same_bits(one.X, other.X)
    assert one.obs_names.tolist() == [f"generated_{row}" for row in range(18)]
    assert (one.obs["drug"] == "Imatinib").all()


def test_a_full_disk_is_told_and_what_is_done_is_kept(checkpoint: Path, folder: Path, monkeypatch, capsys):
    stop_after(monkeypatch, 3, OSError(28, "No space left on device"))
    assert main(command(checkpoint, folder)) == 2
    error = capsys.readouterr().err
    assert f"--output: {folder / 'filled.h5ad'} cannot be written: No space left on device." in error
    assert error.count("\n") == 2
    assert main(command(checkpoint, folder)) == 0
    assert "going on after 12 cells" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("Can't write data (No space left)"), RuntimeError("Can't decrement id")])
def test_a_disk_that_fills_while_the_output_is_written(checkpoint: Path, folder: Path, monkeypatch, capsys, error):
    """HDF5 tells it in one of these two ways."""
    with monkeypatch.context() as patched:
        patched.setattr("mdsc.data.h5ad_writer.GrowingCsr.append", lambda self, rows: raise_(error))
        assert main(command(checkpoint, folder)) == 2
    assert f"filled.h5ad cannot be written: {error}" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [".filled.h5ad.parts", "cells.h5ad"]
    assert main(command(checkpoint, folder)) == 0
    assert "going on after 19 cells" in capsys.readouterr().out


def raise_(error: Exception) -> None:
    raise error


def test_too_little_memory_is_told(checkpoint: Path, folder: Path, monkeypatch, capsys):
    stop_after(monkeypatch, 2, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert main(command(checkpoint, folder)) == 2
    assert "Give a smaller --max-memory, --genes-per-pass or --batch-size" in capsys.readouterr().err


def test_no_room_for_the_copy_is_told_before_the_work(checkpoint: Path, folder: Path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert main(command(checkpoint, folder)) == 2
    assert "filled.h5ad: it takes some 0.0 MB, and there are 0.0 MB left" in capsys.readouterr().err


def test_two_commands_do_not_write_one_output(checkpoint: Path, folder: Path, capsys):
    from mdsc.atomic import alone

    with alone(folder / "filled.h5ad"):
        assert main(command(checkpoint, folder)) == 2
    assert "is being written by another command" in capsys.readouterr().err


def test_a_fault_in_a_later_cell_leaves_nothing(checkpoint: Path, folder: Path, monkeypatch, capsys):
    adata = cells(20)
    adata.X = adata.X.astype(np.float32)
    adata.X.data[-1] = 0.5
    adata.write_h5ad(folder / "cells.h5ad")
    monkeypatch.setattr("mdsc.data.anndata_counts.SAMPLE_ENTRIES", 1)  # what is looked at before the first cell
    monkeypatch.setattr("mdsc.sampling.anndata_inpainting.READ_POSITIONS", 1)
    assert main(command(checkpoint, folder)) == 2
    assert "first in cell 'cell 19'" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["cells.h5ad"]


def test_an_output_that_is_there_is_replaced_at_the_end(checkpoint: Path, folder: Path, capsys):
    (folder / "filled.h5ad").write_text("before")
    assert main(command(checkpoint, folder, "--condition", "drug=none of these")) == 2
    assert "will be replaced" not in capsys.readouterr().out
    assert (folder / "filled.h5ad").read_text() == "before"
    assert main(command(checkpoint, folder)) == 0
    assert "is there already: it will be replaced" in capsys.readouterr().out
    assert set(layers(anndata.read_h5ad(folder / "filled.h5ad"))) == {"sampled", "mean", "hidden"}


def test_parts_are_whole_cells_in_order(tmp_path: Path, monkeypatch):
    """Sparse and dense layers, saved in parts of any size."""
    counts = simulated_counts(10, 6, mean=2.0)
    monkeypatch.setattr(finished_cells, "MAX_BYTES", 400)
    try:
        with FinishedCells(tmp_path / "a.h5ad", "digest", 6, print) as finished:
            for row in range(10):
                some = counts[row]
                portion = Portion({"X": some, "mean": some.toarray() * 0.5}, np.array([1, row, 2, 3.0]))
                finished.add(portion)
            raise OSError
    except OSError:
        assert 1 < len(list((tmp_path / ".a.h5ad.parts").glob("*.safetensors"))) < 10
    with FinishedCells(tmp_path / "a.h5ad", "digest", 6, print) as again:
        whole = np.concatenate([dense(part.layers["X"]) for part in again])
        assert len(whole) == again.num_cells > 5
        assert np.array_equal(whole, counts.toarray()[: len(whole)])
        assert np.array_equal(np.concatenate([part.layers["mean"] for part in again]), whole * 0.5)
        assert again.totals.tolist()[:2] == [len(whole), sum(range(len(whole)))]
    assert not list(tmp_path.iterdir())
