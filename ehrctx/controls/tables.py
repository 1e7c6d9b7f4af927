"""`ehrctx controls`: the table of all controls, and what its figures show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ehrctx.artifacts import Source, write_provenance, write_table
from ehrctx.controls.arms import (
    LEVELS,
    NEGATIVE,
    POSITIVE,
    PROGRESSION,
    Controls,
    both_contexts,
    by_context,
    compared,
    contexts,
)
from ehrctx.controls.levels import FOLLOWS, level_table, steps_that_follow
from ehrctx.controls.negative import chance_table, excluded
from ehrctx.controls.positive import Found, aurocs, difference, recovered
from ehrctx.controls.progression import Slope, paired_slope
from ehrctx.probe.predict import COUNTS
from ehrctx.probe.statistics import Intervals

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
SHARE = "share of the oracle's AUROC above .5"
UNSEEN = "AUROC less its own where no record shows the cause"
PROVENANCE = "controls.json"
UNKNOWN = (float("nan"), float("nan"))  # limits
AUROC_SCHEMA: dict[str, Any] = {
    "arm": pl.String, "model": pl.String, "auroc": pl.Float64, "lower": pl.Float64, "upper": pl.Float64,
}  # fmt: skip


class Bar(NamedTuple):
    """What is asked of a value, given it and the limits of its interval."""

    asked: str
    holds: Callable[[float, float, float], bool]


MORE = Bar("interval above 0", lambda _, lower, __: lower > 0)


def _row(
    control: str,
    quantity: str,
    arm: str,
    model: str,
    value: float,
    limits: tuple[float, float],
    bar: str | None = None,
    holds: bool | None = None,
) -> dict[str, Any]:
    return {
        "control": control, "quantity": quantity, "arm": arm, "model": model,
        "value": value, "lower": limits[0], "upper": limits[1], "bar": bar, "holds": holds,
    }  # fmt: skip


def positive_rows(
    controls: Controls, found: Mapping[str, Found], models: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """What the planted cause shows; `found` and `models` (their ids) by arm of POSITIVE."""
    intervals, (short, long) = Intervals(controls.statistics.level), contexts(models["far"])
    far, near, hidden, needle = (found[arm] for arm in POSITIVE)
    rows = []

    def row(quantity: str, arm: str, model: str, both: tuple[float, np.ndarray], bar: Bar | None = None) -> None:
        limits = intervals.of(both[1], found[arm].subjects)
        judged = (bar.asked, bar.holds(both[0], *limits)) if bar else ()
        rows.append(_row("positive", quantity, arm, model, both[0], limits, *judged))

    reached = {model: recovered(far, model) for model in by_context(models["far"], long)}
    best = max(reached, key=lambda model: reached[model][0])
    least = controls.bars.recovered
    enough = Bar(f">= {least:g} (hoped for {controls.bars.stretch:g})", lambda value, *_: value >= least)
    margin = controls.bars.equal
    same = Bar(f"interval within ±{margin:g}", lambda _, lower, upper: -margin <= lower and upper <= margin)
    for model, share in reached.items():
        row(SHARE, "far", model, share, enough if model == best else None)
    for model in by_context(models["far"], short):
        row(UNSEEN, "far", model, difference(far, model, hidden, model), same)
    for shorter, longer in both_contexts(models["far"], short, long):
        bar = MORE if longer == best else None
        row(f"AUROC less that of {shorter}", "far", longer, difference(far, longer, far, shorter), bar)
    for shorter, longer in both_contexts(models["near"], short, long):
        row(f"AUROC less that of {shorter}", "near", longer, difference(near, longer, near, shorter), same)
    for model in by_context(models["needle"], long):
        row(SHARE, "needle", model, recovered(needle, model))
    return rows


def negative_row(chance: pl.DataFrame, asked: int, level: float) -> dict[str, Any]:
    """How many of the tests of `negative.chance_table` find something; `asked` are the study's tasks times heads."""
    n, tested = excluded(chance, level), chance["p_holm"].fill_nan(None).count()
    quantity = f"adjusted intervals that exclude .5, of {tested} that could ({asked} asked for)"
    return _row("negative", quantity, NEGATIVE, "all", n, UNKNOWN, bar="0", holds=n == 0)


