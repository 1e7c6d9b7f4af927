"""What predicted risks are worth: reliability curves, decision curves, scores by subgroup; figures and sentences.

Each task shows its best model, by held-out AUROC, beside the strongest head on counts.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrctx.probe.calibration import AS_PREDICTED, RECALIBRATED
from ehrctx.probe.net_benefit import TREAT_ALL
from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.probe.statistics import FEW_POSITIVES
from ehrctx.probe.subgroups import HISTORY, NEW_ONSET, REPEATED
from ehrctx.probe.suppression import lower_bound
from ehrctx.report.figures import (
    BASELINES,
    STYLES,
    bar_lengths,
    entry_name,
    name_axes,
    panel_grid,
    shared_legend,
    task_name,
)
from ehrctx.report.sentences import excludes_zero, few_positives, has_interval, listed, signed, strongest_baseline
from ehrctx.study import ModelId

Who = tuple[str, str]  # model, head
_NAMED_GAPS = 6


def shown_of(scores: pl.DataFrame, task: str) -> list[Who]:
    """The best model of a task, and the strongest head on counts, where there is one."""
    own = scores.filter((pl.col("task") == task) & (pl.col("score") == "auroc") & (pl.col("model") != BASELINE))
    best = own.sort("value", descending=True, nulls_last=True).select("model", "head").rows()[:1]
    counts = strongest_baseline(scores, task)
    return [*best, *([(BASELINE, counts)] if counts else [])]


def judged_tasks(scores: pl.DataFrame, table: pl.DataFrame) -> list[str]:
    """The tasks of `table` with enough positive subjects to judge, in the order of the scores."""
    counted = dict(scores.select("task", "n_positive_subjects").iter_rows())
    present = set(table["task"])
    return [task for task, n in counted.items() if task in present and not few_positives(n)]


def _of(table: pl.DataFrame, task: str, who: Who, **more: str) -> pl.DataFrame:
    return table.filter(task=task, model=who[0], head=who[1], **more)


def entry_style(who: Who) -> dict[str, Any]:
    """Colour, line and marker of an architecture, or of a head on counts."""
    if who[0] == BASELINE:
        colour, dash, _ = BASELINES[who[1]]
        return {"color": colour, "linestyle": dash, "marker": "v", "markersize": 3.5, "linewidth": 1.1}
    colour, marker, _, _ = STYLES[ModelId.parse(who[0]).arch]
    return {"color": colour, "linestyle": "-", "marker": marker, "markersize": 4.5, "linewidth": 1.3}


def titled(axes: Axes, task: str, lines: list[str]) -> None:
    """The task's name above the panel, and small lines below it."""
    axes.set_title(task_name(task), loc="left", pad=4 + 11 * len(lines))
    for i, line in enumerate(reversed(lines)):
        axes.text(0, 1.02 + 0.065 * i, line, transform=axes.transAxes, fontsize=7.8, color="#444444")


def reliability_curves(reliability: pl.DataFrame, scores: pl.DataFrame) -> Figure:
    """Predicted against observed risk by tenths of the labels, with intervals; hollow: recalibrated."""
    tasks = judged_tasks(scores, reliability)
    figure, panels, grid = panel_grid(len(tasks), 4, None, sharey=False)
    for axes, task in zip(panels, tasks, strict=True):
        top = 0.0
        for who in shown_of(scores, task):
            style = entry_style(who)
            for recalibration in (AS_PREDICTED, RECALIBRATED):
                own = _of(reliability, task, who, recalibration=recalibration).drop_nulls("value").sort("bin")
                if own.is_empty() or (recalibration == RECALIBRATED and who[0] == BASELINE):
                    continue
                top = max(top, own.select(pl.max_horizontal("predicted", "value").max()).item())
                if recalibration == RECALIBRATED:
                    hollow = style | {"markerfacecolor": "white", "linestyle": "none", "linewidth": 0.8}
                    axes.plot(own["predicted"], own["value"], **hollow)
                else:
                    bars = bar_lengths(own) if who[0] != BASELINE else None
                    axes.errorbar(own["predicted"], own["value"], yerr=bars, capsize=2, elinewidth=0.8, **style)
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.8, zorder=0)
        limit = min(1.0, 1.15 * top) or 1.0
        axes.set_xlim(-0.03 * limit, limit)
        axes.set_ylim(-0.03 * limit, limit)
        axes.set_box_aspect(1)
        titled(axes, task, [entry_name(*who) for who in shown_of(scores, task)[:1]])
    name_axes(panels, grid, "predicted risk", "observed share")
    return figure


