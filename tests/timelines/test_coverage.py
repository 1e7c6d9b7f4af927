"""What became of all events, as people read it."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from ehrctx.study import Privacy
from ehrctx.timelines.coverage import coverage_facts, report, system, table, table_text
from ehrctx.timelines.lookup import NAMES

ROWS = [
    ("SNOMED/1", "code", 90), ("SNOMED/2", "out of vocabulary", 40), ("SNOMED/2", "unseen unit", 3),
    ("LAB//50971//mEq/L", "number", 200), ("LAB//50971//mEq/L", "value is not finite", 7),
    ("LAB//1", "rolled up", 11), ("LAB//2", "mapped", 4), ("MEDS_BIRTH", "static", 5), ("BMI (kg/m2)", "text", 12),
    ("Visit Type/IP", "unknown token", 15),
]  # fmt: skip
COVERAGE = pl.DataFrame(ROWS, schema=["code", "outcome", "events"], orient="row")


def test_systems():
    codes = pl.DataFrame({"code": [code for code, _, _ in ROWS] + ["", "/x", "a.b-c/1"]})
    found = codes.select(system(pl.col("code"))).to_series().to_list()
    none = "(no system)"
    assert found == [
        "SNOMED", "SNOMED", "SNOMED", "LAB", "LAB", "LAB", "LAB", none, none, "Visit Type", none, none, "a.b-c",
    ]  # fmt: skip


def test_every_event_is_in_one_column():
    rows = table(COVERAGE)
    assert rows["system"].to_list() == ["LAB", "SNOMED", "(no system)", "Visit Type"]
    assert rows.row(0) == ("LAB", 215, 200, 0, 15, 0, 0)
    assert rows.row(1) == ("SNOMED", 133, 90, 3, 0, 0, 40)
    assert rows.row(2) == ("(no system)", 17, 12, 0, 0, 0, 5)
    assert rows.row(3) == ("Visit Type", 15, 0, 0, 0, 15, 0)
    parts = rows.select(pl.sum_horizontal(pl.exclude("system", "events"))).to_series()
    assert parts.to_list() == rows["events"].to_list()


def test_facts():
    facts = coverage_facts(COVERAGE)
    assert facts["events"] == 380
    assert facts["coverage"] == pytest.approx(320 / 380)
    assert facts["events_by_outcome"]["value is not finite"] == 7  # counted besides
    assert sum(facts["events_by_outcome"].values()) == 387
    assert facts["events_by_system"]["SNOMED"] == {"code": 90, "out of vocabulary": 40, "unseen unit": 3}
    empty = coverage_facts(COVERAGE.clear())
    assert (empty["events"], empty["coverage"]) == (0, 0.0)


def test_small_counts_are_masked():
    text = table_text(table(COVERAGE), Privacy(minimum_count=10))
    rows = {line.split("  ")[0]: line.split()[-6:] for line in text.splitlines()}
    assert rows["SNOMED"] == ["133", "90", "<10", "0", "0", "40"]
    assert rows["(no system)"] == ["17", "12", "0", "0", "0", "<10"]
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "<" not in table_text(table(COVERAGE), Privacy(minimum_count=1))


def test_too_little_coverage_is_said_with_what_lost_most(build, random_events):
    raw = random_events(1, subjects=25)
    poor = build(raw, spec={"vocabulary_size": 12, "bins": 2, "least_coverage": 0.99})
    said = report(poor, Privacy())[1]
    share = json.loads((poor / "manifest.json").read_text())["facts"]["coverage"]
    assert said.startswith(f"warning: {share:.1%} of the events have a token of their meaning")
    assert "most is lost of (no system)" in said
    assert "Raise vocabulary_size" in said
    assert report(build(raw, spec={"vocabulary_size": 12, "bins": 2, "least_coverage": 0}), Privacy())[1] is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "spec", [{}, {"unknown": "unk"}, {"static_prefix": False, "vocabulary_size": 12}, {"values": "separate", "bins": 2}]
)
def test_every_row_is_counted_once(build, random_events, seed, spec):
    """Rows in = events that became tokens + events by the reason why they did not."""
    rows = random_events(seed)
    store = build({"a": rows.filter(pl.col("subject_id") <= 5), "b": rows.filter(pl.col("subject_id") > 5)}, spec=spec)
    facts = json.loads((store / "manifest.json").read_text())["facts"]
    outcomes = {name: n for name, n in facts["events_by_outcome"].items() if name in NAMES}
    assert sum(outcomes.values()) == facts["events"] == rows.height
    lost = sum(outcomes[name] for name in ("out of vocabulary", "static"))
    timed = pl.read_parquet(store / "coverage.parquet").filter(pl.col("outcome").is_in(NAMES))
    assert timed["events"].sum() == rows.height
    event, offsets = np.load(store / "event.npy"), np.load(store / "offsets.npy")
    with_token = sum(len(np.unique(event[lo:hi])) for lo, hi in pairwise(offsets.tolist()))
    assert with_token == rows.height - lost
