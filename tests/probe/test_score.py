"""Tables of scores and paired differences against a loop over scikit-learn; masked counts; the files themselves."""

from __future__ import annotations

import json
import math
import shutil
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import polars.testing
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrctx.artifacts import fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.probe.predict import KIND as PREDICTED
from ehrctx.probe.predict import PREDICTIONS, probe_counts, read_predictions
from ehrctx.probe.score import model_tables, score_tables, write_scores
from ehrctx.probe.statistics import subject_draws
from ehrctx.study import Privacy, Probe, Statistics
from ehrctx.tasks.label_sets import read_labels

ONE_HEAD = Probe(regularization=(1e-2,), max_iterations=100, baselines=("logistic_regression",))
STATISTICS = Statistics(replicates=40, level=0.9, seed=2)
SCORERS = {"auroc": roc_auc_score, "auprc": average_precision_score, "brier": brier_score_loss}


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
    table, differences = score_tables(list(frames.values()), STATISTICS)
    y, _, subjects = held_out(frames["a"])
    point, replicates = {}, {}
    for model, frame in frames.items():
        _, p, _ = held_out(frame)
        point[model], replicates[model] = SCORERS[score](y, p), bootstrap(frame, score)
        found = row(table, model=model, score=score)
        assert found["value"] == pytest.approx(point[model])
        limits = np.quantile(replicates[model], [0.05, 0.95])
        assert (found["lower"], found["upper"]) == pytest.approx(tuple(limits))
        assert (found["n"], found["n_positive"], found["n_subjects"]) == (len(y), y.sum(), len(set(subjects)))
        assert found["n_positive_subjects"] == len(set(subjects[y]))
    assert table["task"].unique().to_list() == ["stay"], "one task has no macro mean"
    for model, reference in (("a", "b"), ("b", "a")):
        found = row(differences, model=model, reference=reference, score=score)
        assert found["reference_head"] == "logistic_regression"
        assert found["value"] == pytest.approx(point[model] - point[reference])
        limits = np.quantile(replicates[model] - replicates[reference], [0.05, 0.95])
        assert (found["lower"], found["upper"]) == pytest.approx(tuple(limits))
    assert differences.height == 2 * 3


def test_differences_are_paired(frames):
    """Paired intervals: a model against its copy, in another order, differs by exactly nothing."""
    copy = frames["a"].with_columns(model=pl.lit("copy")).sample(fraction=1, shuffle=True, seed=9)
    table, differences = score_tables([frames["a"], copy], STATISTICS)
    assert (table["upper"] > table["lower"]).all()
    assert differences.select("value", "lower", "upper").unique().rows() == [(0.0, 0.0, 0.0)]


def test_each_task_stands_alone(frames):
    other = predictions_of("a", 5, task="other", n=30)
    alone, _ = score_tables([frames["a"]], STATISTICS)
    table, differences = score_tables([frames["a"], other], STATISTICS)
    assert set(other["subject_id"]) <= set(frames["a"]["subject_id"]), "the draws are the same"
    assert table.filter(pl.col("task") == "stay").equals(alone)
    assert table["task"].unique().sort().to_list() == ["macro", "other", "stay"]
    assert differences.height == 0


def test_heads_of_one_model_are_compared_too(frames):
    """Counts have three heads: each pair of (model, head) differs by its own row."""
    forest = predictions_of("a", 7, noise=1.5).with_columns(head=pl.lit("random_forest"))
    table, differences = score_tables([frames["a"], forest, frames["b"]], STATISTICS)
    assert table.height == 3 * 3
    assert differences.height == 3 * 2 * 3
    for score in SCORERS:
        y, p, _ = held_out(frames["a"])
        _, q, _ = held_out(forest)
        found = row(differences, score=score, model="a", head="random_forest", reference="a")
        assert found["reference_head"] == "logistic_regression"
        assert found["value"] == pytest.approx(SCORERS[score](y, q) - SCORERS[score](y, p))
        limits = np.quantile(bootstrap(forest, score) - bootstrap(frames["a"], score), [0.05, 0.95])
        assert (found["lower"], found["upper"]) == pytest.approx(tuple(limits))
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
    """The mean score over `tasks` and that of each replicate; draws over the held-out subjects of all three tasks."""
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
    return float(np.mean(points)), np.mean(replicates, axis=0)


