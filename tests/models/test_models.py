"""Each architecture against transformers' own class with the same weights, and the contract that all of them keep."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Mamba2ForCausalLM,
    MambaForCausalLM,
)

from ehrctx.errors import InputError
from ehrctx.models.hyena import HyenaForCausalLM
from ehrctx.models.model import TimelineModel, build_model, load_model, save_model
from ehrctx.models.ops.short_convolution import depthwise_causal_convolution
from ehrctx.study import ModelId
from ehrctx.timelines.spec import BOS, EOS, PAD

torch.set_num_threads(1)

VOCABULARY = 61
CONTEXT = 128
ORIGINALS = {
    "gpt": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
}
ARCHITECTURES = [*ORIGINALS, "hyena"]
EVERY = pytest.mark.parametrize("arch", ARCHITECTURES)


def random_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def disturbed(arch: str) -> TimelineModel:
    """A model whose weights are larger than at random start, to show errors."""
    model = build_model(ModelId.parse(f"{arch}-tiny-{CONTEXT}"), VOCABULARY, seed=3).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                parameter.mul_(1.2)
            elif not name.endswith("A_log"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=ORIGINALS)
def pair(request):
    """Our model, and transformers' own class with the same weights."""
    model = disturbed(request.param)
    original = ORIGINALS[request.param](model.network.config)
    original.load_state_dict(model.network.state_dict(), strict=True)
    return model, original.eval()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return disturbed(request.param)


@pytest.mark.parametrize("length", [1, 7, 33, CONTEXT - 1, CONTEXT])
def test_logits_equal_those_of_transformers(pair, length):
    model, original = pair
    tokens = random_tokens(2, length)
    with torch.no_grad():
        expected = original(input_ids=tokens).logits
        logits = model.logits(tokens)
    assert expected.std() > 0.2, "the weights are too small for this test to mean anything"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_padding_mask_would_change_nothing(pair):
    """transformers, told what is padding, against our model, which is not told."""
    model, original = pair
    tokens, lengths = random_tokens(3, CONTEXT, seed=8), [CONTEXT, 70, 3]
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, length:], mask[row, :length] = PAD, 1
    expected = original(input_ids=tokens, attention_mask=mask).logits
    logits = model.logits(tokens)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(logits[row, :length], expected[row, :length], atol=1e-4, rtol=0)


def test_gradients_equal_those_of_transformers(pair):
    model, original = pair
    tokens = random_tokens(2, 40)
    lengths = torch.tensor([40, 23])
    model.zero_grad()
    original.zero_grad()
    model.loss(tokens, lengths)[0].backward()
    targets = tokens[:, 1:].clone()
    targets[1, 22:] = -100
    logits = original(input_ids=tokens).logits[:, :-1]
    F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="sum").backward()
    expected = {name: p.grad for name, p in original.named_parameters()}
    ours = {name: p.grad for name, p in model.network.named_parameters()}
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, atol=2e-4 * max(scale, 1.0), rtol=1e-3, msg=name)


def test_loss_is_the_cross_entropy_of_the_real_tokens(model):
    tokens, lengths = random_tokens(4, 30, seed=1), torch.tensor([30, 11, 2, 1])
    targets = tokens[:, 1:].clone()
    for row, length in enumerate(lengths.tolist()):
        tokens[row, length:] = PAD
        targets[row, length - 1 :] = -100
    with torch.no_grad():
        loss, predicted = model.loss(tokens, lengths)
        logits = model.logits(tokens)[:, :-1]
        expected = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="sum")
    assert predicted == 29 + 10 + 1
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_token_losses_are_those_of_single_tokens_given_all_before_them(model):
    """In no order, some twice, of padded rows."""
    tokens = random_tokens(3, 30, seed=7)
    tokens[1, 12:] = PAD
    rows, positions = torch.tensor([0, 2, 1, 0, 2, 0, 1]), torch.tensor([29, 5, 11, 1, 28, 1, 1])
    found = model.token_losses(tokens, positions, rows)
    assert found.dtype == torch.float32
    for loss, row, position in zip(found, rows.tolist(), positions.tolist(), strict=True):
        logits = model.logits(tokens[row : row + 1, :position])[0, -1]
        assert float(loss) == pytest.approx(float(F.cross_entropy(logits, tokens[row, position])), abs=1e-4)


@torch.no_grad()
def test_token_losses_add_up_to_the_loss(model):
    tokens, lengths = random_tokens(4, 30, seed=1), torch.tensor([30, 11, 2, 1])
    rows, positions = torch.nonzero(torch.arange(30) < lengths.unsqueeze(1), as_tuple=True)
    rows, positions = rows[positions > 0], positions[positions > 0]
    loss, predicted = model.loss(tokens, lengths)
    found = model.token_losses(tokens, positions, rows)
    assert len(found) == predicted
    assert float(found.sum()) == pytest.approx(float(loss), rel=1e-5)


