"""The LightningModule: one training step is one optimizer step over as many batches as its tokens need."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ehrctx.errors import InputError
from ehrctx.models.mamba import choose_scan
from ehrctx.models.model import TimelineModel
from ehrctx.pretrain.batches import Batch, Step, TrainingBatches, validation_batches
from ehrctx.pretrain.distribution import shard, shares, whole_weights
from ehrctx.pretrain.guard import describe_spikes, is_spike, remember, suspect
from ehrctx.pretrain.schedule import learning_rate
from ehrctx.study import Pretraining

_log = logging.getLogger(__name__)


class _Steps(IterableDataset):
    """The steps that are still to be done; read from the module when iterated, so that a resume starts there."""

    def __init__(self, module: PretrainingModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Step]:
        return self.module.batches.steps(self.module.progress["steps"])


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, lengths = (torch.from_numpy(x).to(device, non_blocking=True) for x in batch)
    return tokens, lengths


def optimizer_of(model: nn.Module, settings: Pretraining) -> torch.optim.Optimizer:
    """AdamW; only matrices decay: no bias, gain, state-space parameter A and D, or implicit filter."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and not name.endswith("A_log") and ".filter." not in name
        (matrices if decays else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def use_scan(model: TimelineModel, scan: str, device: str) -> None:
    """Lets a Mamba scan as `pretraining.scan` says; no other model has one. Raises InputError where that cannot be."""
    if scan == "auto" or model.network.config.model_type != "mamba":
        return
    try:
        choose_scan(model, scan, torch.device(device))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"pretraining.scan: {error}. Leave it at 'auto', or choose another.") from None


