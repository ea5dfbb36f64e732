"""Array shapes and types are checked while testing: every jaxtyping annotation in mdsc is a runtime check here."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from hub_repo_stub import HubStub

install_import_hook("mdsc", "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that no process of --dist loadfile begins a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Iterator["HubStub"]:
    """A stub that this process and its children take for the hub, with a token and an empty cache."""
    from hub_repo_stub import HubStub, taken_for_the_hub

    with HubStub() as stub:
        taken_for_the_hub(stub, tmp_path / "hf", monkeypatch)
        yield stub