def property_rows(arm: str, table: pl.DataFrame, correlations: Mapping[str, float]) -> list[dict[str, Any]]:
    """Whether each property follows what the arm plants; `table` and `correlations` are of `levels.level_table`."""
    planted, rows = arm.removesuffix("_levels"), []
    steps = table["level"].n_unique() - 1
    for name, sign in FOLLOWS[planted].items():
        right = steps_that_follow(table, planted, name)
        quantity = f"steps of {planted} at which the mean {name} {'rises' if sign > 0 else 'falls'}"
        rows.append(_row("properties", quantity, arm, "", right, UNKNOWN, bar=f"all {steps}", holds=right == steps))
        quantity = f"rank correlation of {name} with {planted} over subjects"
        rows.append(_row("properties", quantity, arm, "", correlations[name], UNKNOWN))
    return rows


def progression_row(model: str, slope: Slope) -> dict[str, Any]:
    """Whether the loss grows along the timeline because of progression."""
    quantity = "loss with progression less without, nats per doubling of the position"
    limits = slope.lower, slope.upper
    holds = MORE.holds(slope.value, *limits)
    return _row("progression", quantity, "progressing", model, slope.value, limits, MORE.asked, holds)


def compared_inputs(controls: Controls, results: Mapping[str, Path]) -> dict[str, Source]:
    """What is compared of all arms, by the name under which the controls record it; `results` are the arms' folders."""
    studies = controls.studies()
    paths = {arm: compared(arm, studies[arm], results[arm]) for arm in studies}
    return {f"{arm}/{path.name}": path for arm, of_arm in paths.items() for path in of_arm}


def write_controls(controls: Controls, results: Mapping[str, Path], out: Path) -> dict[str, pl.DataFrame]:
    """Writes controls.csv (SCHEMA) and the tables of its figures to the folder `out`; `results` are the arms' folders.

    Beside it: aurocs.csv (by arm and model), chance.csv (`negative.SCHEMA`), levels.csv (`levels.SCHEMA`),
    and progression.csv.
    """
    statistics, studies = controls.statistics, controls.studies()
    events = {arm: results[arm] / "events" / "meds" for arm in studies}
    predicted = {
        arm: [results[arm] / "probes" / model for model in (*studies[arm].models, COUNTS)]
        for arm in (*POSITIVE, NEGATIVE)
    }
    found = {arm: aurocs(events[arm], predicted[arm], controls.task, statistics) for arm in POSITIVE}
    chance = chance_table(predicted[NEGATIVE], statistics)
    negative = studies[NEGATIVE]
    asked = len(negative.tasks) * (len(negative.models) + len(negative.probe.baselines))
    by_level = {
        arm: level_table(arm.removesuffix("_levels"), events[arm], results[arm] / "robustness" / "properties")
        for arm in LEVELS
    }
    slopes = {}
    for model in studies["progressing"].models:
        progressing, steady = (results[arm] / "robustness" / "perplexity" / model for arm in PROGRESSION)
        slopes[model] = paired_slope(progressing, steady, statistics)
    rows = [
        *positive_rows(controls, found, {arm: studies[arm].models for arm in POSITIVE}),
        negative_row(chance, asked, statistics.level),
        *(row for arm, of_arm in by_level.items() for row in property_rows(arm, *of_arm)),
        *(progression_row(model, slope) for model, slope in slopes.items()),
    ]
    tables = {
        "controls": pl.DataFrame(rows, schema=SCHEMA, orient="row"),
        "aurocs": _auroc_table(found, Intervals(statistics.level)),
        "chance": chance,
        "levels": pl.concat(table for table, _ in by_level.values()),
        "progression": pl.concat(slope.table.with_columns(model=pl.lit(model)) for model, slope in slopes.items()),
    }
    for name, table in tables.items():
        write_table(table, out / f"{name}.csv")
    return tables


def record_controls(controls: Controls, results: Mapping[str, Path], out: Path) -> None:
    """Writes controls.json: the controls as they were asked for, and what the tables and the page in `out` are made
    from."""
    written = sorted([*out.glob("*.csv"), *out.glob("*.html")])
    write_provenance(out / PROVENANCE, controls.model_dump(mode="json"), compared_inputs(controls, results), written)


def _auroc_table(found: Mapping[str, Found], intervals: Intervals) -> pl.DataFrame:
    rows = [
        (arm, model, value, *intervals.of(one.replicates[model], one.subjects))
        for arm, one in found.items()
        for model, value in one.values.items()
    ]
    return pl.DataFrame(rows, schema=AUROC_SCHEMA, orient="row")
