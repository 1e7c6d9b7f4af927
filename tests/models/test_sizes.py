"""Sizes of the architectures against the published parameter counts; what the study says of Llama."""

from __future__ import annotations

import pytest
import torch

from ehrctx.models.model import TimelineModel, build_model, load_model, save_model
from ehrctx.study import ARCHITECTURES, SIZES, ModelId

torch.set_num_threads(1)

VOCABULARY = 39_818


def on_paper(name: str) -> TimelineModel:
    """The model without its weights."""
    with torch.device("meta"):
        return build_model(ModelId.parse(name), VOCABULARY, seed=0)


def parameters(name: str) -> int:
    return sum(p.numel() for p in on_paper(name).parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt-paper-512", 116.0),
        ("gpt-paper-4096", 118.8),
        ("llama-paper-512", 123.3),
        ("llama-paper-4096", 123.3),
        ("mamba-paper-1024", 121.1),
        ("mamba-paper-16384", 121.1),
        ("mamba2-paper-1024", 120.9),
        ("mamba2-paper-16384", 120.9),
        ("hyena-paper-1024", 125.3),
        ("hyena-paper-16384", 125.3),
    ],
)
def test_the_published_number_of_parameters(name, millions):
    assert parameters(name) / 1e6 == pytest.approx(millions, abs=0.1)


def test_gpt_and_llama_counted_by_hand():
    width, layers = 768, 12
    block = 12 * width**2 + 13 * width  # attention 4, feed-forward 8; their biases, two norms
    assert parameters("gpt-paper-512") == VOCABULARY * width + 512 * width + layers * block + 2 * width
    block = 2 * width**2 + 2 * width * width // 3 + 3 * width * 2688 + 2 * width  # 4 of 12 heads have keys and values
    assert parameters("llama-paper-512") == 2 * VOCABULARY * width + 8 * block + width


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("arch", "tied"), [("gpt", True), ("llama", False), ("mamba", True), ("mamba2", True), ("hyena", False)]
)
def test_which_embeddings_are_tied(arch, size, tied):
    model = on_paper(f"{arch}-{size}-64")
    embedding, output = model.network.get_input_embeddings().weight, model.network.get_output_embeddings().weight
    assert (embedding is output) == tied == model.network.config.tie_word_embeddings
    assert embedding.shape == output.shape == (VOCABULARY, model.hidden_size)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sizes_ascend_and_share_their_width(arch):
    models = [on_paper(f"{arch}-{size}-64") for size in ("tiny", "small", "paper")]
    assert [m.hidden_size for m in models] == [128, 384, 768]
    counts = [sum(p.numel() for p in m.parameters()) for m in models]
    assert 3 * counts[0] < 3 * counts[1] < 3 * 1.2 * counts[2]
    assert 2 * counts[0] < counts[1] < counts[2] / 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_gpt_grows_with_its_context(arch):
    grown = parameters(f"{arch}-tiny-512") - parameters(f"{arch}-tiny-64")
    assert grown == ((512 - 64) * 128 if arch == "gpt" else 0)


def test_llama_is_as_published():
    config = on_paper("llama-paper-2048").network.config
    assert config.num_hidden_layers == 8
    assert config.num_attention_heads == 12
    assert config.num_key_value_heads == 4
    assert config.hidden_size == 768
    assert config.intermediate_size == 2688
    assert config.rms_norm_eps == 1e-5
    assert config.max_position_embeddings == 2048
    assert config.attention_dropout == 0
    assert not config.attention_bias
    assert not config.mlp_bias
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    assert theta == 500_000


@pytest.mark.parametrize("loaded", [False, True])
def test_llama_turns_by_the_stated_base(loaded, tmp_path):
    """Frequencies 500,000^(-2 i / d), in what is used and not only in what is recorded, saved and loaded, too."""
    model = build_model(ModelId.parse("llama-tiny-64"), 40, seed=0)
    if loaded:
        save_model(model, tmp_path / "saved")
        model = load_model(tmp_path / "saved")
    head = 128 // 4
    expected = [500_000 ** (-2 * i / head) for i in range(head // 2)]
    (frequencies,) = (b for n, b in model.named_buffers() if n.endswith("rotary_emb.inv_freq"))
    assert frequencies.tolist() == pytest.approx(expected, rel=1e-5)
