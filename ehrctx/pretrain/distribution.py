"""Several processes that share one training: who they are, which batches each takes, and how weights are sharded.

Lightning joins the processes. `torchrun` or `srun` may have started them, on one machine or several; else Lightning
starts those of this machine. One training is one world: all take the same step at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel
from ehrctx.pretrain.batches import Batch
from ehrctx.study import Pretraining


def processes(settings: Pretraining) -> tuple[int, int]:
    """(processes on this machine, machines): those of torchrun or srun where one of them started us."""
    given = os.environ
    if "LOCAL_WORLD_SIZE" in given:  # torchrun
        local = int(given["LOCAL_WORLD_SIZE"])
        return local, int(given["WORLD_SIZE"]) // local
    if int(given.get("SLURM_NTASKS", 1)) > 1:  # srun
        machines = int(given.get("SLURM_NNODES", 1))
        return int(given["SLURM_NTASKS"]) // machines, machines
    return settings.devices, 1


def is_first_process() -> bool:
    """Whether this process is the one that writes, prints and tracks; known before the processes have joined."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return True


def trainer_arguments(settings: Pretraining, accelerator: str) -> dict[str, Any]:
    """What Lightning's Trainer has to know: devices, machines, and how they share the work."""
    local, machines = processes(settings)
    if accelerator == "cuda" and local > torch.cuda.device_count():
        raise InputError(
            f"pretraining.devices is {local}, but torch sees {torch.cuda.device_count()} CUDA device(s) here. "
            f"Use at most that many."
        )
    if local * machines == 1:
        return {"devices": 1}
    strategy = (
        DDPStrategy()
        if settings.strategy == "ddp"
        else ModelParallelStrategy(
            data_parallel_size=local * machines, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    )
    started = "LOCAL_WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1
    plugins = [] if started else [LightningEnvironment()]  # a job of one task: Lightning starts the others
    return {"devices": local, "num_nodes": machines, "strategy": strategy, "plugins": plugins}


def shares(batches: Sequence[Batch], rank: int, world: int) -> list[tuple[int, Batch]]:
    """What process `rank` of `world` computes of these batches: (position of the batch, the batch or some of its rows).

    All processes get equally many, and those at the same place are neighbours in length, so that none waits long for
    another. Where there are fewer batches than processes, they are cut by rows. A process for which nothing is left
    takes a stand-in at position -1, one row of two tokens: it counts for nothing, but lets the others' exchange of
    weights and gradients go on.
    """
    if world == 1:
        return list(enumerate(batches))
    parts = -(-world // len(batches))
    pieces = [
        (i, (tokens[rows, : int(lengths[rows].max())], lengths[rows]))
        for i, (tokens, lengths) in enumerate(batches)
        for rows in np.array_split(np.arange(len(lengths)), min(parts, len(lengths)))
    ]
    pieces.sort(key=lambda piece: piece[1][0].shape[1])
    pieces += [(-1, (batches[0][0][:1, :2], np.array([2])))] * (-len(pieces) % world)
    return pieces[rank::world]


def blocks(model: TimelineModel) -> nn.ModuleList:
    """The layers of any architecture: its one list of as many modules as its config has layers."""
    layers = int(model.network.config.num_hidden_layers)
    return next(m for m in model.network.base_model.children() if isinstance(m, nn.ModuleList) and len(m) == layers)


def shard(model: TimelineModel, mesh: Any) -> None:
    """FSDP, in place: each layer's weights, and the rest together, are spread over the processes of `mesh`."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")


def whole_weights(model: TimelineModel, sharded: bool) -> dict[str, Tensor]:
    """All weights, on the CPU; of a sharded model, for the first process alone (all have to call it)."""
    if not sharded:
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        name: value for name, value in get_model_state_dict(model, options=options).items() if isinstance(value, Tensor)
    }
