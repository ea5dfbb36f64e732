"""The model card: README.md of a repository, filled from what the run has left; what is not known is said to be so."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mdsc import __version__
from mdsc.publish import gaussian_card
from mdsc.publish.card_facts import CardFacts

METRICS = {
    "nll": "nll ↓",
    "accuracy": "accuracy ↑",
    "accuracy_nonzero": "accuracy x>0 ↑",
    "mae_log1p": "mae log1p ↓",
    "spearman_nonzero": "spearman x>0 ↑",
    "zero_rate_error": "zero rate error ↓",
    "crps": "crps ↓",
}
SHOWN_OPTIONS = (
    ("data", ("num_genes", "gene_draw", "condition_columns")),
    ("objective", ("form", "ordinal", "ordinal_weight")),
    ("train", ("max_steps", "global_batch_size", "learning_rate", "weight_decay", "ema_decay", "pathway_steps")),
)
MOST_NAMES = 5
ABOUT = (
    "A masked discrete diffusion model of single-cell gene expression: it gives the law of each hidden count of a",
    "cell, given the visible ones; it fills in counts, generates cells, and scores how likely counts are. Trained with",
    "`mdsc`; its weights are safetensors, without any code.",
)
LIMITS = (
    "- It knows the genes and the kind of cells that it was trained on, and no others.",
    "- A filled-in count is a prediction, not a measurement: tests that treat it as one are too sure.",
    "- Differences between batches or laboratories are modelled only where they are among the conditions above.",
    "- Zeros are not missing at random; filling them in (`--impute-zeros`) is a heuristic that expects too much.",
)


def model_card(facts: CardFacts, repo: str, license: str) -> str:
    """Markdown with the hub's metadata on top. `license` is checked by `check_license`."""
    is_gaussian = facts.tokenizer is None
    about, use, scores, limits = (
        (gaussian_card.ABOUT, gaussian_card.use(facts, repo), gaussian_card.scores(facts), gaussian_card.LIMITS)
        if is_gaussian
        else (ABOUT, _use(repo), _scores(facts), LIMITS)
    )
    kind = "gaussian-diffusion" if is_gaussian else "masked-diffusion"
    return "\n".join(
        [
            "---",
            f"license: {license}",
            "library_name: mdsc",
            "tags:",
            *(f"- {tag}" for tag in ("biology", "single-cell", "gene-expression", kind)),
            "---",
            "",
            f"# {repo.partition('/')[2]}",
            "",
            *about,
            "",
            "## How to use",
            "",
            *use,
            "",
            "## Data",
            "",
            *_data(facts),
            "",
            "## Training",
            "",
            *_training(facts),
            "",
            "## Scores",
            "",
            *scores,
            "",
            "## Intended use",
            "",
            "Research on single-cell transcriptomes like those that it was trained on. It is no medical device, and",
            "nothing about a patient should be decided by it.",
            "",
            "## Limits",
            "",
            *limits,
            *_unmeasured(facts),
            "",
            "## Licence",
            "",
            _licence(license),
            "",
        ]
    )


def _use(repo: str) -> Iterator[str]:
    yield "```python"
    yield "import anndata, mdsc"
    yield ""
    yield 'cells = anndata.read_h5ad("cells.h5ad")  # raw counts'
    yield f'filled = mdsc.inpaint_anndata("{repo}", cells, mask_ratio=0.8)'
    yield 'print(filled.layers["mdsc_mean"])  # expected counts; one draw: layers["mdsc_sampled"]'
    yield f'model = mdsc.MdscModel.from_pretrained("{repo}")  # the network alone; AutoModel works too'
    yield "```"
    yield ""
    yield f"On the command line, `mdsc sample --checkpoint {repo} --input cells.h5ad --mask-ratio 0.8`."


def _data(facts: CardFacts) -> Iterator[str]:
    genes = facts.config["num_genes"]
    if facts.data is None:
        yield facts.data_missing
        yield ""
    else:
        yield f"- Shards `{facts.data.name}`: {facts.data.cells:,} training cells (the run's validation cells included)"
        if facts.data.sources:
            yield f"- Made of {_named(facts.data.sources)}"
        yield f"- SHA-256 of their manifest: `{facts.data.digest}`"
    read_as = "log expression" if facts.tokenizer is None else f"`{facts.tokenizer}` tokens (`tokenizer.json`)"
    yield f"- {genes:,} genes (`genes.parquet`), counts as {read_as}"
    if facts.tokenizer is None:
        yield from gaussian_card.perturbations(facts)
        return
    levels = facts.config.get("condition_levels") or {}
    for name, known in levels.items():
        yield f"- Condition `{name}`, {len(known):,} levels: {_named(known)}"
        if names := (facts.config.get("feature_names") or {}).get(name):
            further = [other for other in names if other not in known]
            yield f"- Features of {len(names):,} names of `{name}`, {len(further):,} of them without training cells"
    if not levels:
        yield "- No conditions"
    if facts.quarantined:
        yield f"- {facts.quarantined:,} corrupt row groups were replaced by others (`quarantined.json`)"


