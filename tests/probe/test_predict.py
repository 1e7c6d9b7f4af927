"""Predictions of the baselines on counts and of embeddings on the cohort, refitted by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_matrix
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.probe.embeddings import KIND as EMBEDDINGS
from ehrctx.probe.predict import PREDICTIONS, probe_counts, probe_embeddings, read_predictions
from ehrctx.study import Boosting, Forest, Probe
from ehrctx.tasks.label_sets import read_labels
from ehrctx.timelines.store import Timelines

GRID = Probe(
    regularization=(1e-3, 0.1),
    max_iterations=200,
    forest=Forest(trees=(7,), depth=(2, 4)),
    boosting=Boosting(depth=(3,), learning_rate=(0.05, 0.2), leaves=(5,), rounds=10),
)
HEADS = ("logistic_regression", "random_forest", "lightgbm")
YEAR = 365.25 * 86_400


@pytest.fixture(scope="module")
def labels(cohort, write_labels_folder, tmp_path_factory):
    """A task of the cohort, and variants of it that lack a class, or rows, in some split."""
    stays = read_labels(cohort.labels)["guo_los"]
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    of = pl.Series([split[s] for s in stays["subject_id"]])

    def negative_in(*splits: str) -> pl.DataFrame:
        return stays.with_columns(boolean_value=pl.col("boolean_value") & ~of.is_in(list(splits)))

    frames = {
        "guo_los": stays,
        "never": negative_in("train", "tuning", "held_out"),
        "not_held_out": negative_in("held_out"),
        "not_in_train": negative_in("train"),
        "not_in_tuning": negative_in("tuning"),
        "no_held_out_rows": stays.filter(of != "held_out"),
    }
    return write_labels_folder(tmp_path_factory.mktemp("predict") / "labels", frames)


@pytest.fixture(scope="module")
def counted(cohort, labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("counts") / "predictions"
    facts = probe_counts(cohort.timelines, labels, GRID, out)
    model, predictions, recorded = read_predictions(out)
    return out, facts, model, predictions.collect(), recorded


def test_predictions_have_the_agreed_columns(counted, cohort):
    _, facts, model, predictions, recorded = counted
    assert model == "counts"
    assert recorded == facts
    assert dict(predictions.schema) == PREDICTIONS
    assert predictions.null_count().row(0) == (0,) * len(PREDICTIONS)
    assert predictions["model"].unique().to_list() == ["counts"]
    assert tuple(predictions["head"].unique(maintain_order=True)) == HEADS
    assert predictions["k"].unique().to_list() == ["all"]
    assert predictions["p"].is_between(0, 1).all()


@pytest.mark.parametrize("head", HEADS)
def test_every_head_predicts_every_tuning_and_held_out_label_once(counted, cohort, head):
    _, _, _, predictions, _ = counted
    predictions = predictions.filter(pl.col("head") == head)
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    stays = read_labels(cohort.labels)["guo_los"]
    wanted = sorted(
        (s, t, split[s], y)
        for s, t, y in stays.select("subject_id", "prediction_time", "boolean_value").iter_rows()
        if split[s] != "train"
    )
    found = predictions.filter(pl.col("task") == "guo_los").select("subject_id", "prediction_time", "split", "y")
    assert sorted(found.rows()) == wanted


def test_a_task_of_one_class_is_recorded_and_left_out(counted):
    _, facts, _, predictions, _ = counted
    assert sorted(predictions["task"].unique()) == ["guo_los", "not_in_tuning"]
    for task, splits in {
        "never": "train and held_out",
        "not_held_out": "held_out",
        "not_in_train": "train",
        "no_held_out_rows": "held_out",
    }.items():
        assert facts[task]["not_estimable"].endswith(f" in {splits}"), task
        assert set(facts[task]) == {"without_features", "not_estimable"}, task
    assert set(facts["guo_los"]) == {"without_features", *HEADS}
    assert [facts["not_in_tuning"][head]["tuning_auroc"] for head in HEADS] == [None] * 3


@pytest.mark.parametrize("head", HEADS)
def test_the_recorded_tuning_auroc_is_that_of_the_predictions(counted, head):
    _, facts, _, predictions, _ = counted
    tuning = predictions.filter(
        (pl.col("task") == "guo_los") & (pl.col("split") == "tuning") & (pl.col("head") == head)
    )
    auroc = roc_auc_score(tuning["y"].to_numpy(), tuning["p"].to_numpy())
    assert facts["guo_los"][head]["tuning_auroc"] == pytest.approx(auroc)


def test_how_each_head_was_fitted_is_recorded(counted):
    fitted = counted[1]["guo_los"]
    assert fitted["logistic_regression"].keys() == {"C", "tuning_auroc", "converged"}
    assert fitted["random_forest"].keys() == {"trees", "depth", "tuning_auroc", "converged"}
    assert fitted["lightgbm"].keys() == {"depth", "learning_rate", "leaves", "tuning_auroc", "converged"}
    assert fitted["logistic_regression"]["C"] in GRID.regularization
    assert (fitted["random_forest"]["trees"], fitted["lightgbm"]["leaves"]) == (7, 5)


def test_count_predictions_refitted_by_hand(counted, cohort, seen_tokens):
    _, facts, _, predictions, _ = counted
    store = Timelines.open(cohort.timelines)
    place = {int(s): i for i, s in enumerate(store.subjects["subject_id"])}
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    size = store.vocabulary_size
    features, y, splits, keys = [], [], [], []
    for subject, time, label in (
        read_labels(cohort.labels)["guo_los"].select("subject_id", "prediction_time", "boolean_value").iter_rows()
    ):
        when = np.datetime64(time, "us")
        age = (when - store.subjects["origin"][place[subject]]) / np.timedelta64(1, "s") / YEAR
        counts = np.bincount(seen_tokens(store, place[subject], when), minlength=size)
        features.append(np.append(counts, age))
        y.append(label)
        splits.append(split[subject])
        keys.append((subject, time))
    x, y, splits = np.array(features, dtype=np.float32), np.array(y), np.array(splits)
    train = splits == "train"
    scaler = MaxAbsScaler().fit(csr_matrix(x[train]))
    regression = LogisticRegression(C=facts["guo_los"]["logistic_regression"]["C"], max_iter=200)
    regression.fit(scaler.transform(csr_matrix(x[train])), y[train])
    forest = RandomForestClassifier(7, max_depth=facts["guo_los"]["random_forest"]["depth"], random_state=0)
    forest.fit(csr_matrix(x[train]), y[train])
    for head, p in {
        "logistic_regression": regression.predict_proba(scaler.transform(csr_matrix(x)))[:, 1],
        "random_forest": forest.predict_proba(csr_matrix(x))[:, 1],
    }.items():
        expected = dict(zip(keys, p, strict=True))
        of_head = predictions.filter((pl.col("task") == "guo_los") & (pl.col("head") == head))
        assert of_head.height > 20
        for subject, time, probability in of_head.select("subject_id", "prediction_time", "p").iter_rows():
            assert probability == pytest.approx(expected[subject, time], abs=1e-4), head


def test_the_study_chooses_the_heads_on_counts(counted, cohort, labels, tmp_path):
    """One head alone: its predictions are those that it makes beside the others."""
    only = GRID.model_copy(update={"baselines": ("lightgbm",)})
    facts = probe_counts(cohort.timelines, labels, only, tmp_path / "predictions")
    _, predictions, _ = read_predictions(tmp_path / "predictions")
    predictions = predictions.collect()
    assert predictions.equals(counted[3].filter(pl.col("head") == "lightgbm"))
    assert set(facts["guo_los"]) == {"without_features", "lightgbm"}


def test_the_labels_of_held_out_subjects_change_no_prediction(counted, cohort, write_labels_folder, tmp_path):
    stays = read_labels(cohort.labels)["guo_los"]
    held_out = pl.read_parquet(cohort.splits).filter(pl.col("split") == "held_out")["subject_id"].to_list()
    flipped = pl.col("boolean_value") ^ pl.col("subject_id").is_in(held_out)
    labels = write_labels_folder(tmp_path / "labels", {"guo_los": stays.with_columns(boolean_value=flipped)})
    probe_counts(cohort.timelines, labels, GRID, tmp_path / "predictions")
    _, predictions, _ = read_predictions(tmp_path / "predictions")
    predictions = predictions.collect()
    before = counted[3].filter(pl.col("task") == "guo_los")
    assert predictions.drop("y").equals(before.drop("y"))
    assert not predictions["y"].equals(before["y"])


@pytest.fixture(scope="module")
def embeddings(cohort, labels, tmp_path_factory):
    """Made-up embeddings of which one feature is the label itself; without the rows of one held-out subject."""
    folder = tmp_path_factory.mktemp("made_up") / "embeddings"
    stays = read_labels(cohort.labels)["guo_los"].unique(["subject_id", "prediction_time"], maintain_order=True)
    split = dict(pl.read_parquet(cohort.splits).select("subject_id", "split").iter_rows())
    absent = next(s for s in stays["subject_id"] if split[s] == "held_out")
    kept = stays.filter(pl.col("subject_id") != absent).sample(fraction=1, shuffle=True, seed=0)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((kept.height, 5)).astype(np.float32)
    rows[:, 2] += 6 * kept["boolean_value"].to_numpy()
    with new_artifact(folder, EMBEDDINGS, {"model": "gpt-tiny-64"}, {"labels": labels}, {}) as partial:
        np.save(partial / "embeddings.npy", rows)
        of = pl.Series("split", [split[s] for s in kept["subject_id"]])
        kept.select("subject_id", "prediction_time", of).write_parquet(partial / "index.parquet")
    n_absent = stays.filter(pl.col("subject_id") == absent).height
    return folder, n_absent


def test_each_label_meets_its_own_embedding(cohort, labels, embeddings, tmp_path):
    """The index is in no order: had rows been mixed up, the planted signal would be lost."""
    folder, n_absent = embeddings
    facts = probe_embeddings(folder, labels, GRID, tmp_path / "predictions")
    model, predictions, _ = read_predictions(tmp_path / "predictions")
    predictions = predictions.collect()
    assert model == "gpt-tiny-64"
    assert facts["guo_los"]["without_features"] == n_absent > 0
    assert predictions["head"].unique().to_list() == ["logistic_regression"], "trees are for counts alone"
    held_out = predictions.filter((pl.col("task") == "guo_los") & (pl.col("split") == "held_out"))
    assert roc_auc_score(held_out["y"].to_numpy(), held_out["p"].to_numpy()) > 0.98


def test_embeddings_of_other_labels_are_refused(cohort, embeddings, tmp_path):
    with pytest.raises(InputError, match="other labels"):
        probe_embeddings(embeddings[0], cohort.labels, GRID, tmp_path / "predictions")


def test_a_task_without_tuning_rows_is_probed_all_the_same(cohort, write_labels_folder, tmp_path):
    stays = read_labels(cohort.labels)["guo_los"]
    tuning = pl.read_parquet(cohort.splits).filter(pl.col("split") == "tuning")
    labels = write_labels_folder(tmp_path / "labels", {"t": stays.join(tuning, on="subject_id", how="anti")})
    facts = probe_counts(cohort.timelines, labels, GRID, tmp_path / "predictions")
    _, predictions, _ = read_predictions(tmp_path / "predictions")
    predictions = predictions.collect()
    assert [facts["t"][head]["tuning_auroc"] for head in HEADS] == [None] * 3
    assert predictions["split"].unique().to_list() == ["held_out"]