class PretrainingModule(LightningModule):
    """Next-token pretraining of a TimelineModel.

    `progress` is all that a checkpoint needs beside weights and optimizer: steps, tokens, padded_tokens and seconds so
    far, the losses of the last steps, the spikes among all as [step, loss], the validation losses as [tokens, loss],
    and the lowest of these.
    """

    def __init__(
        self, model: TimelineModel, batches: TrainingBatches, tuning_subjects: np.ndarray, settings: Pretraining
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.batches, self.tuning_subjects, self.settings = model, batches, tuning_subjects, settings
        self.progress: dict[str, Any] = {
            "steps": 0, "tokens": 0, "padded_tokens": 0, "seconds": 0.0,
            "recent": [], "spikes": [], "validation": [], "best": None,
        }  # fmt: skip

    @property
    def world(self) -> tuple[int, int]:
        """(rank of this process, processes)."""
        return (self.trainer.global_rank, self.trainer.world_size) if self._trainer is not None else (0, 1)

    @property
    def sharded(self) -> bool:
        return self.device_mesh is not None

    def configure_model(self) -> None:
        """Shards and compiles, once the processes have joined; the names of the weights stay."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])
        if self.settings.compile:
            self.model.network.base_model.compile(dynamic=True)

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights, on the CPU, for the first process; all have to call it."""
        return whole_weights(self.model, self.sharded)

    def _summed(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum") if self.world[1] > 1 else values

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Steps(self), batch_size=None)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        return batch  # its batches are moved one at a time, as each is used

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.model, self.settings)

    def _backward(self, step: Step) -> np.ndarray:
        """Accumulates the gradient of the step's mean loss; the summed loss of each batch, float64[batches]."""
        rank, world = self.world
        losses = torch.zeros(len(step.batches), dtype=torch.float64, device=self.device)
        rounds = shares(step.batches, rank, world)
        for i, (position, batch) in enumerate(rounds):
            loss, _ = self.model.loss(*_tensors(batch, self.device))
            if position >= 0:
                losses[position] += loss.detach()
            with self._accumulating(i + 1 < len(rounds)), torch.autocast(self.device.type, enabled=False):
                # Lightning opens autocast around the whole step. The backward has the precision of its forward without
                # it; within it, our operators' float32 backwards (scan, filters) would be done in bfloat16.
                self.manual_backward(loss * (world * (position >= 0)) / step.predicted)
        return self._summed(losses).cpu().numpy()

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients once, in the last backward of a step."""
        model: Any = self.model
        strategy = self.trainer.strategy if self.world[1] > 1 else None
        if self.sharded:
            model.set_requires_gradient_sync(not more)
        return strategy.block_backward_sync() if more and isinstance(strategy, DDPStrategy) else nullcontext()

    def _clipped(self) -> float:
        """The norm of the whole gradient before it was clipped."""
        norm: Any = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        return float(norm.full_tensor() if self.sharded else norm)

    def _guarded(self, step: Step, losses: np.ndarray, norm: float) -> bool:
        """Whether the update may be made. Ends the training where the loss is not finite."""
        mean = float(losses.sum()) / step.predicted
        where = f"step {step.index} ({self.progress['tokens']:,} tokens), {suspect(step.batches, losses)}"
        if not (np.isfinite(mean) and np.isfinite(norm)):
            what = "loss" if not np.isfinite(mean) else "gradient"
            raise InputError(
                f"the {what} is not finite at {where}. "
                f"Lower pretraining.learning_rate, or raise pretraining.warmup_share."
            )
        spiked = is_spike(mean, self.progress["recent"])
        self.progress["recent"] = remember(mean, self.progress["recent"])
        if not spiked:
            return True
        self.progress["spikes"].append([step.index, mean])
        choice = self.settings.on_loss_spike
        if choice == "stop":
            raise InputError(
                f"the loss leaps to {mean:.2f} nats at {where}. Go on from the last checkpoint with "
                f"pretraining.on_loss_spike: skip (or warn), or lower pretraining.learning_rate and start again."
            )
        return choice == "warn"

    def on_train_end(self) -> None:
        """Says once what the loss did, when the bar is closed; a resumed training speaks of all its steps."""
        if self.progress["spikes"] and self.world[0] == 0:
            choice = self.settings.on_loss_spike
            _log.warning(describe_spikes(self.progress["spikes"], self.progress["steps"], choice))

    def training_step(self, step: Step, _: int) -> None:
        started = time.perf_counter()
        optimizer: Any = self.optimizers()
        rate = learning_rate(self.progress["tokens"] + step.tokens / 2, self.settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        losses = self._backward(step)
        norm = self._clipped()
        if self._guarded(step, losses, norm):
            optimizer.step()
        self.progress["steps"] = step.index + 1
        self.progress["tokens"] += step.tokens
        self.progress["padded_tokens"] += step.padded_tokens
        seconds = time.perf_counter() - started
        self.progress["seconds"] += seconds
        self.log_dict(
            {
                "train_loss": float(losses.sum()) / step.predicted,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens": float(self.progress["tokens"]),
                "tokens_per_second": step.tokens / seconds,
                "real_token_share": step.tokens / step.padded_tokens,
                "loss_spikes": float(len(self.progress["spikes"])),
            },
            batch_size=1,
        )

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean next-token loss (nats) over every token of the tuning split."""
        self.model.eval()
        rank, world = self.world
        found = torch.zeros(2, dtype=torch.float64, device=self.device)
        batches = validation_batches(self.batches.windows, self.tuning_subjects, self.settings.batch_tokens)
        while some := list(islice(batches, world)):
            for position, batch in shares(some, rank, world):
                loss, predicted = self.model.loss(*_tensors(batch, self.device))
                if position >= 0:
                    found += torch.tensor([loss.item(), predicted], dtype=torch.float64, device=self.device)
        self.model.train()
        total, n = self._summed(found).tolist()
        return total / n

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = self.progress
        if not self.sharded:
            # torch numbers parameters by the optimizer's groups; FSDP, which may go on from here, in the model's order
            place = {parameter: i for i, parameter in enumerate(self.parameters())}
            optimizer: Any = self.optimizers()
            ids = [place[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            for saved in checkpoint["optimizer_states"]:
                saved["state"] = {ids[i]: state for i, state in saved["state"].items()}
                for group in saved["param_groups"]:
                    group["params"] = [ids[i] for i in group["params"]]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress = checkpoint["progress"]
