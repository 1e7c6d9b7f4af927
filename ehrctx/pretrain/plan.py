"""`ehrctx plan`: what the trainings of a study take, from its file alone, before anything is spent.

Time is the floating-point operations of a training (`flop`) over the matrix-product rate that this machine shows in a
second, times the share of it that trainings reach (`EFFICIENCY`). With `--measure`, time and memory are those of twenty
steps of each model instead (`measure`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ehrctx.artifacts import MANIFEST, read_manifest
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, build_model
from ehrctx.models.ops.selective_scan import backend_for
from ehrctx.models.ops.token_loss import chunk_of
from ehrctx.pretrain.flop import flop_per_token, layers_and_width, matmul_rate
from ehrctx.pretrain.measure import PATIENCE, measure
from ehrctx.pretrain.trained import check_starts
from ehrctx.study import ModelId, Pretraining, Study
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.store import KIND as TIMELINES

# Share of the matrix-product rate. CPU: from the trainings of the demo and the MIMIC-IV demo, one thread each and
# two side by side, whose times it tells to a third; Mamba-2's from its step beside Mamba's. CUDA: assumed.
EFFICIENCY = {
    "cpu": {"gpt": 0.49, "llama": 0.55, "mamba": 0.31, "mamba2": 0.36, "hyena": 0.40},
    "cuda": {"gpt": 0.40, "llama": 0.40, "mamba": 0.25, "mamba2": 0.25, "hyena": 0.25},
}
# Numbers that the backward keeps, in multiples of (layers x hidden size) per token: float32, and bfloat16 under CUDA's
# autocast, where some of them stay float32 and so count twice.
ACTIVATIONS = {
    "float32": {"gpt": 16, "llama": 21, "mamba": 26, "mamba2": 26, "hyena": 17},
    "bfloat16": {"gpt": 18, "llama": 26, "mamba": 42, "mamba2": 44, "hyena": 28},
}
BYTES_PER_PARAMETER = 16  # float32 weight and gradient, two moments of AdamW
# Where nothing better serves Mamba's scan on CUDA, it is a loop in plain torch, bound by the host: per time step and
# layer, forward and backward.
SCAN_STEP_SECONDS = 15e-6


@dataclass(frozen=True)
class ModelPlan:
    """One training. `windows_per_batch` is at full length; `seconds` and `memory_gib` are estimates where no step was
    measured, and None where a measurement found the memory too small."""

    model: str
    parameters: int
    tokens: int
    steps: int
    windows_per_batch: int
    petaflop: float
    seconds: float | None
    memory_gib: float | None
    measured_steps: int = 0
    remedy: str | None = None  # where it does not fit


def memory_gib(
    model: TimelineModel, arch: str, vocabulary: int, settings: Pretraining, length: int, cuda: bool
) -> float:
    """Weights, gradients, moments; activations of one batch; the chunk of logits that the loss holds."""
    layers, width = layers_and_width(model)
    tokens = max(min(settings.batch_tokens, settings.tokens_per_step), length)
    kind, bytes_each = ("bfloat16", 2) if cuda and settings.precision != "32-true" else ("float32", 4)
    activations = tokens * layers * width * ACTIVATIONS[kind][arch] * bytes_each
    loss = 3 * chunk_of(vocabulary) * vocabulary * 4 + vocabulary * width * 4 + 2 * tokens * width * 4
    parameters = sum(p.numel() for p in model.parameters())
    cast = 2 if kind == "bfloat16" else 0  # autocast's copy of each weight
    shards = settings.devices if settings.strategy == "fsdp" else 1
    return (parameters * (BYTES_PER_PARAMETER / shards + cast) + activations + loss) / 2**30


def available_gib(device: str) -> float:
    """Free memory of the first GPU, or the machine's memory."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def vocabulary_of(study: Study, results: Path = Path("results")) -> tuple[int, bool]:
    """(size, whether it is known): of the study's timelines if they are there, else the most that its spec allows."""
    spec_file = find_spec(study.tokenizer)
    timelines = results / study.name / "timelines" / spec_file.stem
    if (timelines / MANIFEST).is_file():
        return int(read_manifest(timelines, TIMELINES)["facts"]["vocabulary_size"]), True
    return load(TokenizerSpec, spec_file).vocabulary_size, False


def _on_paper(name: str, vocabulary: int, settings: Pretraining) -> TimelineModel:
    """A network without weights."""
    with torch.device("meta"):
        return build_model(ModelId.parse(name), vocabulary, seed=0, rope=settings.rope)


