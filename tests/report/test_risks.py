"""What the report says and draws of risks, on planted tables: who is shown, what is sure, what is left out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from matplotlib import pyplot as plt
from planted import COUNTED, FOURTEEN, NAN, cut_off, grid, overlapping, score, study_tables, visible_texts, write_study

from ehrctx.probe.calibration import RELIABILITY_TABLE
from ehrctx.report.few_shot import few_shot_sentence, score_by_k
from ehrctx.report.page import _win_rows, read_tables, write_report
from ehrctx.report.risks import (
    benefit_sentence,
    calibration_rows,
    calibration_sentence,
    decision_curves,
    judged_tasks,
    onset_rows,
    onset_sentence,
    reliability_curves,
    shown_of,
    subgroup_scores,
    subgroup_sentence,
)

BEST, COUNTS = ("mamba-tiny-64", "logistic_regression"), ("counts", "lightgbm")
FEW = COUNTED | {"n_positive_subjects": "12"}


@pytest.fixture
def scores() -> pl.DataFrame:
    """Three tasks, one with few positive subjects; everywhere the same model and head on counts are the best."""
    rows = []
    for task in ("macro", "stay", "icu", "rare"):
        counted = FEW if task == "rare" else COUNTED | {"n_positive_subjects": "70"}
        rows += [
            score(task, "gpt-tiny-64", 0.6) | counted,
            score(task, "mamba-tiny-64", 0.8) | counted,
            score(task, "counts/lightgbm", 0.7) | counted,
            score(task, "counts/random_forest", 0.65) | counted,
        ]
    return pl.DataFrame(rows)


def entry(task: str, who: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"task": task, "model": who[0], "head": who[1]} | more | COUNTED


def reliability_of(task: str, who: tuple[str, str], recalibration: str, shift: float) -> list[dict[str, Any]]:
    return [
        entry(task, who, recalibration=recalibration, bin=b, predicted=b / 20, value=b / 20 + shift,
              lower=b / 20 + shift - 0.02, upper=b / 20 + shift + 0.02)
        for b in range(1, 11)
    ]  # fmt: skip


def test_the_best_model_and_the_strongest_counts_are_shown_where_positives_suffice(scores):
    assert shown_of(scores, "stay") == [BEST, COUNTS]
    table = pl.DataFrame({"task": ["rare", "icu", "stay"]})
    assert judged_tasks(scores, table) == ["stay", "icu"]
    assert judged_tasks(scores, table.clear()) == []


def test_reliability_shows_bins_as_predicted_and_recalibrated(scores):
    rows = [
        row for who, recalibration, shift in ((BEST, "none", 0.1), (BEST, "tuning", 0.0), (COUNTS, "none", -0.02))
        for row in reliability_of("stay", who, recalibration, shift)
    ]  # fmt: skip
    hidden = rows[0] | {"value": None, "lower": None, "upper": None}  # a bin with too few positive labels
    figure = reliability_curves(pl.DataFrame([hidden, *rows[1:]]), scores)
    (axes,) = [a for a in figure.axes if a.axison]
    drawn = {(len(line.get_xdata()), line.get_markerfacecolor()) for line in axes.lines}
    assert (9, "#D55E00") in drawn
    assert (10, "white") in drawn, "recalibrated, hollow"
    assert not overlapping(visible_texts(figure))
    plt.close(figure)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 14])
def test_reliability_fits_the_figure_whatever_the_number_of_tasks(n):
    tasks = FOURTEEN[:n]
    scores = pl.DataFrame([score(t, "mamba-tiny-64", 0.8, n_positive_subjects="70") for t in FOURTEEN])
    rows = [row for task in tasks for row in reliability_of(task, BEST, "none", 0.1)]
    figure = reliability_curves(
        pl.DataFrame(rows, schema=RELIABILITY_TABLE | dict.fromkeys(COUNTED, pl.String)), scores
    )
    texts = visible_texts(figure)
    assert not overlapping(texts)
    assert not cut_off(figure, texts)
    shown = [a.get_title(loc="left") for a in figure.axes if a.axison]
    assert shown == list(tasks)
    plt.close(figure)


def test_the_calibration_sentence_counts_what_is_sure(scores):
    def slope(task: str, recalibration: str, lower: float, upper: float) -> dict[str, Any]:
        limits = {"value": 1.0, "lower": lower, "upper": upper}
        return entry(task, BEST, recalibration=recalibration, measure="slope", **limits)

    table = pl.DataFrame(
        [
            slope("stay", "none", 0.3, 0.7), slope("stay", "tuning", 0.8, 1.2), slope("icu", "none", 1.1, 1.6),
            slope("icu", "tuning", NAN, NAN), slope("rare", "none", 0.1, 0.2),
        ]
    )  # fmt: skip
    assert calibration_sentence(table, scores) == (
        "as predicted, the best model's risks are too extreme (the slope's interval is under 1) in 1 and too moderate "
        "(over 1) in 1 of 2 tasks; recalibrated on the tuning split, the best model's risks are too extreme (the "
        "slope's interval is under 1) in 0 and too moderate (over 1) in 0 of 1 tasks"
    )
    rows = calibration_rows(table, scores)
    assert [(row["task"], row["recalibration"]) for row in rows] == [
        ("stay", "none"), ("stay", "tuning"), ("icu", "none"), ("icu", "tuning"),
    ]  # fmt: skip
    assert calibration_sentence(table.clear(), scores) is None


def benefits(task: str, who: tuple[str, str], recalibration: str, gains: dict[float, float]) -> list[dict[str, Any]]:
    return [
        entry(task, who, recalibration=recalibration, threshold=t, value=0.1 - t / 10, lower=0.05 - t / 10,
              upper=0.15 - t / 10, gain=g, gain_lower=g, gain_upper=g + 0.01, n_flagged_subjects="100")
        for t, g in gains.items()
    ]  # fmt: skip


def test_benefit_is_told_of_recalibrated_risks_and_where_it_is_sure(scores):
    table = pl.DataFrame(
        [
            *benefits("stay", BEST, "none", {0.1: 0.1, 0.2: 0.1}),
            *benefits("stay", BEST, "tuning", {0.05: 0.1, 0.1: -0.1, 0.2: 0.1, 0.3: 0.1}),
            *benefits("icu", BEST, "none", {0.1: -0.1, 0.2: -0.1}),
            *benefits("stay", ("treat all", ""), "none", {0.1: 0.0, 0.2: 0.0}),
            *benefits("icu", ("treat all", ""), "none", {0.1: 0.0, 0.2: 0.0}),
        ]
    )
    assert benefit_sentence(table, scores) == (
        "the best model gains over treating all or none in stay (risks of 0.2 to 0.3); no gain can be told in icu"
    )
    figure = decision_curves(table, scores)
    stay = next(a for a in figure.axes if a.get_title(loc="left") == "stay")
    (curve,) = [line for line in stay.lines if line.get_color() == "#D55E00"]
    assert list(curve.get_xdata()) == [0.05, 0.1, 0.2, 0.3]
    assert not overlapping(visible_texts(figure))
    plt.close(figure)


def level(task: str, group: str, name: str, value: float | None, gap: tuple[float, float] | None, **more: Any) -> dict:
    limits = (None, NAN, NAN) if gap is None else ((gap[0] + gap[1]) / 2, *gap)
    own = {
        "value": value,
        "lower": NAN if value is None else value - 0.1,
        "upper": NAN if value is None else value + 0.1,
    }
    differences = dict(zip(("difference", "difference_lower", "difference_upper"), limits, strict=True))
    return entry(task, BEST, group=group, level=name, score="auroc", **own, **differences) | more


def test_gaps_between_groups_are_counted_and_suppressed_levels_are_left_out(scores):
    table = pl.DataFrame(
        [
            level("stay", "sex", "female", 0.7, (-0.2, -0.1)),
            level("stay", "sex", "male", 0.85, (0.1, 0.2)),
            level("stay", "age", "80+", None, None, n_subjects="<10"),
            level("stay", "age", "18-44", 0.8, (-0.1, 0.1)),
            level("stay", "age", "0-17", 0.9, (0.1, 0.2), n_positive_subjects="15"),
            level("stay", "age", "65-79", 0.9, (0.1, 0.2), n_positive_subjects="55"),
            level("rare", "sex", "male", 0.8, (0.1, 0.2)),
            level("stay", "history", "repeated", 0.9, (0.1, 0.2)),
        ],
        infer_schema_length=None,
    )
    assert subgroup_sentence(table, scores, 0.9) == (
        "Of 2 gaps in AUROC between a level and all others of its group, the interval of 1 excludes 0 (chance alone "
        "would give about 0.2): stay, sex female: −0.150"
    ), "of two levels, one gap; 15 positive subjects inside, or outside, are too few"
    assert subgroup_sentence(table.filter(group="history"), scores, 0.9) is None
    figure = subgroup_scores(table, scores)
    (axes,) = [a for a in figure.axes if a.axison]
    levels = ["age 0-17", "age 18-44", "age 65-79", "age 80+", "sex female", "sex male"]
    assert [t.get_text() for t in axes.get_yticklabels()] == levels
    (dots,) = [c for c in axes.collections if len(c.get_offsets()) == 5]
    assert sorted(x for x, _ in dots.get_offsets()) == pytest.approx([0.7, 0.8, 0.85, 0.9, 0.9])
    is_filled = (dots.get_facecolors()[:, :3] < 1).any(axis=1)
    assert sorted(x for (x, _), filled in zip(dots.get_offsets(), is_filled, strict=True) if filled) == [0.7, 0.85]
    texts = visible_texts(figure)
    assert not overlapping(texts)
    assert not cut_off(figure, texts)
    plt.close(figure)


def test_new_onsets_stand_beside_repeats_where_there_are_both(scores):
    table = pl.DataFrame(
        [
            level("stay", "history", "new onset", 0.6, (-0.4, -0.2)),
            level("stay", "history", "repeated", 0.9, (0.2, 0.4)),
            level("icu", "history", "new onset", 0.6, None),
        ],
        infer_schema_length=None,
    )
    (row,) = onset_rows(table, scores)
    assert (row["task"], row["name"], row["new"]["value"], row["repeated"]["value"]) == ("stay", BEST[0], 0.6, 0.9)


def test_onsets_are_judged_by_the_best_model_where_their_positives_suffice(scores):
    def both(task: str, who: tuple[str, str], new: float, lower: float, **more: Any) -> list[dict[str, Any]]:
        onset = level(task, "history", "new onset", new, (-0.4, -0.2), lower=lower, **more)
        return [
            row | {"model": who[0], "head": who[1]} for row in (onset, level(task, "history", "repeated", 0.9, None))
        ]

    rows = [*both("stay", BEST, 0.6, 0.55), *both("stay", COUNTS, 0.9, 0.8), *both("icu", BEST, 0.85, 0.49)]
    assert onset_sentence(pl.DataFrame(rows, infer_schema_length=None), scores) == (
        "Among new onsets, the best model is better than chance (interval above 0.5) in 1 of 2 tasks that can be "
        "judged; its AUROC is lower there than over all labels in stay (−0.200)"
    )
    same = both("stay", BEST, 0.7999, 0.7)
    assert "lower there" not in onset_sentence(pl.DataFrame(same, infer_schema_length=None), scores)
    few = both("stay", BEST, 0.6, 0.55, n_positive_subjects="19")
    hidden = both("icu", BEST, 0.6, NAN)
    assert onset_sentence(pl.DataFrame([*few, *hidden], infer_schema_length=None), scores) is None


def test_few_shot_scores_climb_to_all_labels(scores):
    table = pl.DataFrame(
        [
            entry("stay", who, k=k, score="auroc", value=v, lower=v - 0.1, upper=v + 0.1, deviation=0.02, n_draws=5)
            for who, values in ((BEST, (0.5, 0.6, 0.7)), (COUNTS, (0.5, 0.55, 0.6)))
            for k, v in zip(("2", "8", "32"), values, strict=True)
        ]
    )
    figure = score_by_k(table, scores)
    (axes,) = [a for a in figure.axes if a.axison]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "8", "32", "all"]
    ends = sorted(line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [64])
    assert ends == [0.7, 0.8]
    assert not overlapping(visible_texts(figure))
    plt.close(figure)


def test_few_shot_learning_is_summed_up_at_its_ends():
    def of(task: str, model: str, head: str, k: str, value: float) -> dict[str, Any]:
        return entry(task, (model, head), k=k, score="auroc", value=value, lower=value - 0.1, upper=value + 0.1)

    rows = [
        *(of("macro", "gpt-tiny-64", "logistic_regression", k, v) for k, v in (("16", 0.7), ("2", 0.55), ("128", 0.8))),
        *(of("macro", "mamba-tiny-64", "logistic_regression", k, v) for k, v in (("2", 0.6), ("128", 0.75))),
        *(of("macro", "counts", "lightgbm", k, v) for k, v in (("2", 0.5), ("128", 0.85))),
        of("stay", "mamba-tiny-64", "logistic_regression", "2", 0.95),
    ]
    assert few_shot_sentence(pl.DataFrame(rows)) == (
        "of the models and of the heads on counts, the best: with 2 labels per class, mamba-tiny-64 has 0.600 (0.500 "
        "to 0.700) and counts, LightGBM has 0.500 (0.400 to 0.600); with 128 labels per class, gpt-tiny-64 has 0.800 "
        "(0.700 to 0.900) and counts, LightGBM has 0.850 (0.750 to 0.950) (mean over tasks)"
    )
    assert few_shot_sentence(pl.DataFrame(rows).clear()) is None
    assert few_shot_sentence(pl.DataFrame([row | {"n_positive_subjects": "12"} for row in rows])) is None


def test_contexts_of_one_architecture_can_be_told_apart_on_few_labels(scores):
    models = [(f"mamba-tiny-{context}", "logistic_regression") for context in (64, 512)]
    table = pl.DataFrame(
        [
            entry("stay", who, k=k, score="auroc", value=0.6, lower=0.5, upper=0.7, deviation=0.0, n_draws=5)
            for who in models
            for k in ("2", "8")
        ]
    )
    figure = score_by_k(table, scores)
    (axes,) = [a for a in figure.axes if a.axison]
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_markerfacecolor() != "none"]
    faces = {(line.get_markerfacecolor(), line.get_linestyle()) for line in drawn if line.get_marker() == "s"}
    assert faces == {("white", ":"), ("#D55E00", "-")}
    plt.close(figure)


def test_wins_are_those_against_any_other_best_first():
    rows = [
        {"model": m, "head": "logistic_regression", "reference": r, "reference_head": "", "score": s, "value": v}
        | {"lower": v - 0.1, "upper": v + 0.1, "n_tasks": 4}
        for m, r, s, v in (
            ("a-1", "any other", "auroc", 0.2), ("b-1", "any other", "auroc", 0.8), ("b-1", "a-1", "auroc", 0.9),
            ("b-1", "any other", "brier", 0.1),
        )
    ]  # fmt: skip
    assert [(row["name"], row["value"]) for row in _win_rows(pl.DataFrame(rows))] == [("b-1", 0.8), ("a-1", 0.2)]


def test_a_mean_over_the_same_tasks_is_said_once_and_few_shot_rows_are_no_scores(tmp_path):
    tables = study_tables(grid(["gpt"], [64]), ["macro", "macro_many_positives", "stay", "icu"])
    shot = tables["scores"].head(1).with_columns(k=pl.lit("8"))
    tables["scores"] = pl.concat([tables["scores"], shot])
    write_study(tmp_path / "same", tables)
    read = read_tables(tmp_path / "same" / "report")
    assert set(read["scores"]["task"]) == {"macro", "stay", "icu"} == set(read["differences"]["task"])
    assert set(read["scores"]["k"]) == {"all"}
    is_many = pl.col("task") == "macro_many_positives"
    other = tables | {"scores": tables["scores"].with_columns(n=pl.when(is_many).then(pl.lit("300")).otherwise("n"))}
    write_study(tmp_path / "other", other)
    assert "macro_many_positives" in set(read_tables(tmp_path / "other" / "report")["scores"]["task"])


def test_hidden_scores_are_not_shown_and_break_nothing(tmp_path):
    """As `ehrctx score` writes them where few labels are positive: counts are masked, and values empty."""
    tables = study_tables(grid(["gpt"], [64]), ["macro", "stay", "icu"])
    for name in ("scores", "differences"):
        hidden = pl.when(pl.col("task") != "icu").then(pl.col("value", "lower", "upper"))
        tables[name] = tables[name].with_columns(hidden)
    paths = write_study(tmp_path / "study", tables)
    assert set(read_tables(paths["folder"])["scores"]["task"]) == {"macro", "stay"}
    study = {"name": "s", "simulate": None, "statistics": {"level": 0.95, "replicates": 100}}
    write_report(**paths, study=study | {"privacy": {"minimum_count": 10}}, out=tmp_path / "index.html")
    assert "the task's scores are hidden, too" in " ".join((tmp_path / "index.html").read_text().split())
