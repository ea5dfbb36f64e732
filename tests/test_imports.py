"""Who may import whom: data flows one way, and what is heavy is imported by those alone who need it."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Package or module -> what of mdsc it may import, beside itself. `mdsc` alone (its version, its place) is open to all.
MAY_IMPORT = {
    "errors": "",
    "atomic": "errors",
    "progress": "",
    "auto_classes": "",
    "cli": "errors atomic",
    "hub": "errors",
    "config": "errors",
    "data": "errors atomic config",
    "prep": "errors atomic progress config data",
    "diffusion": "errors config data",
    "model": "errors config data diffusion hub",
    "perturbation": "errors config data diffusion model",
    "checkpoint": "errors atomic config data hub model perturbation",
    "publish": "errors config data hub model checkpoint",
    "sampling": "errors atomic progress config data diffusion model perturbation checkpoint",
    "training": "errors atomic progress config data diffusion hub model perturbation checkpoint prep publish",
    "evaluation": "errors atomic config data diffusion model perturbation checkpoint sampling training",
}
# Third-party module -> the only ones of mdsc that import it.
ONLY_IN = {"accelerate": "training", "wandb": "training", "psutil": "training", "scanpy": "prep"}
# Imported inside the functions that use them: each takes a second or is not always installed.
LOCAL = {
    "anndata",
    "datasets",
    "diffusers",
    "h5py",
    "matplotlib",
    "numba",
    "pandas",
    "rdkit",
    "scanpy",
    "sklearn",
    "wandb",
}
LOCAL |= {"cell_eval", "jinja2", "lightning", "magic", "ot", "rdkit", "scvi"}
# Modules whose package has another name, and may not be installed: of the extras `baselines` and `eval`.
OPTIONAL = {"scvi": ["scvi-tools"], "lightning": ["scvi-tools"], "magic": ["magic-impute"], "ot": ["POT"]}
OPTIONAL |= {"cell_eval": ["cell-eval"], "diffusers": ["diffusers"]}
# What a machine that only trains or samples need not have.
NOT_FOR_THE_MODEL = LOCAL | {"accelerate", "beartype", "psutil", "rich", "tyro"}
NOT_FOR_TRAINING = {"anndata", "beartype", "datasets", "diffusers", "h5py", "numba", "scanpy", "tyro", "wandb"}
# Commands read options with tyro and print with rich; AnnData is for files.
COMMANDS = re.compile(
    r"\.(\w*command|doctor|progress|anndata_\w+|loaded_model|(sampled|scored|embedded|predicted)_files)$"
)


@dataclass(frozen=True)
class Import:
    importer: str
    line: int
    imported: str
    is_local: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported}"

    @property
    def package(self) -> str:
        return self.importer.removeprefix("mdsc.").partition(".")[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> list[str]:
    return sorted(map(module_name, (ROOT / "mdsc").rglob("*.py")))


def imports() -> Iterator[Import]:
    """Every import statement of mdsc."""
    for path in sorted((ROOT / "mdsc").rglob("*.py")):
        yield from _imports(ast.parse(path.read_text()), module_name(path), is_local=False, for_types=False)


def _imports(node: ast.AST, importer: str, *, is_local: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{importer}, line {child.lineno}: a relative import"
            assert child.module is not None
            # `from mdsc import data` imports a package by another spelling.
            inside = child.module == "mdsc"
            names = [f"mdsc.{alias.name}" for alias in child.names] if inside else [child.module]
        for name in names:
            yield Import(importer, child.lineno, name, is_local, for_types)
        yield from _imports(
            child,
            importer,
            is_local=is_local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
            for_types=for_types or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"),
        )


def test_every_part_of_mdsc_has_its_place():
    parts = {name.split(".")[1] for name in modules() if "." in name}
    assert parts == MAY_IMPORT.keys()


def test_imports_of_mdsc_run_one_way():
    wrong = []
    for found in imports():
        part = found.imported.removeprefix("mdsc.").partition(".")[0]
        is_ours = found.imported.startswith("mdsc.") and part in MAY_IMPORT and not found.for_types
        # mdsc/__init__.py itself imports nothing at once but what makes the Auto classes know the model.
        may = MAY_IMPORT.get(found.package, "auto_classes").split()
        if is_ours and part not in [found.package, *may]:
            wrong.append(str(found))
    assert not wrong


def test_the_rule_has_no_cycle():
    """If a part may import another, that one may never lead back."""
    above: dict[str, set[str]] = {}
    for part in MAY_IMPORT:
        below, new = set(), {part}
        while new:
            new = {other for one in new for other in MAY_IMPORT[one].split()} - below
            below |= new
        above[part] = below
    assert not [part for part, below in above.items() if part in below]
    assert "training" not in above["sampling"]


def test_only_training_imports_accelerate_and_wandb():
    wrong = [str(found) for found in imports() if found.package not in ONLY_IN.get(_top(found), found.package).split()]
    assert not wrong


def test_heavy_modules_are_imported_where_they_are_used():
    wrong = [str(found) for found in imports() if _top(found) in LOCAL and not (found.is_local or found.for_types)]
    assert not wrong


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distributions(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def test_what_is_imported_is_what_pyproject_names():
    optional = project()["optional-dependencies"]
    extras = [
        name
        for extra in ("baselines", "chem", "demo", "eval", "fast", "perturbation", "wandb")
        for name in optional[extra]
    ]
    named = distributions(project()["dependencies"] + extras)
    providers = importlib.metadata.packages_distributions() | OPTIONAL
    imported = {_top(found) for found in imports() if not found.for_types} - sys.stdlib_module_names - {"mdsc", "h5py"}
    used = {module: distributions(providers.get(module, [module])) for module in imported}  # h5py comes with anndata
    assert not [module for module, found in used.items() if not found & named], "imported, but not in pyproject.toml"
    assert not named - set().union(*used.values()), "in pyproject.toml, but never imported"


def test_every_dependency_is_pinned_for_make():
    optional = [requirement for extra in project()["optional-dependencies"].values() for requirement in extra]
    pinned = distributions((ROOT / "constraints.txt").read_text().split())
    assert distributions(project()["dependencies"] + optional) <= pinned


def run_without(absent: set[str], code: str) -> None:
    """Run `code` in a new process in which these modules cannot be imported."""
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({sorted(absent)!r}))", code]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_data_and_sampling_need_no_more_than_torch_transformers_and_arrow():
    core = re.compile(r"mdsc\.(errors|atomic|config\.schema|data\..*|diffusion\..*|model\..*|sampling\..*)$")
    chosen = [name for name in modules() if core.match(name) and not COMMANDS.search(name)]
    assert len(chosen) > 30
    run_without(NOT_FOR_THE_MODEL, "\n".join(f"import {name}" for name in chosen))


@pytest.mark.parametrize("command", ["sample", "likelihood", "embed"])
def test_flags_are_read_without_torch(command: str):
    """It takes seconds to import, which --help and a wrong flag would cost."""
    run_without(
        set(),
        f"""
from mdsc.cli import main
assert main([{command!r}, "--help"]) == 0
assert main([{command!r}, "--no-such-flag"]) == 2
assert not {{"accelerate", "torch", "transformers"}} & sys.modules.keys()
""",
    )


@pytest.mark.slow
def test_a_train_step_needs_no_anndata_and_no_tyro(tmp_path: Path):
    run_without(
        NOT_FOR_TRAINING,
        f"""
from pathlib import Path
from tiny_run import tiny_config, tiny_shards, tiny_trainer
folder = Path({str(tmp_path)!r})
tiny_shards(folder)
trainer, loader = tiny_trainer(tiny_config(folder))
trainer.step(0, next(loader.iterate()))
""",
    )


def _top(found: Import) -> str:
    return found.imported.partition(".")[0]
