"""A command's flags, read by tyro into a dataclass, where a list that is given twice adds up.

    --where drug=a --where drug=b    is    --where drug=a drug=b

tyro alone would keep the last and say nothing. It adds up lists of lists itself (`tyro.conf.UseAppendAction`).
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from mdsc.errors import UserError

Config = TypeVar("Config")


def parse_flags(config_class: type[Config], argv: Sequence[str] | None, description: str | None, **options) -> Config:
    """Read these arguments (sys.argv's where None). tyro tells what is wrong, and ends the program with code 2."""
    import tyro  # where it is used: sampling needs its package, but no parser

    arguments = join_lists(config_class, sys.argv[1:] if argv is None else argv)
    return tyro.cli(config_class, args=arguments, description=description, **options)


def named_values(texts: Iterable[str], flag: str, form: str) -> dict[str, str]:
    """["drug=DMSO_TF"] -> {"drug": "DMSO_TF"}. form: how to write it, e.g. "NAME=LEVEL, e.g. drug=DMSO_TF"."""
    values: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise UserError(f"{flag} {text}: write it as {form}.")
        if name in values:
            raise UserError(f"{flag} gives {name} twice ({values[name]} and {value}); keep one.")
        values[name] = value
    return values


def join_lists(config_class: type, argv: Sequence[str]) -> list[str]:
    """The arguments, with all values of a list flag where it is given first."""
    lists = set(_list_flags(config_class))
    arguments: list[list[str]] = [[]]
    """Those before the first flag, and each flag with its values."""
    first: dict[str, list[str]] = {}
    for argument in argv:
        flag, equals, value = argument.partition("=")
        name = flag.replace("_", "-")
        if not argument.startswith("--"):
            arguments[-1].append(argument)
        elif name in lists:
            if name in first:
                # What follows belongs to the first; it is not moved, but read on there.
                arguments.append(first[name])
            else:
                first[name] = [flag]
                arguments.append(first[name])
            if equals:
                arguments[-1].append(value)
        else:
            arguments.append([argument])
    unique = {id(group): group for group in arguments}
    return [argument for group in unique.values() for argument in group]


def _list_flags(config_class: type, prefix: str = "--") -> Iterator[str]:
    """Names of the flags that take several plain values."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            yield from _list_flags(hint, f"{name}.")
        elif any(map(_is_list, typing.get_args(hint) if is_union else (hint,))):
            yield name


def _is_list(hint: Any) -> bool:
    """A list of lists is none: each time its flag is given is an item of it."""
    inside = typing.get_args(hint)
    return typing.get_origin(hint) in (tuple, list) and typing.get_origin(inside[0]) not in (tuple, list)
