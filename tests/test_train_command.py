"""`mdsc train` and train.py: a whole run folder, the defaults it took, any number of processes, a user's mistakes."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.sparse as sp
from simulated_shards import simulated_counts, write_shards
from tiny_run import NUM_GENES, flags, tiny_config, tiny_shards

import mdsc
from mdsc.checkpoint import load_checkpoint
from mdsc.cli import main
from mdsc.config.schema import DataConfig, TrackingConfig, TrainConfig
from mdsc.data.folds import NUM_FOLDS
from mdsc.data.genes import GeneStatistics
from mdsc.data.validation_split import split_rows
from mdsc.errors import UserError
from mdsc.training.command import _prepare_embedded_cells, defaults_taken
from mdsc.training.cpu_processes import asked_for
from mdsc.training.progress import RunProgress
from mdsc.training.resume import SavedState
from mdsc.training.sharding import make_accelerator
from mdsc.training.tracking import Tracker, read_metrics

ROOT = Path(mdsc.__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    tiny_shards(folder)
    return folder


def test_a_run_leaves_checkpoint_metrics_and_picture(folder: Path, capsys):
    config = tiny_config(folder, max_steps=4, pathway_steps=2)
    assert main(["train", *flags(config), "--data.condition-columns", "drug"]) == 0
    run = Path(config.output_dir)
    assert {path.name for path in run.iterdir()} == {
        "config.json", "model.safetensors", "genes.parquet", "tokenizer.json", "training.yaml",
        "metrics.jsonl", "run.json", "loss.png", "state",
    }  # fmt: skip
    for line in (run / "metrics.jsonl").read_text().splitlines():
        numbers = json.loads(line, parse_constant=pytest.fail)
        assert all(math.isfinite(number) for number in numbers.values())
    assert {"loss", "nll", "ordinal", "grad_norm", "learning_rate", "cells_per_second"} <= read_metrics(run)[1].keys()
    checkpoint = load_checkpoint(run)
    assert checkpoint.config.train.max_steps == 4
    assert checkpoint.model.config.condition_levels == {"drug": ["drug 0", "drug 1", "drug 2"]}
    said = capsys.readouterr().out
    assert "--config is not given: taking" in said
    assert "step 4/4" in said


def test_validation_cells_leave_no_trace_in_a_checkpoint(tmp_path: Path):
    """Other counts in these cells, and all else the same: neither weights nor tokenizer change by a bit.

    But for which genes are drawn: detection rates are those of the whole split "train".
    """
    counts, found = simulated_counts(240, NUM_GENES, mean=2.0).toarray(), []
    for name in ("clean", "spoiled"):
        (tmp_path / name).mkdir()
        folder = write_shards(tmp_path / name / "shards", sp.csr_matrix(counts))
        clean = GeneStatistics.load(tmp_path / "clean" / "shards")
        folder.vocabulary.save(folder.path, replace(folder.statistics, detection_rate=clean.detection_rate))
        config = tiny_config(tmp_path / name, max_steps=2)
        assert main(["train", *flags(config)]) == 0
        files = (Path(config.output_dir) / file for file in ("model.safetensors", "tokenizer.json"))
        found.append([file.read_bytes() for file in files])
        validation = split_rows(folder.row_groups("train")[0], config.data.validation_fraction)[1]
        counts[validation] = 3 * counts[validation][:, ::-1] + 1
    assert found[0] == found[1]


@pytest.mark.parametrize("cross_fit", [True, False])
def test_cells_are_read_without_their_folds_where_a_run_asks_for_it(folder: Path, monkeypatch, cross_fit: bool):
    models = []

    def stop(config, accelerator, model, *_, **__):
        models.append(model)
        raise UserError("stop")

    monkeypatch.setattr("mdsc.training.command.Trainer", stop)
    flag = "--model.cross-fit" if cross_fit else "--model.no-cross-fit"
    assert main(["train", *flags(tiny_config(folder)), flag]) == 2
    assert len(models[0].gene_evidence.fold_loadings) == (NUM_FOLDS if cross_fit else 0)


def test_defaults_that_were_taken_are_said():
    assert len(list(defaults_taken(TrainConfig(), []))) == 3
    config = TrainConfig(data=DataConfig(dir="x"), output_dir="y")
    assert list(defaults_taken(config, ["--config=z"])) == []
    # What is given is no default, even where it equals one.
    given = ["--config", "z", "--data.dir", "data/demo/shards", "--output_dir=runs/demo"]
    assert list(defaults_taken(TrainConfig(), given)) == []


def test_embedded_cells_are_prepared_where_they_are_missing(tmp_path: Path, monkeypatch):
    made = []
    module = type(sys)("mdsc.prep.demo")
    module.DemoConfig, module.prepare_demo = dict, made.append
    monkeypatch.setitem(sys.modules, "mdsc.prep.demo", module)
    monkeypatch.chdir(tmp_path)
    arguments = (make_accelerator(), RunProgress(1, show=False))
    _prepare_embedded_cells(TrainConfig(data=DataConfig(dir="elsewhere")), *arguments)
    assert made == []
    _prepare_embedded_cells(TrainConfig(), *arguments)
    assert made == [{"output_dir": Path("data/demo")}]
    Path(DataConfig().dir).mkdir(parents=True)
    _prepare_embedded_cells(TrainConfig(), *arguments)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--data.dir", "nowhere"], "nowhere", id="no-shards"),
        pytest.param(["--data.dir", "x", "--output-dir", "x/y/.."], "is the folder of shards", id="run-among-shards"),
        pytest.param(["--output-dir", __file__], "is a file; give a folder", id="run-is-a-file"),
        pytest.param(["--train.global-batch-size", "6"], "--data.num-lanes", id="lanes"),
        pytest.param(["--train.batch-size", "5"], "--train.batch-size 5", id="accumulation"),
        pytest.param(["--train.batch-size", "0"], "--train.batch-size is 0", id="no cells"),
        pytest.param(["--output-dir", ""], "--output-dir is empty", id="no folder"),
        pytest.param(["--train.log-every", "0"], "--train.log-every is 0; give 1 or more", id="never"),
        pytest.param(["--model.state-dropout", "1.5"], "--model.state-dropout is 1.5", id="state-dropout"),
        pytest.param(["--model.factor-size", "-1"], "--model.factor-size is -1", id="factors"),
        pytest.param(["--model.mlp-ratio", "0"], "--model.mlp-ratio is 0", id="mlp"),
        pytest.param(["--train.gene-weight-decay", "-1"], "--train.gene-weight-decay is -1", id="decay"),
        pytest.param(["--train.pathway-learning-rate", "0"], "--train.pathway-learning-rate is 0", id="pathway-rate"),
        pytest.param(["--train.learning-rate", "-1"], "--train.learning-rate is -1.0", id="negative"),
        pytest.param(["--validation.mask-ratios", "0.5", "1.5"], "--validation.mask-ratios is 1.5", id="ratio"),
        pytest.param(["--validation.mask-ratios"], "--validation.mask-ratios is empty", id="no-ratio"),
        pytest.param(["--model.num-heads", "3"], "--model.hidden-size 16", id="heads"),
        pytest.param(["--data.validation-fraction", "0"], "--data.validation-fraction", id="no-validation"),
        pytest.param(["--data.condition-columns", "donor"], "donor", id="no-column"),
        pytest.param(["--tokenizer.num-tokens", "1"], "num_tokens", id="tokens"),
        pytest.param(["--model.hidden-dim", "3"], "--model.hidden-size", id="unknown-option"),
    ],
)
def test_mistakes_are_messages_and_leave_nothing(folder: Path, tmp_path: Path, capsys, arguments, words: str):
    config = tiny_config(folder)
    assert main(["train", *flags(config), "--output-dir", str(tmp_path / "run"), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_file_is_told(tmp_path: Path, capsys):
    (tmp_path / "run.yaml").write_text("train:\n  steps: 3\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "run.yaml, line 2: there is no option train.steps" in capsys.readouterr().err


def test_wandb_that_is_not_installed_is_told_before_training(folder: Path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", *flags(tiny_config(folder)), "--tracking.wandb"]) == 2
    assert "pip install 'mdsc[wandb]'" in capsys.readouterr().err


def test_wandb_that_lets_nobody_in_is_told_in_two_lines(tmp_path: Path, monkeypatch):
    wandb = type(sys)("wandb")
    wandb.Error = type("Error", (Exception,), {})

    def init(**options):
        raise wandb.Error("No API key configured.\nMore of it.")

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = TrainConfig(output_dir=str(tmp_path / "run"), tracking=TrackingConfig(wandb=True))
    with pytest.raises(UserError, match=r"^--tracking\.wandb: No API key configured\.\nLog in .* WANDB_MODE=offline"):
        Tracker(config)


def test_wandb_gets_the_same_numbers(tmp_path: Path, monkeypatch):
    logged = []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self, exit_code):
            logged.append(exit_code)

    wandb = type(sys)("wandb")
    wandb.init = lambda **options: logged.append(options["project"]) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = TrainConfig(output_dir=str(tmp_path / "run"))
    config = type(config)(output_dir=config.output_dir, tracking=type(config.tracking)(wandb=True, project="cells"))
    with Tracker(config) as tracker:
        tracker.log(3, {"loss": 1.0})
    assert logged == ["cells", (3, {"loss": 1.0}), 0]


def test_a_resumed_run_goes_on_at_wandb(tmp_path: Path, monkeypatch):
    asked = []

    class Run:
        id = "abc"

        def finish(self, exit_code):
            pass

    wandb = type(sys)("wandb")
    wandb.init = lambda **options: asked.append((options.get("id"), options.get("resume"))) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = TrainConfig(output_dir=str(tmp_path / "run"), tracking=TrackingConfig(wandb=True))
    with Tracker(config) as tracker:
        assert tracker.wandb_run == "abc"
    state = SavedState(tmp_path / "run" / "state" / "step-00000001", {"step": 1, "wandb_run": "abc"}, {})
    with Tracker(config, state):
        pass
    assert asked == [(None, None), ("abc", "allow")]


def test_a_number_that_is_not_finite_is_null(tmp_path: Path):
    with Tracker(TrainConfig(output_dir=str(tmp_path))) as tracker:
        tracker.log(1, {"loss": math.nan, "grad_norm": math.inf, "nll": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "nll": 0.5}]


def test_a_failed_run_closes_its_tracker(folder: Path, monkeypatch):
    monkeypatch.setattr("mdsc.training.trainer.Trainer.step", lambda *_: (_ for _ in ()).throw(UserError("stop")))
    assert main(["train", *flags(tiny_config(folder))]) == 2


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (["python", "accelerate", "launch", "--cpu", "--num_processes", "2", "train.py"], 2),
        (["python", "accelerate", "launch", "--num-processes=3", "train.py"], 3),
        (["python", "accelerate", "launch", "train.py"], 1),
        (["bash", "-c", "python train.py --num_processes 2"], 1),
    ],
)
def test_the_number_of_processes_that_accelerate_was_asked_for(launcher: list[str], expected: int):
    assert asked_for(launcher) == expected


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(folder: Path):
    """The command as a user types it, accumulating on top; both phases of training; twenty steps."""
    config = tiny_config(folder, max_steps=20, pathway_steps=7)
    one, two = str(folder / "one"), str(folder / "two")
    assert main(["train", *flags(config), "--output-dir", one]) == 0
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    command = [sys.executable, *launch, str(ROOT / "train.py"), *flags(config), "--output-dir", two]
    command += ["--train.batch-size", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout
    pairs = [pair for pair in zip(read_metrics(one), read_metrics(two), strict=True) if "loss" in pair[0]]
    assert len(pairs) == 20
    for mine, theirs in pairs:
        for name in ("loss", "nll", "ordinal", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), (mine["step"], name)
