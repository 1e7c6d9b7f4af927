"""`ehrctx pretrain`: one model, from a store of timelines to weights, resumable at any moment.

Checkpoints lie outside the artefact, since Snakemake deletes the declared outputs of an interrupted job, and the last
one is kept: a training that ended just as the workflow was killed is not done again. A run that is killed and started
again ends with the same weights, bit for bit, on CPU.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from tqdm import tqdm

from ehrctx.artifacts import exclusive, fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.models.mamba import choose_scan
from ehrctx.models.model import save_model
from ehrctx.pretrain.batches import TrainingBatches
from ehrctx.pretrain.module import PretrainingModule
from ehrctx.pretrain.start import first_weights
from ehrctx.pretrain.trained import KIND
from ehrctx.study import ModelId, Pretraining
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

CHECKPOINT = "last.ckpt"
# Settings that may differ when a run is resumed. The precision, which changes what is learned, is recorded as resolved.
MAY_DIFFER = frozenset({*Pretraining.RUNNING, "accelerator"})


class _Validation(Callback):
    """Whole-split validation, evenly over the steps, the last at the end."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        steps, total, n = module.progress["steps"], module.batches.n_steps, module.settings.validations
        if steps * n // total > (steps - 1) * n // total:
            with trainer.precision_plugin.forward_context():
                loss = module.validation_loss()
            module.progress["validation"].append([module.progress["tokens"], loss])
            for logger in trainer.loggers:
                logger.log_metrics({"validation_loss": loss}, step=steps)


class _Checkpoint(Callback):
    """Saves at most every `seconds`, and at the last step; a kill while saving leaves the previous checkpoint whole."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.saved = folder, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        last = module.progress["steps"] == module.batches.n_steps
        if last or time.monotonic() - self.saved >= self.seconds:
            partial = self.folder / f".{CHECKPOINT}.partial"
            trainer.save_checkpoint(partial)
            os.replace(partial, self.folder / CHECKPOINT)
            self.saved = time.monotonic()


class _Progress(Callback):
    """A bar in tokens: tokens/s, time left, loss, real-token share. A line now and then where there is no terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PretrainingModule)
        interactive = os.isatty(2)
        self.bar = tqdm(
            total=module.batches.n_steps * module.settings.tokens_per_step,
            initial=module.progress["tokens"],
            unit="tok",
            unit_scale=True,
            desc=self.name,
            mininterval=0.5 if interactive else 15,
            maxinterval=0.5 if interactive else 15,
            ncols=None if interactive else 110,
        )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        if self.bar is not None:
            share = module.progress["tokens"] / module.progress["padded_tokens"]
            loss = float(trainer.callback_metrics["train_loss"])
            self.bar.set_postfix_str(f"loss {loss:.3f}, real tokens {share:.1%}", refresh=False)
            self.bar.update(module.progress["tokens"] - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()


def _accelerator(choice: str) -> str:
    """`auto` is CUDA where it is, else CPU; never another accelerator that happens to be there."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("pretraining.accelerator is 'cuda', but torch sees no CUDA device. Use 'auto' or 'cpu'.")
    return "cuda" if choice in ("auto", "cuda") and torch.cuda.is_available() else "cpu"


def _matching_checkpoint(folder: Path, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to resume, if it belongs to this run; one of other settings or data is removed."""
    file, known = folder / CHECKPOINT, folder / "run.json"
    if known.is_file() and json.loads(known.read_text()) == identity and file.is_file():
        return file
    file.unlink(missing_ok=True)
    partial = folder / ".run.json.partial"
    partial.write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")
    os.replace(partial, known)
    return None


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

    `checkpoints` is the folder to resume from; `start` one whose weights are the first, instead of drawn ones.
    Returns the facts of the artefact: parameters, tokens, padded_tokens, steps, seconds, tokens_per_second,
    real_token_share, subjects, passes, validation ([tokens, loss] pairs), and `start` (see `first_weights`) if given.
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
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if accelerator == "cuda" else "32-true"
    identity = {
        "model": model_name,
        "timelines": fingerprint(timelines),
        "settings": json.loads(settings.model_dump_json(exclude=set(MAY_DIFFER))) | {"precision": precision},
    }
    inputs = {"timelines": timelines}
    model, begun = first_weights(model_id, store, settings.seed + model_id.seed, start, out)
    if start is not None:
        inputs["start"] = start
        identity["start"] = fingerprint(start)
    lock = checkpoints.with_name(f".{checkpoints.name}.lock")
    with exclusive(lock, f"training {model_name} in {checkpoints}"):
        checkpoints.mkdir(parents=True, exist_ok=True)
        if model_id.arch == "mamba" and settings.scan != "auto":
            try:
                choose_scan(model, settings.scan, torch.device(accelerator))
            except (ValueError, RuntimeError) as error:
                raise InputError(f"pretraining.scan: {error}. Leave it at 'auto', or choose another.") from None
        batches = TrainingBatches(windows, train, settings, settings.seed)
        module = PretrainingModule(model, batches, tuning, settings)
        resume = _matching_checkpoint(checkpoints, identity)
        with warnings.catch_warnings():
            # Lightning advises more workers and a ModelCheckpoint; batches cost nothing and we keep our own.
            warnings.simplefilter("ignore")
            logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
            trainer = Trainer(
                max_epochs=1,
                accelerator=accelerator,
                devices=1,
                precision=precision,
                logger=list(loggers),
                callbacks=[
                    _Validation(),
                    _Checkpoint(checkpoints, settings.checkpoint_seconds),
                    _Progress(model_name),
                    *callbacks,
                ],
                log_every_n_steps=max(1, batches.n_steps // 200),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            if resume is not None:
                saved = torch.load(resume, map_location="cpu", weights_only=True)
                module.progress = saved["progress"]
                module.load_state_dict(saved["state_dict"])
            if module.progress["steps"] < batches.n_steps:
                trainer.fit(module, ckpt_path=resume, weights_only=True)
        progress = module.progress
        subjects, passes = batches.coverage()
        facts = {
            "arch": model_id.arch,
            "size": model_id.size,
            "context": model_id.context,
            "parameters": sum(p.numel() for p in model.parameters()),
            "hidden_size": model.hidden_size,
            "tokens": progress["tokens"],
            "padded_tokens": progress["padded_tokens"],
            "steps": progress["steps"],
            "seconds": progress["seconds"],
            "tokens_per_second": progress["tokens"] / progress["seconds"],
            "real_token_share": progress["tokens"] / progress["padded_tokens"],
            "subjects": subjects,
            "passes": passes,
            "validation": progress["validation"],
            "device": accelerator,
        } | ({"start": begun} if begun else {})
        with new_artifact(out, KIND, identity | {"threads": settings.threads}, inputs, facts) as folder:
            save_model(model, folder)
    return facts
