"""`ehrctx pretrain`: one model, from a store of timelines to weights, resumable at any moment.

Checkpoints lie outside the artefact, since Snakemake deletes the declared outputs of an interrupted job, and the last
one is kept: a training that ended just as the workflow was killed is not done again. A run that is killed and started
again ends with the same weights, bit for bit, on CPU.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ehrctx.artifacts import exclusive, fingerprint, new_artifact, new_file
from ehrctx.configuration import differences
from ehrctx.errors import InputError
from ehrctx.models.model import load_model, model_of, save_model
from ehrctx.pretrain.batches import TrainingBatches
from ehrctx.pretrain.callbacks import BEST, CHECKPOINT, Checkpoint, Keep, Progress, Telemetry, Validation, kept
from ehrctx.pretrain.distribution import is_first_process, processes, trainer_arguments
from ehrctx.pretrain.module import PretrainingModule, use_scan
from ehrctx.pretrain.start import first_weights
from ehrctx.pretrain.trained import KIND, learned_settings
from ehrctx.study import ModelId, Pretraining
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

LOGGED_STEPS = 500  # entries of a training in MLflow, evenly over its steps; every step of a short one
RUN = "run.json"  # beside the checkpoint: whose it is


def _accelerator(choice: str) -> str:
    """`auto` is CUDA where it is, else CPU; never another accelerator that happens to be there."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("pretraining.accelerator is 'cuda', but torch sees no CUDA device. Use 'auto' or 'cpu'.")
    return "cuda" if choice in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def _without_guard(identity: dict[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in identity["settings"].items() if key != "on_loss_spike"}
    return identity | {"settings": settings}


def _read_checkpoint(file: Path) -> dict[str, Any]:
    """Raises InputError where the file is empty, cut off or otherwise damaged."""
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        saved["progress"], saved["state_dict"]
    except (EOFError, OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
        raise InputError(
            f"the checkpoint {file} is damaged: it is empty, cut off or no checkpoint. Delete it, and the training "
            f"starts anew{_kept_models(file.parent)}."
        ) from None
    return saved


def _kept_models(folder: Path) -> str:
    """The models on the way that a damaged checkpoint leaves, in words."""
    names = [path.name for path in sorted(folder.glob(kept("*"))) if path.is_dir()]
    return f", or begin from a kept model with --from {folder / names[-1]} and another --checkpoints" if names else ""


def _read_identity(file: Path) -> dict[str, Any] | None:
    """Whose checkpoint lies beside `file`; None where nobody says."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and isinstance(known.get("settings"), dict) else None


def _matching_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint to resume, read, if it belongs to this run.

    Until a loss leaps, what a leap would do has changed nothing: that may differ.
    """
    file, known = folder / CHECKPOINT, _read_identity(folder / RUN)
    if known is None or not file.is_file() or _without_guard(known) != _without_guard(identity):
        return None
    saved = _read_checkpoint(file)
    return saved if known == identity or not saved["progress"]["spikes"] else None


def _move_aside(folder: Path, identity: dict[str, Any]) -> None:
    """Moves the checkpoint and the kept models of a run of other settings or data beside `folder`, and says so."""
    left = [path for path in (folder / CHECKPOINT, folder / BEST, *folder.glob(kept("*"))) if path.exists()]
    if not left:
        return
    number = next(i for i in itertools.count(1) if not folder.with_name(f"{folder.name}.replaced-{i}").exists())
    aside = folder.with_name(f"{folder.name}.replaced-{number}")
    known = _read_identity(folder / RUN)
    keys = (
        "; ".join(one.sentence() for one in differences(known, identity))
        if known
        else "their settings are not recorded"
    )
    changed = keys or "they hold no checkpoint that can go on"
    print(
        f"The checkpoint and kept models in {folder} are of another training ({changed}). They now lie in {aside}; "
        f"delete it if you do not need them.",
        file=sys.stderr,
        flush=True,
    )
    aside.mkdir()
    for path in (*left, folder / RUN):  # whose they are goes last: a kill on the way leaves it with what is left
        if path.exists():
            os.replace(path, aside / path.name)


class _Claim(Callback):
    """The first process moves aside what a run of other settings or data left in `folder`, and writes whose it is now.

    Not before all processes have joined, and so have looked for their checkpoint.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], resumes: bool) -> None:
        self.folder, self.identity, self.resumes = folder, identity, resumes

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            some, all_ = (trainer.strategy.reduce_boolean_decision(self.resumes, all=every) for every in (False, True))
            if some != all_:
                raise InputError("the processes of this training do not find the same checkpoint. Start it again.")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not self.resumes:
            _move_aside(self.folder, self.identity)
        with new_file(self.folder / RUN) as partial:
            partial.write_text(json.dumps(self.identity, indent=1, sort_keys=True) + "\n")


def _facts(model_id: ModelId, module: PretrainingModule, accelerator: str) -> dict[str, Any]:
    progress = module.progress
    subjects, passes = module.batches.coverage(progress["steps"])
    return {
        "arch": model_id.arch,
        "size": model_id.size,
        "context": model_id.context,
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "hidden_size": module.model.hidden_size,
        "tokens": progress["tokens"],
        "padded_tokens": progress["padded_tokens"],
        "steps": progress["steps"],
        "seconds": progress["seconds"],
        "tokens_per_second": progress["tokens"] / progress["seconds"],
        "real_token_share": progress["tokens"] / progress["padded_tokens"],
        "subjects": subjects,
        "passes": passes,
        "validation": list(progress["validation"]),
        "best": progress["best"],
        "loss_spikes": list(progress["spikes"]),
        "device": accelerator,
    }


def pretrain(
    timelines: Path,
    model_name: str,
    settings: Pretraining,
    out: Path,
    checkpoints: Path,
    loggers: Iterable[Logger] = (),
    callbacks: Iterable[Callback] = (),
    start: Path | None = None,
) -> dict[str, Any]:
    """Trains `model_name` on the train split of the store `timelines` and writes its weights to the folder `out`.

    `checkpoints` is the folder to resume from, and where models on the way are kept; `start` one whose weights are the
    first, instead of drawn ones; `loggers` are taken when all of these are found right, so that a generator makes none
    for a call that is refused. Returns the facts of the artefact: parameters, tokens, padded_tokens, steps, seconds,
    tokens_per_second, real_token_share, subjects, passes, validation and best ([tokens, loss]), loss_spikes
    ([step, loss]), and `start` (see `first_weights`) if given. Several processes may call it together (see
    `distribution`); the first one writes.
    Raises InputError for settings, a start or a store that cannot be trained with, and for a loss that ends it.
    """
    try:
        model_id = ModelId.parse(model_name)
        settings.check_context(model_id)
    except ValueError as error:
        raise InputError(f"--model: {error}.") from None
    torch.set_num_threads(settings.threads)
    store = Timelines.open(timelines)
    windows = Windows(store, model_id.context)
    train, tuning = store.in_split("train"), store.in_split("tuning")
    accelerator = _accelerator(settings.accelerator)
    shared = trainer_arguments(settings, accelerator)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" else "32-true"
    identity = {
        "model": model_name,
        "timelines": fingerprint(timelines),
        "settings": learned_settings(settings, model_id) | {"precision": precision},
    }
    inputs = {"timelines": timelines}
    if start is not None and checkpoints.resolve() in start.resolve().parents:
        raise InputError(
            f"--from {start} lies in the folder of this training's checkpoints, which it empties. "
            f"Copy it elsewhere, or give another --checkpoints."
        )
    model, begun = first_weights(model_id, store, settings.seed + model_id.seed, settings.rope, start, out)
    if start is not None:
        inputs["start"] = start
        identity["start"] = fingerprint(start)
    use_scan(model, settings.scan, accelerator)
    batches = TrainingBatches(windows, train, settings, settings.seed)
    module = PretrainingModule(model, batches, tuning, settings)

    def facts() -> dict[str, Any]:
        return _facts(model_id, module, accelerator) | ({"start": begun} if begun else {})

    def write(folder: Path, weights: dict[str, Tensor], which: str = "last") -> dict[str, Any]:
        whole = model_of(model.network.config)
        whole.load_state_dict(weights)
        running = {"threads": settings.threads, "processes": math.prod(processes(settings))}
        found = facts() | {"weights": which}
        with new_artifact(folder, KIND, identity | running, inputs, found) as partial:
            save_model(whole, partial)
        return found

    lock = checkpoints.with_name(f".{checkpoints.name}.lock")
    first = is_first_process()
    with exclusive(lock, f"training {model_name} in {checkpoints}") if first else nullcontext():
        checkpoints.mkdir(parents=True, exist_ok=True)
        every_steps = max(1, batches.n_steps // LOGGED_STEPS)
        resume = _matching_checkpoint(checkpoints, identity)
        with warnings.catch_warnings():
            # Lightning advises more workers and a ModelCheckpoint; batches cost nothing and we keep our own.
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            trainer = Trainer(
                max_epochs=1,
                accelerator=accelerator,
                precision=precision,
                logger=list(loggers),
                callbacks=[
                    _Claim(checkpoints, identity, resume is not None),
                    Validation(),
                    Keep(checkpoints, write),
                    Checkpoint(checkpoints, settings.checkpoint_seconds),
                    Progress(model_name),
                    Telemetry(model_id.arch, every_steps),
                    *callbacks,
                ],
                log_every_n_steps=every_steps,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **shared,
            )
            if resume is not None:
                module.progress = resume["progress"]
                module.load_state_dict(resume["state_dict"])
            if module.progress["steps"] < batches.n_steps:
                file = checkpoints / CHECKPOINT if resume is not None else None
                try:
                    trainer.fit(module, ckpt_path=file, weights_only=True)
                except SIGTERMException:  # which would end the process as if all were well
                    raise SystemExit(128 + signal.SIGTERM) from None
        weights = module.whole_weights()
        if not first:
            return facts()
        if settings.weights == BEST:
            weights = load_model(checkpoints / BEST).state_dict()
        return write(out, weights, settings.weights)
