"""Scores, paired differences, their tests, wins and few-shot means against a loop over scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import polars.testing
import pytest
from by_hand import expanded, rarer, welch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrctx.errors import InputError
from ehrctx.probe.by_task import Entry, by_task, evaluated_subjects
from ehrctx.probe.delong import delong, delong_p
from ehrctx.probe.predict import PREDICTIONS
from ehrctx.probe.score import Scored, ScoreTables, _subjects_or_draws
from ehrctx.probe.score import score_tables as tables_of
from ehrctx.probe.statistics import Draws, holm, subject_draws
from ehrctx.study import Privacy, Statistics

STATISTICS = Statistics(replicates=40, level=0.9, seed=2)
SCORERS = {"auroc": roc_auc_score, "auprc": average_precision_score, "brier": brier_score_loss}


def all_tables(predictions: Sequence[pl.DataFrame], statistics: Statistics = STATISTICS, least: int = 1) -> ScoreTables:
    frames = [frame.lazy() for frame in predictions]
    draws = Draws.of(evaluated_subjects(frames), statistics)
    return tables_of(by_task(frames), draws, statistics, Privacy(minimum_count=least))


def score_tables(predictions: Sequence[pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame]:
    tables = all_tables(predictions)
    return tables.scores, tables.differences


def predictions_of(model: str, seed: int, task: str = "stay", noise: float = 1.0, n: int = 60) -> pl.DataFrame:
    """Predictions for the same labels whatever the model, better with less noise; some of another split."""
    labels = np.random.default_rng(0)
    subject = labels.integers(100, 120, size=n)
    y = labels.random(n) < 0.4
    p = 1 / (1 + np.exp(-(2.0 * y - 1 + noise * np.random.default_rng(seed).standard_normal(n))))
    frame = pl.DataFrame(
        {
            "task": task,
            "model": model,
            "head": "logistic_regression",
            "k": "all",
            "replicate": 0,
            "subject_id": subject,
            "prediction_time": [datetime(2000, 1, 1) + timedelta(days=i) for i in range(n)],
            "split": np.where(subject < 105, "tuning", "held_out"),
            "y": y,
            "p": p,
        }
    ).select(pl.col(c).cast(t) for c, t in PREDICTIONS.items())
    return frame.sample(fraction=1, shuffle=True, seed=seed)  # in another order for each model


def held_out(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = frame.filter(pl.col("split") == "held_out").sort("subject_id", "prediction_time")
    return rows["y"].to_numpy(), rows["p"].to_numpy(), rows["subject_id"].to_numpy()


def bootstrap(frame: pl.DataFrame, score: str) -> np.ndarray:
    y, p, subjects = held_out(frame)
    draws = subject_draws(subjects, STATISTICS)
    return np.array([SCORERS[score](np.repeat(y, times), np.repeat(p, times)) for times in draws])


def row(table: pl.DataFrame, **values: str) -> dict:
    found = table.filter(pl.all_horizontal(pl.col(k) == v for k, v in values.items()))
    assert found.height == 1
    return found.row(0, named=True)


@pytest.fixture(scope="module")
def frames() -> dict[str, pl.DataFrame]:
    return {"a": predictions_of("a", 1, noise=0.8), "b": predictions_of("b", 2, noise=2.0)}


@pytest.mark.parametrize("score", SCORERS)
def test_scores_and_differences_of_the_held_out_split(frames, score):
    table, differences = score_tables(list(frames.values()))
    y, _, subjects = held_out(frames["a"])
    point, replicates = {}, {}
    for model, frame in frames.items():
        _, p, _ = held_out(frame)
        point[model], replicates[model] = SCORERS[score](y, p), bootstrap(frame, score)
        found = row(table, model=model, score=score)
        assert found["value"] == pytest.approx(point[model])
        limits = expanded(replicates[model], 0.9, rarer(y, subjects))
        assert (found["lower"], found["upper"]) == pytest.approx(limits)
        assert (found["n"], found["n_positive"], found["n_subjects"]) == (len(y), y.sum(), len(set(subjects)))
        assert found["n_positive_subjects"] == len(set(subjects[y]))
    assert table["task"].unique().to_list() == ["stay"], "one task has no macro mean"
    for model, reference in (("a", "b"), ("b", "a")):
        found = row(differences, model=model, reference=reference, score=score)
        assert found["reference_head"] == "logistic_regression"
        assert found["value"] == pytest.approx(point[model] - point[reference])
        limits = expanded(replicates[model] - replicates[reference], 0.9, rarer(y, subjects))
        assert (found["lower"], found["upper"]) == pytest.approx(limits)
    assert differences.height == 2 * 3


def test_differences_are_paired(frames):
    """Paired intervals: a model against its copy, in another order, differs by exactly nothing."""
    copy = frames["a"].with_columns(model=pl.lit("copy")).sample(fraction=1, shuffle=True, seed=9)
    table, differences = score_tables([frames["a"], copy])
    assert (table["upper"] > table["lower"]).all()
    assert differences.select("value", "lower", "upper").unique().rows() == [(0.0, 0.0, 0.0)]


def test_each_task_stands_alone(frames):
    other = predictions_of("a", 5, task="other", n=30)
    alone, _ = score_tables([frames["a"]])
    table, differences = score_tables([frames["a"], other])
    assert set(other["subject_id"]) <= set(frames["a"]["subject_id"]), "the draws are the same"
    assert table.filter(pl.col("task") == "stay").equals(alone)
    assert table["task"].unique().sort().to_list() == ["macro", "other", "stay"]
    assert differences.height == 0


def test_heads_of_one_model_are_compared_too(frames):
    """Counts have three heads: each pair of (model, head) differs by its own row."""
    forest = predictions_of("a", 7, noise=1.5).with_columns(head=pl.lit("random_forest"))
    table, differences = score_tables([frames["a"], forest, frames["b"]])
    assert table.height == 3 * 3
    assert differences.height == 3 * 2 * 3
    for score in SCORERS:
        y, p, subjects = held_out(frames["a"])
        _, q, _ = held_out(forest)
        found = row(differences, score=score, model="a", head="random_forest", reference="a")
        assert found["reference_head"] == "logistic_regression"
        assert found["value"] == pytest.approx(SCORERS[score](y, q) - SCORERS[score](y, p))
        limits = expanded(bootstrap(forest, score) - bootstrap(frames["a"], score), 0.9, rarer(y, subjects))
        assert (found["lower"], found["upper"]) == pytest.approx(limits)
        back = row(differences, score=score, model="a", head="logistic_regression", reference="a")
        assert (back["reference_head"], back["value"]) == ("random_forest", -found["value"])
        assert (back["lower"], back["upper"]) == pytest.approx((-found["upper"], -found["lower"]))


def several_tasks() -> dict[str, dict[str, pl.DataFrame]]:
    """Task -> model -> predictions. The tasks differ in their subjects and labels; model c lacks the task `rare`."""
    shifts = {"stay": (0, 60), "icu": (8, 45), "rare": (-3, 50)}
    made: dict[str, dict[str, pl.DataFrame]] = {}
    for number, (task, (shift, n)) in enumerate(shifts.items()):
        made[task] = {}
        for position, model in enumerate("abc"):
            if (task, model) != ("rare", "c"):
                frame = predictions_of(model, 10 * number + position, task, noise=1 + position, n=n)
                made[task][model] = frame.with_columns(subject_id=pl.col("subject_id") + shift)
    return made


def looped(tasks: dict[str, dict[str, pl.DataFrame]], model: str, score: str) -> tuple[float, np.ndarray]:
    """The mean score over `tasks`, and the score of each task in each replicate, [tasks, replicates]; draws over the
    held-out subjects of all three tasks."""
    everything = pl.concat([f for of_task in several_tasks().values() for f in of_task.values()])
    ids = everything.filter(pl.col("split") == "held_out")["subject_id"].unique().sort().to_list()
    draws = subject_draws(np.array(ids), STATISTICS)
    points, replicates = [], []
    for of_task in tasks.values():
        y, p, subjects = held_out(of_task[model])
        points.append(SCORERS[score](y, p))
        of_replicates = []
        for times in draws:
            repeated = [times[ids.index(s)] for s in subjects]
            of_replicates.append(SCORERS[score](np.repeat(y, repeated), np.repeat(p, repeated)))
        replicates.append(of_replicates)
    return float(np.mean(points)), np.array(replicates)


def limits_of_mean(
    tasks: dict[str, dict[str, pl.DataFrame]], replicates: np.ndarray, is_capped: bool = True
) -> tuple[float, float]:
    """The interval of a mean over `tasks` of which `replicates` [tasks, replicates] are those of each."""
    labels = [held_out(of_task["a"]) for of_task in tasks.values()]
    n = [rarer(y, subjects) for y, _, subjects in labels]
    y, subjects = (np.concatenate([own[part] for own in labels]) for part in (0, 2))
    rests_on = welch(list(zip(replicates, n, strict=True)))
    return expanded(np.mean(replicates, axis=0), 0.9, min(rests_on, rarer(y, subjects)) if is_capped else rests_on)


@pytest.fixture(scope="module")
def with_macro() -> tuple[pl.DataFrame, pl.DataFrame]:
    return score_tables([f for of_task in several_tasks().values() for f in of_task.values()])


@pytest.mark.parametrize("score", SCORERS)
def test_macro_is_the_mean_over_the_tasks_that_every_model_predicted(with_macro, score):
    """Values, intervals and paired differences, against a loop with the same draws; `rare`, which c lacks, is out."""
    table, differences = with_macro
    complete = {task: of_task for task, of_task in several_tasks().items() if task != "rare"}
    values = {model: looped(complete, model, score) for model in "abc"}
    labels = [held_out(of_task["a"]) for of_task in complete.values()]
    for model, (value, replicates) in values.items():
        found = row(table, task="macro", model=model, score=score)
        assert found["value"] == pytest.approx(value)
        assert (found["lower"], found["upper"]) == pytest.approx(limits_of_mean(complete, replicates))
        assert found["n"] == sum(len(y) for y, _, _ in labels)
        assert found["n_positive"] == sum(y.sum() for y, _, _ in labels)
        assert found["n_positive_subjects"] == len({s for y, _, subjects in labels for s in subjects[y]})
        assert found["n_subjects"] == len({s for _, _, subjects in labels for s in subjects})
        for reference, (other, of_other) in values.items():
            if reference != model:
                found = row(differences, task="macro", model=model, reference=reference, score=score)
                assert found["value"] == pytest.approx(value - other)
                limits = limits_of_mean(complete, replicates - of_other)
                assert (found["lower"], found["upper"]) == pytest.approx(limits)
    assert differences.filter((pl.col("task") == "macro") & (pl.col("score") == score)).height == 3 * 2


def test_a_task_that_one_model_lacks_is_scored_all_the_same(with_macro):
    table, differences = with_macro
    rare = table.filter(pl.col("task") == "rare")
    assert rare["model"].unique().sort().to_list() == ["a", "b"]
    assert differences.filter(pl.col("task") == "rare").height == 2 * 3
    alone = {"rare": several_tasks()["rare"]}
    value, replicates = looped(alone, "b", "auroc")
    found = row(table, task="rare", model="b", score="auroc")
    assert found["value"] == pytest.approx(value)
    assert (found["lower"], found["upper"]) == pytest.approx(limits_of_mean(alone, replicates))


def test_a_single_complete_task_has_no_macro_mean():
    tasks = several_tasks()
    table, differences = score_tables([*tasks["stay"].values(), *tasks["rare"].values()])
    assert "macro" not in [*table["task"], *differences["task"]]
    assert table["task"].unique().sort().to_list() == ["rare", "stay"]


def test_the_order_of_the_predictions_does_not_matter(with_macro):
    frames = [f for of_task in several_tasks().values() for f in of_task.values()]
    table, differences = score_tables(frames[::-1])
    keys = ["task", "model", "score"]
    polars.testing.assert_frame_equal(table.sort(keys), with_macro[0].sort(keys))
    keys = [*keys, "reference"]
    polars.testing.assert_frame_equal(differences.sort(keys), with_macro[1].sort(keys))


def test_one_class_has_no_ranking_scores(frames):
    negative = frames["a"].with_columns(y=pl.lit(False))
    table, _ = score_tables([negative])
    auroc = row(table, score="auroc")
    assert all(math.isnan(auroc[key]) for key in ("value", "lower", "upper"))
    assert row(table, score="brier")["value"] > 0


def test_models_with_other_labels_are_refused(frames):
    fewer = frames["b"].filter(pl.col("subject_id") != 110)
    with pytest.raises(InputError, match="different labels of 'stay'"):
        score_tables([frames["a"], fewer])
    flipped = frames["b"].with_columns(y=pl.col("y") ^ (pl.col("subject_id") == 110))
    with pytest.raises(InputError, match="different labels of 'stay'"):
        score_tables([frames["a"], flipped])


def test_nothing_to_score_gives_empty_tables():
    table, differences = score_tables([pl.DataFrame(schema=PREDICTIONS)])
    assert table.height == differences.height == 0
    assert {"task", "model", "score", "value", "lower", "upper", "n", "n_positive", "n_subjects"} <= set(table.columns)


def test_p_values_are_adjusted_within_their_family(with_macro, monkeypatch):
    """Of a task: all tasks of one pair of models. Of a mean over tasks: all models against one reference."""
    assert with_macro[1]["sure"].null_count() == with_macro[1].height, "no verdict on few positive subjects"
    monkeypatch.setattr("ehrctx.probe.score.FEW_POSITIVES", 1)
    tasks = several_tasks()
    statistics = STATISTICS.model_copy(update={"replicates": 400})  # with 40, no p is small enough for three tests
    tables = all_tables([f for of_task in tasks.values() for f in of_task.values()], statistics)
    differences = tables.differences.filter(pl.col("task") != "macro_many_positives")
    alpha = 1 - STATISTICS.level
    of_tasks = differences.filter(~pl.col("task").str.starts_with("macro"))
    for _, own in of_tasks.group_by("score", "model", "reference"):
        np.testing.assert_allclose(own["p_holm"], holm(own["p"].to_numpy()))
        assert own.height in (2, 3)
    for _, own in differences.filter(task="macro").group_by("score", "reference"):
        np.testing.assert_allclose(own["p_holm"], holm(own["p"].to_numpy()))
        assert own.height == 2
    assert (differences["sure"] == (differences["p_holm"] < alpha)).all()
    assert differences["sure"].any()
    assert not differences["sure"].all()


def test_delong_stands_beside_the_bootstrap(frames):
    _, differences = score_tables(list(frames.values()))
    y, p, subjects = held_out(frames["a"])
    _, q, _ = held_out(frames["b"])
    expected = delong_p(*delong(y, np.stack([p, q]), subjects), 0, 1)
    assert row(differences, model="a", reference="b", score="auroc")["p_delong"] == pytest.approx(expected)
    assert row(differences, model="a", reference="b", score="brier")["p_delong"] is None


def of_positive_subjects(n: int, task: str) -> pl.DataFrame:
    """Twelve positive labels of `n` subjects, and negative ones of fifteen others."""
    frame = predictions_of("a", 3, task, n=60).filter(pl.col("split") == "held_out").sort("prediction_time").head(42)
    return frame.with_columns(y=pl.int_range(42) < 12).with_columns(
        subject_id=pl.when("y").then(pl.int_range(42) % n).otherwise(100 + pl.int_range(42) % 15)
    )


def test_one_positive_subject_gives_no_interval_to_a_task_nor_to_a_mean():
    tasks = [of_positive_subjects(n, task) for n, task in ((1, "rare"), (12, "stay"), (12, "icu"))]
    scores = all_tables(tasks).scores.filter(score="auroc")
    assert scores["value"].is_finite().all()
    for task, is_there in (("rare", False), ("stay", True), ("icu", True), ("macro", False)):
        assert math.isfinite(row(scores, task=task)["lower"]) is is_there


def test_where_counts_are_hidden_no_missing_interval_tells_one_of_them():
    """One positive subject and three are both `<10`: neither has an interval, nor a part in the mean."""
    tasks = [of_positive_subjects(n, task) for n, task in ((1, "one"), (3, "three"), (12, "stay"), (11, "icu"))]
    tables = all_tables([*tasks, *(frame.with_columns(model=pl.lit("b")) for frame in tasks)], least=10)
    for table in (tables.scores, tables.differences):
        for task in ("one", "three"):
            assert table.filter(task=task).select("lower", "upper").to_numpy().size > 0
            assert np.isnan(table.filter(task=task).select("lower", "upper").to_numpy()).all()
        assert np.isfinite(table.filter(task="stay").select("lower", "upper").to_numpy()).all()
        assert set(table.filter(task="macro")["n"]) == {2 * 42}
    tests = tables.differences.filter(task="three").select("p", "p_delong").fill_nan(None)
    assert tests.null_count().row(0) == (tests.height, tests.height)
    assert set(tables.wins["n_tasks"]) == {2}


def test_the_mean_over_tasks_with_many_positives(with_macro, monkeypatch):
    """Of three tasks that both models predicted, one has few positive subjects."""
    table, _ = with_macro
    tasks = several_tasks()
    ab = [frame for of_task in tasks.values() for model, frame in of_task.items() if model != "c"]
    counts = dict(table.filter(score="auroc", model="a").select("task", "n_positive_subjects").iter_rows())
    few = min(("stay", "icu", "rare"), key=counts.__getitem__)
    monkeypatch.setattr("ehrctx.probe.score.FEW_POSITIVES", counts[few] + 1)
    tables = all_tables(ab)
    many = {task: of_task for task, of_task in tasks.items() if task != few and counts[task] > counts[few]}
    assert len(many) == 2
    for name, over in (("macro_many_positives", many), ("macro", tasks)):
        value, replicates = looped(over, "b", "auroc")
        found = row(tables.scores, task=name, model="b", score="auroc")
        assert found["value"] == pytest.approx(value)
        assert (found["lower"], found["upper"]) == pytest.approx(limits_of_mean(over, replicates))
    monkeypatch.setattr("ehrctx.probe.score.FEW_POSITIVES", max(counts.values()) + 1)
    assert "macro_many_positives" not in set(all_tables(ab).scores["task"])


@pytest.mark.parametrize("score", SCORERS)
def test_wins_are_counted_over_the_tasks_of_both(score):
    tables = all_tables([frame for of_task in several_tasks().values() for frame in of_task.values()])
    sign = -1 if score == "brier" else 1
    rates = {}
    for a, b in (("a", "b"), ("a", "c"), ("b", "c"), ("c", "a")):
        both = {task: of_task for task, of_task in several_tasks().items() if {a, b} <= of_task.keys()}
        points, replicates = [], []
        for task, of_task in both.items():
            (x, of_x), (z, of_z) = (looped({task: of_task}, model, score) for model in (a, b))
            points.append(sign * (x - z) > 0)
            replicates.append(((sign * (of_x - of_z) > 0) + 0.5 * (of_x == of_z))[0])
        found = row(tables.wins, model=a, reference=b, score=score)
        assert found["value"] == pytest.approx(np.mean(points))
        assert (found["lower"], found["upper"]) == pytest.approx(
            limits_of_mean(both, np.array(replicates), is_capped=False)
        )
        assert found["n_tasks"] == len(both)
        rates[a, b] = found["value"]
    assert rates["c", "a"] == pytest.approx(1 - rates["a", "c"])
    of_a = row(tables.wins, model="a", reference="any other", score=score)
    assert of_a["value"] == pytest.approx((rates["a", "b"] + rates["a", "c"]) / 2)


def test_few_shot_draws_are_averaged_and_compared_with_nothing_else():
    """Three draws of 8 labels per class beside the head fitted on all."""
    drawn = [
        predictions_of("a", seed, noise=3.0).with_columns(k=pl.lit("8"), replicate=pl.lit(seed, pl.Int64))
        for seed in range(3)
    ]
    tables = all_tables([predictions_of("a", 9), predictions_of("b", 8), *drawn])
    assert tables.scores.filter(k="8").height == 3 * 3
    assert tables.differences.height == 2 * 3
    assert set(tables.differences["k"]) == {"all"}
    assert tables.wins.filter(reference="b")["model"].to_list() == ["a"] * 3
    for score in SCORERS:
        own = tables.scores.filter(k="8", score=score)["value"].to_numpy()
        found = row(tables.few_shot, k="8", score=score)
        assert found["value"] == pytest.approx(own.mean())
        assert found["deviation"] == pytest.approx(own.std(ddof=1))
        assert found["n_draws"] == 3
        between = np.stack([bootstrap(frame, score) for frame in drawn])
        y, _, subjects = held_out(drawn[0])
        narrow = expanded(between.mean(axis=0), 0.9, rarer(y, subjects))
        assert found["upper"] - found["lower"] > narrow[1] - narrow[0], (
            "the draws of labels add to what the subjects leave open"
        )


def test_a_mean_over_draws_rests_on_what_varies():
    """On the draws where they disagree, on the subjects where these do, on the subjects of one draw."""
    draws = [Entry("a", "logistic_regression", "8", r) for r in range(5)]
    noise = np.random.default_rng(0).normal(0, 0.1, (40, 3))

    def rests_on(points: np.ndarray, of_subjects: np.ndarray, m: int = 5) -> np.ndarray:
        found = {entry: (np.full(3, p), p + of_subjects) for entry, p in zip(draws[:m], points, strict=False)}
        return _subjects_or_draws(Scored(found, {}, n=30), draws[:m])

    apart, equal = np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.full(5, 0.7)
    assert rests_on(apart, 0 * noise) == pytest.approx([5] * 3)
    assert rests_on(equal, noise) == pytest.approx([30] * 3)
    assert (rests_on(apart, noise) > 5).all()
    assert rests_on(apart, noise, m=1) == pytest.approx([30] * 3)


@pytest.mark.parametrize("wrong", [float("nan"), 1.5, -0.1])
def test_what_is_no_probability_is_refused(frames, wrong):
    broken = frames["a"].with_columns(p=pl.when(pl.col("subject_id") == 110).then(wrong).otherwise("p"))
    with pytest.raises(InputError, match="a predicted what is no probability for 'stay'"):
        score_tables([broken])
