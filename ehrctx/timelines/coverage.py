"""What became of all events, by code system and reason: in numbers, and as the text that `ehrctx tokenize` prints."""

from __future__ import annotations

from typing import Any

import polars as pl

from ehrctx.timelines.encoding import COVERED, LONG_TEXT, NAMES, NOT_FINITE

NO_SYSTEM = "(no system)"
COLUMNS = ("events", "own token", "value ignored", "rolled up", "unknown token", "dropped")


def system(code: pl.Expr) -> pl.Expr:
    """The code system: what comes before the first slash (`SNOMED/…`, `LAB//…`)."""
    before = code.str.split_exact("/", 1).struct.field("field_0")
    return pl.when(code.str.contains("/", literal=True)).then(before).otherwise(pl.lit(NO_SYSTEM))


def by_system(coverage: pl.DataFrame) -> pl.DataFrame:
    """(system, outcome, events), by system and outcome, of COVERAGE."""
    of_system = coverage.group_by(system(pl.col("code")).alias("system"), "outcome").agg(pl.col("events").sum())
    return of_system.sort("system", "outcome")


def coverage_facts(coverage: pl.DataFrame) -> dict[str, Any]:
    """events, events_by_outcome, coverage (the share whose meaning is in a token), events_by_system."""
    met: dict[str, int] = dict(coverage.group_by("outcome").agg(pl.col("events").sum()).iter_rows())
    events = sum(met.get(name, 0) for name in NAMES)
    systems: dict[str, dict[str, int]] = {}
    for name, outcome, n in by_system(coverage).iter_rows():
        systems.setdefault(name, {})[outcome] = n
    return {
        "events": events,
        "events_by_outcome": {name: met.get(name, 0) for name in (*NAMES, NOT_FINITE, LONG_TEXT)},
        "coverage": sum(met.get(name, 0) for name in COVERED) / events if events else 0.0,
        "events_by_system": systems,
    }


def table(coverage: pl.DataFrame) -> pl.DataFrame:
    """`system` and COLUMNS: events by what became of them, the commonest systems first."""
    own = ["code", "text", "number"]
    ignored = ["value ignored", "unseen unit", "code in place of its description"]
    groups = {
        "events": NAMES,
        "own token": own,
        "value ignored": ignored,
        "rolled up": ["rolled up"],
        "unknown token": ["unknown token"],
        "dropped": ["out of vocabulary", "static"],
    }
    sums = [pl.col("events").filter(pl.col("outcome").is_in(names)).sum().alias(name) for name, names in groups.items()]
    return by_system(coverage).group_by("system").agg(sums).sort(-pl.col("events"), "system").select("system", *COLUMNS)


def table_text(rows: pl.DataFrame, least: int) -> str:
    """`table` for people; counts under `least` are masked, and shares left out where they would tell them."""

    def shown(n: int) -> str:
        return f"<{least}" if 0 < n < least else f"{n:,}"

    cells = [["code system", *COLUMNS], *([name, *map(shown, counts)] for name, *counts in rows.iter_rows())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("  ".join(row) for row in aligned)


def warning(facts: dict[str, Any], rows: pl.DataFrame, least_coverage: float) -> str | None:
    """A sentence, where less than `least_coverage` of the events became a token; it names what lost most."""
    if facts["coverage"] >= least_coverage:
        return None
    lost = rows.with_columns(lost=pl.col("unknown token") + pl.col("dropped")).sort(-pl.col("lost"), "system")
    worst = lost.filter(pl.col("lost") > 0).head(3)["system"].to_list()
    return (
        f"warning: {facts['coverage']:.1%} of the events have a token of their meaning, less than the tokenizer's "
        f"least_coverage ({least_coverage:.0%}); most is lost of {', '.join(worst)}. Raise vocabulary_size, or set "
        f"roll_up."
    )
