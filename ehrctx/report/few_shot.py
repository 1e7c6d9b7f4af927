"""Scores of heads that learned from few labels, against how many they were."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.report.figures import (
    SCORE_NAMES,
    bar_lengths,
    count,
    entry_name,
    name_axes,
    overall_task,
    panel_grid,
    shared_legend,
    task_name,
)
from ehrctx.report.risks import entry_style, titled
from ehrctx.report.sentences import estimate, few_positives
from ehrctx.study import ModelId


def _longest(entries: list[tuple[str, str]]) -> set[str]:
    """The heads on counts, and of each architecture the model with the longest context."""
    models = sorted((ModelId.parse(m).context, m) for m, _ in entries if m != BASELINE)
    return {BASELINE, *{ModelId.parse(model).arch: model for _, model in models}.values()}


def score_by_k(few_shot: pl.DataFrame, scores: pl.DataFrame, score: str = "auroc") -> Figure:
    """`score` against the number of labels per class, means over draws with intervals; at the right, all labels.

    Of several models of an architecture, all but the one with the longest context are dotted and hollow.
    """
    rows = few_shot.filter(score=score)
    tasks = rows["task"].unique(maintain_order=True).to_list()
    figure, panels, grid = panel_grid(len(tasks), 4, 2.75, sharey=True)
    for axes, task in zip(panels, tasks, strict=True):
        own = rows.filter(task=task).with_columns(pl.col("k").cast(pl.Int64))
        ks = sorted(own["k"].unique().to_list())
        end = 2 * ks[-1]
        entries = own.select("model", "head").unique(maintain_order=True).rows()
        for who in entries:
            of_who = own.filter(model=who[0], head=who[1]).sort("k")
            style = entry_style(who) | {"markersize": 3.5}
            if who[0] not in _longest(entries):
                style |= {"markerfacecolor": "white", "linestyle": ":"}
            axes.errorbar(
                of_who["k"], of_who["value"], yerr=bar_lengths(of_who), capsize=2, label=entry_name(*who), **style
            )
            whole = scores.filter(task=task, model=who[0], head=who[1], score=score)
            axes.plot([end] * whole.height, whole["value"], **style | {"linestyle": "none"})
        axes.set_xscale("log", base=2)
        axes.set_xticks([*ks, end], [*(str(k) for k in ks), "all"])
        axes.minorticks_off()
        axes.axhline(0.5, color="#cccccc", linewidth=0.8)
        n = own.row(0, named=True)
        titled(axes, task, [f"n = {count(n['n'])}, positive {count(n['n_positive'])}"])
    name_axes(panels, grid, "labels per class", SCORE_NAMES[score])
    if tasks:
        shared_legend(figure, panels[0])
    return figure


def few_shot_sentence(few_shot: pl.DataFrame) -> str | None:
    """The best model and the best head on counts with the fewest labels per class, and with the most."""
    own = few_shot.filter(task=overall_task(few_shot), score="auroc").sort("value", descending=True)
    if own.is_empty() or few_positives(own["n_positive_subjects"][0]):
        return None
    parts = []
    ks = sorted(own["k"].unique(), key=int)
    for k in dict.fromkeys((ks[0], ks[-1])):
        is_baseline = pl.col("model") == BASELINE
        found = [own.filter(pl.col("k") == k, kind).head(1).to_dicts() for kind in (~is_baseline, is_baseline)]
        named = [f"{entry_name(row['model'], row['head'])} has {estimate(row)}" for rows in found for row in rows]
        parts.append(f"with {k} labels per class, {' and '.join(named)}")
    return f"of the models and of the heads on counts, the best: {'; '.join(parts)} ({task_name(own['task'][0])})"
