"""YAML files and flags, read by one parser: a YAML file becomes flags, the user's flags follow, and tyro reads both.

    config = parse(TrainConfig, ["--config", "configs/tiny.yaml", "--train.max-steps", "200"])
    Path("training.yaml").write_text(dump(config))

A YAML file holds only what differs from the defaults, in the groups of the dataclass. What tyro cannot know is checked
here, with the file and the line: unknown keys, keys given twice, a scalar or nothing where a group belongs.
"""

import contextlib
import dataclasses
import difflib
import io
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mdsc.config.flags import join_lists
from mdsc.errors import UserError

Config = TypeVar("Config")

NULL = "tag:yaml.org,2002:null"
# YAML writes the floats that are no numbers in its own way; Python's float() does not read it.
SPECIAL_FLOATS = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}


def parse(
    config_class: type[Config],
    argv: Sequence[str],
    *,
    default_yaml: str | Path | None = None,
    prog: str | None = None,
    description: str = "",
) -> Config:
    """Read a config from ``--config FILE`` (else `default_yaml`, else the defaults) and the flags that override it.

    Raises UserError for what is wrong in the file. What is wrong in a flag is told by tyro, with suggestions, and ends
    the program with exit code 2.
    """
    import tyro  # where it is used: sampling needs this module, but no parser

    path, flags = _take_config_flag(argv)
    flags = join_lists(config_class, flags)  # of the flags alone: they override a list of the file
    path = path or default_yaml
    settings = [] if path is None else list(_read_yaml(Path(path), config_class))
    arguments = [argument for setting in settings for argument in setting.arguments()] + flags
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(
                _with_config_option(config_class, default_yaml),
                args=arguments,
                prog=prog,
                description=description,
            ).options
    except SystemExit as stop:
        if stop.code not in (None, 0):
            for setting in settings:
                setting.check()
        sys.stderr.write(messages.getvalue())
        raise


def dump(config: Any) -> str:
    """Give the whole config as YAML, such that `parse` of it gives an equal config."""
    return yaml.safe_dump(_plain(config), sort_keys=False, default_flow_style=None, width=120)


@dataclass(frozen=True)
class _Setting:
    """One line of a YAML file: where it stands, the option's type and its values as text (None for null)."""

    place: str
    key: str
    type: Any
    values: list[str] | str | None

    def arguments(self) -> list[str]:
        """Give this setting as command-line arguments."""
        flag = "--" + self.key.replace("_", "-")
        options = _alternatives(self.type)
        if self.type is bool and self.values not in ("true", "false"):
            raise self._error()
        if self.values is None and type(None) not in options:
            raise self._error()
        if isinstance(self.values, list):
            if not any(typing.get_origin(option) in (tuple, list) for option in options):
                raise self._error()
            for value in self.values:
                if value.startswith("-") and not _is_number(value):
                    raise UserError(f"{self.place}: {self.key}: {value!r}: an item of a list cannot begin with a dash.")
            return [flag, *self.values]
        if self.type is bool:
            group, dot, name = flag[2:].rpartition(".")
            return [flag if self.values == "true" else f"--{group}{dot}no-{name}"]
        return [f"{flag}={self.values}"]

    def check(self) -> None:
        """Raise UserError if tyro cannot read the values as the option's type."""
        import tyro

        if self.type is str:  # any text will do, a leading dash too
            return
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                tyro.cli(self.type, args=self.values if isinstance(self.values, list) else [str(self.values)])
        except SystemExit:
            raise self._error() from None

    def _error(self) -> UserError:
        given = "null" if self.values is None else self.values
        given = f"[{', '.join(given)}]" if isinstance(given, list) else given
        return UserError(f"{self.place}: {self.key} is {given}, but it takes {_name_of_type(self.type)}.")