@torch.no_grad()
def test_right_padding_and_batch_neighbours_change_nothing(model):
    lengths = [50, 1, 17, 33]
    tokens = random_tokens(4, 50, seed=2)
    padded = tokens.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = PAD
    together = model.states(padded)
    reversed_order = model.states(padded.flip(0)).flip(0)
    for row, length in enumerate(lengths):
        alone = model.states(tokens[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(reversed_order[row, :length], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 8, 31, 32, 33, 59])
def test_no_state_depends_on_later_tokens(model, cut):
    tokens, other = random_tokens(2, 60, seed=3), random_tokens(2, 60, seed=4)
    changed = torch.cat([tokens[:, :cut], other[:, cut:]], dim=1)
    before, after = model.states(tokens), model.states(changed)
    # Hyena's FFT mixes all positions and is causal up to rounding: 1.5e-6 was measured, at states of about 4
    tolerance = 1e-5 if isinstance(model.network, HyenaForCausalLM) else 1e-6
    torch.testing.assert_close(after[:, :cut], before[:, :cut], atol=tolerance, rtol=0)
    assert (after[:, cut:] - before[:, cut:]).abs().max() > 1e-2, "the change itself must be seen"


@torch.no_grad()
def test_a_state_depends_on_all_tokens_before_it(model):
    tokens = random_tokens(1, 24, seed=5)
    last = model.states(tokens)[0, -1]
    for position in range(24):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCABULARY
        assert not torch.equal(model.states(changed)[0, -1], last), position


def test_a_window_longer_than_the_positions_is_refused():
    gpt = build_model(ModelId.parse("gpt-tiny-16"), VOCABULARY, seed=0)
    assert gpt.states(random_tokens(1, 16)).shape == (1, 16, gpt.hidden_size)
    with pytest.raises(InputError, match="16 positions"):
        gpt.states(random_tokens(1, 17))


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "mamba", "mamba2", "hyena"])
def test_all_but_gpt_take_windows_of_any_length(arch):
    """Longer than the context of the model's name, and the states of the beginning are what they were without it."""
    model = build_model(ModelId.parse(f"{arch}-tiny-16"), VOCABULARY, seed=0).eval()
    assert model.context_limit is None
    tokens = random_tokens(2, 70)
    states = model.states(tokens)
    assert states.shape == (2, 70, model.hidden_size)
    for length in (1, 15, 16, 17, 50):
        torch.testing.assert_close(model.states(tokens[:, :length]), states[:, :length], atol=1e-5, rtol=1e-5)


@EVERY
def test_weights_are_a_function_of_the_seed_alone(arch):
    identity = ModelId.parse(f"{arch}-tiny-32")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build_model(identity, VOCABULARY, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator must stay as it was"
    torch.manual_seed(12)
    again = build_model(identity, VOCABULARY, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build_model(identity, VOCABULARY, seed=2).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_special_tokens_are_ours_and_nothing_drops_out(model):
    config = model.network.config
    assert (config.bos_token_id, config.eos_token_id) == (BOS, EOS)
    assert config.pad_token_id in (None, PAD), "another token would be taken for padding by transformers"
    assert all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    tokens = random_tokens(1, 20)
    with torch.no_grad():
        trained = model.train().states(tokens)
        evaluated = model.eval().states(tokens)
    torch.testing.assert_close(trained, evaluated, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_saved_model_comes_back_whole(model, tmp_path):
    save_model(model, tmp_path / "saved")
    written = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors"} <= written
    assert all(name.endswith((".json", ".safetensors")) for name in written), "pickles are not to be written"
    loaded = load_model(tmp_path / "saved").eval()
    assert type(loaded) is type(model)
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = random_tokens(3, CONTEXT, seed=6)
    assert torch.equal(loaded.logits(tokens), model.logits(tokens))


@torch.no_grad()
def test_transformers_loads_a_saved_model_by_itself(pair, tmp_path):
    model, original = pair
    save_model(model, tmp_path / "saved")
    library = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", local_files_only=True).eval()
    assert type(library) is type(original)
    tokens = random_tokens(3, CONTEXT, seed=6)
    torch.testing.assert_close(library(input_ids=tokens).logits, model.logits(tokens), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 20])
def test_the_network_alone_gives_the_same_logits(model, length):
    """`network(...)`, as users of transformers call it, against `logits`, as training computes them."""
    tokens = random_tokens(2, length, seed=9)
    torch.testing.assert_close(model.network(input_ids=tokens).logits, model.logits(tokens), atol=1e-5, rtol=0)


def test_a_folder_without_safetensors_is_refused(model, tmp_path):
    model.network.config.save_pretrained(tmp_path)
    torch.save(model.network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(tmp_path)


@EVERY
def test_a_tiny_batch_is_learned_by_heart(arch):
    """One step lowers the loss; fifteen on the same batch leave a small part of it."""
    model = build_model(ModelId.parse(f"{arch}-tiny-32"), VOCABULARY, seed=0).train()
    tokens, lengths = random_tokens(3, 20, seed=1), torch.tensor([20, 13, 20])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss, predicted = model.loss(tokens, lengths)
        optimizer.zero_grad()
        (loss / predicted).backward()
        optimizer.step()
        losses.append(loss.item() / predicted)
    assert losses[0] > 0.9 * math.log(VOCABULARY), "nothing is known at first"
    assert losses[1] < losses[0] - 0.1
    assert losses[-1] < 0.4 * losses[0]


@EVERY
def test_every_parameter_is_trained(arch):
    """None is left without a gradient, by being unused or cut off."""
    model = disturbed(arch)
    model.zero_grad()
    model.loss(random_tokens(2, 32, seed=2), torch.tensor([32, 32]))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_an_unknown_kind_of_model_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"'bert'.*gpt2, llama, mamba, mamba2, ehrctx_hyena"):
        load_model(tmp_path)


@pytest.mark.parametrize(("length", "kernel"), [(1, 4), (3, 4), (20, 4), (20, 1), (9, 7)])
def test_the_convolution_is_a_depthwise_one_padded_on_the_left(length, kernel):
    generator = torch.Generator().manual_seed(length * 10 + kernel)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight, bias = (t.requires_grad_() for t in (randn(2, length, 5), randn(5, kernel), randn(5)))
    direction = randn(2, length, 5)
    y = depthwise_causal_convolution(x, weight, bias)
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    expected = F.conv1d(padded, weight.unsqueeze(1), bias, groups=5).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad((y * direction).sum(), (x, weight, bias))
    wanted = torch.autograd.grad((expected * direction).sum(), (x, weight, bias))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
