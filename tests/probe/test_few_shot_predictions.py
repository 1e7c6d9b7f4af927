"""Few-shot heads of the cohort, refitted by hand on the labels of their draws."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ehrctx.artifacts import new_artifact, read_manifest
from ehrctx.errors import InputError
from ehrctx.probe.counts import count_features
from ehrctx.probe.embeddings import KIND as EMBEDDINGS
from ehrctx.probe.embeddings import labelled_times
from ehrctx.probe.few_shot import draw_shots
from ehrctx.probe.predict import FITTED, KIND, PREDICTIONS, probe_counts, probe_embeddings, read_predictions
from ehrctx.study import Boosting, FewShot, Forest, Probe
from ehrctx.tasks.label_sets import read_labels
from ehrctx.timelines.store import Timelines

GRID = (1e-3, 0.03, 1.0)
FEW = FewShot(k=(2, 5), replicates=3)
PROBE = Probe(regularization=GRID, baselines=("logistic_regression",), few_shot=FEW)
TASK = "guo_los"
SPLITS = ("train", "tuning", "held_out")


@pytest.fixture(scope="module")
def features(cohort):
    """Made-up embeddings of the cohort's labelled times, as float32[n, 6], and their index; counts, dense."""
    store = Timelines.open(cohort.timelines)
    index, positions, _ = labelled_times(store, cohort.labels)
    counts = count_features(store, positions, index["prediction_time"].to_numpy()).toarray()
    made = np.random.default_rng(0).standard_normal((index.height, 6)).astype(np.float32)
    made[:, 1] += counts.sum(axis=1) / 100
    return index, {"gpt-tiny-64": made, "counts": counts}


@pytest.fixture(scope="module")
def write_embeddings(cohort, features):
    def write(folder, model="gpt-tiny-64", rows=slice(None)):
        index, found = features
        with new_artifact(folder, EMBEDDINGS, {"model": model}, {"labels": cohort.labels}, {}) as partial:
            np.save(partial / "embeddings.npy", found["gpt-tiny-64"][rows])
            index[rows].write_parquet(partial / "index.parquet")
        return folder

    return write


@pytest.fixture(scope="module")
def probed(cohort, write_embeddings, tmp_path_factory):
    """By model, its folder, predictions and facts."""
    root = tmp_path_factory.mktemp("few")
    probe_embeddings(write_embeddings(root / "embeddings"), cohort.labels, PROBE, root / "gpt-tiny-64")
    probe_counts(cohort.timelines, cohort.labels, PROBE, root / "counts")
    found = {}
    for name in ("gpt-tiny-64", "counts"):
        model, predictions, facts = read_predictions(root / name)
        assert model == name
        found[name] = root / name, predictions.collect(), facts
    return found


@pytest.fixture(scope="module")
def task(cohort, features):
    """By split, the labels (subject_id, prediction_time, y) of the task, and the rows of their features."""
    index, _ = features
    labels = read_labels(cohort.labels)[TASK].select("subject_id", "prediction_time", y="boolean_value")
    placed = labels.join(index.with_row_index("row"), on=["subject_id", "prediction_time"], maintain_order="left")
    parts = {s: placed.filter(pl.col("split") == s) for s in SPLITS}
    return {s: part.drop("row", "split") for s, part in parts.items()}, {
        s: p["row"].to_numpy() for s, p in parts.items()
    }


