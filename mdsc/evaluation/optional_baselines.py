"""Published methods beside the plain baselines: scVI, MAGIC and ALRA, by the names that `--baselines` takes."""

from collections.abc import Sequence
from importlib.util import find_spec

from mdsc.errors import UserError
from mdsc.evaluation.predictor import FitToAsked, PointPredictor, Predictor, TrainingCells

PACKAGES = {"scvi": ("scvi", "scvi-tools"), "magic": ("magic", "magic-impute"), "alra": ("sklearn", "scikit-learn")}
"""Name -> (module, what pip calls it)."""


def check_optional(names: Sequence[str]) -> None:
    """That each is known and can be imported."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"--baselines: there is no {name!r}; there are {', '.join(PACKAGES)}.")
        module, package = PACKAGES[name]
        if find_spec(module) is None:
            raise UserError(
                f"--baselines: {name} needs {package}, which is not installed: "
                "pip install 'mdsc[baselines]', in a clone pip install -c constraints.txt -e '.[baselines]'"
            )


def packages_of(names: Sequence[str]) -> list[str]:
    """What pip calls that which they need."""
    return [PACKAGES[name][1] for name in names]


def fit_optional(names: Sequence[str], train: TrainingCells, *, seed: int = 0) -> dict[str, Predictor | PointPredictor]:
    """Those of them that are fitted once, to training cells alone."""
    if "scvi" not in names:
        return {}
    from mdsc.evaluation.scvi_predictors import fit_scvi

    return fit_scvi(train, seed=seed)


def optional_fits(names: Sequence[str], *, seed: int = 0) -> dict[str, FitToAsked]:
    """Those of them that are fitted to the cells that they will be asked about, anew for each hiding."""
    fits: dict[str, FitToAsked] = {}
    if "scvi" in names:
        from mdsc.evaluation.scvi_predictors import fit_scvi_masked

        fits["scvi_masked"] = lambda train, hidden, asked: fit_scvi_masked(train, hidden, asked, seed=seed)
    if "magic" in names:
        from mdsc.evaluation.magic_baseline import fit_magic

        fits["magic"] = fit_magic
    if "alra" in names:
        from mdsc.evaluation.alra_baseline import fit_alra

        fits["alra"] = fit_alra
    return fits
