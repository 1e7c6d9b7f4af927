"""The page of the controls: what was found in cohorts of which the truth is known, and four figures of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrctx import __version__
from ehrctx.artifacts import new_file
from ehrctx.controls.arms import POSITIVE, Controls
from ehrctx.controls.levels import FOLLOWS
from ehrctx.controls.positive import BLIND, ORACLE
from ehrctx.probe.predict import COUNTS
from ehrctx.report.figures import STYLES, image, name_axes, panel_grid, shared_legend, task_name, tokens_name
from ehrctx.study import ModelId

TITLES = {
    "far": "far: beyond the short context",
    "near": "near: within both contexts",
    "hidden": "hidden: in nobody's record",
    "needle": "needle: far, a single event",
}
LEVEL_NAMES = {"copy_rate": "copy rate", "gap_shape": "shape of gaps", "visit_rate": "visits per year"}
PROPERTY_LABELS = {
    "rr": "repetition rate RR",
    "rr_1": "repetition rate RR₁",
    "gap_sd": "SD of gaps (days)",
    "gap_iqr": "IQR of gaps (days)",
    "gap_mean": "mean gap (days)",
}
DAY = 86_400
CONTROL_NAMES = {
    "positive": "Positive: the planted cause",
    "negative": "Negative: outcomes dealt out among subjects",
    "properties": "Properties: planted levels",
    "progression": "Progression: with and without",
}


def _lines(axes: Axes, of: dict[str, float]) -> None:
    for name, dash in ((ORACLE, "-"), (BLIND, (0, (5, 2))), (COUNTS, ":")):
        label = "counts, logistic regression" if name == COUNTS else name
        axes.axhline(of[name], color="#555555", linestyle=dash, linewidth=1.1, label=label)
    axes.axhline(0.5, color="#cccccc", linewidth=0.8)


def _errors(values: np.ndarray, rows: list[dict[str, Any]]) -> list[list[float]]:
    """Lengths of error bars below and above; lists, since matplotlib warns of arrays of one value."""
    return [(values - [row["lower"] for row in rows]).tolist(), ([row["upper"] for row in rows] - values).tolist()]


def auroc_by_arm(aurocs: pl.DataFrame) -> Figure:
    """A panel per arm: AUROC against context length, the oracle's with and without the cause."""
    figure, panels, grid = panel_grid(len(POSITIVE), 4, 3.2, sharey=True)
    for axes, arm in zip(panels, POSITIVE, strict=True):
        own = aurocs.filter(arm=arm)
        values = dict(own.select("model", "auroc").iter_rows())
        trained = own.filter(~pl.col("model").is_in([ORACLE, BLIND, COUNTS])).to_dicts()
        models = [(ModelId.parse(row["model"]), row) for row in trained]
        for place, (arch, (colour, marker, dash, name)) in enumerate(STYLES.items()):
            kinds = list(dict.fromkeys((m.size, m.seed) for m, _ in models if m.arch == arch))
            for size, seed in kinds:
                of_kind = [(m.context, row) for m, row in models if (m.arch, m.size, m.seed) == (arch, size, seed)]
                rows = [row for _, row in sorted(of_kind, key=lambda pair: pair[0])]
                x = np.array(sorted(context for context, _ in of_kind)) * 2 ** (0.1 * (place - 1.5))
                y = np.array([row["auroc"] for row in rows])
                axes.errorbar(
                    x, y, yerr=_errors(y, rows), color=colour, marker=marker, linestyle=dash, capsize=2, linewidth=1.2,
                    markersize=4.5, label=name if len(kinds) == 1 else f"{name} {size}, seed {seed}",
                )  # fmt: skip
        _lines(axes, values)
        axes.set_title(TITLES[arm], loc="left")
        contexts = sorted({ModelId.parse(m).context for m in aurocs["model"] if m not in (ORACLE, BLIND, COUNTS)})
        axes.set_xscale("log", base=2)
        axes.set_xlim(contexts[0] / 1.6, contexts[-1] * 1.6)
        axes.set_xticks(contexts, [tokens_name(context) for context in contexts])
        axes.minorticks_off()
    name_axes(panels, grid, "context length (tokens)", "AUROC")
    shared_legend(figure, panels[0])
    return figure


