"""Figures from the tidy tables, for the page and the notebooks alike. Colours are safe for the colour-blind."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.probe.statistics import FEW_POSITIVES
from ehrctx.probe.suppression import is_hidden, lower_bound
from ehrctx.report.families import NAMES, Family, families
from ehrctx.tasks.definition import MACRO, MACRO_MANY_POSITIVES

# Okabe & Ito (2008), and a brown that no colour deficiency takes for one of them; marker and dash differ too, so that a
# figure also reads in grey.
STYLES = {
    "gpt": ("#0072B2", "o", "-", NAMES["gpt"]),
    "llama": ("#009E73", "^", (0, (6, 1.5)), NAMES["llama"]),
    "mamba": ("#D55E00", "s", (0, (4, 1, 1, 1)), NAMES["mamba"]),
    "mamba2": ("#782D00", "P", (0, (6, 1.5, 1, 1.5, 1, 1.5)), NAMES["mamba2"]),
    "hyena": ("#CC79A7", "D", (0, (2, 1)), NAMES["hyena"]),
}
# The heads on counts, in grey.
BASELINES = {
    "logistic_regression": ("#888888", ":", "counts, logistic regression"),
    "random_forest": ("#666666", (0, (5, 2)), "counts, random forest"),
    "lightgbm": ("#333333", (0, (1, 1)), "counts, LightGBM"),
}
SCORE_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score"}
# property -> (what the axis calls it, the low end, the high end)
PROPERTY_NAMES = {
    "rr_1": ("repetition rate RR₁", "least repetitive", "most repetitive"),
    "rr": ("repetition rate RR (geometric mean of n = 1 to 4)", "least repetitive", "most repetitive"),
    "gap_sd": ("standard deviation of the gaps between events", "most regular", "least regular"),
    "gap_sd_with_birth": ("standard deviation of the gaps, birth included", "most regular", "least regular"),
    "gap_mean": ("mean gap between events", "densest", "sparsest"),
    "gap_iqr": ("interquartile range of the gaps", "most regular", "least regular"),
    "n_tokens": ("length of the history", "shortest", "longest"),
}
QUARTILES = ("Q1", "Q2", "Q3", "Q4")
# From the shortest context to the longest.
LINES = {1: ("-",), 2: (":", "-"), 3: (":", "--", "-"), 4: (":", "-.", "--", "-")}
_NARROWEST = 7.2  # inches: headings and legends need so much

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


def image(figure: Figure) -> str:
    """The figure as SVG in base64, for a page; the same tables give the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    return base64.b64encode(stream.getvalue()).decode()


def task_name(task: str) -> str:
    """The task as a reader sees it; short, as a panel's title and a table's first column are narrow."""
    return {MACRO: "mean over tasks", MACRO_MANY_POSITIVES: f"mean ({FEW_POSITIVES}+ positives)"}.get(task, task)


def entry_name(model: str, head: str) -> str:
    """A model, or a head on counts, as a reader sees it."""
    return BASELINES[head][2] if model == BASELINE else model


def overall_task(table: pl.DataFrame) -> str:
    """The mean over tasks, or the only task where there is no mean."""
    tasks = table["task"].unique(maintain_order=True).to_list()
    return MACRO if MACRO in tasks or not tasks else tasks[0]


def tokens_name(n: int) -> str:
    """`512`, `4k` for 4,096: as contexts are called, and short enough for an axis."""
    return f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else f"{n:,}"


def count(n: str | int) -> str:
    """A count as tables hold it (text, '<10' or '>=25' where suppressed), with thousands separated."""
    text = str(n)
    return f"≥{lower_bound(text):,}" if text.startswith(">") else f"{int(text):,}" if text.isdigit() else text


