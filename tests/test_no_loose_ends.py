"""Nothing is offered that does not exist: every option is read by some code, every command has its module."""

import ast
import importlib.util
from pathlib import Path

from test_yaml_flags import options

import mdsc
from mdsc.cli import COMMANDS
from mdsc.config.schema import TrainConfig


def test_every_option_is_read_somewhere():
    read = set()
    for path in Path(mdsc.__file__).parent.rglob("*.py"):
        if path.name != "schema.py":
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
            read |= {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
    unread = [name for name in options(TrainConfig) if name.rpartition(".")[2] not in read]
    assert not unread, f"options that nothing reads: {unread}"


def test_every_command_has_its_module():
    missing = [command.module for command in COMMANDS.values() if importlib.util.find_spec(command.module) is None]
    assert not missing