def decision_curves(net_benefit: pl.DataFrame, scores: pl.DataFrame) -> Figure:
    """Net benefit against the risk from which on one would act: the best model, counts, treating all; none is 0."""
    tasks = judged_tasks(scores, net_benefit)
    figure, panels, grid = panel_grid(len(tasks), 4, 2.75, sharey=False)
    for axes, task in zip(panels, tasks, strict=True):
        everybody = _of(net_benefit, task, (TREAT_ALL, "")).drop_nulls("value").sort("threshold")
        axes.plot(everybody["threshold"], everybody["value"], color="#999999", linewidth=1.0, label="treating all")
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, label="treating none")
        top = max([0.0, *everybody["value"]])
        for who in shown_of(scores, task):
            own = recalibrated_where_possible(_of(net_benefit, task, who)).drop_nulls("value").sort("threshold")
            if own.is_empty():
                continue
            top = max([top, *own["value"]])
            axes.plot(own["threshold"], own["value"], **entry_style(who))
            if who[0] != BASELINE:
                axes.fill_between(
                    own["threshold"],
                    own["lower"],
                    own["upper"],
                    color=entry_style(who)["color"],
                    alpha=0.15,
                    linewidth=0,
                )
        axes.set_ylim(-0.15 * top or -0.01, 1.12 * top or 0.01)
        titled(axes, task, [entry_name(*who) for who in shown_of(scores, task)[:1]])
    name_axes(panels, grid, "risk from which on one acts", "net benefit")
    if tasks:
        shared_legend(figure, panels[0])
    return figure


def recalibrated_where_possible(own: pl.DataFrame) -> pl.DataFrame:
    """Rows of one entry: recalibrated ones, or, where the tuning split allowed none, those as predicted."""
    better = own.filter(recalibration=RECALIBRATED)
    return better if better.height else own.filter(recalibration=AS_PREDICTED)


def subgroup_scores(subgroups: pl.DataFrame, scores: pl.DataFrame) -> Figure:
    """AUROC of the best model of each task by level of each group; a line at that of all."""
    shown = subgroups.filter((pl.col("score") == "auroc") & (pl.col("group") != HISTORY))
    tasks = judged_tasks(scores, shown)
    levels = shown.select("group", "level").unique().sort("group", "level").rows()
    figure, panels, grid = panel_grid(len(tasks), 4, max(2.0, 0.9 + 0.22 * len(levels)), sharey=True)
    places = {level: -i for i, level in enumerate(levels)}
    for axes, task in zip(panels, tasks, strict=True):
        best = shown_of(scores, task)[0]
        own = _of(shown, task, best).drop_nulls("value")
        at = [places[key] for key in own.select("group", "level").rows()]
        clear = [_is_gap(row) for row in _judged_gaps(own, scores, task)]
        colour = entry_style(best)["color"]
        axes.errorbar(own["value"], at, xerr=bar_lengths(own), fmt="none", ecolor=colour, elinewidth=1, capsize=2)
        faces = [colour if c else "white" for c in clear]
        axes.scatter(own["value"], at, s=22, c=faces, edgecolors=colour, zorder=3)
        axes.axvline(_overall(scores, task, best), color=colour, linewidth=0.8, linestyle=":")
        axes.axvline(0.5, color="#dddddd", linewidth=0.8, zorder=0)
        axes.set_yticks(list(places.values()), [f"{group} {level}" for group, level in levels])
        axes.set_ylim(-len(levels) + 0.4, 0.6)
        titled(axes, task, [best[0]])
    name_axes(panels, grid, "AUROC")
    return figure