def _with_context(rows: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    return rows.join(models.select("model", "arch", "context"), on="model", how="left", maintain_order="left")


def bar_lengths(own: pl.DataFrame) -> list[np.ndarray]:
    """Lengths of the error bars; none where there is no interval, or where it does not hold the value."""
    value = own["value"].to_numpy()
    sides = value - own["lower"].to_numpy(), own["upper"].to_numpy() - value
    return [np.maximum(np.nan_to_num(side), 0) for side in sides]


def _log_contexts(axes: Axes, contexts: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(contexts[0] / 1.5, contexts[-1] * 1.5)
    axes.set_xticks(contexts, [tokens_name(c) for c in contexts])
    axes.minorticks_off()


def _draw_task(axes: Axes, rows: pl.DataFrame, found: list[Family], score: str) -> None:
    """A line per family and seed; of several sizes of an architecture, only the largest has filled markers."""
    trained = rows.drop_nulls("context")
    for i, family in enumerate(found):
        colour, marker, dash, _ = STYLES[family.arch]
        is_largest = family == [other for other in found if other.arch == family.arch][-1]
        # side by side, so that intervals do not cover each other
        shift = 2 ** (0.11 * (i - (len(found) - 1) / 2))
        label: str | None = family.name
        for seed in family.seeds:
            names = [model for (_, s), model in family.models.items() if s == seed]
            own = trained.filter(pl.col("model").is_in(names)).sort("context")
            if own.is_empty():
                continue
            axes.errorbar(
                own["context"].to_numpy() * shift,
                own["value"].to_numpy(),
                yerr=bar_lengths(own),
                color=colour,
                marker=marker,
                markersize=4.5,
                markerfacecolor=colour if is_largest else "white",
                linewidth=1.2,
                linestyle=dash,
                capsize=2,
                label=label,
            )
            label = None  # one entry of the legend for all seeds
    for head, (colour, dash, label) in BASELINES.items():
        for row in rows.filter((pl.col("model") == BASELINE) & (pl.col("head") == head)).iter_rows(named=True):
            axes.axhline(row["value"], color=colour, linestyle=dash, linewidth=1.1, label=label)
    if score == "auroc":
        axes.axhline(0.5, color="#cccccc", linewidth=0.8)
    contexts = sorted(trained["context"].unique().to_list())
    if contexts:
        _log_contexts(axes, contexts)


def panel_grid(n: int, columns: int, height: float | None, sharey: bool) -> tuple[Figure, list[Axes], np.ndarray]:
    """A figure of `n` panels, `height` inches each or as high as wide; the panels, and the grid with the unused ones
    switched off."""
    if n == 0:
        figure, empty = plt.subplots(figsize=(_NARROWEST, 0.6), squeeze=False, layout="constrained")
        empty[0, 0].axis("off")
        empty[0, 0].text(0, 0.5, "There is nothing to show.", color="#444444", va="center")
        return figure, [], empty
    lines = -(-n // columns)
    columns = -(-n // lines)  # five panels are three and two, not four and one
    width = 12.4 if columns == 4 else max(_NARROWEST, 3.6 * columns)
    height = min(3.8, width / columns) if height is None else height
    figure, grid = plt.subplots(
        lines, columns, figsize=(width, height * lines + 0.6), sharey=sharey, squeeze=False, layout="constrained"
    )
    panels = list(grid.flat)
    for unused in panels[n:]:
        unused.axis("off")
    return figure, panels[:n], grid


def name_axes(panels: list[Axes], grid: np.ndarray, x: str, y: str | None = None) -> None:
    """`x` below the lowest panel of each column, `y` beside the first of each line."""
    for axes in panels[-grid.shape[1] :]:
        axes.set_xlabel(x)
    for line in grid if y is not None and panels else ():
        line[0].set_ylabel(y)


def shared_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = int(figure.get_figwidth() / 1.75)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(columns, max(1, len(labels))),
        frameon=False,
        fontsize=9.5,
    )


def score_by_context(scores: pl.DataFrame, models: pl.DataFrame, score: str = "auroc") -> Figure:
    """The mean over tasks and one panel per task: `score` against context length, with intervals and the baselines."""
    rows = _with_context(scores.filter(pl.col("score") == score), models)
    tasks = rows["task"].unique(maintain_order=True).to_list()
    figure, panels, grid = panel_grid(len(tasks), 4, 2.75, sharey=score == "auroc")
    for axes, task in zip(panels, tasks, strict=True):
        own = rows.filter(pl.col("task") == task)
        _draw_task(axes, own, families(models), score)
        n = own.row(0, named=True)
        counted = f"n = {count(n['n'])}, positive {count(n['n_positive'])}, subjects {count(n['n_subjects'])}"
        axes.set_title(task_name(task), loc="left", pad=16)
        size = 8.5 if len(counted) < 44 else 7.2
        axes.text(0, 1.02, counted, transform=axes.transAxes, fontsize=size, color="#444444")
    name_axes(panels, grid, "context length (tokens)", SCORE_NAMES[score])
    if tasks:
        shared_legend(figure, panels[0])
    return figure


def _heading(figure: Figure, text: str) -> None:
    """Above all panels; then a first layout, as one pass alone leaves no room for labels beside legends."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)
    figure.draw_without_rendering()


def _legend_below(axes: Axes) -> None:
    """Under the axis, where it covers no line."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(
        frameon=False,
        fontsize=8.5,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.24 if axes.get_xlabel().startswith("position") else -0.30),
        ncols=2,
        columnspacing=1.2,
        handlelength=2.2,
    )


def _ends(counts: list) -> list:
    """The smallest and the largest of counts as tables hold them."""
    ordered = sorted(counts, key=lambda n: lower_bound(str(n)))
    return [*ordered[:1], *ordered[-1:]]


def _panels_by_family(models: pl.DataFrame, height: float) -> tuple[Figure, list[tuple[Family, Axes]]]:
    found = families(models)
    figure, panels, _ = panel_grid(len(found), 4, height, sharey=True)
    for family, axes in zip(found, panels, strict=True):
        axes.set_title(family.name, loc="left")
    return figure, list(zip(found, panels, strict=True))


def _by_context(rows: pl.DataFrame, family: Family) -> Iterator[tuple[int, dict[str, Any], bool, pl.DataFrame]]:
    """(context, its style, whether it is the longest, its rows) of one family; of several seeds the first.

    The longer the context, the fuller its marker and its line.
    """
    contexts = family.contexts
    colour, marker, _, _ = STYLES[family.arch]
    for i, context in enumerate(contexts):
        share = i / (len(contexts) - 1) if len(contexts) > 1 else 1.0
        face = tuple(share * c + (1 - share) for c in to_rgb(colour))
        dash = LINES[min(len(contexts), 4)][min(i, 3)]
        style = {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": dash}
        own = rows.filter(pl.col("model") == family.at(context))
        if own.height:
            yield context, style, context == contexts[-1], own


def _positive_shares(strata: pl.DataFrame, name: str, task: str) -> list[str]:
    """The share of positive labels in each quarter, as text; for the mean over tasks the mean of their shares, as the
    score beside it is a mean of theirs. Empty where a count is suppressed."""
    one = strata.filter((pl.col("property") == name) & pl.col("stratum").is_in(QUARTILES))
    of_tasks = one.filter(pl.col("task") != MACRO) if task == MACRO else one.filter(pl.col("task") == task)
    counts = of_tasks.unique(["task", "stratum"], keep="first", maintain_order=True)
    shown = []
    for quartile in QUARTILES:
        rows = counts.filter(pl.col("stratum") == quartile).select(pl.col("n", "n_positive").cast(pl.String)).rows()
        known = rows and not any(is_hidden(cell) for row in rows for cell in row)
        shown.append(f"\n{np.mean([int(positive) / int(n) for n, positive in rows]):.0%}" if known else "")
    return shown


def score_by_quartile(strata: pl.DataFrame, models: pl.DataFrame, name: str, task: str | None = None) -> Figure:
    """Brier score by quartile of the property `name`, of one task or over all; a panel per family, a line per context
    length."""
    task = task or overall_task(strata)
    rows = strata.filter((pl.col("property") == name) & (pl.col("task") == task) & pl.col("stratum").is_in(QUARTILES))
    axis, low, high = PROPERTY_NAMES[name]
    figure, panels = _panels_by_family(models, 3.3)
    of_head = rows.filter((pl.col("model") == BASELINE) & (pl.col("head") == "lightgbm")).sort("stratum")
    x = np.arange(len(QUARTILES))
    shares = _positive_shares(strata, name, task)
    for family, axes in panels:
        contexts = list(_by_context(rows, family))
        for i, (context, style, _, own) in enumerate(contexts):
            own = own.sort("stratum")
            axes.errorbar(
                x + 0.12 * (i - (len(contexts) - 1) / 2),
                own["value"].to_numpy(),
                yerr=bar_lengths(own),
                markersize=5,
                capsize=2.5,
                **style,
                label=f"{tokens_name(context)} tokens",
            )
        if of_head.height:
            axes.plot(
                x, of_head["value"], color=BASELINES["lightgbm"][0], linestyle=BASELINES["lightgbm"][1], linewidth=1.1
            )
        axes.set_xticks(x, [f"{q}{share}" for q, share in zip(QUARTILES, shares, strict=True)])
        axes.set_xlabel(f"{low} → {high}", fontsize=9.5)
        _legend_below(axes)
    sizes = " to ".join(dict.fromkeys(count(n) for n in _ends(rows["n"].unique().to_list())))
    grey = f"; grey: {BASELINES['lightgbm'][2]}" if of_head.height else ""
    for _, axes in panels[:1]:
        axes.set_ylabel("Brier score\n" + task_name(task))
    _heading(figure, f"Quarters by {axis}\nn = {sizes} labels in each, below it the positive share{grey}")
    return figure


def quartile_differences(strata: pl.DataFrame, models: pl.DataFrame, name: str) -> Figure:
    """Brier score of the last quarter minus the first, per task: the longest context of each family."""
    rows = _with_context(
        strata.filter((pl.col("property") == name) & (pl.col("stratum") == "Q4-Q1")), models
    ).drop_nulls("context")
    order = rows["task"].unique(maintain_order=True).to_list()
    # from the bottom up: the study's order downwards, the mean above it
    tasks = [t for t in reversed(order) if t != MACRO] + [t for t in order if t == MACRO]
    figure, axes = plt.subplots(figsize=(8.6, 0.42 * len(tasks) + 1.6), layout="constrained")
    found = families(models)
    for i, family in enumerate(found):
        colour, marker, _, _ = STYLES[family.arch]
        own = rows.filter(pl.col("model") == family.longest)
        if own.is_empty():
            continue
        placed = own.join(pl.DataFrame({"task": tasks, "y": range(len(tasks))}), on="task")
        axes.errorbar(
            placed["value"].to_numpy(),
            placed["y"].to_numpy() + 0.16 * (i - (len(found) - 1) / 2),
            xerr=bar_lengths(placed),
            color=colour,
            marker=marker,
            markersize=4,
            linestyle="none",
            capsize=2,
            label=f"{family.name}, {placed['context'][0]:,} tokens",
        )
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(tasks)), [task_name(t) for t in tasks])
    low, high = PROPERTY_NAMES[name][1:]
    axes.set_xlabel(f"Brier score of the quarter that is {high} minus {low}")
    shared_legend(figure, axes)
    return figure


