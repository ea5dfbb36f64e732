"""The same predictions through the `cell-eval` package (extra [eval]), as others score them.

It takes the control cells of the prediction for the prediction's controls: the REAL ones are written into both files.
Its target-gene exclusion compares names of perturbations with names of genes: both are bare symbols here.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from mdsc.atomic import replacing
from mdsc.data.perturbations import COLUMN, CONTROL
from mdsc.errors import UserError
from mdsc.evaluation.perturb_task import PerturbTask, Prediction
from mdsc.evaluation.perturb_units import Unit

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PROFILE = "full"


def check_cell_eval() -> None:
    try:
        import cell_eval  # noqa: F401
    except ImportError as error:
        raise UserError('--cell-eval needs the package cell-eval: pip install "mdsc[eval]"') from error


def cell_eval_pair(task: PerturbTask, prediction: Prediction, context: str) -> tuple["AnnData", "AnnData"]:
    """Real and predicted cells of the test perturbations of a context, each beside all its real controls."""
    controls = task.expression[task.controls(context)]
    units = [unit for unit in task.units if unit.context == context]
    real = [task.expression[task.rows(unit)] for unit in units]
    predicted = [sp.csr_matrix(prediction.cells[unit]) for unit in units]
    return _anndata(task, units, controls, real), _anndata(task, units, controls, predicted)


def run_cell_eval(
    task: PerturbTask,
    prediction: Prediction,
    folder: Path,
    *,
    profile: str = PROFILE,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, "pd.DataFrame"]:
    """Write real.h5ad, predicted.h5ad and cell-eval's tables into the folder; its table of perturbations by context."""
    check_cell_eval()
    from cell_eval import MetricsEvaluator

    found = {}
    for context in sorted({unit.context for unit in task.units}):
        # A context may hold anything: folders are numbered where there are several.
        place = folder if len({unit.context for unit in task.units}) == 1 else folder / f"context_{len(found)}"
        place.mkdir(parents=True, exist_ok=True)
        real, predicted = cell_eval_pair(task, prediction, context)
        for name, cells in (("real", real), ("predicted", predicted)):
            with replacing(place / f"{name}.h5ad") as beside:
                cells.write_h5ad(beside)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own, and those of what it calls
            logging.getLogger("cell_eval").setLevel(logging.WARNING)
            evaluator = MetricsEvaluator(
                adata_pred=predicted,
                adata_real=real,
                control_pert=CONTROL,
                pert_col=COLUMN,
                num_threads=1,
                outdir=str(place),
                skip_de=profile == "anndata",
            )
            # Its clustering needs two perturbations or more, and a package of its own.
            table, _ = evaluator.compute(profile=profile, skip_metrics=["clustering_agreement"])
        found[context] = table.to_pandas()
        named = f" ({context})" if context else ""
        say(f"cell-eval{named}: wrote {place}")
    return found


def _anndata(task: PerturbTask, units: list[Unit], controls: sp.csr_matrix, parts: list[sp.csr_matrix]) -> "AnnData":
    import pandas as pd
    from anndata import AnnData

    names = [CONTROL, *(unit.perturbation for unit in units)]
    sizes = [controls.shape[0], *(part.shape[0] for part in parts)]
    labels = np.repeat(np.array(names, dtype=object), sizes)
    obs = pd.DataFrame({COLUMN: pd.Categorical(labels)}, index=[f"cell{row}" for row in range(len(labels))])
    expression = sp.csr_matrix(sp.vstack([controls, *parts], format="csr"), dtype=np.float32)
    return AnnData(expression, obs=obs, var=pd.DataFrame(index=list(task.genes)))