def _judged_gaps(own: pl.DataFrame, scores: pl.DataFrame, task: str) -> list[dict[str, Any] | None]:
    """The rows of `own` as far as their gap can be judged: an interval, and enough positive subjects on either side."""
    total = lower_bound(scores.filter(task=task)["n_positive_subjects"][0])
    rows: list[dict[str, Any] | None] = []
    for row in own.iter_rows(named=True):
        inside = lower_bound(row["n_positive_subjects"])
        is_judged = has_interval(_gap(row)) and min(inside, total - inside) >= FEW_POSITIVES
        rows.append(row if is_judged else None)
    return rows


def _gap(row: dict[str, Any]) -> dict[str, Any]:
    return {"lower": row["difference_lower"], "upper": row["difference_upper"]}


def _is_gap(row: dict[str, Any] | None) -> bool:
    return row is not None and excludes_zero(_gap(row))


def calibration_rows(calibration: pl.DataFrame, scores: pl.DataFrame) -> list[dict[str, Any]]:
    """One row per task, shown head and recalibration: `task`, `name`, `recalibration`, and a table row by measure."""
    rows = []
    for task in judged_tasks(scores, calibration):
        for who in shown_of(scores, task):
            for recalibration in (AS_PREDICTED, RECALIBRATED):
                own = _of(calibration, task, who, recalibration=recalibration)
                if own.height:
                    found = {row["measure"]: row for row in own.iter_rows(named=True)}
                    rows.append({"task": task, "name": entry_name(*who), "recalibration": recalibration, **found})
    return rows


def calibration_sentence(calibration: pl.DataFrame, scores: pl.DataFrame) -> str | None:
    """In how many tasks the best model's risks are too sure, or not sure enough, before and after."""
    said = []
    for recalibration, when in ((AS_PREDICTED, "as predicted"), (RECALIBRATED, "recalibrated on the tuning split")):
        slopes = []
        for task in judged_tasks(scores, calibration):
            own = _of(calibration, task, shown_of(scores, task)[0], recalibration=recalibration, measure="slope")
            slopes += own.drop_nans("lower").to_dicts()
        if slopes:
            over, under = sum(row["upper"] < 1 for row in slopes), sum(row["lower"] > 1 for row in slopes)
            said.append(
                f"{when}, the best model's risks are too extreme (the slope's interval is under 1) in {over} and too "
                f"moderate (over 1) in {under} of {len(slopes)} tasks"
            )
    return "; ".join(said) or None


def _longest_run(thresholds: list[float], chosen: list[bool]) -> str:
    """`0.05 to 0.2`: the most neighbours among the sorted thresholds that are all chosen."""
    runs = [
        [t for t, _ in run]
        for is_chosen, run in groupby(zip(thresholds, chosen, strict=True), itemgetter(1))
        if is_chosen
    ]
    longest = max(runs, key=len)
    return " to ".join(f"{end:g}" for end in dict.fromkeys((longest[0], longest[-1])))


def benefit_sentence(net_benefit: pl.DataFrame, scores: pl.DataFrame) -> str | None:
    """From which to which risk the best model gains over treating all and treating none, by task: of several
    such spans the longest."""
    gains, none = [], []
    for task in judged_tasks(scores, net_benefit):
        own = recalibrated_where_possible(_of(net_benefit, task, shown_of(scores, task)[0])).sort("threshold")
        gaining = [lower > 0 for lower in own["gain_lower"]]
        if any(gaining):
            gains.append(f"{task} (risks of {_longest_run(own['threshold'].to_list(), gaining)})")
        else:
            none.append(task)
    parts = [f"the best model gains over treating all or none in {listed(gains)}"] if gains else []
    parts += [f"no gain can be told in {listed(none)}"] if none else []
    return "; ".join(parts) or None


