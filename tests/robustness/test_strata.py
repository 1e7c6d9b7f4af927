"""Quartiles against pandas; Brier scores and intervals against a loop over resampled subjects; a planted gradient."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pytest
from by_hand import expanded, rarer, welch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.probe.predict import PREDICTIONS
from ehrctx.probe.statistics import subject_draws
from ehrctx.robustness.properties import COUNTS, PROPERTIES
from ehrctx.robustness.strata import DIFFERENCE, MACRO, QUARTILES, STRATA, STRATIFIED, TABLE, quartiles, strata_table
from ehrctx.study import Statistics

STATISTICS = Statistics(replicates=40, level=0.9, seed=2)
KEY = ["subject_id", "prediction_time"]
TASKS = {"stay": 60, "icu": 35}


def predictions_of(model: str, seed: int, task: str, n: int) -> pl.DataFrame:
    """Predictions for the same labels of a task whatever the model, some of another split, k or replicate."""
    labels = np.random.default_rng(len(task))
    subject = labels.integers(100, 125, size=n)
    y = labels.random(n) < 0.4
    frame = pl.DataFrame(
        {
            "task": task, "model": model, "head": "logistic_regression", "k": "all", "replicate": 0,
            "subject_id": subject,
            "prediction_time": [datetime(2000, 1, 1) + timedelta(days=int(d)) for d in labels.permutation(n)],
            "split": np.where(subject < 105, "tuning", "held_out"),
            "y": y,
            "p": np.random.default_rng(seed).random(n),
        }
    ).select(pl.col(c).cast(t) for c, t in PREDICTIONS.items())  # fmt: skip
    others = [
        frame.with_columns(pl.lit(k).alias("k"), replicate=pl.lit(r, pl.Int64), p=pl.lit(0.5))
        for k, r in (("8", 0), ("all", 1))
    ]
    return pl.concat([frame, *others]).sample(fraction=1, shuffle=True, seed=seed)


def properties_for(predictions: list[pl.DataFrame], seed: int = 0) -> pl.DataFrame:
    """Random values with ties and NaN, for the labels of the predictions and for some others."""
    keys = pl.concat([f.select(KEY) for f in predictions]).unique().sort(KEY)
    keys = pl.concat([keys, keys.with_columns(subject_id=pl.col("subject_id") + 1_000)])
    rng = np.random.default_rng(seed)
    columns = {}
    for name in PROPERTIES:
        if name in COUNTS:
            columns[name] = rng.integers(1, 9, size=keys.height)
        elif name not in KEY:
            columns[name] = np.where(rng.random(keys.height) < 0.2, np.nan, rng.random(keys.height).round(1))
    return keys.with_columns(**{name: pl.Series(v) for name, v in columns.items()}).sample(
        fraction=1, shuffle=True, seed=seed
    )


@pytest.fixture(scope="module")
def study() -> tuple[list[pl.DataFrame], pl.DataFrame]:
    frames = [predictions_of(m, 10 * i + j, t, TASKS[t]) for i, m in enumerate("ab") for j, t in enumerate(TASKS)]
    return frames, properties_for(frames)


def by_pandas(values: list[float]) -> list[int]:
    return pd.qcut(pd.Series(values).fillna(0).rank(method="first"), 4, labels=False).astype(int).tolist()


@hypothesis_settings(max_examples=200)
@given(values=st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, np.nan]) | st.floats(-1e9, 1e9), min_size=4, max_size=60))
def test_quartiles_are_those_of_pandas(values):
    assert quartiles(np.array(values)).tolist() == by_pandas(values)


@pytest.mark.parametrize("n", [*range(4, 24), 997, 10_001])
def test_quartiles_of_any_number_of_labels(n):
    values = np.random.default_rng(n).integers(0, 5, size=n).astype(float)
    found = quartiles(values)
    assert found.tolist() == by_pandas(values.tolist())
    assert np.ptp(np.bincount(found, minlength=4)) <= 1 + (n % 4 > 0)


def placed(frames: list[pl.DataFrame], properties: pl.DataFrame, task: str, model: str, name: str) -> pd.DataFrame:
    """The held-out labels of a task with a model's squared errors and pandas' quartiles."""
    rows = pl.concat(frames).filter(pl.col("split") == "held_out", k="all", replicate=0, task=task, model=model)
    frame = rows.join(properties, on=KEY).sort(*KEY, "y").to_pandas()
    frame["quartile"] = by_pandas(frame[name].tolist())
    frame["error"] = (frame["y"] - frame["p"]) ** 2
    return frame


def drawn_brier(frame: pd.DataFrame, times: dict[int, int]) -> list[float]:
    """Brier score of each quartile, and Q4 - Q1, after repeating every label as often as its subject was drawn."""
    repeated = frame.loc[frame.index.repeat(frame["subject_id"].map(times))]
    means = [repeated.loc[repeated["quartile"] == q, "error"].mean() for q in range(4)]
    return [*means, means[3] - means[0]]


def subjects_of_strata(frame: pd.DataFrame) -> list[int]:
    parts = [frame[frame["quartile"] == q] for q in range(4)]
    n = [max(2, rarer(part["y"].to_numpy(), part["subject_id"].to_numpy())) for part in parts]
    return [*n, min(n[0], n[3])]


@pytest.mark.parametrize("name", STRATIFIED)
def test_values_and_intervals_are_those_of_a_loop_over_resampled_subjects(study, name):
    frames, properties = study
    table = strata_table(frames, properties, STATISTICS).filter(property=name)
    union = pl.concat(frames).filter(split="held_out")["subject_id"].unique().sort().to_numpy()
    draws = subject_draws(union, STATISTICS)
    for model in "ab":
        parts = {task: placed(frames, properties, task, model, name) for task in TASKS}
        ones = dict.fromkeys(union.tolist(), 1)
        points = {task: np.array(drawn_brier(part, ones)) for task, part in parts.items()}
        replicates = {
            task: np.array([drawn_brier(part, dict(zip(union.tolist(), row.tolist(), strict=True))) for row in draws])
            for task, part in parts.items()
        }
        points[MACRO] = np.mean([points[t] for t in TASKS], axis=0)
        replicates[MACRO] = np.mean([replicates[t] for t in TASKS], axis=0)
        n = {task: subjects_of_strata(part) for task, part in parts.items()}
        n[MACRO] = [welch([(replicates[t][:, s], n[t][s]) for t in TASKS]) for s in range(len(STRATA))]
        for task in (*TASKS, MACRO):
            pooled = pd.concat(parts.values()) if task == MACRO else parts[task]
            for s, stratum in enumerate(STRATA):
                row = table.row(by_predicate=(pl.col("task") == task) & (pl.col("model") == model)
                                & (pl.col("stratum") == stratum), named=True)  # fmt: skip
                assert row["value"] == pytest.approx(points[task][s])
                expected = expanded(replicates[task][:, s], STATISTICS.level, n[task][s])
                assert (row["lower"], row["upper"]) == pytest.approx(expected, nan_ok=True)
                inside = pooled[pooled["quartile"].isin([0, 3] if stratum == DIFFERENCE else [s])]
                assert row["n"] == len(inside)
                assert row["n_positive"] == inside["y"].sum()
                assert row["n_subjects"] == inside["subject_id"].nunique()
                assert row["n_positive_subjects"] == inside.loc[inside["y"], "subject_id"].nunique()


def test_the_table_is_whole_and_follows_its_schema(study):
    frames, properties = study
    table = strata_table(frames, properties, STATISTICS)
    assert dict(table.schema) == TABLE
    assert table.height == 3 * 2 * len(STRATIFIED) * 5
    assert not table.select("task", "model", "head", "property", "stratum").is_duplicated().any()
    assert table["score"].unique().to_list() == ["brier"]
    assert set(table["stratum"]) == {"Q1", "Q2", "Q3", "Q4", "Q4-Q1"}
    of_task = table.filter(pl.col("stratum").is_in(QUARTILES), task="stay", model="a", property="rr_1")
    held_out = pl.concat(frames).filter(task="stay", model="a", split="held_out", k="all", replicate=0)
    assert of_task["n"].sum() == held_out.height


def test_order_of_rows_and_of_models_does_not_matter(study):
    frames, properties = study
    keys = ["task", "model", "head", "property", "stratum"]
    one = strata_table(frames, properties, STATISTICS).sort(keys)
    shuffled = [f.sample(fraction=1, shuffle=True, seed=7) for f in frames[::-1]]
    other = strata_table(shuffled, properties.reverse(), STATISTICS).sort(keys)
    assert one.select(keys).equals(other.select(keys))
    for column in ("value", "lower", "upper", "n", "n_positive", "n_subjects"):
        np.testing.assert_allclose(one[column], other[column], atol=1e-12)


def test_a_planted_gradient_is_found():
    """Predictions that err more in each quartile of repetition, and not along the length."""
    n = 4_000
    rng = np.random.default_rng(0)
    repetition = rng.random(n)
    y = rng.random(n) < 0.5
    error = 0.1 + 0.1 * np.floor(4 * repetition)  # Brier .01 .04 .09 .16
    constants = {"task": "stay", "model": "a", "head": "lr", "k": "all", "replicate": 0, "split": "held_out"}
    frame = pl.DataFrame(
        {
            "subject_id": np.arange(n) // 4,
            "prediction_time": [datetime(2000, 1, 1) + timedelta(days=i) for i in range(n)],
            "y": y,
            "p": np.where(y, 1 - error, error),
        }
    ).with_columns(**{k: pl.lit(v) for k, v in constants.items()})
    frame = frame.select(pl.col(c).cast(t) for c, t in PREDICTIONS.items())
    properties = properties_for([frame]).drop("rr_1")
    properties = properties.join(frame.select(*KEY, rr_1=pl.Series(repetition)), on=KEY)
    table = strata_table([frame], properties, Statistics(replicates=200))
    assert set(table["task"]) == {"stay"}, "one task has no mean over tasks"
    rows = {r["stratum"]: r for r in table.filter(property="rr_1").iter_rows(named=True)}
    assert [rows[q]["value"] for q in QUARTILES] == pytest.approx([0.01, 0.04, 0.09, 0.16], abs=0.003)
    assert rows[DIFFERENCE]["lower"] > 0.14
    assert rows[DIFFERENCE]["upper"] < 0.16
    length = table.filter(property="n_tokens", stratum=DIFFERENCE).row(0, named=True)
    assert length["lower"] < 0 < length["upper"]


def test_tasks_that_are_too_small_or_not_of_every_model(study):
    frames, properties = study
    whole = strata_table(frames, properties, STATISTICS)
    few = frames[0].filter(split="held_out", k="all", replicate=0).head(3).with_columns(task=pl.lit("rare"))
    with_few = strata_table([*frames, few], properties, STATISTICS)
    assert with_few.sort(whole.columns).equals(whole.sort(whole.columns)), "three labels have no quartiles"
    one_model = frames[:3]  # model b has no predictions for the task icu
    table = strata_table(one_model, properties, STATISTICS)
    assert set(table.filter(task="icu")["model"]) == {"a"}
    assert set(table["task"]) == {"stay", "icu"}, "only one task is of every model, so there is no mean"
    third = frames[0].with_columns(task=pl.lit("again")), frames[2].with_columns(task=pl.lit("again"))
    table = strata_table([*one_model, *third], properties, STATISTICS)
    macro, stay = (table.filter(task=t).sort("model", "property", "stratum") for t in (MACRO, "stay"))
    same = ["model", "property", "stratum", "value", "n_subjects"]
    polars.testing.assert_frame_equal(macro.select(same), stay.select(same))  # of two equal tasks; icu is left out


def test_nothing_held_out_is_an_empty_table(study):
    frames, properties = study
    table = strata_table([f.filter(split="tuning") for f in frames], properties, STATISTICS)
    assert table.is_empty()
    assert dict(table.schema) == TABLE


def test_replicates_without_anybody_of_a_stratum_are_undefined(study):
    """In the task and in the macro mean; the interval is that of the other replicates, while they are most."""
    frames, properties = study
    of_a = [f for f in frames if f["model"][0] == "a"]
    held_out = of_a[0].filter(split="held_out", k="all", replicate=0).sort(KEY)
    tiny = held_out.unique("subject_id", keep="first", maintain_order=True).head(4).with_columns(task=pl.lit("tiny"))
    union = pl.concat(of_a).filter(split="held_out")["subject_id"].unique().sort().to_numpy()
    settings = Statistics(replicates=400)
    drawn = subject_draws(union, settings)[:, np.searchsorted(union, tiny["subject_id"].to_numpy())] > 0
    mine = properties.join(tiny, on=KEY, how="semi").sort(KEY).with_columns(rr_1=pl.Series([0.1, 0.2, 0.3, 0.4]))
    table = strata_table([*of_a, tiny], properties.join(mine, on=KEY, how="anti").vstack(mine), settings)
    rows = table.filter(task="tiny", property="rr_1")
    assert rows["n_subjects"].to_list() == [1, 1, 1, 1, 2]
    expected = (tiny["y"].cast(pl.Float64) - tiny["p"]).to_numpy() ** 2
    np.testing.assert_allclose(rows["value"], [*expected, expected[3] - expected[0]])
    # whoever is drawn at all scores the same; two of four subjects are together in about 0.4 of the replicates
    assert drawn.mean(axis=0).min() > 0.5 > (drawn[:, 0] & drawn[:, 3]).mean()
    np.testing.assert_allclose(rows["lower"], [*expected, np.nan])
    np.testing.assert_allclose(rows["upper"], [*expected, np.nan])
    macro = table.filter(task=MACRO, property="rr_1")
    assert macro["value"].is_finite().all()
    assert np.isnan(macro.filter(stratum=DIFFERENCE)["lower"].item())
    assert macro.filter(pl.col("stratum") != DIFFERENCE)["lower"].is_finite().all()


def test_labels_that_differ_and_labels_without_properties_are_refused(study):
    frames, properties = study
    fewer = [frames[0].filter(pl.col("subject_id") != 110), *frames[1:]]
    with pytest.raises(InputError, match="different labels of 'stay'"):
        strata_table(fewer, properties, STATISTICS)
    with pytest.raises(InputError, match="have no properties"):
        strata_table(frames, properties.filter(pl.col("subject_id") != 110), STATISTICS)
