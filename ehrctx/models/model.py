"""The contract of every architecture, and how a model is built, saved and loaded.

All are causal and padded on the right, so no padding mask is passed: what follows a position cannot change it. States
are gathered at the last real token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Mamba2ForCausalLM,
    MambaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from ehrctx.errors import InputError
from ehrctx.models import gpt, hyena, llama, mamba, mamba2
from ehrctx.models.folder import CONFIG, WEIGHTS, read_json
from ehrctx.models.ops.linear import use_our_linear
from ehrctx.models.ops.token_loss import token_loss, token_losses
from ehrctx.study import ModelId, Rope
from ehrctx.timelines.spec import BOS, EOS

# No padding token: transformers would ask for a mask, which right padding makes needless.
SPECIAL: dict[str, Any] = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None}
BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "gpt": gpt.build,
    "llama": llama.build,
    "mamba": mamba.build,
    "mamba2": mamba2.build,
    "hyena": hyena.build,
}
CLASSES: dict[str, Any] = {
    "gpt2": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "mamba": MambaForCausalLM,
    "mamba2": Mamba2ForCausalLM,
    "ehrctx_hyena": hyena.HyenaForCausalLM,
}
HEAD = "lm_head.weight"  # in all of them
# What replaces transformers' operators after loading.
OURS: dict[str, Callable[[Any], PreTrainedModel]] = {
    "llama": llama.use_our_operators,
    "mamba": mamba.use_our_operators,
    "mamba2": mamba2.use_our_operators,
}
AutoConfig.register("ehrctx_hyena", hyena.HyenaConfig, exist_ok=True)
AutoModelForCausalLM.register(hyena.HyenaConfig, hyena.HyenaForCausalLM, exist_ok=True)


class TimelineModel(nn.Module):
    """A causal language model over tokens of timelines, around a `PreTrainedModel` of transformers."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    @property
    def context_limit(self) -> int | None:
        """How many positions the network can tell apart; None where any length works."""
        return getattr(self.network.config, "n_positions", None)

    @property
    def hidden_size(self) -> int:
        return int(self.network.config.hidden_size)

    def states(self, tokens: Tensor) -> Tensor:
        """Last-layer states (after the final norm) [batch, length, hidden] of right-padded `tokens` [batch, length]."""
        limit = self.context_limit
        if limit is not None and tokens.shape[1] > limit:
            raise InputError(
                f"a window of {tokens.shape[1]:,} tokens is longer than the {limit:,} positions this model learned. "
                f"Use a context length of at most {limit:,}."
            )
        return self.network.base_model(input_ids=tokens, use_cache=False).last_hidden_state

    def logits(self, tokens: Tensor) -> Tensor:
        """[batch, length, vocabulary], for tests and small inputs: training never holds them all."""
        return self.states(tokens) @ self.network.get_output_embeddings().weight.t()

    def loss(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
        """Sum of the next-token losses (nats) over real tokens, and how many were predicted."""
        positions = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        real = positions < (lengths - 1).unsqueeze(1)
        states = self.states(tokens)[:, :-1][real]
        return token_loss(states, self.network.get_output_embeddings().weight, tokens[:, 1:][real]), len(states)

    def token_losses(self, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Loss (nats) of the tokens at (`rows`, `positions`) int64[n], each given all before it; float32[n]."""
        states = self.states(tokens)[rows, positions - 1]
        return token_losses(states, self.network.get_output_embeddings().weight, tokens[rows, positions])


def _timeline_model(network: PreTrainedModel) -> TimelineModel:
    """Around a network that has all of our operators but the linear layers, which are the same for all."""
    use_our_linear(network.base_model, (nn.Linear, Conv1D, hyena.ResidualLinear))
    return TimelineModel(network)


def _with_our_operators(network: PreTrainedModel) -> TimelineModel:
    kind = network.config.model_type
    return _timeline_model(OURS[kind](network) if kind in OURS else network)


def model_of(config: PretrainedConfig) -> TimelineModel:
    """A model of this config, with our operators in the place of transformers'; its weights are drawn."""
    return _with_our_operators(CLASSES[config.model_type](config))


def build_model(model: ModelId, vocabulary_size: int, seed: int, rope: Rope | None = None) -> TimelineModel:
    """A model with weights drawn from `seed`, which leaves torch's global generator as it was.

    `rope`: the positions of a Llama model, the published ones if left out; the others have none to turn.
    """
    positions = {"rope": rope or Rope()} if model.arch == "llama" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _timeline_model(BUILDERS[model.arch](model.size, vocabulary_size, model.context, SPECIAL, **positions))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars, and no advice to install CUDA kernels: it does not concern our scan."""
    shown = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(shown)
        transformers.logging.enable_progress_bar()


def save_model(model: TimelineModel, folder: Path) -> None:
    """config.json and model.safetensors, for `transformers.AutoModelForCausalLM.from_pretrained`.

    transformers knows Hyena once this module is imported.
    """
    with _quiet_transformers():
        model.network.save_pretrained(folder)


def _read_config(folder: Path) -> tuple[PretrainedConfig, dict[str, tuple[int, ...]]]:
    """The config of a folder, and name -> shape of the tensors of a model that it describes."""
    kind = read_json(folder / CONFIG).get("model_type")
    if kind not in CLASSES:
        raise InputError(f"{folder / CONFIG}: no model type {kind!r} here; known: {', '.join(CLASSES)}.")
    try:
        config = CLASSES[kind].config_class.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            state = CLASSES[kind](config).state_dict()
    except Exception:  # transformers checks a config in many places, each in its own way
        raise InputError(
            f"{folder / CONFIG} does not describe a {kind}: a value is missing or wrong. Make the folder again."
        ) from None
    return config, {name: tuple(tensor.shape) for name, tensor in state.items()}


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file, none of which is read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        raise InputError(f"{file} is damaged or cut off. Make the folder again.") from None


def check_model_folder(folder: Path) -> PretrainedConfig:
    """The config of a folder whose weights are those that it describes: each tensor is there, in its shape.

    transformers would draw anew what is missing, and leave out what it does not know. Raises InputError by file.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} holds no {WEIGHTS}. Give the folder of a pretrained model.")
    config, expected = _read_config(folder)
    shapes = _read_shapes(folder / WEIGHTS)
    tied = {HEAD} if config.tie_word_embeddings else set()
    wrong = {name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name]}
    wrong |= (expected.keys() - shapes.keys() - tied) | (shapes.keys() - expected.keys())
    if wrong:
        raise InputError(
            f"{folder / WEIGHTS}: {len(wrong):,} tensors are missing, unknown or of another shape than {CONFIG} says; "
            f"the first is {min(wrong)!r}. Give config and weights of one model, or make the folder again."
        )
    return config


def load_model(folder: Path) -> TimelineModel:
    """A model that `save_model` wrote; safetensors only, nothing is fetched. Raises as `check_model_folder`."""
    config = check_model_folder(folder)
    with _quiet_transformers():
        network = CLASSES[config.model_type].from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return _with_our_operators(network)
