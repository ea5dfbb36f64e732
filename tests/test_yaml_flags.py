"""YAML files and flags are read by one parser: round trips are exact, mistakes name the file, the line and the key."""

import ast
import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tyro

import mdsc
from mdsc.config.flags import parse_flags
from mdsc.config.schema import DataConfig, ModelConfig, OptimConfig, TokenizerConfig, TrainConfig, ValidationConfig
from mdsc.config.shipped import shipped_config
from mdsc.config.yaml_flags import dump, parse
from mdsc.errors import UserError


def parse_text(tmp_path: Path, text: str, *flags: str) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse(TrainConfig, ["--config", str(path), *flags])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TrainConfig(), id="defaults"),
        pytest.param(TrainConfig(tokenizer=TokenizerConfig(num_tokens=51)), id="optional-given"),
        pytest.param(TrainConfig(tokenizer=TokenizerConfig(num_tokens=None)), id="none"),
        pytest.param(TrainConfig(seed=-3), id="negative"),
        pytest.param(TrainConfig(train=OptimConfig(learning_rate=3e-4, weight_decay=1e-12)), id="small-floats"),
        pytest.param(TrainConfig(train=OptimConfig(learning_rate=0.1 + 0.2, clip_norm=math.inf)), id="exact-floats"),
        pytest.param(TrainConfig(validation=ValidationConfig(mask_ratios=(-0.5, 1e-3))), id="tuple-of-floats"),
        pytest.param(TrainConfig(validation=ValidationConfig(mask_ratios=())), id="empty-tuple"),
        pytest.param(TrainConfig(data=DataConfig(condition_columns=("drug", "cell line", "3", "None"))), id="strings"),
        pytest.param(TrainConfig(data=DataConfig(dir="my data/à: b #1")), id="path-with-spaces"),
        pytest.param(TrainConfig(output_dir="-dash", data=DataConfig(dir="yes")), id="leading-dash-and-yaml-word"),
    ],
)
def test_dump_and_parse_give_the_config_back(tmp_path: Path, config: TrainConfig):
    assert parse_text(tmp_path, dump(config)) == config


def test_flags_override_the_file(tmp_path: Path):
    text = "train: {max_steps: 7, learning_rate: 3e-4}\nvalidation: {mask_ratios: [0.1, 0.9]}\ntracking: {wandb: true}"
    config = parse_text(tmp_path, text, "--train.max-steps", "9", "--validation.mask-ratios", "0.5")
    assert (config.train.max_steps, config.train.learning_rate) == (9, 3e-4)
    assert config.validation.mask_ratios == (0.5,)
    assert config.tracking.wandb
    assert not parse_text(tmp_path, text, "--tracking.no-wandb").tracking.wandb


def test_a_list_that_is_given_twice_adds_up(tmp_path: Path):
    flags = ["--validation.mask-ratios", "0.5", "--seed", "3", "--validation.mask_ratios=0.7"]
    config = parse_text(tmp_path, "validation: {mask_ratios: [0.1]}", *flags, "--data.condition-columns", "a", "b")
    assert (config.validation.mask_ratios, config.seed) == ((0.5, 0.7), 3)
    assert config.data.condition_columns == ("a", "b")


@pytest.mark.parametrize(
    "argv",
    [
        ["--names", "a", "b", "--out", "o", "--names", "c", "--by", "x", "1", "--by", "y", "2", "in"],
        ["in", "--names=a", "--by", "x", "1", "--names", "b", "c", "--out=o", "--by", "y", "2", "in"],
    ],
)
def test_lists_of_a_command_add_up(argv):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        names: tuple[str, ...] = ()
        by: typing.Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
        out: str

    config = parse_flags(Options, argv[1:] if argv[0] == "in" else argv, None)
    assert config == Options(names=("a", "b", "c"), by=(("x", "1"), ("y", "2", "in")), out="o")


