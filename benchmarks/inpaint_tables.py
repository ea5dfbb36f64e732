"""The tables of the inpainting benchmark, from the scores of its runs."""

from collections.abc import Sequence

from result_tables import ResultTable, mean_and_sd

from mdsc.evaluation.inpaint import MODEL

METRICS = ("nll", "accuracy", "mae_log1p", "spearman_nonzero", "zero_rate_error", "crps")
# Comparable between tokenizers: of decoded counts, or of the probability of a zero.
DECODED = ("mae_log1p", "spearman_nonzero", "zero_rate_error", "crps")
RATIOS = ("0.5", "0.8")
POOLED = "pooled"


def all_tables(runs: Sequence[dict], sizes: dict[str, dict[str, int]]) -> list[ResultTable]:
    """For each data set those of the first tokenizer (nll at all mask ratios; all metrics), then one of tokenizers."""
    tables = []
    for data in dict.fromkeys(run["data"] for run in runs):
        of_data = [run for run in runs if run["data"] == data]
        tokenizers = list(dict.fromkeys(run["tokenizer"] for run in of_data))
        main = [run for run in of_data if run["tokenizer"] == tokenizers[0]]
        size = sizes[data]
        where = f"{data}, {size['train']:,} training and {size['test']:,} test cells x {size['genes']:,} genes"
        where_main = f"{where}, {tokenizers[0]} tokens"
        tables += [nll_table(main, where_main), *(predictor_table(main, ratio, where_main) for ratio in RATIOS)]
        if len(tokenizers) > 1:
            tables.append(tokenizer_table(of_data, tokenizers, where))
    return tables


def nll_table(runs: Sequence[dict], where: str) -> ResultTable:
    """Model and baselines by nll at each mask ratio; then the difference from any that is best somewhere."""
    ratios = tuple(runs[0]["scores"][MODEL])
    scores = {ratio: [by_predictor(run["scores"], ratio) for run in runs] for ratio in ratios}
    names = sorted(scores[ratios[-1]][0], key=lambda name: sum(one[name]["nll"] for one in scores[ratios[-1]]))
    rows = [[name, *(mean_and_sd([one[name]["nll"] for one in scores[ratio]]) for ratio in ratios)] for name in names]
    best = {
        min((name for name in names if name != MODEL), key=lambda name: one[name]["nll"])
        for ratio in ratios
        for one in scores[ratio]
    }
    for other in (name for name in names if name in best):
        rows.append(
            [
                f"{MODEL} - {other}",
                *(mean_and_sd(differences(scores[ratio], other, "nll"), signed=True) for ratio in ratios),
            ]
        )
    note = "Differences are paired by seed, from each baseline that is the best one somewhere."
    return ResultTable(f"{where}: nll", ("predictor", *(f"{float(ratio):.0%} hidden" for ratio in ratios)), rows, note)


def predictor_table(runs: Sequence[dict], ratio: str, where: str) -> ResultTable:
    """Model and baselines, by nll; then what the model has more than the pooled and the best baseline, seed by seed."""
    scores = [by_predictor(run["scores"], ratio) for run in runs]
    names = sorted(scores[0], key=lambda name: sum(one[name]["nll"] for one in scores))
    rows = [[name, *(mean_and_sd([one[name][metric] for one in scores]) for metric in METRICS)] for name in names]
    best = next((name for name in names if name != MODEL), None)
    for other in dict.fromkeys(name for name in (POOLED, best) if name in names):
        label = f"{MODEL} - {other}" + (" (best baseline)" if other == best else "")
        rows.append([label, *(mean_and_sd(differences(scores, other, metric), signed=True) for metric in METRICS)])
    seeds = ", ".join(str(run["seed"]) for run in runs)
    seconds = mean_and_sd([run["train_seconds"] for run in runs]).split(".")[0]
    note = f"Seeds {seeds}; training took {seconds} s on average. Differences are paired by seed."
    return ResultTable(f"{where}, {float(ratio):.0%} hidden", ("predictor", *METRICS), rows, note)


def tokenizer_table(runs: Sequence[dict], tokenizers: Sequence[str], where: str, ratio: str = "0.8") -> ResultTable:
    """The model alone; nll is left out, being of unlike tokens."""
    rows = []
    for tokenizer in tokenizers:
        model = [run["scores"][MODEL][ratio] for run in runs if run["tokenizer"] == tokenizer]
        rows.append([tokenizer, *(mean_and_sd([one[metric] for one in model]) for metric in DECODED)])
    note = "All but zero_rate_error are of decoded counts."
    return ResultTable(f"{where}, tokenizers, {float(ratio):.0%} hidden", ("tokenizer", *DECODED), rows, note)


def by_predictor(scores: dict, ratio: str) -> dict[str, dict]:
    baselines = {name: of_ratio[ratio] for name, of_ratio in scores["baselines"].items()}
    return {MODEL: scores[MODEL][ratio], **baselines}


def differences(scores: Sequence[dict], other: str, metric: str) -> list[float | None]:
    """The model's less the other's of each seed."""
    pairs = [(one[MODEL][metric], one[other][metric]) for one in scores]
    return [None if None in pair else pair[0] - pair[1] for pair in pairs]
