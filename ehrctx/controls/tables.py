"""`ehrctx controls`: the table of all controls, and what its figures show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import new_file, write_table
from ehrctx.controls.arms import LEVELS, NEGATIVE, POSITIVE, PROGRESSION, Controls, contexts
from ehrctx.controls.levels import FOLLOWS, is_monotone, level_table
from ehrctx.controls.negative import chance_table, excluded
from ehrctx.controls.positive import Found, aurocs, by_context, difference, recovered
from ehrctx.controls.progression import paired_slope
from ehrctx.probe.predict import COUNTS
from ehrctx.probe.statistics import Intervals
from ehrctx.study import Statistics

# A row per statement; `holds` is empty where nothing is asked for.
SCHEMA: dict[str, Any] = {
    "control": pl.String,
    "quantity": pl.String,
    "arm": pl.String,
    "model": pl.String,
    "value": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "bar": pl.String,
    "holds": pl.Boolean,
}
AUROC_SCHEMA: dict[str, Any] = {
    "arm": pl.String, "model": pl.String, "auroc": pl.Float64, "lower": pl.Float64, "upper": pl.Float64,
}  # fmt: skip


def _row(
    control: str, quantity: str, arm: str, model: str, value: float, limits: tuple[float, float], **judged: Any
) -> dict[str, Any]:
    return {
        "control": control, "quantity": quantity, "arm": arm, "model": model,
        "value": value, "lower": limits[0], "upper": limits[1], "bar": judged.get("bar"), "holds": judged.get("holds"),
    }  # fmt: skip


def _folders(results: Path, models: tuple[str, ...]) -> list[Path]:
    return [results / "probes" / model for model in (*models, COUNTS)]


def positive_rows(controls: Controls, found: dict[str, Found], models: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the planted cause shows. `models` are those of the arm far, of at least two context lengths."""
    intervals, (short, long) = Intervals(controls.statistics.level), contexts(models)
    far, near, hidden = (found[arm] for arm in POSITIVE)
    rows = []

    def row(quantity: str, arm: str, model: str, both: tuple[float, np.ndarray], **judged: Any) -> dict[str, Any]:
        return _row("positive", quantity, arm, model, both[0], intervals.of(both[1], found[arm].subjects), **judged)

    reached = {model: recovered(far, model) for model in by_context(far.values, long)}
    best = max(reached, key=lambda model: reached[model][0])
    for model, share in reached.items():
        judged = {
            "bar": f">= {controls.bars.recovered:g} (hoped for {controls.bars.stretch:g})",
            "holds": share[0] >= controls.bars.recovered,
        }
        rows.append(
            row("share of the oracle's AUROC above .5", "far", model, share, **(judged if model == best else {}))
        )
    for model in by_context(far.values, short):
        for blind in by_context(hidden.values, long):
            if blind.split("-")[0] == model.split("-")[0]:
                apart = difference(far, model, hidden, blind)
                limits = intervals.of(apart[1], far.subjects)
                judged = {"bar": "interval holds 0", "holds": limits[0] <= 0 <= limits[1]}
                rows.append(
                    _row(
                        "positive",
                        f"AUROC less that of {blind} that never saw a cause",
                        "far",
                        model,
                        apart[0],
                        limits,
                        **judged,
                    )
                )
    for arm, one, asked in (("far", far, True), ("near", near, False)):
        for model in by_context(one.values, long):
            partner = model.replace(f"-{long}", f"-{short}")
            if partner in one.values:
                apart = difference(one, model, one, partner)
                limits = intervals.of(apart[1], one.subjects)
                holds = limits[0] > 0 if asked else limits[0] <= 0 <= limits[1]
                bar = "interval above 0" if asked else "interval holds 0"
                judged = {"bar": bar, "holds": holds} if not asked or model == best else {}
                rows.append(_row("positive", f"AUROC less that of {partner}", arm, model, apart[0], limits, **judged))
    return rows


def write_controls(controls: Controls, results: dict[str, Path], out: Path) -> dict[str, pl.DataFrame]:
    """Writes controls.csv (SCHEMA) and the tables of its figures to the folder `out`; `results` are the arms' folders.

    Beside it: aurocs.csv (by arm and model), chance.csv (`negative.SCHEMA`), levels.csv (`levels.SCHEMA`),
    progression.csv, and controls.json, the controls as they were asked for.
    """
    statistics: Statistics = controls.statistics
    intervals = Intervals(statistics.level)
    studies = controls.studies()
    found = {
        arm: aurocs(
            results[arm] / "events" / "meds", _folders(results[arm], studies[arm].models), controls.task, statistics
        )
        for arm in POSITIVE
    }
    scores = pl.DataFrame(
        [
            (arm, model, value, *intervals.of(one.replicates[model], one.subjects))
            for arm, one in found.items()
            for model, value in one.values.items()
        ],
        schema=AUROC_SCHEMA,
        orient="row",
    )
    rows = positive_rows(controls, found, studies["far"].models)
    chance = chance_table(_folders(results[NEGATIVE], studies[NEGATIVE].models), statistics)
    tested = chance.filter(pl.col("p_holm").is_not_nan(), pl.col("p_holm").is_not_null()).height
    n = excluded(chance, statistics.level)
    nothing = (float("nan"), float("nan"))
    rows.append(
        _row(
            "negative",
            f"adjusted intervals of {tested} that exclude .5",
            NEGATIVE,
            "all",
            n,
            nothing,
            bar="0",
            holds=n == 0,
        )
    )
    levels = []
    for arm in LEVELS:
        planted = arm.removesuffix("_levels")
        table, correlations = level_table(
            planted, results[arm] / "events" / "meds", results[arm] / "robustness" / "properties"
        )
        levels.append(table)
        for name in FOLLOWS[planted]:
            holds = is_monotone(table, planted, name)
            direction = "rises" if FOLLOWS[planted][name] > 0 else "falls"
            quantity = f"{name} by {planted}: rank correlation over subjects"
            bar = f"mean strictly {direction} over {table['level'].n_unique()} levels"
            rows.append(_row("properties", quantity, arm, "", correlations[name], nothing, bar=bar, holds=holds))
    slopes = []
    for model in studies["progressing"].models:
        progressing, steady = (results[arm] / "robustness" / "perplexity" / model for arm in PROGRESSION)
        slope = paired_slope(progressing, steady, statistics)
        slopes.append(slope.table.with_columns(model=pl.lit(model)))
        limits = (slope.lower, slope.upper)
        quantity = "loss with progression less without, nats per doubling of the position"
        rows.append(
            _row(
                "progression",
                quantity,
                "progressing",
                model,
                slope.value,
                limits,
                bar="interval above 0",
                holds=slope.lower > 0,
            )
        )
    tables = {
        "controls": pl.DataFrame(rows, schema=SCHEMA, orient="row"),
        "aurocs": scores,
        "chance": chance,
        "levels": pl.concat(levels),
        "progression": pl.concat(slopes),
    }
    for name, table in tables.items():
        write_table(table, out / f"{name}.csv")
    with new_file(out / "controls.json") as partial:
        partial.write_text(json.dumps(controls.model_dump(mode="json"), indent=1) + "\n")
    return tables