@pytest.mark.parametrize("model", ["gpt-tiny-64", "counts"])
def test_every_draw_refitted_by_hand(probed, task, features, model):
    """Scaled by the draw's own train rows, C chosen by the draw's tuning rows, all held-out labels predicted."""
    _, predictions, _ = probed[model]
    heads = pl.read_parquet(probed[model][0] / "heads.parquet").filter(pl.col("task") == TASK)
    labels, rows = task
    x = {s: features[1][model][rows[s]] for s in SPLITS}
    y = {s: labels[s]["y"].to_numpy() for s in SPLITS}
    shots, _ = draw_shots(TASK, labels, FEW)
    everything = [("all", 0, np.arange(len(y["train"])), np.arange(len(y["tuning"])))]
    chosen_before = set()
    for k, replicate, train, tuning in everything + [(s.k, s.replicate, s.train, s.tuning) for s in shots]:
        largest = np.abs(x["train"][train]).max(axis=0)
        largest[largest == 0] = 1
        best = None
        for c in GRID:
            fitted = LogisticRegression(C=c, max_iter=1000).fit(x["train"][train] / largest, y["train"][train])
            p = fitted.predict_proba(x["tuning"][tuning] / largest)[:, 1]
            auroc = roc_auc_score(y["tuning"][tuning], p)
            if best is None or auroc > best[0]:
                best = auroc, c, fitted
        of = (pl.col("k") == k) & (pl.col("replicate") == replicate)
        head = heads.filter(of).row(0, named=True)
        assert json.loads(head["chosen"]) == {"C": best[1]}
        assert head["tuning_auroc"] == pytest.approx(best[0])
        chosen_before.add(best[1])
        found = predictions.filter(of & (pl.col("task") == TASK) & (pl.col("split") == "held_out"))
        assert found.select("subject_id", "prediction_time", "y").equals(labels["held_out"])
        expected = best[2].predict_proba(x["held_out"] / largest)[:, 1]
        # in float32, sparse or dense, L-BFGS stops at other places
        np.testing.assert_allclose(found["p"].to_numpy(), expected, atol=5e-3)
    assert len(chosen_before) > 1, "the choice must matter"


@pytest.mark.parametrize("model", ["gpt-tiny-64", "counts"])
def test_few_shot_rows_are_held_out_ones_of_every_draw(probed, model):
    folder, predictions, facts = probed[model]
    assert dict(predictions.schema) == PREDICTIONS
    assert predictions.filter(pl.col("k") != "all")["split"].unique().to_list() == ["held_out"]
    assert set(predictions.filter(pl.col("k") == "all")["split"]) == {"tuning", "held_out"}
    drawn = {("all", 0)} | {(str(k), r) for k in FEW.k for r in range(FEW.replicates)}
    estimable = {t for t, fact in facts.items() if "not_estimable" not in fact}
    found = predictions.select("task", "k", "replicate").unique().rows()
    assert {*found} == {(t, *d) for t in estimable for d in drawn}
    heads = pl.read_parquet(folder / "heads.parquet")
    assert dict(heads.schema) == FITTED
    assert sorted(heads.select("task", "k", "replicate").rows()) == sorted(found)
    assert not predictions["p"].is_nan().any()
    assert sorted(p.name for p in folder.iterdir()) == ["heads.parquet", "manifest.json", "predictions.parquet"]


def test_heads_on_all_labels_do_not_change(probed, cohort, tmp_path):
    probe_counts(cohort.timelines, cohort.labels, PROBE.model_copy(update={"few_shot": None}), tmp_path / "counts")
    _, predictions, facts = read_predictions(tmp_path / "counts")
    _, before, told = probed["counts"]
    assert predictions.collect().equals(before.filter(pl.col("k") == "all"))
    assert {t: {n: v for n, v in fact.items() if n != "few_shot"} for t, fact in told.items()} == facts


def test_a_model_without_some_rows_meets_the_same_draws_of_the_others(
    probed, cohort, features, write_embeddings, tmp_path
):
    """No other label changes its place: without one held-out subject, nothing else changes at all."""
    index, _ = features
    absent = index.filter(pl.col("split") == "held_out")["subject_id"][0]
    rows = np.flatnonzero(index["subject_id"].to_numpy() != absent)
    probe_embeddings(write_embeddings(tmp_path / "embeddings", rows=rows), cohort.labels, PROBE, tmp_path / "out")
    _, predictions, _ = read_predictions(tmp_path / "out")
    expected = probed["gpt-tiny-64"][1].filter(pl.col("subject_id") != absent)
    found = predictions.collect()
    keys = [c for c in PREDICTIONS if c != "p"]
    assert found.select(keys).equals(expected.select(keys))
    np.testing.assert_allclose(found["p"].to_numpy(), expected["p"].to_numpy(), rtol=1e-6)


