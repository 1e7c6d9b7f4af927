"""Rotary positions: precision against float64, and scaling against transformers' own and the closed forms."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, build_model, load_model, save_model
from ehrctx.models.ops.rotary import RotaryPositions, rotate
from ehrctx.study import ModelId, Rope

torch.set_num_threads(1)

VOCABULARY = 61
WIDTH, HEADS, HEAD = 128, 4, 32  # of llama-tiny
THETA = 500_000.0
LINEAR = Rope(scaling="linear", factor=4)
YARN = Rope(scaling="yarn", factor=4)


def llama(rope: Rope | None = None, context: int = 128) -> Any:
    """The network, with attention sharp enough to tell positions apart."""
    network: Any = build_model(ModelId.parse(f"llama-tiny-{context}"), VOCABULARY, seed=3, rope=rope).network.eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(10 if name.endswith(("q_proj.weight", "k_proj.weight")) else 5)
    return network


def frequencies(rope: Rope, context: int = 128) -> list[float]:
    return llama(rope, context).model.rotary_emb.inv_freq.tolist()


def unscaled(theta: float = THETA) -> list[float]:
    return [theta ** (-2 * i / HEAD) for i in range(HEAD // 2)]


def turned(x: torch.Tensor, positions: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """x [..., length, width] turned in complex float64 numbers."""
    angle = positions.double().unsqueeze(1) * turns.double()
    pairs = torch.complex(*x.double().chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def attention_by_hand(attention: Any, hidden: torch.Tensor, start: int) -> torch.Tensor:
    """Grouped-query attention with rotary positions from `start` on, in float64."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight.double() for name in "qkvo")
    hidden, length = hidden.double(), hidden.shape[1]
    q, k, v = ((hidden @ w.t()).unflatten(-1, (-1, HEAD)).transpose(1, 2) for w in (q, k, v))
    q, k = (turned(x, torch.arange(start, start + length), torch.tensor(unscaled())) for x in (q, k))
    k, v = (x.repeat_interleave(HEADS // k.shape[1], dim=1) for x in (k, v))
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(HEAD)).masked_fill(later, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ o.t()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square, relative."""
    return float((found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@torch.no_grad()
@pytest.mark.parametrize(("precision", "allowed"), [("cast", 0.02), ("autocast", 0.02), ("float32", 2e-3)])
def test_attention_near_position_16_000_is_that_of_float64(precision, allowed):
    """transformers' own, cast to bfloat16, is off by a third here."""
    attention_of = llama()
    if precision == "cast":
        attention_of.to(torch.bfloat16)
    attention, rotary = attention_of.model.layers[0].self_attn, attention_of.model.rotary_emb
    hidden = torch.randn(1, 1_500, WIDTH, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    start = 14_800
    given = hidden if precision == "cast" else hidden.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        angles = rotary(given, torch.arange(start, start + 1_500).unsqueeze(0))
        found, _ = attention(given, position_embeddings=angles, attention_mask=None)
    assert found.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    assert error(found, attention_by_hand(attention, hidden, start)) < allowed


@torch.no_grad()
def test_scores_depend_on_the_distance_alone_in_bfloat16():
    """One query and one key, the same distance apart at the beginning and at position 16,000."""
    rotary = llama().to(torch.bfloat16).model.rotary_emb
    q, k = torch.randn(2, HEAD, generator=torch.Generator().manual_seed(1))
    for distance in (0, 1, 100, 4_000):
        scores = []
        for key in (0, 3, 12_000):
            cos, sin = rotary(q.to(torch.bfloat16), torch.tensor([[key + distance, key]]))
            both = rotate(torch.stack([q, k]), cos[0], sin[0])
            scores.append(float(both[0] @ both[1]))
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-2), distance  # float32 angles near 16,000: 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rotation_and_its_gradient_are_those_of_float64(dtype):
    generator = torch.Generator().manual_seed(2)
    x, direction = (torch.randn(2, 3, 50, HEAD, generator=generator).to(dtype) for _ in range(2))
    positions, rotary = torch.arange(16_000, 16_050), llama().model.rotary_emb
    cos, sin = rotary(x, positions.unsqueeze(0))
    leaf = x.clone().requires_grad_()
    y = rotate(leaf, cos, sin)
    (gradient,) = torch.autograd.grad(y, leaf, direction)
    assert y.dtype == gradient.dtype == dtype
    turns = rotary.inv_freq
    rounding = 4 * torch.finfo(dtype).eps + 2e-3  # of the result, and of float32 angles of 16,000
    torch.testing.assert_close(y.double(), turned(x, positions, turns), atol=rounding, rtol=rounding)
    torch.testing.assert_close(gradient.double(), turned(direction, -positions, turns), atol=rounding, rtol=rounding)


def test_frequencies_stay_float32_and_whole_whatever_the_model_is_cast_to():
    network = llama()
    before = network.model.rotary_emb.inv_freq.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        network.to(dtype)
        assert network.lm_head.weight.dtype == dtype
        assert torch.equal(network.model.rotary_emb.inv_freq, before)
        cos, sin = network.model.rotary_emb(torch.zeros(1, dtype=dtype), torch.tensor([[7]]))
        assert before.dtype == cos.dtype == sin.dtype == torch.float32
    assert network.to("meta").model.rotary_emb.inv_freq.device.type == "meta", "they follow to the device"


ROPES = pytest.mark.parametrize(
    "rope",
    [
        Rope(),
        Rope(theta=10_000.0),
        LINEAR,
        YARN,
        Rope(theta=10_000.0, scaling="yarn", factor=2.5),
        Rope(scaling="yarn", factor=8, original_context=64),
    ],
    ids=lambda rope: f"{rope.scaling}-{rope.factor:g}-{rope.theta or THETA:g}-{rope.original_context}",
)


@ROPES
@torch.no_grad()
def test_a_saved_model_has_the_same_logits_in_transformers_alone(rope, tmp_path):
    """transformers' own scaling, from config.json; ours, loaded again, too."""
    model = TimelineModel(llama(rope))
    save_model(model, tmp_path)
    library = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    assert type(library) is LlamaForCausalLM
    assert not any(isinstance(module, RotaryPositions) for module in library.modules())
    tokens = torch.randint(VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(4))
    logits = model.logits(tokens)
    torch.testing.assert_close(library(input_ids=tokens).logits, logits, atol=1e-4, rtol=0)
    assert torch.equal(load_model(tmp_path).eval().logits(tokens), logits)
    if rope != Rope():
        assert (TimelineModel(llama()).logits(tokens) - logits).abs().max() > 0.1, "the setting must be seen"


def test_config_json_says_how_positions_are_scaled(tmp_path):
    llama(Rope(theta=2e4, scaling="yarn", factor=4, original_context=64)).config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    said = config.get("rope_parameters") or {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    assert said == {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "rope_theta": 2e4}
    assert config["max_position_embeddings"] == 256, "to what the original context is stretched"


def test_the_base_alone():
    assert frequencies(Rope(theta=10_000.0)) == pytest.approx(unscaled(10_000.0), rel=1e-6)


def test_linear_scaling_at_a_position_is_no_scaling_at_the_position_divided():
    plain, scaled = (llama(rope).model.rotary_emb for rope in (None, LINEAR))
    positions = torch.arange(300).unsqueeze(0)
    for expected, found in zip(plain(plain.inv_freq, positions), scaled(plain.inv_freq, 4 * positions), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_yarn_interpolates_slow_turns_alone_and_sharpens_attention():
    """Turns that come round more than 32 times within the original context stay, those that do not once are divided."""
    context = 4_096
    found, plain = frequencies(YARN, context), unscaled()
    rounds = [turn * context / 4 / (2 * math.pi) for turn in plain]
    fast = [i for i, n in enumerate(rounds) if n > 32]
    slow = [i for i, n in enumerate(rounds) if n < 0.5]  # the ramp ends at the next whole pair below one round
    assert fast
    assert slow
    assert [found[i] for i in fast] == pytest.approx([plain[i] for i in fast], rel=1e-6)
    assert [found[i] for i in slow] == pytest.approx([plain[i] / 4 for i in slow], rel=1e-6)
    ratios = [f / p for f, p in zip(found, plain, strict=True)]
    assert all(later < earlier + 1e-6 for earlier, later in pairwise(ratios)), "between them, a ramp"
    cos, _ = llama(YARN, context).model.rotary_emb(torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64))
    assert float(cos[0, 0, 0]) == pytest.approx(0.1 * math.log(4) + 1, rel=1e-6)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_models_within_the_original_context_are_not_stretched(scaling):
    rope = Rope(scaling=scaling, factor=8, original_context=512)
    for context in (64, 512):
        assert frequencies(rope, context) == frequencies(Rope(), context)
    assert frequencies(rope, 4_096)[-1] == pytest.approx(frequencies(Rope(), 4_096)[-1] / 8)


def test_the_original_context_is_the_models_own_divided_by_the_factor_unless_given():
    assert frequencies(YARN, 4_096) == frequencies(Rope(scaling="yarn", factor=4, original_context=1_024), 4_096)
    assert frequencies(YARN, 4_096) != frequencies(Rope(scaling="yarn", factor=4, original_context=64), 4_096)


@torch.no_grad()
def test_a_mask_and_a_cache_work_as_in_transformers():
    """Generation, and batches padded on the left, which only users of transformers have."""
    network = llama()
    library = LlamaForCausalLM(network.config).eval()
    library.load_state_dict(network.state_dict(), strict=True)
    tokens = torch.randint(2, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(6))
    mask = torch.ones_like(tokens)
    mask[1, :12] = 0
    expected = library(input_ids=tokens, attention_mask=mask).logits
    found = network(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1, 12:], expected[1, 12:], atol=1e-4, rtol=0)
    first = network(input_ids=tokens[:, :20], use_cache=True)
    cache = first.past_key_values
    rest = [network(input_ids=tokens[:, i : i + 1], past_key_values=cache).logits for i in range(20, 30)]
    whole = network(input_ids=tokens).logits
    torch.testing.assert_close(torch.cat(rest, dim=1), whole[:, 20:], atol=1e-4, rtol=0)


def test_scaling_that_changes_with_the_length_is_refused(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = LlamaConfig(vocab_size=9, hidden_size=8, num_attention_heads=1, num_hidden_layers=1, rope_scaling=scaling)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'dynamic'"):
        load_model(tmp_path)