def _log_perplexity(panels: list[Axes]) -> None:
    """Logarithmic axes, once everything is drawn: fewer ticks where perplexity spans more than three decades."""
    if not any(np.size(line.get_ydata()) for axes in panels for line in axes.get_lines()):
        return  # no bin holds as many subjects as it takes, and nothing has no logarithm
    low, high = panels[0].get_ylim()
    subs = (1, 2, 5) if high < 1e3 * max(low, 1e-3) else (1,)
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=4, numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens_name(round(x))))
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 1 else f"{y:.2g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("position in the timeline (tokens)")
        _legend_below(axes)


def _middle(own: pl.DataFrame) -> np.ndarray:
    return np.sqrt(own["position_from"].to_numpy() * own["position_to"].to_numpy().astype(np.float64))


def perplexity_by_position(perplexity: pl.DataFrame, models: pl.DataFrame) -> Figure:
    """Median perplexity against position, a panel per family, a line and a band per context length."""
    rows = perplexity.filter(pl.col("kind") == "all")
    figure, panels = _panels_by_family(models, 3.3)
    for family, axes in panels:
        for context, style, longest, own in _by_context(rows, family):
            own = own.sort("position_from")
            label = f"{tokens_name(context)} tokens"
            axes.plot(_middle(own), own["median"], markersize=3.5, label=label, **style)
            band = {"color": style["color"], "alpha": 0.22 if longest else 0.10, "linewidth": 0}
            axes.fill_between(_middle(own), own["lower"], own["upper"], **band)
            axes.axvline(context, color=style["color"], linewidth=0.7, alpha=0.5, linestyle=style["linestyle"])
    _log_perplexity([axes for _, axes in panels])
    for _, axes in panels[:1]:
        axes.set_ylabel("median perplexity per token")
    if rows.height:
        one = rows.filter(pl.col("model") == rows["model"][0]).sort("position_from")
        first, last = count(one["n_subjects"][0]), count(one["n_subjects"][-1])
        text = f"All tokens; n = {first} subjects at the first position, {last} at the last"
        _heading(figure, f"{text}\nthin vertical lines: context lengths")
    return figure


