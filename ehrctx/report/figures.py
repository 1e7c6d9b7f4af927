"""Figures from the tidy tables, for the page and the notebooks alike. Colours are safe for the colour-blind."""

from __future__ import annotations

import matplotlib
import polars as pl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe & Ito (2008); marker and dash differ too, so that a figure also reads in grey.
STYLES = {
    "gpt": ("#0072B2", "o", "-", "GPT"),
    "mamba": ("#D55E00", "s", "--", "Mamba"),
}
BASELINE_COLOUR = "#555555"
BASELINE = "counts"
SCORE_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score"}

matplotlib.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "figure.dpi": 110,
        "svg.hashsalt": "ehrctx",
    }
)


def _with_context(scores: pl.DataFrame, models: pl.DataFrame, score: str) -> pl.DataFrame:
    return scores.filter(pl.col("score") == score).join(
        models.select("model", "arch", "context"), on="model", how="left", maintain_order="left"
    )


def _draw_task(axes: Axes, rows: pl.DataFrame, score: str) -> None:
    trained = rows.drop_nulls("context")
    contexts = sorted(trained["context"].unique().to_list())
    architectures = sorted(trained["arch"].unique().to_list())
    for i, arch in enumerate(architectures):
        colour, marker, dash, label = STYLES[arch]
        own = trained.filter(pl.col("arch") == arch).sort("context")
        # side by side, so that intervals do not cover each other
        shift = 1 + 0.06 * (i - (len(architectures) - 1) / 2)
        value = own["value"].to_numpy()
        axes.errorbar(
            own["context"].to_numpy() * shift,
            value,
            yerr=[value - own["lower"].to_numpy(), own["upper"].to_numpy() - value],
            color=colour,
            marker=marker,
            linestyle=dash,
            capsize=3,
            label=label,
        )
    for row in rows.filter(pl.col("model") == BASELINE).iter_rows(named=True):
        axes.axhline(row["value"], color=BASELINE_COLOUR, linestyle=":", label="counts (all history)")
        axes.axhspan(row["lower"], row["upper"], color=BASELINE_COLOUR, alpha=0.10, linewidth=0)
    if score == "auroc":
        axes.axhline(0.5, color="#bbbbbb", linewidth=0.8)
    if contexts:
        axes.set_xscale("log", base=2)
        axes.set_xlim(contexts[0] / 1.5, contexts[-1] * 1.5)
        axes.set_xticks(contexts, [f"{c:,}" for c in contexts])
        axes.minorticks_off()
    axes.set_xlabel("context length (tokens)")


def score_by_context(scores: pl.DataFrame, models: pl.DataFrame, score: str = "auroc") -> Figure:
    """One panel per task: `score` against context length, a line per architecture, intervals, the count baseline."""
    rows = _with_context(scores, models, score)
    tasks = rows["task"].unique(maintain_order=True).to_list()
    columns = min(3, max(1, len(tasks)))
    lines = -(-max(1, len(tasks)) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(3.7 * columns, 3.4 * lines), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, task in zip(panels.flat, tasks, strict=False):
        own = rows.filter(pl.col("task") == task)
        _draw_task(axes, own, score)
        n = own.row(0, named=True)
        axes.set_title(f"{task}\nn = {n['n']}, positive {n['n_positive']}, subjects {n['n_subjects']}", loc="left")
    for axes in panels.flat[len(tasks) :]:
        axes.axis("off")
    for line in panels:
        line[0].set_ylabel(f"{SCORE_NAMES[score]} on held-out subjects")
    if tasks:
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def validation_curves(curves: pl.DataFrame) -> Figure:
    """Validation loss (nats per token) against tokens seen; `curves` is (model, arch, context, tokens, loss)."""
    figure, axes = plt.subplots(figsize=(7.4, 2.9), layout="constrained")
    contexts = sorted(curves["context"].unique().to_list())
    for (model,), own in curves.group_by(["model"], maintain_order=True):
        row = own.row(0, named=True)
        colour, marker, _, _ = STYLES[row["arch"]]
        filled = row["context"] == contexts[-1]
        axes.plot(
            own["tokens"] / 1e6,
            own["loss"],
            color=colour,
            marker=marker,
            markerfacecolor=colour if filled else "white",
            linestyle="-" if filled else ":",
            label=str(model),
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.15)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("validation loss\n(nats per token)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
