"""What the controls' table says of figures that a test chooses: statements that should hold do, the others do not."""

import numpy as np
import polars as pl
import pytest

from ehrctx.configuration import load
from ehrctx.controls.arms import Controls
from ehrctx.controls.levels import SCHEMA as LEVEL_SCHEMA
from ehrctx.controls.negative import SCHEMA as CHANCE_SCHEMA
from ehrctx.controls.positive import BLIND, ORACLE, Found
from ehrctx.controls.progression import Slope
from ehrctx.controls.tables import SHARE, UNSEEN, negative_row, positive_rows, progression_row, property_rows

ARMS = {
    "far": {"gpt-tiny-128": 0.52, "gpt-tiny-512": 0.82, "llama-tiny-128": 0.51, "llama-tiny-512": 0.7},
    "near": {"gpt-tiny-128": 0.81, "gpt-tiny-512": 0.815, "llama-tiny-128": 0.8, "llama-tiny-512": 0.8},
    "hidden": {"gpt-tiny-128": 0.515, "gpt-tiny-512": 0.57, "llama-tiny-128": 0.52},
    "needle": {"gpt-tiny-512": 0.66},
}


@pytest.fixture(scope="module")
def controls(repository):
    return load(Controls, repository / "pipelines" / "studies" / "controls.yaml")


@pytest.fixture
def statements(controls):
    """A function (arm -> model -> AUROC, on top of ARMS) -> (quantity, arm, model) -> the row of the table."""

    def of(**changes):
        rng = np.random.default_rng(0)
        noise = rng.normal(0, 0.01, 2_000)  # shared: models of an arm rest on the same draws
        found = {}
        for arm, own in ARMS.items():
            values = {ORACLE: 0.83, BLIND: 0.58} | own | changes.get(arm, {})
            replicates = {model: v + noise + rng.normal(0, 0.01, 2_000) for model, v in values.items()}
            found[arm] = Found(values, replicates, 150)
        rows = positive_rows(controls, found, {arm: list(own) for arm, own in ARMS.items()})
        return {(row["quantity"], row["arm"], row["model"]): row for row in rows}

    return of


def test_a_cause_that_is_found_where_it_can_be_and_nowhere_else(statements):
    rows = statements()
    judged = {key: row["holds"] for key, row in rows.items() if row["holds"] is not None}
    assert all(judged.values())
    assert set(judged) == {
        (SHARE, "far", "gpt-tiny-512"),
        ("AUROC less that of gpt-tiny-128", "far", "gpt-tiny-512"),
        *((f"AUROC less that of {arch}-tiny-128", "near", f"{arch}-tiny-512") for arch in ("gpt", "llama")),
        *((UNSEEN, "far", f"{arch}-tiny-128") for arch in ("gpt", "llama")),
    }
    assert rows[SHARE, "far", "gpt-tiny-512"]["value"] == pytest.approx(0.32 / 0.33)
    assert rows[SHARE, "far", "llama-tiny-512"]["value"] == pytest.approx(0.2 / 0.33)
    assert rows[SHARE, "needle", "gpt-tiny-512"]["value"] == pytest.approx(0.16 / 0.33)
    assert rows[SHARE, "needle", "gpt-tiny-512"]["bar"] is None


@pytest.mark.parametrize(
    ("arm", "model", "auroc", "quantity"),
    [
        ("far", "gpt-tiny-512", 0.75, SHARE),
        ("far", "gpt-tiny-128", 0.62, UNSEEN),
        ("hidden", "llama-tiny-128", 0.6, UNSEEN),
        ("far", "gpt-tiny-128", 0.815, "AUROC less that of gpt-tiny-128"),
        ("near", "llama-tiny-128", 0.7, "AUROC less that of llama-tiny-128"),
    ],
    ids=["too little is found", "a short context finds it", "blind yet better", "no effect", "an effect where none is"],
)
def test_each_statement_fails_where_it_should(statements, arm, model, auroc, quantity):
    rows = statements(**{arm: {model: auroc}})
    failed = [asked for (asked, *_), row in rows.items() if row["holds"] is False]
    assert quantity in failed


@pytest.mark.parametrize(("p", "n", "holds"), [([0.2, None, 0.04], 1, False), ([0.2, float("nan"), 0.06], 0, True)])
def test_what_is_left_out_of_the_negative_control_is_not_counted_as_tested(p, n, holds):
    chance = pl.DataFrame({"p_holm": p}, schema_overrides={"p_holm": pl.Float64})
    chance = chance.with_columns(pl.lit(None, dtype=t).alias(c) for c, t in CHANCE_SCHEMA.items() if c != "p_holm")
    row = negative_row(chance, 42, 0.95)
    quantity = "adjusted intervals that exclude .5, of 2 that could (42 asked for)"
    assert (row["quantity"], row["value"], row["holds"]) == (quantity, n, holds)


def test_a_property_that_follows_and_one_that_does_not():
    means = {"rr": [0.1, 0.2, 0.3], "rr_1": [0.5, 0.7, 0.6]}
    rows = [("copy_rate", lvl, name, mean, 9) for name, own in means.items() for lvl, mean in enumerate(own)]
    table = pl.DataFrame(rows, schema=LEVEL_SCHEMA, orient="row")
    rows = property_rows("copy_rate_levels", table, {"rr": 0.8, "rr_1": 0.3})
    assert [(row["value"], row["bar"], row["holds"]) for row in rows] == [
        (2, "all 2", True),
        (0.8, None, None),
        (1, "all 2", False),
        (0.3, None, None),
    ]


@pytest.mark.parametrize(("lower", "holds"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_a_slope_must_be_above_0(lower, holds):
    row = progression_row("llama-tiny-512", Slope(0.05, lower, 0.09, 60, pl.DataFrame()))
    assert (row["value"], row["lower"], row["upper"], row["holds"]) == (0.05, lower, 0.09, holds)