def chance_by_task(chance: pl.DataFrame) -> Figure:
    """Every task and model where outcomes were dealt out: AUROC with its interval, not adjusted."""
    tested = chance.filter(pl.col("lower").is_not_null(), pl.col("lower").is_not_nan())
    tasks = tested["task"].unique(maintain_order=True).to_list()
    entries = tested.select("model", "head").unique(maintain_order=True).rows()
    figure, panels, _ = panel_grid(1, 1, 0.4 * max(4, len(tasks)) + 0.6, sharey=False)
    axes = panels[0]
    for place, (model, head) in enumerate(entries):
        own = {row["task"]: row for row in tested.filter(model=model, head=head).iter_rows(named=True)}
        y = np.array([tasks.index(task) for task in own]) + 0.22 * (place - (len(entries) - 1) / 2)
        x = np.array([row["auroc"] for row in own.values()])
        bars = _errors(x, list(own.values()))
        colour, marker = STYLES[ModelId.parse(model).arch][:2] if model != COUNTS else ("#666666", "x")
        filled = colour if place % 2 else "white"
        axes.errorbar(
            x, y, xerr=bars, color=colour, marker=marker, markerfacecolor=filled, linestyle="none", capsize=2,
            markersize=4.5, linewidth=1.1, label=model,
        )  # fmt: skip
    axes.axvline(0.5, color="#888888", linewidth=0.9)
    axes.set_yticks(range(len(tasks)), [task_name(task) for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("AUROC")
    shared_legend(figure, axes)
    return figure


def means_by_level(levels: pl.DataFrame) -> Figure:
    """A panel per planted property and what is to follow it: the cohort's mean at each level."""
    panels_of = [(planted, name) for planted, names in FOLLOWS.items() for name in names]
    figure, panels, _ = panel_grid(len(panels_of), 4, 2.6, sharey=False)
    for axes, (planted, name) in zip(panels, panels_of, strict=True):
        own = levels.filter(planted=planted, property=name).sort("level")
        factor = DAY if name.startswith("gap") else 1
        axes.plot(own["level"], own["mean"] / factor, color="#0072B2", marker="o", markersize=3.5, linewidth=1.2)
        if planted != "copy_rate":
            axes.set_xscale("log")
            ticks = own["level"].to_list()[:: max(1, len(own) // 3)]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(f"planted {LEVEL_NAMES[planted]}")
        axes.set_title(PROPERTY_LABELS[name], loc="left")
    return figure


def loss_by_position(progression: pl.DataFrame) -> Figure:
    """The paired difference in loss by token position, with its interval."""
    figure, panels, _ = panel_grid(1, 1, 3.2, sharey=False)
    axes = panels[0]
    for model in progression["model"].unique(maintain_order=True):
        own = progression.filter(model=model)
        colour, marker, dash, name = STYLES[ModelId.parse(model).arch]
        x = np.sqrt(own["position_from"] * own["position_to"])
        axes.fill_between(x, own["lower"], own["upper"], color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, own["difference"], color=colour, marker=marker, linestyle=dash, markersize=4.5, label=name)
    axes.axhline(0, color="#888888", linewidth=0.9)
    axes.set_xscale("log", base=2)
    ticks = sorted({*progression["position_from"], *(progression["position_to"] + 1)})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("position in the timeline (tokens)")
    axes.set_ylabel("loss with progression\nless without (nats)")
    return figure


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A statement as the page prints it."""
    value = f"{row['value']:.0f}" if row["value"] == int(row["value"]) else f"{row['value']:.3f}"
    has_limits = row["lower"] is not None and not np.isnan(row["lower"])
    limits = f"{row['lower']:.3f} to {row['upper']:.3f}" if has_limits else ""
    verdict = {True: "holds", False: "does not hold", None: ""}[row["holds"]]
    return row | {"value": value, "limits": limits, "verdict": verdict}


def write_page(controls: Controls, tables: dict[str, pl.DataFrame], out: Path) -> None:
    """Writes the self-contained page `out` from the tables of `controls.tables.write_controls`."""
    rows = [_shown(row) for row in tables["controls"].to_dicts()]
    environment = Environment(
        loader=PackageLoader("ehrctx.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("controls.html.j2").render(
        name=controls.name,
        version=__version__,
        task=task_name(controls.task),
        level=controls.statistics.level,
        replicates=controls.statistics.replicates,
        groups=[(CONTROL_NAMES[name], [r for r in rows if r["control"] == name]) for name in CONTROL_NAMES],
        judged=[r for r in rows if r["holds"] is not None],
        figures={
            "positive": image(auroc_by_arm(tables["aurocs"])),
            "negative": image(chance_by_task(tables["chance"])),
            "properties": image(means_by_level(tables["levels"])),
            "progression": image(loss_by_position(tables["progression"])),
        },
        design=controls.model_dump_json(indent=1),
    )
    with new_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