def test_the_study_says_which_heads_on_counts_learn_from_few_labels(cohort, tmp_path):
    few = FewShot(k=(3,), replicates=1, baselines=("lightgbm", "random_forest"))
    probe = Probe(
        regularization=(0.1,),
        baselines=("logistic_regression",),
        forest=Forest(trees=(5,), depth=(2,)),
        boosting=Boosting(depth=(2,), learning_rate=(0.1,), leaves=(3,), rounds=3),
        few_shot=few,
    )
    probe_counts(cohort.timelines, cohort.labels, probe, tmp_path / "trees")
    _, predictions, _ = read_predictions(tmp_path / "trees")
    found = set(predictions.select("head", "k").unique().collect().rows())
    assert found == {("logistic_regression", "all"), ("lightgbm", "3"), ("random_forest", "3")}
    none = probe.model_copy(update={"few_shot": few.model_copy(update={"baselines": ()})})
    probe_counts(cohort.timelines, cohort.labels, none, tmp_path / "none")
    assert read_predictions(tmp_path / "none")[1].select("k").unique().collect()["k"].to_list() == ["all"]


def write_shots(folder, labels, wrong=0):
    """One draw of two labels per class, as EHRSHOT writes it; `wrong` of the train subjects are unknown."""
    for name, of_task in labels.items():
        held = {}
        for split, published in (("train", "train"), ("tuning", "val")):
            own = pl.concat(of_task[split].filter(pl.col("y") == y).head(2) for y in (False, True))
            ids = own["subject_id"].to_list()
            if split == "train":
                ids[:wrong] = [-1] * wrong
            held[f"patient_ids_{published}_k"] = ids
            held[f"label_times_{published}_k"] = [t.isoformat() for t in own["prediction_time"]]
            held[f"label_values_{published}_k"] = own["y"].cast(pl.Int64).to_list()
        (folder / name).mkdir(parents=True)
        (folder / name / "all_shots_data.json").write_text(json.dumps({name: {"2": {"0": held}}}))
    return folder


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_published_draws_take_the_place_of_ours(cohort, task, write_labels_folder, tmp_path, wrong):
    labels, _ = task
    own = write_labels_folder(tmp_path / "labels", {TASK: read_labels(cohort.labels)[TASK]})
    shots = write_shots(tmp_path / "my shots", {TASK: labels}, wrong)
    few = FewShot(k=(2, 4), replicates=2, shots=str(shots))
    probe = PROBE.model_copy(update={"few_shot": few})
    facts = probe_counts(cohort.timelines, own, probe, tmp_path / "out")
    assert facts[TASK]["few_shot"] == {
        "unmatched": {"not among the labels here": wrong} if wrong else {},
        "draws_not_in_the_file": 3,
        "draws_of_one_class": int(wrong == 2),
    }
    drawn = read_predictions(tmp_path / "out")[1].filter(pl.col("k") != "all").collect()
    assert drawn.select("k", "replicate").unique().rows() == ([] if wrong == 2 else [("2", 0)])
    assert drawn.height == (0 if wrong == 2 else labels["held_out"].height)
    assert f"shots of {TASK}" in read_manifest(tmp_path / "out", KIND)["inputs"]


def test_draws_that_are_not_there_leave_nothing_behind(cohort, tmp_path):
    few = FewShot(k=(2,), shots=str(tmp_path / "shots"))
    with pytest.raises(InputError, match="no draws of 'guo_los' in"):
        probe_counts(cohort.timelines, cohort.labels, PROBE.model_copy(update={"few_shot": few}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
