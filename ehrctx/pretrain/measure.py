"""What a training really takes on this machine: twenty steps of each model, in a process of its own.

A process of its own tells the peak of its memory, and may run out of it without harm. Each step is the heaviest there
is: one batch of windows at full length, drawn at random, forward, backward, clip and update. One process of several is
measured alone, with all weights.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ehrctx.errors import InputError
from ehrctx.models.model import build_model
from ehrctx.pretrain.callbacks import peak_memory_gib
from ehrctx.pretrain.module import optimizer_of, use_scan
from ehrctx.study import ModelId, Pretraining

STEPS = 20
PATIENCE = 60.0  # seconds, after which fewer steps have to do
FEWEST = 2


@dataclass(frozen=True)
class Measurement:
    """Of one model: `memory_gib` at its peak, None for both where the memory did not suffice."""

    steps: int
    tokens_per_second: float | None
    memory_gib: float | None

    @property
    def fits(self) -> bool:
        return self.memory_gib is not None


DOES_NOT_FIT = Measurement(0, None, None)


def measure(
    model: str, vocabulary: int, settings: Pretraining, device: str, limit_gib: float, patience: float = PATIENCE
) -> Measurement:
    """Measures `model` in a new process that may hold `limit_gib` (on a GPU: what the GPU has).

    Raises InputError where a setting cannot be trained with here, RuntimeError where the process fails otherwise.
    """
    asked = {"model": model, "vocabulary": vocabulary, "settings": settings.model_dump(mode="json")}
    asked |= {"device": device, "limit_gib": limit_gib, "patience": patience}
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode == -9:  # the system's last resort when memory runs out
        return DOES_NOT_FIT
    if done.returncode == 2:
        raise InputError(done.stderr.splitlines()[-1])
    if done.returncode != 0:
        raise RuntimeError(f"measuring {model} failed:\n{done.stderr}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(model: str, vocabulary: int, settings: Pretraining, device: str, patience: float) -> Measurement:
    """The same in this process; its memory is that of everything in it."""
    torch.set_num_threads(settings.threads)
    identity = ModelId.parse(model)
    network = build_model(identity, vocabulary, seed=0, rope=settings.rope).to(device)
    use_scan(network, settings.scan, device)
    if settings.compile:
        network.network.base_model.compile(dynamic=True)
    optimizer = optimizer_of(network, settings)
    rows = max(1, min(settings.batch_tokens, settings.tokens_per_step) // identity.context)
    own = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (rows, identity.context), generator=own).to(device)
    lengths = torch.full((rows,), identity.context, device=device)
    mixed = settings.precision == "bf16-mixed" or (settings.precision == "auto" and device == "cuda")
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < STEPS + 1 and (len(seconds) <= FEWEST or time.perf_counter() - began < patience):
        started = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            loss, predicted = network.loss(tokens, lengths)
        (loss / predicted).backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    # the first step compiles, allocates and warms up
    rate = tokens.numel() / statistics.median(seconds[1:])
    return Measurement(len(seconds) - 1, rate, peak_memory_gib(torch.device(device)))


def _main() -> None:
    asked = json.load(sys.stdin)
    settings = Pretraining.model_validate(asked.pop("settings"))
    limit = int(asked.pop("limit_gib") * 2**30)
    if asked["device"] == "cpu":
        with suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        found = measure_here(settings=settings, **asked)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except (MemoryError, torch.OutOfMemoryError):
        found = DOES_NOT_FIT
    except RuntimeError as error:  # torch's allocator on the CPU has no type of its own
        if "allocate memory" not in str(error):
            raise
        found = DOES_NOT_FIT
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