def perplexity_of_repeats(perplexity: pl.DataFrame, models: pl.DataFrame) -> Figure:
    """Median perplexity of tokens new to their timeline and of repeated ones, longest context of each family."""
    figure, panels = _panels_by_family(models, 3.3)
    for family, axes in panels:
        colour, marker, _, _ = STYLES[family.arch]
        part = perplexity.filter(pl.col("model") == family.longest)
        axes.set_title(f"{family.name}, {family.contexts[-1]:,} tokens", loc="left")
        for kind, label, filled in (("first", "first of its kind", False), ("repeat", "repeated", True)):
            own = part.filter(pl.col("kind") == kind).sort("position_from")
            axes.plot(
                _middle(own),
                own["median"],
                color=colour,
                marker=marker,
                markersize=3.5,
                markerfacecolor=colour if filled else "white",
                linestyle="-" if filled else ":",
                label=label,
            )
            axes.fill_between(_middle(own), own["lower"], own["upper"], color=colour, alpha=0.15, linewidth=0)
    _log_perplexity([axes for _, axes in panels])
    for _, axes in panels[:1]:
        axes.set_ylabel("median perplexity per token")
    _heading(figure, "Tokens new to their timeline, and repeats of earlier ones")
    return figure


def validation_curves(curves: pl.DataFrame) -> Figure:
    """Validation loss (nats per token) against tokens seen; `curves` is (model, arch, context, tokens, loss)."""
    figure, axes = plt.subplots(figsize=(8.2, 3.1), layout="constrained")
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
            markersize=5,
            markerfacecolor=colour if filled else "white",
            linestyle="-" if filled else ":",
            label=str(model),
        )
    axes.set_xlim(0, 1.05 * float(curves["tokens"].to_numpy().max()) / 1e6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.15)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("validation loss\n(nats per token)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure
