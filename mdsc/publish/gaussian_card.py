"""What the model card of a Gaussian head says where that of a masked model says something else."""

from collections.abc import Iterator
from typing import Any

from mdsc.publish.card_facts import CardFacts

ABOUT = (
    "A Gaussian diffusion model of perturbed single cells: it predicts cells in which a gene was perturbed from",
    "unperturbed ones, in log expression. Trained with `mdsc`; its weights are safetensors, without any code.",
)
LIMITS = (
    "- It knows the genes, the cells and the kind of perturbations that it was trained on.",
    "- Plain baselines (the mean of the training perturbations, a ridge regression) are often as good.",
    "- Predicted log expression may be below 0, as that of any model that is linear in components.",
)


def use(facts: CardFacts, repo: str) -> Iterator[str]:
    names = facts.config.get("feature_names") or facts.config.get("levels") or ["GENE"]
    yield "```python"
    yield "import anndata, mdsc"
    yield ""
    yield 'controls = anndata.read_h5ad("controls.h5ad")  # raw counts of unperturbed cells'
    yield f'predicted = mdsc.predict_perturbations("{repo}", controls, ["{names[0]}"])'
    yield 'print(predicted.obs["perturbation"])  # X is log1p(counts per 10,000)'
    yield "```"
    yield ""
    yield f"On the command line, `mdsc sample --checkpoint {repo} --input controls.h5ad --perturbation {names[0]}`."


def perturbations(facts: CardFacts) -> Iterator[str]:
    config = facts.config
    levels, names = config.get("levels") or [], config.get("feature_names") or []
    some = ", ".join(f"`{name}`" for name in levels[:5]) + (", ..." if len(levels) > 5 else "")
    yield f"- {len(levels):,} training perturbations (`{config['perturbation_column']}`): {some}"
    if config.get("has_features"):
        further = len(set(names) - set(levels))
        yield f"- Gene embeddings of {len(names):,} names, {further:,} of them without training cells"


def network(config: dict[str, Any]) -> str:
    latents = "all genes" if config.get("pca_size") is None else f"{config['pca_size']} principal components"
    return (
        f"- Network: {config['denoiser']}, width {config['width']}, layers {config['num_layers']}; latents: {latents}; "
        f"target {config['target']}, noise {config['noise']}; around {config['start'].replace('_', ' ')}"
    )


def scores(facts: CardFacts) -> Iterator[str]:
    if facts.validation is None:
        yield "No validation scores are known."
    else:
        yield f"Validation cells of the run after {facts.validation['step']:,} steps:"
        yield ""
        yield "| score | value |"
        yield "| --- | --- |"
        for name, value in facts.validation.items():
            if name.startswith("validation_"):
                told = "-" if value is None else f"{value:.4f}"
                yield f"| {name.removeprefix('validation_').replace('_', ' ')} | {told} |"
    yield ""
    yield (
        "**No baselines stand beside these**: they alone do not say whether the model is better than a plain one. "
        "`mdsc evaluate perturb` says it."
    )
