"""The command `mdsc`: lazy sub-commands, exit codes, and messages without tracebacks."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import mdsc
from mdsc.cli import COMMANDS, exit_with, main
from mdsc.errors import UserError
from mdsc.model.attention import ATTENTION_FUNCTIONS, BACKENDS
from mdsc.model.attention_trial import AttentionTrial

ROOT = Path(mdsc.__file__).parent.parent


def test_help_lists_every_command_without_importing_torch():
    code = "import sys; from mdsc.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"mdsc {name} " in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        pytest.param(["trian"], "perhaps you meant `mdsc train`", id="near"),
        pytest.param(["xyzzy"], "`mdsc --help`", id="far"),
        pytest.param(["prepare", "demmo"], "perhaps you meant `mdsc prepare demo`", id="near-in-group"),
        pytest.param(["prepare", "--x"], "prepare h5ad, prepare tahoe, prepare demo", id="far-in-group"),
        pytest.param(["doctor", "--now"], "takes no options", id="unwanted-option"),
    ],
)
def test_an_unknown_command_is_a_message_and_exit_code_2(capsys, argv: list[str], words: str):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error


def test_a_group_alone_lists_its_commands(capsys):
    assert main(["prepare"]) == 0
    assert "mdsc prepare h5ad" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mdsc {mdsc.__version__}"


def test_arguments_reach_the_sub_command(monkeypatch):
    got = []
    module = type("Module", (), {"main": staticmethod(got.append)})
    monkeypatch.setattr(importlib, "import_module", lambda name: module if name == "mdsc.prep.demo" else None)
    monkeypatch.setattr(sys, "argv", ["mdsc"])
    assert main(["prepare", "demo", "--output-dir", "x"]) == 0
    assert got == [["--output-dir", "x"]]


def fail(error: BaseException):
    raise error


@pytest.mark.parametrize(
    ("action", "code"),
    [
        pytest.param(lambda: None, 0, id="well"),
        pytest.param(lambda: fail(UserError("no such file")), 2, id="user-error"),
        pytest.param(lambda: fail(KeyboardInterrupt()), 130, id="interrupted"),
        pytest.param(lambda: sys.exit(2), 2, id="tyro"),
        pytest.param(lambda: sys.exit(), 0, id="tyro-help"),
    ],
)
def test_exit_with_maps_outcomes_to_exit_codes(action, code: int):
    with pytest.raises(SystemExit) as stop:
        exit_with(action)
    assert stop.value.code == code


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (lambda: Path(__file__, "x").write_text(""), f"error: {__file__}/x: this is a file, and no folder"),
        (lambda: Path(__file__).mkdir(), f"error: {__file__}: this is a file, and no folder"),
        (lambda: Path("/none/.a.12.partial.h5ad").touch(), "error: /none/a.h5ad: No such file or directory"),
        (lambda: fail(OSError("name = '/x/.s.parts/.b.3.partial.h5'\nmore")), "error: name = '/x/s/b.h5'"),
        (lambda: fail(OSError(28, "No space left on device")), "error: No space left on device"),
        (lambda: fail(PermissionError(13, "Permission denied", "x/.s.2.unfinished-0ab/y")), "x/s.2/y: Permission"),
        (lambda: fail(BrokenPipeError(32, "Broken pipe")), "error: Broken pipe"),  # not that of stdout
        (lambda: fail(KeyboardInterrupt("it goes on")), "interrupted; it goes on"),
    ],
)
def test_what_the_system_refuses_is_a_message_that_names_the_place(capsys, action, told):
    with pytest.raises(SystemExit) as stop:
        exit_with(action)
    assert stop.value.code in (2, 130)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flags", [["--help"], ["sample", "--help"]])
def test_a_reader_who_has_seen_enough_is_no_error(flags: list[str], unbuffered: str):
    code = f"import sys; sys.stdin.read(); from mdsc.cli import main; sys.exit(main({flags}))"
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as run:
        run.stdout.close()
        run.stdin.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_with(lambda: fail(ZeroDivisionError()))


def test_every_package_is_in_the_wheel():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "mdsc").rglob("__init__.py")}
    assert listed == found | {"mdsc.configs"}


def test_doctor_prints_a_row_for_each_attention(capsys):
    with torch.compiler.set_stance("force_eager"):  # else flex_attention is compiled for half a minute
        assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("torch", "cpu", *BACKENDS):
        assert name in text


@pytest.fixture(scope="module")
def trial() -> AttentionTrial:
    return AttentionTrial(torch.device("cpu"), torch.float32, cells=2, genes=9, width=16)


@pytest.mark.parametrize("name", ["sdpa", "sdpa_flash", "sdpa_math", "eager"])
def test_plain_attention_works_everywhere(trial: AttentionTrial, name: str):
    found = trial.run(name)
    assert found.verdict == "works"
    assert max(found.error, found.gradient_error) < 1e-5
    assert found.seconds > 0


def test_a_wrong_attention_is_found_out(trial: AttentionTrial, monkeypatch):
    monkeypatch.setitem(ATTENTION_FUNCTIONS, "sdpa", lambda module, q, k, v, *_, **__: (0 * v.transpose(1, 2), None))
    assert trial.run("sdpa").verdict.startswith("wrong")


def test_an_attention_that_fails_tells_why(trial: AttentionTrial, monkeypatch):
    monkeypatch.setitem(ATTENTION_FUNCTIONS, "sdpa", lambda *_, **__: 1 / 0)
    assert trial.run("sdpa").verdict == "no: division by zero"
