"""The example of docs/robustness.md, number by number: the tables there are what the code computes."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from ehrctx.robustness.properties import COUNTS, RATES, compute_properties
from ehrctx.robustness.strata import quartiles

A, B, C, D, F = range(7, 12)
BY_HAND = {
    "rr_1": 3 / 4, "rr_2": 3 / 4, "rr_3": 2 / 4, "rr_4": 1 / 4, "rr": 0.0703125**0.25,
    "gap_mean": 1_200, "gap_sd": (9_360_000 / 7) ** 0.5, "gap_iqr": 1_500 - 300,
    "gap_mean_with_birth": 157_792_650, "gap_iqr_with_birth": 2_250 - 450,
    "gap_sd_with_birth": (1_593_484_097_975_280_000 / 8 - 157_792_650**2) ** 0.5,
    "n_tokens": 8, "n_events": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def tables(repository) -> list[list[list[str]]]:
    """The cells of each table of the page, without its head."""
    found: list[list[list[str]]] = [[]]
    for line in (repository / "docs" / "robustness.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip(" `") for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def table(tables: list[list[list[str]]], head: list[str]) -> list[list[str]]:
    (rows,) = (t[2:] for t in tables if t[0] == head)
    return rows


def test_properties_of_the_example(store_of, tables):
    born = datetime(1980, 1, 1)
    day = round((datetime(2020, 1, 1) - born).total_seconds())
    tokens = {"A": A, "B": B, "C": C, "D": D}
    written = table(tables, ["time", "token", "seconds since the event before"])
    assert [row[:2] for row in written if row[0] == "(static)"] == [["(static)", "F"]]
    events = []
    for time, token, _ in written[1:]:
        hour, minute = map(int, time.split(":"))
        events.append((day + 3_600 * hour + 60 * minute, [tokens[token]]))
    gaps = [row[2].replace(",", "") for row in written[2:-1]]
    assert [int(g) for g in gaps] == np.diff([second for second, _ in events[:-1]]).tolist()
    store = store_of([{"subject_id": 1, "events": events, "static": [F], "origin": "1980-01-01T00:00:00"}])
    keys = pl.DataFrame({"subject_id": [1], "prediction_time": [datetime(2020, 1, 1, 11)]})
    found = compute_properties(store, keys).row(0, named=True)
    in_docs = dict(table(tables, ["property", "value"]))
    assert set(in_docs) == set(BY_HAND) == {*RATES, *COUNTS}
    for name, value in BY_HAND.items():
        assert found[name] == pytest.approx(value, rel=1e-9), name
        decimals = len(in_docs[name].partition(".")[2])
        assert f"{found[name]:.{decimals}f}" == in_docs[name], name


def test_quartiles_of_the_example(tables):
    rows = table(tables, ["label", "value", "as", "rank", "quartile"])
    values = np.array([float(value) for _, value, *_ in rows])
    assert values[[0, 2, 3, 4, 5]].tolist() == [0.75, 0, 0.5, 0.75, 0.9]
    assert np.isnan(values[1])
    assert [f"Q{q + 1}" for q in quartiles(values)] == [row[4] for row in rows] == ["Q3", "Q1", "Q1", "Q2", "Q4", "Q4"]
    assert [float(row[2]) for row in rows] == np.nan_to_num(values).tolist()
    assert [int(row[3]) for row in rows] == [4, 1, 2, 3, 5, 6]
