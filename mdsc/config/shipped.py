"""Where the YAML files of `configs/` are, in a clone and in an installed package."""

from pathlib import Path

import mdsc
from mdsc.errors import UserError


def shipped_config(name: str) -> Path:
    """Give the path of configs/`name`.yaml; UserError lists what there is."""
    package = Path(mdsc.__file__).parent
    folders = [package / "configs", package.parent / "configs"]  # in a wheel; in a clone
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    found = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(f"there is no config {name}.yaml; mdsc comes with {', '.join(found) or 'none'}.")