@pytest.fixture(scope="module")
def with_macro() -> tuple[pl.DataFrame, pl.DataFrame]:
    return score_tables([f for of_task in several_tasks().values() for f in of_task.values()], STATISTICS)


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
        limits = np.quantile(replicates, [0.05, 0.95])
        assert (found["lower"], found["upper"]) == pytest.approx(tuple(limits))
        assert found["n"] == sum(len(y) for y, _, _ in labels)
        assert found["n_positive"] == sum(y.sum() for y, _, _ in labels)
        assert found["n_positive_subjects"] == len({s for y, _, subjects in labels for s in subjects[y]})
        assert found["n_subjects"] == len({s for _, _, subjects in labels for s in subjects})
        for reference, (other, of_other) in values.items():
            if reference != model:
                found = row(differences, task="macro", model=model, reference=reference, score=score)
                assert found["value"] == pytest.approx(value - other)
                limits = np.quantile(replicates - of_other, [0.05, 0.95])
                assert (found["lower"], found["upper"]) == pytest.approx(tuple(limits))
    assert differences.filter((pl.col("task") == "macro") & (pl.col("score") == score)).height == 3 * 2


def test_a_task_that_one_model_lacks_is_scored_all_the_same(with_macro):
    table, differences = with_macro
    rare = table.filter(pl.col("task") == "rare")
    assert rare["model"].unique().sort().to_list() == ["a", "b"]
    assert differences.filter(pl.col("task") == "rare").height == 2 * 3
    value, replicates = looped({"rare": several_tasks()["rare"]}, "b", "auroc")
    found = row(table, task="rare", model="b", score="auroc")
    assert found["value"] == pytest.approx(value)
    assert (found["lower"], found["upper"]) == pytest.approx(tuple(np.quantile(replicates, [0.05, 0.95])))


def test_a_single_complete_task_has_no_macro_mean():
    tasks = several_tasks()
    table, differences = score_tables([*tasks["stay"].values(), *tasks["rare"].values()], STATISTICS)
    assert "macro" not in [*table["task"], *differences["task"]]
    assert table["task"].unique().sort().to_list() == ["rare", "stay"]


def test_the_order_of_the_predictions_does_not_matter(with_macro):
    frames = [f for of_task in several_tasks().values() for f in of_task.values()]
    table, differences = score_tables(frames[::-1], STATISTICS)
    keys = ["task", "model", "score"]
    polars.testing.assert_frame_equal(table.sort(keys), with_macro[0].sort(keys))
    keys = [*keys, "reference"]
    polars.testing.assert_frame_equal(differences.sort(keys), with_macro[1].sort(keys))


def test_one_class_has_no_ranking_scores(frames):
    negative = frames["a"].with_columns(y=pl.lit(False))
    table, _ = score_tables([negative], STATISTICS)
    auroc = row(table, score="auroc")
    assert all(math.isnan(auroc[key]) for key in ("value", "lower", "upper"))
    assert row(table, score="brier")["value"] > 0


def test_models_with_other_labels_are_refused(frames):
    fewer = frames["b"].filter(pl.col("subject_id") != 110)
    with pytest.raises(InputError, match="different labels of 'stay'"):
        score_tables([frames["a"], fewer], STATISTICS)
    flipped = frames["b"].with_columns(y=pl.col("y") ^ (pl.col("subject_id") == 110))
    with pytest.raises(InputError, match="different labels of 'stay'"):
        score_tables([frames["a"], flipped], STATISTICS)


def test_nothing_to_score_gives_empty_tables():
    table, differences = score_tables([pl.DataFrame(schema=PREDICTIONS)], STATISTICS)
    assert table.height == differences.height == 0
    assert {"task", "model", "score", "value", "lower", "upper", "n", "n_positive", "n_subjects"} <= set(table.columns)


@pytest.fixture(scope="module")
def counts(cohort, tmp_path_factory):
    """Predictions from counts of the cohort's tokens."""
    folder = tmp_path_factory.mktemp("probes") / "counts"
    probe_counts(cohort.timelines, cohort.labels, ONE_HEAD, folder)
    return folder