def subgroup_sentence(subgroups: pl.DataFrame, scores: pl.DataFrame, level: float) -> str | None:
    """Of how many gaps of the best models the interval excludes 0, how many would by chance, and the widest of them.

    `level` is the intervals'. Of a group with two levels, each is all the others of the other: one gap, told of the
    worse.
    """
    shown = subgroups.filter((pl.col("score") == "auroc") & (pl.col("group") != HISTORY))
    judged = []
    for task in judged_tasks(scores, shown):
        own = _of(shown, task, shown_of(scores, task)[0])
        n_levels = dict(own["group"].value_counts().iter_rows())
        rows = [row for row in _judged_gaps(own, scores, task) if row is not None]
        judged += [row for row in rows if n_levels[row["group"]] != 2 or row["difference"] <= 0]
    if not judged:
        return None
    found = sorted(filter(_is_gap, judged), key=lambda row: -abs(row["difference"]))
    by_chance = (1 - level) * len(judged)
    said = (
        f"Of {len(judged)} gaps in AUROC between a level and all others of its group, the interval of {len(found)} "
        f"excludes 0 (chance alone would give about {by_chance:.{0 if by_chance >= 1 else 1}f})"
    )
    named = "; ".join(
        f"{row['task']}, {row['group']} {row['level']}: {signed(row['difference'])}" for row in found[:_NAMED_GAPS]
    )
    more = f"; {len(found) - _NAMED_GAPS} more in subgroups.csv" if len(found) > _NAMED_GAPS else ""
    return f"{said}: {named}{more}" if named else said


def onset_rows(subgroups: pl.DataFrame, scores: pl.DataFrame) -> list[dict[str, Any]]:
    """One row per task with repeated labels and shown head: `task`, `who`, `name`, AUROC rows `new` and `repeated`."""
    shown = subgroups.filter(group=HISTORY, score="auroc")
    rows = []
    for task in judged_tasks(scores, shown):
        for who in shown_of(scores, task):
            found = {row["level"]: row for row in _of(shown, task, who).iter_rows(named=True)}
            if found.keys() >= {NEW_ONSET, REPEATED}:
                parts = {"new": found[NEW_ONSET], "repeated": found[REPEATED]}
                rows.append({"task": task, "who": who, "name": entry_name(*who)} | parts)
    return rows


def onset_sentence(subgroups: pl.DataFrame, scores: pl.DataFrame) -> str | None:
    """In how many tasks the best model finds new onsets better than chance, and where repeats flatter its score."""
    best = {task: shown_of(scores, task)[0] for task in judged_tasks(scores, subgroups)}
    of_best = [row for row in onset_rows(subgroups, scores) if row["who"] == best[row["task"]]]
    rows = [row for row in of_best if not few_positives(row["new"]["n_positive_subjects"]) and has_interval(row["new"])]
    if not rows:
        return None
    beyond = sum(row["new"]["lower"] > 0.5 for row in rows)
    said = (
        f"Among new onsets, the best model is better than chance (interval above 0.5) in {beyond} of {len(rows)} "
        f"{'task' if len(rows) == 1 else 'tasks'} that can be judged"
    )
    over_all = {row["task"]: _overall(scores, row["task"], best[row["task"]]) for row in rows}
    gaps = {row["task"]: round(row["new"]["value"] - over_all[row["task"]], 3) for row in rows}
    flattered = [f"{task} ({signed(gap)})" for task, gap in sorted(gaps.items(), key=itemgetter(1)) if gap < 0]
    return f"{said}; its AUROC is lower there than over all labels in {listed(flattered)}" if flattered else said


def _overall(scores: pl.DataFrame, task: str, who: Who) -> float:
    """The AUROC over all labels of a task."""
    return float(scores.filter(task=task, model=who[0], head=who[1], score="auroc")["value"][0])
