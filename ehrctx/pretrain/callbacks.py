"""What happens between the steps of a training: validation, checkpoints, kept models, the bar, telemetry.

Where several processes share the training, all of them come here at the same steps: what needs all is done by all, and
the first one writes.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from ehrctx.artifacts import require_own_run
from ehrctx.pretrain.flop import matmul_rate, matrix_flop, mixing_flop
from ehrctx.pretrain.module import PretrainingModule

CHECKPOINT = "last.ckpt"
BEST = "best"
Write = Callable[[Path, dict[str, Any]], object]  # (folder, weights): writes a model that every other verb can read


def kept(tokens: int | str) -> str:
    """The folder, beside the checkpoint, of the model as it was after so many tokens; a pattern for "*"."""
    return f"tokens-{tokens}"


class Validation(Callback):
    """Whole-split validation, evenly over the steps, the last at the end."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        progress, total, n = module.progress, module.batches.n_steps, module.settings.validations
        if progress["steps"] * n // total > (progress["steps"] - 1) * n // total:
            with trainer.precision_plugin.forward_context():
                loss = module.validation_loss()
            progress["validation"].append([progress["tokens"], loss])
            for logger in trainer.loggers:
                logger.log_metrics({"validation_loss": loss}, step=progress["steps"])


class Keep(Callback):
    """Writes the model every `keep_every_tokens`, and, where the training ends with it, the best so far."""

    def __init__(self, folder: Path, write: Write) -> None:
        self.folder, self.write = folder, write
        self.tokens = 0  # at the step before

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        progress, every = module.progress, module.settings.keep_every_tokens
        before, self.tokens = self.tokens, progress["tokens"]
        names = []
        if every is not None and progress["tokens"] // every > before // every:
            names.append(kept(progress["tokens"] // every * every))
        last = progress["validation"][-1] if progress["validation"] else None
        if last is not None and last[0] == progress["tokens"] and (progress["best"] or last)[1] >= last[1]:
            progress["best"] = last
            names += [BEST] if module.settings.weights == BEST else []
        if names:
            weights = module.whole_weights()
            if trainer.is_global_zero:
                for name in names:
                    self.write(self.folder / name, weights)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PretrainingModule)
        self.tokens = module.progress["tokens"]


class Checkpoint(Callback):
    """Saves at most every `seconds`, at the last step, and when asked to end (SIGTERM).

    A kill or a power cut while saving leaves the previous checkpoint whole.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.saved = folder, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, PretrainingModule)
        last = module.progress["steps"] == module.batches.n_steps
        due = last or trainer.received_sigterm or time.monotonic() - self.saved >= self.seconds
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)  # clocks differ, and all have to save together
        if due:
            require_own_run()
            partial = self.folder / f".{CHECKPOINT}.partial"
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                with partial.open("rb") as written:  # on the disk before the name is given: a power cut tears neither
                    os.fsync(written.fileno())
                os.replace(partial, self.folder / CHECKPOINT)
            self.saved = time.monotonic()


class Progress(Callback):
    """A bar in tokens: tokens/s, time left, loss, real-token share. A line now and then where there is no terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PretrainingModule)
        if not trainer.is_global_zero:
            return
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
            n_spikes = len(module.progress["spikes"])
            spikes = f", loss spikes {n_spikes:,}" if n_spikes else ""
            self.bar.set_postfix_str(f"loss {loss:.3f}, real tokens {share:.1%}{spikes}", refresh=False)
            # a step is met to whole windows only: the more are done, the better the total is known
            self.bar.total = round(module.progress["tokens"] * module.batches.n_steps / module.progress["steps"])
            self.bar.update(module.progress["tokens"] - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()


def peak_memory_gib(device: torch.device) -> float:
    """The most that this process has held so far: of the GPU where it trains there, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one, too
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**20
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Telemetry(Callback):
    """How near a training comes to its machine, logged with the other metrics where there is a logger.

    `model_flop_utilization` (MFU; Chowdhery et al. 2022, arXiv 2204.02311): the operations that the model needs for the
    real tokens of the steps since the last entry, over those that matrix products alone would have done in that time.
    """

    def __init__(self, arch: str, every_steps: int) -> None:
        self.arch, self.every_steps = arch, every_steps
        self.rate = self.matrices = 0.0
        self.flop = self.seconds = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, PretrainingModule)
        self.seconds = module.progress["seconds"]
        if trainer.loggers:
            self.rate = trainer.world_size * matmul_rate(module.device.type, module.settings.threads)
            self.matrices = matrix_flop(module.model)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, _: Any, step: Any, *__: Any) -> None:
        assert isinstance(module, PretrainingModule)
        if not trainer.loggers:
            return
        for tokens, lengths in step.batches:
            self.flop += lengths.sum() * (self.matrices + mixing_flop(module.model, self.arch, tokens.shape[1]))
        if module.progress["steps"] % self.every_steps == 0:
            seconds = module.progress["seconds"] - self.seconds
            metrics = {
                "model_flop_utilization": float(self.flop) / seconds / self.rate,
                "peak_memory_gib": peak_memory_gib(module.device),
            }
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=module.progress["steps"])
            self.flop, self.seconds = 0.0, module.progress["seconds"]
