"""Every argument of transformers' models gives their own result under our operators, or is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Mamba2ForCausalLM, MambaForCausalLM

from ehrctx.errors import InputError
from ehrctx.models.export import write_standalone
from ehrctx.models.model import build_model, load_model, save_model
from ehrctx.study import ModelId

torch.set_num_threads(1)

VOCABULARY, LENGTH, NEW = 61, 24, 8
ORIGINALS = {
    "gpt": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
}
WITHOUT_CACHE = ("mamba", "mamba2")
TOKENS = torch.randint(7, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 4}


def random_network(arch: str):
    """A network with our operators whose weights are larger than at random start, to show errors."""
    model = build_model(ModelId.parse(f"{arch}-tiny-64"), VOCABULARY, seed=3).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                parameter.mul_(1.2)
    return model.network


@pytest.fixture(scope="module", params=ORIGINALS)
def pair(request):
    """Our network, and transformers' own with the same weights."""
    ours = random_network(request.param)
    original = ORIGINALS[request.param](ours.config)
    original.load_state_dict(ours.state_dict())
    return ours, original.eval()


@pytest.fixture(scope="module")
def hyena():
    return random_network("hyena")


def mask_without(positions: slice) -> torch.Tensor:
    mask = torch.ones_like(TOKENS)
    mask[0, positions] = 0
    return mask


@pytest.mark.parametrize("padding", [slice(0, 7), slice(7, 10)], ids=["on the left", "in the middle"])
def test_padding_before_a_token_is_left_out(pair, padding):
    ours, _ = pair
    mask = mask_without(padding)
    with torch.no_grad():
        logits, expected = (network(input_ids=TOKENS, attention_mask=mask).logits for network in pair)
        without_mask = ours(input_ids=TOKENS).logits
    after = (0, slice(padding.stop, None))
    assert (without_mask[after] - expected[after]).abs().max() > 1e-2, "the mask must matter"
    torch.testing.assert_close(logits[after], expected[after], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], expected[1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_labels_hidden_states_and_embeddings(pair):
    ours, _ = pair
    found, expected = (network(input_ids=TOKENS, labels=TOKENS, output_hidden_states=True) for network in pair)
    torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.hidden_states, expected.hidden_states, atol=1e-4, rtol=0)
    embedded = ours(inputs_embeds=ours.get_input_embeddings()(TOKENS)).logits
    torch.testing.assert_close(embedded, expected.logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_positions(pair):
    """Two windows in one row, whose positions begin anew; a Mamba has none, here and in transformers."""
    positions = torch.arange(LENGTH).remainder(LENGTH // 2)[None]
    found, expected = (network(input_ids=TOKENS[:1], position_ids=positions).logits for network in pair)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_gradient_checkpointing(pair):
    gradients = []
    for network in pair:
        network.train().gradient_checkpointing_enable()
        network.zero_grad()
        network(input_ids=TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
        network.gradient_checkpointing_disable()
        network.eval()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("choice", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
def test_generation_without_a_cache(pair, choice):
    ours, original = pair
    expected = original.generate(TOKENS, **GREEDY, **({"use_cache": False} | choice))
    assert torch.equal(ours.generate(TOKENS, **GREEDY, **choice), expected)


def test_generation_from_prompts_of_two_lengths(pair):
    mask = mask_without(slice(0, 7))
    found, expected = (n.generate(TOKENS, attention_mask=mask, use_cache=False, **GREEDY) for n in pair)
    assert torch.equal(found, expected)


def test_a_cache_is_right_or_refused(pair):
    ours, original = pair
    if original.config.model_type in WITHOUT_CACHE:
        with pytest.raises(InputError, match=r"has no cache.*use_cache=False"):
            ours.generate(TOKENS, use_cache=True, **GREEDY)
        with pytest.raises(InputError, match="has no cache"), torch.no_grad():
            ours(input_ids=TOKENS, use_cache=True)
    else:
        expected = original.generate(TOKENS, use_cache=False, **GREEDY)
        assert torch.equal(ours.generate(TOKENS, use_cache=True, **GREEDY), expected)


@pytest.mark.parametrize("arch", WITHOUT_CACHE)
def test_an_export_that_we_load_ourselves_generates_without_asking_for_a_cache(tmp_path, arch):
    """An export says `use_cache: true`, for transformers."""
    ours, out = build_model(ModelId.parse(f"{arch}-tiny-64"), VOCABULARY, seed=3).eval(), tmp_path / "export"
    save_model(ours, tmp_path / "model")
    out.mkdir()
    write_standalone(tmp_path / "model", out)
    loaded = load_model(out).eval().network
    assert torch.equal(loaded.generate(TOKENS, **GREEDY), ours.network.generate(TOKENS, **GREEDY))
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=TOKENS).logits, ours.network(input_ids=TOKENS).logits)


@torch.no_grad()
def test_hyena_takes_labels_embeddings_and_gives_hidden_states(hyena):
    output = hyena(input_ids=TOKENS, labels=TOKENS, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert len(output.hidden_states) == hyena.config.num_hidden_layers + 1
    torch.testing.assert_close(hyena.lm_head(output.hidden_states[-1]), output.logits)
    embedded = hyena(inputs_embeds=hyena.get_input_embeddings()(TOKENS), logits_to_keep=2).logits
    assert torch.equal(embedded, output.logits[:, -2:])


@torch.no_grad()
def test_hyena_refuses_what_it_cannot_do(hyena):
    plain = hyena(input_ids=TOKENS).logits
    assert torch.equal(hyena(input_ids=TOKENS, attention_mask=mask_without(slice(20, None))).logits, plain)
    with pytest.raises(ValueError, match="padding before a token"):
        hyena(input_ids=TOKENS, attention_mask=mask_without(slice(0, 7)))
    with pytest.raises(ValueError, match="'position_ids'"):
        hyena(input_ids=TOKENS, position_ids=torch.arange(LENGTH)[None])
    with pytest.raises(ValueError, match="'past_key_values'"):
        hyena(input_ids=TOKENS, past_key_values=object())
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        hyena()


def test_hyena_generates_the_same_with_a_cache_that_it_does_not_need(hyena):
    expected = hyena.generate(TOKENS, use_cache=False, **GREEDY)
    assert torch.equal(hyena.generate(TOKENS, use_cache=True, **GREEDY), expected)