def test_default_file_is_read_only_without_config(tmp_path: Path):
    default, given = tmp_path / "default.yaml", tmp_path / "given.yaml"
    default.write_text("seed: 1\noutput_dir: a")
    given.write_text("seed: 2")
    assert parse(TrainConfig, [], default_yaml=default).seed == 1
    config = parse(TrainConfig, [f"--config={given}"], default_yaml=default)
    assert (config.seed, config.output_dir) == (2, TrainConfig().output_dir)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("model: {hidden_dim: 3}", ["line 1", "model.hidden_dim", "meant model.hidden_size"], id="unknown"),
        pytest.param("modle: {}", ["no option modle", "meant model"], id="unknown-group"),
        pytest.param("xyzzy: 1", ["xyzzy", "output_dir"], id="unknown-without-a-near-one"),
        pytest.param("seed: 1\nseed: 2", ["line 2", "seed is given twice"], id="twice"),
        pytest.param(
            "model:\n  num_heads: 2\n  num_heads: 4", ["line 3", "model.num_heads", "twice"], id="twice-inside"
        ),
        pytest.param("model: 256", ["model is a group", "256"], id="scalar-for-group"),
        pytest.param("model:", ["model is a group", "nothing"], id="empty-group"),
        pytest.param("model: [1]", ["model is a group", "a list"], id="list-for-group"),
        pytest.param("- seed", ["made of groups", "a list"], id="list-at-top"),
        pytest.param("seed: {a: 1}", ["seed", "keys below"], id="group-for-scalar"),
        pytest.param("seed: [1, 2]", ["seed is [1, 2]", "a whole number"], id="list-for-scalar"),
        pytest.param("output_dir: [a]", ["output_dir is [a]", "text"], id="list-for-text"),
        pytest.param("output_dir:", ["output_dir is null", "text"], id="null-for-text"),
        pytest.param("seed: true", ["seed is true", "a whole number"], id="bool-for-int"),
        pytest.param("seed: 1.5", ["seed is 1.5", "a whole number"], id="float-for-int"),
        pytest.param(
            "train:\n  learning_rate: fast", ["line 2", "train.learning_rate is fast", "number"], id="no-number"
        ),
        pytest.param("objective: {form: fixd}", ["objective.form", "fixed_k, continuous"], id="no-choice"),
        pytest.param("tracking: {wandb: maybe}", ["tracking.wandb", "true or false"], id="no-bool"),
        pytest.param("validation: {mask_ratios: [0.5, x]}", ["validation.mask_ratios is [0.5, x]"], id="no-item"),
        pytest.param("data: {condition_columns: [a, --seed]}", ["--seed", "dash"], id="flag-in-a-list"),
        pytest.param("model: {", ["line 1", "no valid YAML"], id="no-yaml"),
    ],
)
def test_mistakes_in_a_file_name_file_line_and_key(tmp_path: Path, text: str, words: list[str]):
    with pytest.raises(UserError) as error:
        parse_text(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "run.yaml"))
    for word in words:
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--model.hidden-dim", "3"], ["--model.hidden-size"], id="unknown"),
        pytest.param(["--train.max-steps", "many"], ["--train.max-steps", "many"], id="no-number"),
        pytest.param(["--objective.form", "fixd"], ["fixed_k", "continuous"], id="no-choice"),
    ],
)
def test_mistakes_in_flags_exit_with_2_and_a_suggestion(capsys, flags: list[str], words: list[str]):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        pytest.param(["--config", "nowhere.yaml"], "nowhere.yaml", id="missing"),
        pytest.param(["--config", "."], "cannot read", id="folder"),
        pytest.param(["--config"], "needs the path", id="no-value"),
        pytest.param(["--config", "a.yaml", "--config=b.yaml"], "twice", id="two-files"),
    ],
)
def test_mistakes_in_the_config_flag(argv: list[str], word: str):
    with pytest.raises(UserError, match=word):
        parse(TrainConfig, argv)


def test_a_check_across_fields_is_told_by_its_own_sentence(tmp_path: Path, capsys):
    @dataclass(frozen=True, kw_only=True)
    class Widths:
        width: int = 4
        heads: int = 2

        def __post_init__(self):
            if self.width % self.heads:
                raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")

    @dataclass(frozen=True, kw_only=True)
    class Options:
        widths: Widths = field(default_factory=Widths)

    path = tmp_path / "run.yaml"
    path.write_text("widths: {width: 9}")
    assert parse(Options, ["--config", str(path), "--widths.heads", "3"]).widths == Widths(width=9, heads=3)
    with pytest.raises(SystemExit):
        parse(Options, ["--config", str(path)])
    assert "width 9 is no multiple of heads 2" in capsys.readouterr().err


def options(config_class: type, prefix: str = "") -> list[str]:
    """Every option's dotted name."""
    hints = typing.get_type_hints(config_class)
    names = []
    for option in dataclasses.fields(config_class):
        hint = hints[option.name]
        inside = dataclasses.is_dataclass(hint)
        names += options(hint, f"{prefix}{option.name}.") if inside else [prefix + option.name]
    return names


def test_help_shows_every_option_and_the_config_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(TrainConfig, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in ["config", *options(TrainConfig)]:
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", text), name


def test_every_option_has_a_docstring():
    text = Path(mdsc.__file__).with_name("config").joinpath("schema.py").read_text()
    for config_class in ast.parse(text).body:
        if not isinstance(config_class, ast.ClassDef):
            continue
        for statement, following in zip(config_class.body, [*config_class.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and "field(" not in ast.unparse(statement):
                assert isinstance(following, ast.Expr), f"{config_class.name}.{statement.target.id} has no docstring"


@pytest.mark.parametrize("name", ["laptop", "tiny", "small", "base", "large", "xl"])
def test_shipped_configs_parse_and_fit(name: str):
    config = parse(TrainConfig, ["--config", str(shipped_config(name))])
    assert config.model.hidden_size % config.model.num_heads == 0
    assert config.train.global_batch_size % config.data.num_lanes == 0
    assert config.train.pathway_steps < config.train.max_steps


def test_an_unknown_shipped_config_lists_what_there_is():
    with pytest.raises(UserError, match=r"base, .*small, tiny"):
        shipped_config("huge")


def test_the_model_default_is_not_changed_by_a_file(tmp_path: Path):
    assert parse_text(tmp_path, "# only a comment\n").model == ModelConfig()
