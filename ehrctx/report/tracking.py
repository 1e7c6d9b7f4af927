"""MLflow: one SQLite store, one experiment per study, one run per model, updated and not duplicated on a re-run.

Only aggregates are logged: settings, losses, speeds, scores. What people do on MLflow's page never ends a training: an
experiment that was deleted there is restored, and a run that is deleted while it is logged is logged no further.
"""

from __future__ import annotations

import fcntl
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ehrctx.artifacts import fingerprint
from ehrctx.errors import InputError
from ehrctx.pretrain.trained import learned_settings
from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.study import ModelId, Pretraining

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger

MODEL_TAG = "ehrctx.model"
IDENTITY_TAG = "ehrctx.settings"
_BATCH = 1000  # metrics that MLflow takes at a time


def _client(store: Path) -> MlflowClient:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=f"sqlite:///{store}")


@contextmanager
def _usable(store: Path) -> Iterator[None]:
    """Raises InputError where MLflow cannot use its store: no database, of a newer MLflow, read-only, full."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"MLflow cannot use its store {store} ({reason}). Move it away, or give another path."
        ) from None


def initialise(store: Path, experiment: str) -> str:
    """Creates the store and the experiment where they are missing; returns the experiment's id.

    An experiment that was deleted on MLflow's page is restored: its name stays taken, and no run can be added to it.

    To be done before any parallel job: several processes that open a fresh store at once crash in its migration. Those
    that come here at once, for several studies, take turns.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_name(f".{store.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _usable(store):
            client = _client(store)
            known = client.get_experiment_by_name(experiment)
            if known is None:
                artifacts = str((store.parent / "mlflow-artifacts").resolve())
                return client.create_experiment(experiment, artifact_location=artifacts)
            if known.lifecycle_stage == LifecycleStage.DELETED:
                _restore(client, known.experiment_id)
                print(f"The experiment {experiment!r} was deleted in {store}; it is restored.", file=sys.stderr)
            return str(known.experiment_id)


def _restore(client: MlflowClient, experiment_id: str) -> None:
    """Restores an experiment. MLflow brings back replaced runs, too: the newest of each name stays."""
    client.restore_experiment(experiment_id)
    newest: set[str] = set()
    for run in client.search_runs([experiment_id], order_by=["start_time DESC"]):
        name = run.data.tags.get(MODEL_TAG)
        if name in newest:
            client.delete_run(run.info.run_id)
        elif name is not None:
            newest.add(name)


def _find_run(client: MlflowClient, experiment: str, model: str) -> Run | None:
    runs = client.search_runs([_experiment_id(client, experiment)], f"tags.`{MODEL_TAG}` = '{model}'", max_results=1)
    return runs[0] if runs else None


def _experiment_id(client: MlflowClient, experiment: str) -> str:
    """The id of an experiment that `initialise` made."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise ValueError(f"no experiment {experiment!r} in the store; initialise it first")
    return str(found.experiment_id)


def run_of(store: Path, experiment: str, model: str, identity: str) -> str:
    """The id of the one run of `model`. A run of other settings (`identity`) is deleted and replaced."""
    client = _client(store)
    run = _find_run(client, experiment, model)
    if run is not None and run.data.tags.get(IDENTITY_TAG) == identity:
        return str(run.info.run_id)
    if run is not None:
        client.delete_run(run.info.run_id)
    tags = {MODEL_TAG: model, IDENTITY_TAG: identity, "mlflow.runName": model}
    return str(client.create_run(_experiment_id(client, experiment), run_name=model, tags=tags).info.run_id)


def training_logger(
    store: Path,
    experiment: str,
    model: str,
    settings: Pretraining,
    start: Path | None = None,
    timelines: Path | None = None,
) -> MLFlowLogger:
    """A Lightning logger on the run of `model`, with what it learns by as parameters; it begins from `start`, if given.

    A model that begins from other weights, or learns from other `timelines`, is another run; one that is run in another
    way (threads, devices) is not.
    """
    from lightning.pytorch.loggers import MLFlowLogger  # imports torch, which scoring does without

    class Tracker(MLFlowLogger):
        """Ends with the first entry that MLflow refuses, and says so; the training goes on."""

        ended = False

        def _log(self, call: Callable[..., None], *words: Any) -> None:
            if self.ended:
                return
            try:
                call(*words)
            except (MlflowException, SQLAlchemyError) as error:
                self.ended = True
                reason = str(error).splitlines()[0].rstrip(".")
                print(
                    f"warning: MLflow refuses entries of {model} ({reason}). The training goes on untracked.",
                    file=sys.stderr,
                    flush=True,
                )

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            self._log(super().log_metrics, metrics, step)

        def finalize(self, status: str = "success") -> None:
            self._log(super().finalize, status)

    initialise(store, experiment)
    read = {"start": start, "timelines": timelines}
    begun = {name: fingerprint(path) for name, path in read.items() if path is not None and path.is_dir()}
    learned = learned_settings(settings, ModelId.parse(model))
    run_id = run_of(store, experiment, model, json.dumps(learned | begun, sort_keys=True))
    logger = Tracker(experiment_name=experiment, tracking_uri=f"sqlite:///{store}", run_id=run_id)
    with _usable(store):
        logger.log_hyperparams({"model": model, **learned, **begun})
    return logger


def log_scores(store: Path, experiment: str, scores: pl.DataFrame) -> None:
    """Adds held-out scores to each model's run, as `<score>/<task>` with `…/lower` and `…/upper`.

    Each head of the count baseline has a run of its own, `counts (lightgbm)`.
    """
    initialise(store, experiment)
    with _usable(store):
        _log_scores(_client(store), store, experiment, scores.filter(k="all"))


def _log_scores(client: MlflowClient, store: Path, experiment: str, scores: pl.DataFrame) -> None:
    now = int(time.time() * 1000)
    for (model, head), rows in scores.group_by(["model", "head"], maintain_order=True):
        name = f"{model} ({head})" if model == BASELINE else str(model)
        run = _find_run(client, experiment, name)
        run_id = run.info.run_id if run else run_of(store, experiment, name, "baseline")
        metrics = [
            Metric(f"{row['score']}/{row['task']}{suffix}", row[part], now, 0)
            for row in rows.iter_rows(named=True)
            for part, suffix in (("value", ""), ("lower", "/lower"), ("upper", "/upper"))
            if row[part] == row[part]
        ]
        for first in range(0, len(metrics), _BATCH):
            client.log_batch(run_id, metrics=metrics[first : first + _BATCH])
        if client.get_run(run_id).info.status != "FINISHED":  # a training's run ends with the training
            client.set_terminated(run_id)