def _training(facts: CardFacts) -> Iterator[str]:
    config = facts.config
    yield f"- Optimiser steps: {'not known' if facts.step is None else f'{facts.step:,}'}"
    yield f"- Weights: {facts.num_weights:,} numbers in `model.safetensors`, averaged over steps, fixed tables included"
    if facts.tokenizer is None:
        yield gaussian_card.network(config)
    else:
        yield (
            f"- Network: {_backbone(config)} width {config['hidden_size']}, layers {config['num_layers']}, "
            f"heads {config['num_heads']}, cell state {config['state_size']}"
        )
    for group, names in SHOWN_OPTIONS if facts.tokenizer is not None else SHOWN_OPTIONS[-1:]:
        chosen = {name: facts.options[group][name] for name in names if name in facts.options.get(group, {})}
        if chosen:
            yield f"- `{group}`: " + ", ".join(f"{name} {_plain(value)}" for name, value in chosen.items())
    if facts.options:
        yield "- All options: `training.yaml`"
    if facts.start is not None:
        yield f"- Trained on {_devices(facts.start)} {_code(facts.start)}"
    yield f"- Written by mdsc {__version__}"


def _backbone(config: dict[str, Any]) -> str:
    """Checkpoints from before there was a choice do not name it."""
    if config.get("backbone", "dit") == "dit":
        return "dit,"
    return f"latent ({config['num_latents']} tokens),"


def _devices(start: dict[str, Any]) -> str:
    devices = ", ".join(dict.fromkeys(map(str, start["devices"]))) or "an unknown device"
    return f"{start.get('processes', 1)} x {devices}"


def _code(start: dict[str, Any]) -> str:
    shown = ("mdsc", "torch", "transformers", "numpy")
    versions = ", ".join(f"{name} {start['versions'][name]}" for name in shown if name in start["versions"])
    git = start.get("git")
    if not isinstance(git, dict):
        return f"with {versions}"
    return f"with {versions}; commit `{git.get('commit')}`{' and changes to it' if git.get('is_dirty') else ''}"


def _scores(facts: CardFacts) -> Iterator[str]:
    if facts.scores is not None:
        yield from _scores_beside_baselines(facts.scores)
        return
    if facts.validation is None:
        yield "Neither held-out scores nor validation scores are known."
    else:
        yield f"Validation cells of the run after {facts.validation['step']:,} steps; hidden positions alone:"
        yield ""
        yield "| hidden | nll (nats per gene) | accuracy |"
        yield "| --- | --- | --- |"
        for name, value in facts.validation.items():
            if name.startswith("validation_nll_at_"):
                ratio = name.removeprefix("validation_nll_at_")
                accuracy = facts.validation.get(f"validation_accuracy_at_{ratio}")
                yield f"| {float(ratio):.0%} | {_number(value)} | {_number(accuracy)} |"
    yield ""
    yield (
        f"**No baselines were computed for these weights** ({facts.scores_missing}): these numbers alone do not say "
        "whether the model is better than a plain one. `mdsc evaluate inpaint` says it."
    )


def _scores_beside_baselines(scores: dict[str, Any]) -> Iterator[str]:
    settings = scores["settings"]
    yield (
        f"{settings['cells']:,} held-out cells x {settings['genes']:,} genes (`{_base(settings['input'])}`), hidden "
        "positions alone; ± standard error over cells. Computed by `mdsc evaluate inpaint`."
    )
    yield ""
    yield "| hidden | predictor | " + " | ".join(METRICS.values()) + " |"
    yield "| --- " * (2 + len(METRICS)) + "|"
    for ratio, model in scores["model"].items():
        rows = {"**this model**": model} | {
            name: by_ratio[ratio] for name, by_ratio in scores["baselines"].items() if ratio in by_ratio
        }
        for name, row in sorted(rows.items(), key=lambda item: (item[1]["nll"] is None, item[1]["nll"])):
            values = [_number(row.get(metric)) for metric in METRICS]
            values[0] += f" ± {_number(row.get('standard_error', {}).get('nll'))}"
            yield f"| {float(ratio):.0%} | {name} | " + " | ".join(values) + " |"
    yield ""
    if not scores["baselines"]:
        yield "**No baselines were computed**: these numbers alone do not say whether a plain model is better."
    for ratio, found in scores.get("comparison", {}).items():
        gap = f"{abs(found['nll_difference']):.4f} ± {_number(found['standard_error'])} nats per gene"
        verdict = "is below" if found["model_wins"] else "is NOT below"
        yield f"- {float(ratio):.0%} hidden: the model {verdict} the best baseline, {found['best_baseline']}, by {gap}"


def _unmeasured(facts: CardFacts) -> Iterator[str]:
    if facts.scores is None:
        yield "- How it compares with plain baselines was not measured for these weights."
    last = facts.options.get("train", {}).get("max_steps")
    if facts.step is not None and last is not None and facts.step < last:
        yield f"- It is a checkpoint of a run under way or cut off: {facts.step:,} of {last:,} steps."


def _licence(license: str) -> str:
    if license == "unknown":
        return "No licence was chosen: ask the owner of this repository before you use or share the weights."
    return f"The weights are under `{license}`. The data that they were trained on has terms of its own."


def _named(names: Sequence[str]) -> str:
    some = ", ".join(f"`{name}`" for name in names[:MOST_NAMES])
    return some + (f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else "")


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _base(name: str) -> str:
    """A file's name without its folder, which is nobody else's business."""
    return name.rpartition("/")[2]
