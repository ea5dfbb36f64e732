"""Keyword arguments, dealt to the groups of options that a command has as flags."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def taken_from(given: Mapping[str, Any], *groups: type) -> tuple[Any, ...]:
    """An object of each dataclass, with what is given of its fields; TypeError for what is in none of them."""
    names = [{field.name for field in fields(group)} for group in groups]
    known = set.union(*names)
    if unknown := sorted(given.keys() - known):
        raise TypeError(f"there is no option {', '.join(unknown)}; the options are {', '.join(sorted(known))}")
    return tuple(
        group(**{name: value for name, value in given.items() if name in own})
        for group, own in zip(groups, names, strict=True)
    )
