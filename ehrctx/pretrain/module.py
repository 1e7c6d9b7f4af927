"""The LightningModule: one training step is one optimizer step over as many batches as its tokens need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel
from ehrctx.pretrain.batches import Step, TrainingBatches, validation_batches
from ehrctx.pretrain.schedule import learning_rate
from ehrctx.study import Pretraining


class _Steps(IterableDataset):
    """The steps that are still to be done; read from the module when iterated, so that a resume starts there."""

    def __init__(self, module: PretrainingModule) -> None:
        self.module = module

    def __iter__(self) -> Iterator[Step]:
        return self.module.batches.steps(self.module.progress["steps"])


def _tensors(batch: tuple[np.ndarray, np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, lengths = (torch.from_numpy(x).to(device, non_blocking=True) for x in batch)
    return tokens, lengths


class PretrainingModule(LightningModule):
    """Next-token pretraining of a TimelineModel.

    `progress` is all that a checkpoint needs beside weights and optimizer: steps, tokens, padded_tokens and seconds so
    far, and the validation losses, each as [tokens, loss].
    """

    def __init__(
        self, model: TimelineModel, batches: TrainingBatches, tuning_subjects: np.ndarray, settings: Pretraining
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.batches, self.tuning_subjects, self.settings = model, batches, tuning_subjects, settings
        self.progress: dict[str, Any] = {
            "steps": 0, "tokens": 0, "padded_tokens": 0, "seconds": 0.0, "validation": []
        }  # fmt: skip

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Steps(self), batch_size=None)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        return batch  # its batches are moved one at a time, as each is used

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; only matrices decay: no bias, gain, state-space parameter A and D, or implicit filter."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            decays = parameter.ndim >= 2 and not name.endswith("A_log") and ".filter." not in name
            (matrices if decays else others).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=self.settings.betas, fused=True)

    def training_step(self, step: Step, _: int) -> None:
        started = time.perf_counter()
        optimizer: Any = self.optimizers()
        rate = learning_rate(self.progress["tokens"] + step.tokens / 2, self.settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        total = 0.0
        for batch in step.batches:
            loss, _ = self.model.loss(*_tensors(batch, self.device))
            # Lightning opens autocast around the whole step. The backward has the precision of its forward without it;
            # within it, our operators' float32 backwards (scan, filters) would be done in bfloat16.
            with torch.autocast(self.device.type, enabled=False):
                self.manual_backward(loss / step.predicted)
            total += loss.item()
        mean = total / step.predicted
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip))
        if not (np.isfinite(mean) and np.isfinite(norm)):
            raise InputError(
                f"the loss is not finite at step {step.index} ({self.progress['tokens']:,} tokens). "
                f"Lower pretraining.learning_rate, or raise pretraining.warmup_share."
            )
        optimizer.step()
        self.progress["steps"] = step.index + 1
        self.progress["tokens"] += step.tokens
        self.progress["padded_tokens"] += step.padded_tokens
        seconds = time.perf_counter() - started
        self.progress["seconds"] += seconds
        self.log_dict(
            {
                "train_loss": mean,
                "learning_rate": rate,
                "gradient_norm": norm,
                "tokens": float(self.progress["tokens"]),
                "tokens_per_second": step.tokens / seconds,
                "real_token_share": step.tokens / step.padded_tokens,
            },
            batch_size=1,
        )

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean next-token loss (nats) over every token of the tuning split."""
        self.model.eval()
        total, n = 0.0, 0
        for batch in validation_batches(self.batches.windows, self.tuning_subjects, self.settings.batch_tokens):
            loss, predicted = self.model.loss(*_tensors(batch, self.device))
            total, n = total + loss.item(), n + predicted
        self.model.train()
        return total / n

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = self.progress

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.progress = checkpoint["progress"]
