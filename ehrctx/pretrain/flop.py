"""Floating-point operations of a training, and the rate at which this machine does them in matrix products.

The usual count (Kaplan et al. 2020, arXiv 2001.08361): 6 per weight of a matrix product and token, forward and backward
together, and what attention, scan or FFT add.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ehrctx.models.model import TimelineModel
from ehrctx.models.ops.linear import onednn_products
from ehrctx.models.ops.state_space_duality import CHUNK


def layers_and_width(model: TimelineModel) -> tuple[int, int]:
    """(layers, hidden size)."""
    config = model.network.config
    return int(config.num_hidden_layers), model.hidden_size


def matrix_flop(model: TimelineModel) -> int:
    """Per token, forward and backward: the products with weights. What is only looked up costs nothing."""
    embedding: Any = model.network.get_input_embeddings()
    output: Any = model.network.get_output_embeddings()
    in_matrices = sum(p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and ".filter." not in n)
    looked_up = 0 if output.weight is embedding.weight else embedding.weight.numel()
    looked_up += (model.context_limit or 0) * model.hidden_size  # the table of positions
    return 6 * (in_matrices - looked_up)


def mixing_flop(model: TimelineModel, arch: str, length: int) -> float:
    """Per token, forward and backward: what mixes positions, at windows of `length` tokens."""
    layers, width = layers_and_width(model)
    if arch == "mamba":
        return layers * 3 * 9 * 2 * width * 16  # discretisation and recurrence of 16 states on twice the width
    if arch == "mamba2":
        steps, states = min(length, CHUNK), model.network.config.state_size
        # products of a chunk's steps, the states, and both; the backward computes some of the forward's again
        return layers * 2 * (3 * steps * 2 * width + 7 * states * 2 * width + 4 * steps * states)
    if arch == "hyena":
        return layers * 3 * 3 * 10 * math.log2(4 * length) * width  # transforms of twice the length
    return layers * 6 * length * width  # causal attention: half of the pairs, two products


def flop_per_token(model: TimelineModel, arch: str, length: int) -> float:
    """Forward and backward, at windows of `length` tokens."""
    return matrix_flop(model) + mixing_flop(model, arch, length)


def matmul_rate(device: str, threads: int, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a large product: float32 on CPU, bfloat16 on CUDA."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with onednn_products():
            return _matmul_rate(device, seconds)
    finally:
        torch.set_num_threads(before)


def _matmul_rate(device: str, seconds: float) -> float:
    size, dtype = (768, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    own = torch.Generator(device).manual_seed(0)  # a training's generator stays where it is
    a, b = (torch.randn(size, size, device=device, generator=own).to(dtype) for _ in range(2))
    for _ in range(2):  # warm up
        a @ b
    fastest, began = float("inf"), time.perf_counter()
    while (started := time.perf_counter()) - began < seconds:
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - started)  # what else runs here does not make the peak lower
    return 2.0 * size**3 / fastest