def _take_config_flag(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    path, flags = None, []
    arguments = iter(argv)
    for argument in arguments:
        if argument != "--config" and not argument.startswith("--config="):
            flags.append(argument)
            continue
        if path is not None:
            raise UserError("--config is given twice; a run has one config file, and flags override it.")
        path = argument.partition("=")[2] or next(arguments, None)
        if path is None:
            raise UserError("--config needs the path of a YAML file.")
    return path, flags


def _read_yaml(path: Path, config_class: type) -> Iterator[_Setting]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise UserError(f"--config: there is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config: cannot read {path}: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: this is no valid YAML: {getattr(error, 'problem', error)}.") from None
    if root is not None:  # a file of comments alone takes all defaults
        yield from _settings(root, config_class, path, prefix="")


def _settings(node: yaml.Node, config_class: type, path: Path, prefix: str) -> Iterator[_Setting]:
    hints = typing.get_type_hints(config_class)
    options = [field.name for field in dataclasses.fields(config_class) if field.init]
    if not isinstance(node, yaml.MappingNode):
        what = f"{prefix[:-1]} is a group" if prefix else "a config is made of groups"
        found = "a list" if isinstance(node, yaml.SequenceNode) else _text(node) or "nothing"
        inside = f"{options[0]}: ..." if not prefix else f"{prefix[:-1]}: {{{options[0]}: ...}}"
        raise UserError(f"{_place(path, node)}: {what}, but {found} is given; write for example `{inside}`.")
    seen = set()
    for key_node, value in node.value:
        place, name = _place(path, key_node), str(key_node.value)
        key = f"{prefix}{name}"
        if name in seen:
            raise UserError(f"{place}: {key} is given twice; keep one.")
        seen.add(name)
        if name not in options:
            raise UserError(f"{place}: there is no option {key}.{_suggest(name, config_class, prefix)}")
        if dataclasses.is_dataclass(hints[name]):
            yield from _settings(value, hints[name], path, prefix=f"{key}.")
        else:
            yield _Setting(place, key, hints[name], _values(value, place, key))


def _values(node: yaml.Node, place: str, key: str) -> list[str] | str | None:
    if isinstance(node, yaml.SequenceNode):
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise UserError(f"{place}: {key} is a list of plain values, and has no lists or groups inside.")
        return [_text(item) or "None" for item in node.value]
    if isinstance(node, yaml.MappingNode):
        raise UserError(f"{place}: {key} is no group, but has keys below it.")
    return _text(node)


def _text(node: yaml.ScalarNode) -> str | None:
    """Give the scalar as it is written; YAML's own reading of numbers (3e-4 is a string there) is not asked."""
    if node.tag == NULL:
        return None
    if node.tag.endswith(":bool") and node.value.lower() in ("true", "false"):
        return node.value.lower()
    return SPECIAL_FLOATS.get(node.value, node.value)


def _suggest(name: str, config_class: type, prefix: str) -> str:
    options = [field.name for field in dataclasses.fields(config_class)]
    near = difflib.get_close_matches(name.replace("-", "_"), options, n=1, cutoff=0.5)
    if near:
        return f" Perhaps you meant {prefix}{near[0]}?"
    if len(options) <= 14:
        return f" The options here are {', '.join(prefix + option for option in options)}."
    return " See --help."


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _name_of_type(hint: Any) -> str:
    """Say a type in words: `int or null`, `one of linear, cosine`, `a list of float`."""
    alternatives, inside = _alternatives(hint), typing.get_args(hint)
    if len(alternatives) > 1:
        return " or ".join(_name_of_type(option) for option in alternatives)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in inside)
    if typing.get_origin(hint) in (tuple, list):
        return f"a list, each {_name_of_type(inside[0])}"
    names = {type(None): "null", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _with_config_option(config_class: type[Config], default_yaml: str | Path | None) -> type:
    """Give a dataclass of the options and --config, so that --help shows both (tyro never sees a --config itself)."""
    import tyro

    help_text = "YAML file of options that differ from the defaults; flags override it."
    return dataclasses.make_dataclass(
        "Command",
        [
            (
                "config",
                typing.Annotated[str, tyro.conf.arg(metavar="FILE", help=help_text)],
                str(default_yaml or "none"),
            ),
            ("options", typing.Annotated[config_class, tyro.conf.arg(name="")]),
        ],
        kw_only=True,
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
