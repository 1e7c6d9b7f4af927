"""Tasks with hardly any labels: what cannot be told is a reason, and what is predicted is a probability."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from ehrctx.probe.by_task import by_task
from ehrctx.probe.predict import probe_counts, read_predictions
from ehrctx.study import Boosting, FewShot, Forest, Probe
from ehrctx.tasks.label_sets import read_labels

HEADS = ("logistic_regression", "random_forest", "lightgbm")
PROBE = Probe(
    regularization=(1e-8, 0.1, 1e4),
    forest=Forest(trees=(4,), depth=(1, 3)),
    boosting=Boosting(depth=(2,), learning_rate=(0.1,), leaves=(3, 5), rounds=5),
    few_shot=FewShot(k=(1, 3, 40), replicates=2, baselines=HEADS),
)
BOTH_DRAWS = [PROBE, PROBE.model_copy(update={"few_shot": PROBE.few_shot.model_copy(update={"draw": "subjects"})})]


@pytest.fixture(scope="module")
def frames(cohort):
    """Labels at the times of stays, whose answers are made up; each frame is hard in its own way."""
    stays = read_labels(cohort.labels)["guo_los"].unique(["subject_id", "prediction_time"], maintain_order=True)
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    of = pl.Series([split[s] for s in stays["subject_id"]])
    parts = {s: stays.filter(of == s) for s in ("train", "tuning", "held_out")}

    def answered(frame, answers):
        rows = frame.head(len(answers))
        return rows.with_columns(boolean_value=pl.Series(answers, dtype=pl.Boolean))

    def task(train, tuning, held_out=(True, False, False, True)):
        return pl.concat(answered(parts[s], a) for s, a in zip(parts, (train, tuning, held_out), strict=True))

    def one_subject(frame):
        """Both classes, a day apart."""
        first = frame.head(1)
        later = first.with_columns(pl.col("prediction_time") + timedelta(days=1), boolean_value=pl.lit(True))
        return pl.concat([first.with_columns(boolean_value=pl.lit(False)), later])

    made = {
        "two_labels": task([True, False], [False, True]),
        "one_positive": task([True] + [False] * 20, [True] + [False] * 9),
        "no_tuning": task([True, False, False], []),
        "tuning_of_one_class": task([True, False, False], [False] * 5),
        "subjects_of_one_label": pl.concat([one_subject(part) for part in parts.values()]),
        "one_held_out_label": task([True, False, True], [True, False], [True]),
        "no_train": task([], [True, False]),
        "train_of_one_class": task([True] * 4, [True, False]),
    }
    twice = pl.concat([made["one_positive"]] * 2)
    # the same subject and minute with both answers, as two results of one minute may have
    against = made["one_positive"].with_columns(boolean_value=~pl.col("boolean_value"))
    made |= {"every_label_twice": twice, "contradicted": pl.concat([made["one_positive"], against])}
    return {task: frame.sort("subject_id", "prediction_time") for task, frame in made.items()}


REASONS = {
    "one_held_out_label": "one class only in held_out",
    "no_train": "no labels in train",
    "train_of_one_class": "one class only in train",
}


@pytest.fixture(scope="module", params=BOTH_DRAWS, ids=["labels", "subjects"])
def found(request, cohort, frames, write_labels_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("hard")
    # times at which nothing was labelled before are no trouble: counts are made for the labels of the folder
    labels = write_labels_folder(root / "labels", frames)
    probe_counts(cohort.timelines, labels, request.param, root / "counts")
    _, predictions, facts = read_predictions(root / "counts")
    return predictions.collect(), facts, pl.read_parquet(root / "counts" / "heads.parquet"), request.param.few_shot.draw


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_has_no_scores_is_told_and_nothing_else(found, frames):
    predictions, facts, _, _ = found
    assert {t: f["not_estimable"] for t, f in facts.items() if "not_estimable" in f} == REASONS
    assert set(predictions["task"]) == frames.keys() - REASONS.keys()


def test_every_prediction_is_a_probability(found):
    predictions, _, _, _ = found
    assert predictions["p"].is_finite().all()
    assert predictions["p"].is_between(0, 1).all()
    assert predictions.null_count().row(0) == (0,) * predictions.width


def test_every_held_out_label_is_predicted_by_every_head_of_every_draw(found, frames, cohort):
    predictions, _, _, _ = found
    split = pl.read_parquet(cohort.splits)
    for task, own in predictions.group_by("task"):
        labels = frames[task[0]].join(split, on="subject_id").filter(pl.col("split") == "held_out")
        n = own.filter(pl.col("split") == "held_out").group_by("head", "k", "replicate").len()
        assert n.height == len(HEADS) * (1 + 3 * 2)
        assert n["len"].unique().to_list() == [labels.height]


def test_equal_times_are_predicted_alike_and_scored_apart(found):
    """Two labels of one subject and time have the same features, so the same prediction, whatever they say."""
    predictions, _, _, _ = found
    for task in ("every_label_twice", "contradicted"):
        own = predictions.filter(pl.col("task") == task)
        key = ["head", "k", "replicate", "split", "subject_id", "prediction_time"]
        pairs = own.group_by(key).agg(pl.len(), pl.col("p").n_unique().alias("different"), pl.col("y").sum())
        assert pairs["len"].unique().to_list() == [2]
        assert pairs["different"].unique().to_list() == [1]
        assert set(pairs["y"]) == ({0, 2} if task == "every_label_twice" else {1})
    (entry,) = (t for t in by_task([predictions.lazy()]) if t.task == "contradicted")
    assert np.mean(entry.y) == 0.5


def test_a_class_with_fewer_than_k_is_told_and_filled_up(found):
    _, facts, heads, draw = found
    told = {t: f["few_shot"][f"{draw}_of_the_rarer_class"] for t, f in facts.items() if "few_shot" in f}
    assert told["two_labels"] == {"train": 1, "tuning": 1}
    assert told["one_positive"] == {"train": 1, "tuning": 1}
    assert told["no_tuning"] == {"train": 1, "tuning": 0}
    assert told["tuning_of_one_class"] == {"train": 1, "tuning": 0}
    assert told["subjects_of_one_label"] == {"train": 1, "tuning": 1}
    assert told["every_label_twice"] == {"train": 2, "tuning": 2} if draw == "labels" else {"train": 1, "tuning": 1}
    # three draws of the only two labels: k times the same two rows
    own = heads.filter((pl.col("task") == "two_labels") & (pl.col("head") == "logistic_regression"))
    assert own.height == 7


def test_without_both_classes_in_tuning_the_middle_of_the_grid_is_taken(found):
    _, _, heads, _ = found
    own = heads.filter(pl.col("task").is_in(["no_tuning", "tuning_of_one_class"]))
    assert own["tuning_auroc"].null_count() == own.height == 2 * len(HEADS) * 7
    linear = own.filter(pl.col("head") == "logistic_regression")
    assert linear["chosen"].unique().to_list() == ['{"C": 0.1}']
    others = heads.filter(~pl.col("task").is_in(["no_tuning", "tuning_of_one_class"]))
    assert others["tuning_auroc"].is_between(0, 1).all()
    assert others["tuning_auroc"].null_count() == 0


def test_the_same_labels_k_times_give_the_head_of_less_regularization(found):
    """Filled up to k, one label per class weighs k times as much: for one C, weights grow and p spreads."""
    predictions, _, heads, _ = found
    of = (pl.col("task") == "two_labels") & (pl.col("head") == "logistic_regression") & (pl.col("replicate") == 0)
    chosen = dict(heads.filter(of & (pl.col("k") != "all")).select("k", "chosen").rows())
    assert len(set(chosen.values())) == 1, "the tuning AUROC of the same rows is the same"
    spread = predictions.filter(of & (pl.col("split") == "held_out")).group_by("k").agg(pl.col("p").std())
    by_k = dict(spread.rows())
    assert by_k["1"] < by_k["3"] < by_k["40"]
