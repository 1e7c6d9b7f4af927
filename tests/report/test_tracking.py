"""MLflow: one run per model and per head of the count baseline, holding the table's values; a re-run updates it."""

from __future__ import annotations

import sqlite3

import polars as pl
import pytest
from mlflow import MlflowClient
from planted import HEADS, NAN, score

from ehrctx.errors import InputError
from ehrctx.report.tracking import initialise, log_scores, run_of, training_logger
from ehrctx.study import Pretraining

MODELS = ("gpt-tiny-64", "mamba-tiny-512")
RUNS = sorted([*MODELS, *[f"counts ({head})" for head in HEADS]])


def scores(shift=0.0):
    names = [*MODELS, *[f"counts/{head}" for head in HEADS]]
    rows = [
        score(task, name, 0.5 + 0.1 * t + 0.01 * m + 0.001 * s + shift, score=of)
        for t, task in enumerate(("macro", "stay"))
        for m, name in enumerate(names)
        for s, of in enumerate(("auroc", "auprc", "brier"))
    ]
    return pl.DataFrame(rows)


def runs_of(store, experiment):
    """name -> (run id, status, its latest metrics) of the runs that are not deleted, read from the database itself."""
    query = (
        "select r.name, r.run_uuid, r.status from runs r join experiments e on r.experiment_id = e.experiment_id "
        "where e.name = ? and r.lifecycle_stage = 'active'"
    )
    with sqlite3.connect(store) as base:
        rows = base.execute(query, [experiment]).fetchall()
        assert len({name for name, *_ in rows}) == len(rows)
        return {
            name: (run, status, dict(base.execute("select key, value from latest_metrics where run_uuid = ?", [run])))
            for name, run, status in rows
        }


def expected(table, name):
    """The metrics of one run: `<score>/<task>`, and its limits."""
    model, _, head = name.removesuffix(")").partition(" (")
    own = table.filter((pl.col("model") == model) & (pl.col("head") == (head or "logistic_regression")))
    return {
        f"{row['score']}/{row['task']}{suffix}": row[part]
        for row in own.iter_rows(named=True)
        for part, suffix in (("value", ""), ("lower", "/lower"), ("upper", "/upper"))
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    file = tmp_path_factory.mktemp("tracking") / "results" / "mlflow.db"
    initialise(file, "planted")
    return file


def test_every_model_and_every_head_has_one_run_with_its_scores(store):
    table = scores()
    log_scores(store, "planted", table)
    found = runs_of(store, "planted")
    assert sorted(found) == RUNS
    for name, (_, status, metrics) in found.items():
        assert status == "FINISHED"
        wanted = expected(table, name)
        assert len(wanted) == 2 * 3 * 3
        assert metrics == pytest.approx(wanted)


def test_logging_again_updates_the_same_runs(store):
    log_scores(store, "planted", scores())
    before = runs_of(store, "planted")
    table = scores(shift=0.02)
    log_scores(store, "planted", table)
    after = runs_of(store, "planted")
    assert {name: run for name, (run, *_) in after.items()} == {name: run for name, (run, *_) in before.items()}
    for name, (_, _, metrics) in after.items():
        assert metrics == pytest.approx(expected(table, name))


def test_scores_join_the_run_of_the_training(store):
    initialise(store, "training")
    trained = run_of(store, "training", MODELS[0], "settings")
    log_scores(store, "training", scores())
    found = runs_of(store, "training")
    assert sorted(found) == RUNS
    assert found[MODELS[0]][0] == trained


def test_how_a_training_is_run_makes_no_other_run(store):
    runs = [
        training_logger(store, "running", MODELS[0], Pretraining(**changes)).run_id
        for changes in ({}, {"threads": 7, "devices": 2, "checkpoint_seconds": 5}, {"learning_rate": 0.5})
    ]
    assert runs[0] == runs[1] != runs[2]
    assert list(runs_of(store, "running")) == [MODELS[0]], "the one it replaces is gone"


def test_scoring_does_not_lengthen_the_training(store):
    """The dashboard shows from start to end of a run how long a training took, not when it was scored."""
    initialise(store, "lengths")
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    trained, killed = (run_of(store, "lengths", model, "settings") for model in MODELS)
    client.set_terminated(trained, end_time=client.get_run(trained).info.start_time + 7_000)
    log_scores(store, "lengths", scores())
    ended = client.get_run(trained).info
    assert ended.end_time - ended.start_time == 7_000
    assert client.get_run(killed).info.status == "FINISHED"


def test_experiments_do_not_mix(store):
    log_scores(store, "planted", scores())
    log_scores(store, "another", scores(shift=0.03))
    assert sorted(runs_of(store, "another")) == RUNS
    assert {run for run, *_ in runs_of(store, "another").values()}.isdisjoint(
        run for run, *_ in runs_of(store, "planted").values()
    )


def test_an_undefined_limit_is_left_out(store):
    table = scores().with_columns(lower=pl.lit(NAN), upper=pl.lit(NAN))
    log_scores(store, "undefined", table)
    for _, _, metrics in runs_of(store, "undefined").values():
        assert sorted(metrics) == sorted(f"{s}/{t}" for s in ("auroc", "auprc", "brier") for t in ("macro", "stay"))


def test_an_experiment_deleted_on_the_page_is_restored_with_its_runs(tmp_path, capsys):
    store = tmp_path / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    number = initialise(store, "study")
    run = run_of(store, "study", "gpt-tiny-64", "a")
    client.delete_experiment(number)
    assert initialise(store, "study") == number
    assert "The experiment 'study' was deleted" in capsys.readouterr().err
    assert run_of(store, "study", "gpt-tiny-64", "a") == run
    client.delete_experiment(number)
    logger = training_logger(store, "study", "gpt-tiny-64", Pretraining())
    logger.log_metrics({"train_loss": 1.0}, 1)
    assert runs_of(store, "study")["gpt-tiny-64"][2]["train_loss"] == 1.0
    client.delete_experiment(number)
    log_scores(store, "study", scores())
    assert sorted(runs_of(store, "study")) == RUNS


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_deleted_while_it_is_logged_ends_no_training(tmp_path, capsys, what):
    store = tmp_path / "mlflow.db"
    logger = training_logger(store, "study", "gpt-tiny-64", Pretraining())
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    if what == "run":
        client.delete_run(logger.run_id)
    else:
        client.delete_experiment(initialise(store, "study"))
    for step in range(3):
        logger.log_metrics({"train_loss": 1.0}, step)
    logger.finalize("success")
    said = capsys.readouterr().err
    assert said.count("warning: MLflow refuses entries of gpt-tiny-64") == 1
    assert "The training goes on untracked." in said


@pytest.mark.parametrize(
    "content", [b"not a database, but a text that somebody put there", b"SQLite format 3\0" + bytes(500)]
)
def test_a_store_that_is_none_is_an_input_error(tmp_path, content):
    store = tmp_path / "mlflow.db"
    store.write_bytes(content)
    with pytest.raises(InputError, match=r"MLflow cannot use its store .*mlflow\.db \(.*\)\. Move it away"):
        initialise(store, "study")
