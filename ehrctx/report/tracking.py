"""MLflow: one SQLite store, one experiment per study, one run per model, updated and not duplicated on a re-run.

Only aggregates are logged: settings, losses, speeds, scores.
"""

from __future__ import annotations

import fcntl
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from ehrctx.artifacts import fingerprint
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


def initialise(store: Path, experiment: str) -> str:
    """Creates the store and the experiment where they are missing; returns the experiment's id.

    To be done before any parallel job: several processes that open a fresh store at once crash in its migration. Those
    that come here at once, for several studies, take turns.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.with_name(f".{store.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = _client(store)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = str((store.parent / "mlflow-artifacts").resolve())
        return client.create_experiment(experiment, artifact_location=artifacts)


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
    store: Path, experiment: str, model: str, settings: Pretraining, start: Path | None = None
) -> MLFlowLogger:
    """A Lightning logger on the run of `model`, with what it learns by as parameters; it begins from `start`, if given.

    A model that begins from other weights is another run; one that is run in another way (threads, devices) is not.
    """
    from lightning.pytorch.loggers import MLFlowLogger  # imports torch, which scoring does without

    initialise(store, experiment)
    begun = {"start": fingerprint(start)} if start is not None and start.is_dir() else {}
    unlearned = {*settings.without_effect(ModelId.parse(model)), "accelerator"}
    learned = settings.model_dump(mode="json", exclude=unlearned)
    run_id = run_of(store, experiment, model, json.dumps(learned | begun, sort_keys=True))
    logger = MLFlowLogger(experiment_name=experiment, tracking_uri=f"sqlite:///{store}", run_id=run_id)
    logger.log_hyperparams({"model": model, **learned, **begun})
    return logger


def log_scores(store: Path, experiment: str, scores: pl.DataFrame) -> None:
    """Adds held-out scores to each model's run, as `<score>/<task>` with `…/lower` and `…/upper`.

    Each head of the count baseline has a run of its own, `counts (lightgbm)`.
    """
    client = _client(store)
    initialise(store, experiment)
    scores = scores.filter(k="all")
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
