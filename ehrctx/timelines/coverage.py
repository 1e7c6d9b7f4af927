"""What became of all events, by code system and reason: in numbers, and as the text that `ehrctx tokenize` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.printable import printable
from ehrctx.study import Privacy
from ehrctx.timelines.encoding import LONG_TEXT, NOT_FINITE
from ehrctx.timelines.lookup import COVERED, NAMES
from ehrctx.timelines.store import KIND

NO_SYSTEM = "(no system)"
COLUMNS = ("events", "own token", "value ignored", "as another code", "unknown token", "dropped")


def system(code: pl.Expr) -> pl.Expr:
    """The code system: what comes before the first slash (`SNOMED/…`, `LAB//…`)."""
    return code.str.extract(r"^([\w .-]+)/").fill_null(NO_SYSTEM)


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
        "as another code": ["rolled up", "mapped"],
        "unknown token": ["unknown token"],
        "dropped": ["out of vocabulary", "static"],
    }
    sums = [pl.col("events").filter(pl.col("outcome").is_in(names)).sum().alias(name) for name, names in groups.items()]
    return by_system(coverage).group_by("system").agg(sums).sort(-pl.col("events"), "system").select("system", *COLUMNS)


def table_text(rows: pl.DataFrame, privacy: Privacy) -> str:
    """`table` for people, small counts masked."""
    cells = [
        ["code system", *COLUMNS],
        *([printable(name), *map(privacy.shown, counts)] for name, *counts in rows.iter_rows()),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in cells]
    return "\n".join("  ".join(row) for row in aligned)


def warning(share: float, rows: pl.DataFrame, least: float, is_fitted: bool) -> str | None:
    """A sentence, where less than `least` of the events became a token of their meaning; it names what lost most."""
    if share >= least:
        return None
    lost = rows.with_columns(lost=pl.col("unknown token") + pl.col("dropped")).sort(-pl.col("lost"), "system")
    worst = lost.filter(pl.col("lost") > 0).head(3)["system"].to_list()
    remedy = "Raise vocabulary_size, or set roll_up." if is_fitted else "Use --adapt and --extend, or fit a vocabulary."
    return (
        f"warning: {share:.1%} of the events have a token of their meaning, less than the tokenizer's least_coverage "
        f"({least:.0%}); most is lost of {', '.join(map(printable, worst))}. {remedy}"
    )


def report(timelines: Path, privacy: Privacy) -> tuple[str, str | None]:
    """What `ehrctx tokenize` prints of a folder of timelines: the table, and a warning if there is reason for one."""
    manifest = read_manifest(timelines, KIND)
    rows = table(pl.read_parquet(Path(timelines) / "coverage.parquet"))
    least = manifest["settings"]["tokenizer"]["least_coverage"]
    said = warning(manifest["facts"]["coverage"], rows, least, is_fitted="existing" not in manifest["settings"])
    return table_text(rows, privacy), said