def test_scores_of_the_cohort_end_to_end(cohort, counts, write_model, tmp_path):
    _, predictions, facts = read_predictions(counts)
    copy = tmp_path / "probes" / "mamba-tiny-16"
    with new_artifact(copy, PREDICTED, {"model": "mamba-tiny-16"}, {"labels": cohort.labels}, facts) as partial:
        predictions.with_columns(model=pl.lit("mamba-tiny-16")).write_parquet(partial / "predictions.parquet")
    model = write_model(tmp_path / "models" / "mamba-tiny-16", "mamba-tiny-16", cohort.timelines)
    out = tmp_path / "report"
    returned = write_scores(
        [counts, copy], [model], cohort.labels, cohort.splits, STATISTICS, Privacy(minimum_count=60), out
    )
    tables = {file.stem: pl.read_csv(file, infer_schema=False) for file in out.glob("*.csv")}
    assert sorted(tables) == ["curves", "differences", "labels", "models", "scores"]
    assert not [file.name for file in out.iterdir() if file.name.startswith(".")]

    stays = predictions.filter((pl.col("task") == "guo_los") & (pl.col("split") == "held_out"))
    auroc = roc_auc_score(stays["y"].to_numpy(), stays["p"].to_numpy())
    for of_model in ("counts", "mamba-tiny-16"):
        written = row(tables["scores"], task="guo_los", model=of_model, score="auroc")
        assert float(written["value"]) == pytest.approx(auroc, abs=1e-6)
        assert float(written["lower"]) < auroc < float(written["upper"])
    assert returned.height == tables["scores"].height
    assert tables["differences"]["value"].cast(float).abs().max() == 0

    split = pl.read_parquet(cohort.splits)
    seen = []
    for task, labels in read_labels(cohort.labels).items():
        for name in ("train", "tuning", "held_out"):
            ids = split.filter(pl.col("split") == name)["subject_id"]
            part = labels.filter(pl.col("subject_id").is_in(ids.to_list()))
            positive = part.filter(pl.col("boolean_value"))
            numbers = {
                "n": part.height,
                "n_positive": positive.height,
                "n_subjects": len(set(part["subject_id"])),
                "n_positive_subjects": len(set(positive["subject_id"])),
            }
            written = row(tables["labels"], task=task, split=name)
            for key, number in numbers.items():
                whole = numbers[{"n_positive": "n", "n_positive_subjects": "n_subjects"}.get(key, key)]
                rest = whole - number
                bound = f">={max(60, whole - 59)}" if 0 < rest < 60 else str(number)
                assert written[key] == ("<60" if 0 < number < 60 else bound)
                seen.append(written[key])
    assert "<60" in seen
    assert any(value.isdigit() and value != "0" for value in seen)

    (of_model,) = tables["models"].to_dicts()
    assert (of_model["model"], of_model["context"], of_model["subjects"]) == ("mamba-tiny-16", "16", "<60")
    assert float(of_model["validation_loss"]) == 8.0
    curve = [(r["model"], r["arch"], r["context"], r["tokens"], float(r["loss"])) for r in tables["curves"].to_dicts()]
    assert curve == [("mamba-tiny-16", "mamba", "16", "1", 9.0), ("mamba-tiny-16", "mamba", "16", "2", 8.0)]

    provenance = json.loads((out / "provenance.json").read_text())
    for path in (counts, copy, model, cohort.labels, cohort.splits):
        assert fingerprint(path) in provenance["inputs"].values()


def test_the_mean_does_not_give_a_hidden_task_away(cohort, counts, tmp_path):
    """Of three tasks one has few positive labels: the sum over them minus the others would tell how many."""
    shown = {}
    for minimum in (1, 30):
        out, privacy = tmp_path / str(minimum), Privacy(minimum_count=minimum)
        write_scores([counts], [], cohort.labels, cohort.splits, STATISTICS, privacy, out)
        table = pl.read_csv(out / "scores.csv", infer_schema=False).filter(score="auroc")
        shown[minimum] = dict(table.select("task", "n_positive").iter_rows())
    exact = {task: int(n) for task, n in shown[1].items()}
    assert exact["macro"] == sum(n for task, n in exact.items() if task != "macro")
    hidden = [task for task, n in exact.items() if 0 < n < 30]
    assert len(hidden) == 1
    assert shown[30][hidden[0]] == "<30"
    assert shown[30]["macro"] == f">={max(n for task, n in exact.items() if task != 'macro')}"


def test_predictions_of_other_labels_or_other_splits_and_repeated_ones_are_refused(cohort, counts, tmp_path):
    words = [STATISTICS, Privacy(), tmp_path / "report"]
    with pytest.raises(InputError, match="predictions of 'counts' are given twice"):
        write_scores([counts, counts], [], cohort.labels, cohort.splits, *words)
    other = tmp_path / "labels"
    shutil.copytree(cohort.labels, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"facts": {}}))
    with pytest.raises(InputError, match="made from other labels"):
        write_scores([counts], [], other, cohort.splits, *words)
    moved = pl.read_parquet(cohort.splits).with_columns(
        split=pl.when(pl.col("split") == "held_out").then(pl.lit("tuning")).otherwise(pl.col("split"))
    )
    moved.write_parquet(tmp_path / "splits.parquet")
    with pytest.raises(InputError, match=r"splits\.parquet puts [0-9]+ subjects into another split"):
        write_scores([counts], [], cohort.labels, tmp_path / "splits.parquet", *words)
    assert not (tmp_path / "report").exists()


