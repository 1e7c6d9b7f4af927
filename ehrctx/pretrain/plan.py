"""`ehrctx plan`: what the trainings of a study take, from its file alone, before anything is spent.

Floating-point operations follow the usual count (Kaplan et al. 2020, arXiv 2001.08361): 6 per weight of a matrix
product and token, forward and backward together, and what attention, scan or FFT add. Time is these operations over the
matrix-product rate that this machine shows in a second, times the share of it that trainings reach (`EFFICIENCY`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ehrctx.artifacts import MANIFEST, read_manifest
from ehrctx.models.model import TimelineModel, build_model
from ehrctx.models.ops.selective_scan import backend_for
from ehrctx.models.ops.state_space_duality import CHUNK
from ehrctx.models.ops.token_loss import chunk_of
from ehrctx.study import ModelId, Pretraining, Study, load
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.store import KIND as TIMELINES

# Share of the matrix-product rate. CPU: from the trainings of the demo and the MIMIC-IV demo, one thread each and
# two side by side, whose times it tells to 20 %; Mamba-2's from its step beside Mamba's. CUDA: assumed.
EFFICIENCY = {
    "cpu": {"gpt": 0.48, "llama": 0.55, "mamba": 0.33, "mamba2": 0.40, "hyena": 0.46},
    "cuda": {"gpt": 0.40, "llama": 0.40, "mamba": 0.25, "mamba2": 0.25, "hyena": 0.25},
}
# Numbers that the backward keeps, in multiples of (layers x hidden size) per token: float32, and bfloat16 under CUDA's
# autocast, where some of them stay float32 and so count twice.
ACTIVATIONS = {
    "float32": {"gpt": 26, "llama": 24, "mamba": 30, "mamba2": 28, "hyena": 17},
    "bfloat16": {"gpt": 30, "llama": 30, "mamba": 44, "mamba2": 46, "hyena": 30},
}
BYTES_PER_PARAMETER = 16  # float32 weight and gradient, two moments of AdamW
# Where nothing better serves Mamba's scan on CUDA, it is a loop in plain torch, bound by the host: per time step and
# layer, forward and backward.
SCAN_STEP_SECONDS = 15e-6


@dataclass(frozen=True)
class ModelPlan:
    """One training. `seconds` and `memory_gib` are estimates; `windows_per_batch` is at full length."""

    model: str
    parameters: int
    tokens: int
    steps: int
    windows_per_batch: int
    petaflop: float
    seconds: float
    memory_gib: float


def _shape(model: TimelineModel) -> tuple[int, int]:
    """(layers, hidden size)."""
    config = model.network.config
    return int(config.num_hidden_layers), model.hidden_size


def _mixing(model: TimelineModel, arch: str, length: int) -> float:
    """What attention, scan or transforms add to the products with weights, per token and layer."""
    _, width = _shape(model)
    if arch == "mamba":
        return 3 * 9 * 2 * width * 16  # discretisation and recurrence of 16 states on twice the width
    if arch == "mamba2":
        steps, states = min(length, CHUNK), model.network.config.state_size
        # products of a chunk's steps, the states, and both; the backward computes some of the forward's again
        return 2 * (3 * steps * 2 * width + 7 * states * 2 * width + 4 * steps * states)
    if arch == "hyena":
        return 3 * 3 * 10 * math.log2(4 * length) * width  # transforms of twice the length
    return 6 * length * width  # causal attention: half of the pairs, two products


def flop_per_token(model: TimelineModel, arch: str, length: int) -> float:
    """Forward and backward, at windows of `length` tokens."""
    layers, width = _shape(model)
    embedding: Any = model.network.get_input_embeddings()
    output: Any = model.network.get_output_embeddings()
    in_matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and ".filter." not in n)
    looked_up = 0 if output.weight is embedding.weight else embedding.weight.numel()
    if arch == "gpt":
        looked_up += length * width  # the table of positions
    return 6 * (in_matrices - looked_up) + layers * _mixing(model, arch, length)


def matmul_rate(device: str, threads: int, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a large product: float32 on CPU, bfloat16 on CUDA."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _matmul_rate(device, seconds)
    finally:
        torch.set_num_threads(before)


def _matmul_rate(device: str, seconds: float) -> float:
    size, dtype = (768, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):  # warm up
        a @ b
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        a @ b
        done += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return done * 2.0 * size**3 / (time.perf_counter() - started)


def memory_gib(
    model: TimelineModel, arch: str, vocabulary: int, settings: Pretraining, length: int, cuda: bool
) -> float:
    """Weights, gradients, moments; activations of one batch; the chunk of logits that the loss holds."""
    layers, width = _shape(model)
    tokens = max(min(settings.batch_tokens, settings.tokens_per_step), length)
    kind, bytes_each = ("bfloat16", 2) if cuda and settings.precision != "32-true" else ("float32", 4)
    activations = tokens * layers * width * ACTIVATIONS[kind][arch] * bytes_each
    loss = 3 * chunk_of(vocabulary) * vocabulary * 4 + vocabulary * width * 4 + 2 * tokens * width * 4
    parameters = sum(p.numel() for p in model.parameters())
    cast = 2 if kind == "bfloat16" else 0  # autocast's copy of each weight
    return (parameters * (BYTES_PER_PARAMETER + cast) + activations + loss) / 2**30


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


def plan_models(
    models: Sequence[str], vocabulary: int, settings: Pretraining, device: str, rate: float
) -> list[ModelPlan]:
    """One row per model. No weight is allocated: networks are built on torch's meta device."""
    rows = []
    for name in models:
        identity = ModelId.parse(name)
        with torch.device("meta"):
            model = build_model(identity, vocabulary, seed=0)
        flop = flop_per_token(model, identity.arch, identity.context) * settings.tokens
        windows = max(1, min(settings.batch_tokens, settings.tokens_per_step) // identity.context)
        looping = device == "cuda" and identity.arch == "mamba" and backend_for(torch.device("cuda")) == "torch"
        scan = _shape(model)[0] * settings.tokens / windows * SCAN_STEP_SECONDS if looping else 0.0
        rows.append(
            ModelPlan(
                model=name,
                parameters=sum(p.numel() for p in model.parameters()),
                tokens=settings.tokens,
                steps=max(1, round(settings.tokens / settings.tokens_per_step)),
                windows_per_batch=windows,
                petaflop=flop / 1e15,
                seconds=flop / (rate * EFFICIENCY[device][identity.arch]) + scan,
                memory_gib=memory_gib(model, identity.arch, vocabulary, settings, identity.context, device == "cuda"),
            )
        )
    return rows


def plan(study: Study) -> dict[str, Any]:
    """What `ehrctx plan` prints: the machine, one row per model, the sum of the training times."""
    settings = study.pretraining
    device = "cuda" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    vocabulary, known = vocabulary_of(study)
    rate = matmul_rate(device, settings.threads)
    rows = plan_models(study.models, vocabulary, settings, device, rate)
    return {
        "study": study.name,
        "device": device,
        "threads": settings.threads,
        "gflop_per_second": rate / 1e9,
        "available_gib": available_gib(device),
        "vocabulary": vocabulary,
        "vocabulary_known": known,
        "models": [asdict(row) for row in rows],
        "seconds": sum(row.seconds for row in rows),
    }


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"


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
            _duration(row["seconds"]),
            f"{row['memory_gib']:,.1f} GiB",
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
    too_large = [row["model"] for row in found["models"] if row["memory_gib"] > found["available_gib"]]
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
        f"All trainings one after another: about {_duration(found['seconds'])}. Times are estimates, "
        f"{'right within a factor of two' if found['device'] == 'cpu' else 'not yet measured on any GPU'}; validation, "
        "embedding, perplexity and probes come on top.",
    ]
    if too_large:
        notes.append(
            f"Too large for this machine: {', '.join(too_large)}. Lower pretraining.batch_tokens, or the size."
        )
    if found["device"] == "cpu" and found["seconds"] > 86_400:
        notes.append("This wants a GPU: no CUDA device is here.")
    return "\n".join(notes)