def plan_models(
    models: Sequence[str], vocabulary: int, settings: Pretraining, device: str, rate: float
) -> list[ModelPlan]:
    """One row per model. No weight is allocated: networks are built on torch's meta device."""
    rows = []
    for name in models:
        identity, model = ModelId.parse(name), _on_paper(name, vocabulary, settings)
        flop = flop_per_token(model, identity.arch, identity.context) * settings.tokens
        windows = max(1, min(settings.batch_tokens, settings.tokens_per_step) // identity.context)
        looping = device == "cuda" and identity.arch == "mamba" and backend_for(torch.device("cuda")) == "torch"
        scan = layers_and_width(model)[0] * settings.tokens / windows * SCAN_STEP_SECONDS if looping else 0.0
        rows.append(
            ModelPlan(
                model=name,
                parameters=sum(p.numel() for p in model.parameters()),
                tokens=settings.tokens,
                steps=max(1, round(settings.tokens / settings.tokens_per_step)),
                windows_per_batch=windows,
                petaflop=flop / 1e15,
                seconds=(flop / (rate * EFFICIENCY[device][identity.arch]) + scan) / settings.devices,
                memory_gib=memory_gib(model, identity.arch, vocabulary, settings, identity.context, device == "cuda"),
            )
        )
    return rows


def remedy(name: str, vocabulary: int, settings: Pretraining, device: str, available: float, factor: float) -> str:
    """How to make a model fit that does not: `factor` is how much more than estimated it needs."""
    identity, model = ModelId.parse(name), _on_paper(name, vocabulary, settings)
    budget = min(settings.batch_tokens, settings.tokens_per_step)
    while budget > identity.context:
        budget = max(budget // 2, identity.context)
        fewer = settings.model_copy(update={"batch_tokens": budget})
        needed = memory_gib(model, identity.arch, vocabulary, fewer, identity.context, device == "cuda")
        if needed * factor <= available:
            return f"lower pretraining.batch_tokens to {budget:,}"
    return "even one window of it is too much: use a shorter context length or a smaller size"


def _checked(row: ModelPlan, vocabulary: int, settings: Pretraining, device: str, available: float) -> ModelPlan:
    """The row, with a remedy where it needs more memory than there is."""
    if row.memory_gib is not None and row.memory_gib <= available:
        return row
    return replace(row, remedy=remedy(row.model, vocabulary, settings, device, available, factor=1.0))


def _measured(row: ModelPlan, vocabulary: int, settings: Pretraining, device: str, available: float) -> ModelPlan:
    """The row as measured. What cannot fit is not tried, nor what would take minutes for a step: it stays estimated."""
    assert row.memory_gib is not None
    assert row.seconds is not None
    batch = row.windows_per_batch * ModelId.parse(row.model).context
    step_seconds = row.seconds * settings.devices / row.tokens * batch
    if row.memory_gib > available or step_seconds > PATIENCE:
        return _checked(row, vocabulary, settings, device, available)
    print(f"Measuring {row.model} …", file=sys.stderr, flush=True)
    found = measure(row.model, vocabulary, settings, device, available)
    if found.tokens_per_second is None:
        # more than there is, however little was estimated
        factor = max(1.0, available / row.memory_gib)
        words = remedy(row.model, vocabulary, settings, device, available, factor)
        return replace(row, seconds=None, memory_gib=None, remedy=words)
    seconds = row.tokens / found.tokens_per_second / settings.devices
    return replace(row, seconds=seconds, memory_gib=found.memory_gib, measured_steps=found.steps)


def plan(study: Study, measured: bool = False) -> dict[str, Any]:
    """What `ehrctx plan` prints: the machine, one row per model, the sum of the training times.

    Raises InputError for a study whose models cannot start where it says.
    """
    check_starts(study)
    settings = study.pretraining
    device = "cuda" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    vocabulary, known = vocabulary_of(study)
    rate = matmul_rate(device, settings.threads)
    available = available_gib(device)
    check = _measured if measured else _checked
    rows = [
        check(row, vocabulary, settings, device, available)
        for row in plan_models(study.models, vocabulary, settings, device, rate)
    ]
    return {
        "study": study.name,
        "device": device,
        "threads": settings.threads,
        "gflop_per_second": rate / 1e9,
        "available_gib": available,
        "vocabulary": vocabulary,
        "vocabulary_known": known,
        "models": [asdict(row) for row in rows],
        "seconds": sum(row.seconds or 0.0 for row in rows),
    }


def refuse_what_does_not_fit(found: dict[str, Any]) -> None:
    """Raises InputError that names every model of a plan that this machine cannot hold, and what would help."""
    too_large = [f"{row['model']} ({row['remedy']})" for row in found["models"] if row["remedy"] is not None]
    if too_large:
        raise InputError(f"the {found['available_gib']:,.1f} GiB here do not hold: {'; '.join(too_large)}.")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


def _trust(found: dict[str, Any]) -> str:
    steps = [row["measured_steps"] for row in found["models"]]
    if any(steps):
        most = f"Measured over {min(filter(None, steps))} steps of full windows per model; shorter windows are faster."
        return (
            most if all(steps) else f"{most} Not measured, but estimated: what does not fit, or takes minutes a step."
        )
    known = "right within a factor of two" if found["device"] == "cpu" else "not yet measured on any GPU"
    return f"Times are estimates, {known}; --measure takes some steps of each model."


def plan_text(found: dict[str, Any]) -> str:
    """The plan as lines for a terminal."""
    header = ("model", "parameters", "tokens", "steps", "PFLOP", "time, about", "memory, about")
    lines = [
        (
            row["model"],
            f"{row['parameters']:,}",
            f"{row['tokens']:,}",
            f"{row['steps']:,}",
            f"{row['petaflop']:,.3g}",
            "-" if row["seconds"] is None else _duration(row["seconds"]),
            "too much" if row["memory_gib"] is None else f"{row['memory_gib']:,.1f} GiB",
        )
        for row in found["models"]
    ]
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]
    table = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *lines)
    ]
    vocabulary = (
        f"{found['vocabulary']:,} tokens" if found["vocabulary_known"] else f"at most {found['vocabulary']:,} tokens"
    )
    where = "one GPU" if found["device"] == "cuda" else f"CPU, {found['threads']} thread(s) per model"
    notes = [
        f"{found['study']}: {len(lines)} models on {where}, vocabulary {vocabulary}, "
        f"{found['gflop_per_second']:,.0f} GFLOP/s in matrix products, {found['available_gib']:,.0f} GiB of memory.",
        "",
        *table,
        "",
        f"All trainings one after another: about {_duration(found['seconds'])}. {_trust(found)} Validation, embedding, "
        "perplexity and probes come on top.",
    ]
    notes += [
        f"Too large for this machine: {row['model']}; {row['remedy']}." for row in found["models"] if row["remedy"]
    ]
    if found["device"] == "cpu" and found["seconds"] > 86_400:
        notes.append("This wants a GPU: no CUDA device is here.")
    return "\n".join(notes)