def test_no_subject_is_named(cohort, write_labels_folder, write_model, tmp_path):
    ids = 987_654_000 + np.arange(60)
    labels = pl.DataFrame(
        {"subject_id": ids, "prediction_time": [datetime(2001, 2, 3)] * 60, "boolean_value": ids % 3 == 0}
    )
    folder = write_labels_folder(tmp_path / "labels", {"stay": labels})
    split = np.where(ids % 2, "train", "held_out")
    pl.DataFrame({"subject_id": ids, "split": split}).write_parquet(tmp_path / "splits.parquet")
    constants = {"task": "stay", "model": "counts", "head": "logistic_regression", "k": "all", "replicate": 0}
    frame = labels.rename({"boolean_value": "y"}).with_columns(
        split=pl.Series(split), p=0.5, **{k: pl.lit(v) for k, v in constants.items()}
    )
    with new_artifact(tmp_path / "counts", PREDICTED, {"model": "counts"}, {"labels": folder}, {"stay": {}}) as partial:
        frame.select(pl.col(c).cast(t) for c, t in PREDICTIONS.items()).write_parquet(partial / "predictions.parquet")
    model = write_model(tmp_path / "gpt-tiny-16", "gpt-tiny-16", cohort.timelines)
    words = [STATISTICS, Privacy(), tmp_path / "report"]
    write_scores([tmp_path / "counts"], [model], folder, tmp_path / "splits.parquet", *words)
    files = list((tmp_path / "report").iterdir())
    assert len(files) == 6
    assert not [file.name for file in files if "987654" in file.read_text()]
    pl.DataFrame({"subject_id": ids, "split": "held_out"}).write_parquet(tmp_path / "splits.parquet")
    with pytest.raises(InputError, match="30 subjects into another split") as caught:
        write_scores([tmp_path / "counts"], [model], folder, tmp_path / "splits.parquet", *words)
    assert "987654" not in str(caught.value)


def test_models_and_their_curves_are_told(cohort, write_model, tmp_path):
    names = ("llama-tiny-32", "hyena-tiny-16")
    table, curves = model_tables([write_model(tmp_path / name, name, cohort.timelines) for name in names])
    assert table.columns == [
        "model", "arch", "context", "parameters", "tokens", "seconds", "tokens_per_second", "real_token_share",
        "subjects", "passes", "device", "earlier_tokens", "validation_loss",
    ]  # fmt: skip
    assert table.rows() == [
        (name, name.split("-")[0], context, 1, 2, 3.0, 4.0, 0.5, 7, 1.5, "cpu", 0, 8.0)
        for name, context in zip(names, (32, 16), strict=True)
    ]
    assert curves.columns == ["model", "arch", "context", "tokens", "loss"]
    assert curves.rows() == [
        (name, name.split("-")[0], context, tokens, loss)
        for name, context in zip(names, (32, 16), strict=True)
        for tokens, loss in ((1, 9.0), (2, 8.0))
    ]


def test_no_models_give_empty_tables():
    table, curves = model_tables([])
    assert table.height == curves.height == 0


def test_a_task_that_cannot_be_estimated_says_why(cohort, write_labels_folder, tmp_path):
    stays = read_labels(cohort.labels)["guo_los"]
    labels = write_labels_folder(
        tmp_path / "labels", {"never": stays.with_columns(boolean_value=pl.lit(False)), "stay": stays}
    )
    probe_counts(cohort.timelines, labels, ONE_HEAD, tmp_path / "counts")
    privacy = Privacy(minimum_count=1)
    table = write_scores([tmp_path / "counts"], [], labels, cohort.splits, STATISTICS, privacy, tmp_path / "report")
    assert table["task"].unique().to_list() == ["stay"]
    counted = pl.read_csv(tmp_path / "report" / "labels.csv")
    notes = {task: set(counted.filter(pl.col("task") == task)["note"]) for task in ("never", "stay")}
    assert notes["never"] == {"one class only in train and held_out"}
    assert not any(notes["stay"] - {None})
    assert counted.filter(pl.col("task") == "never")["n_positive"].to_list() == [0, 0, 0]
