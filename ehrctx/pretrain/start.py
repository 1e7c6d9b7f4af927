"""`ehrctx pretrain --from`: the first weights of a training, from a folder instead of drawn.

The folder is a model of ours, an export of one, or a published checkpoint in Hugging Face's layout, such as those of
the study (https://huggingface.co/collections/StanfordShahLab/context-clues), whose llama has the shape of the size
`paper` (123,301,632 parameters, with its vocabulary).

Everything but the embeddings is kept as it is. A token id means nothing without the vocabulary that gave it, so a row
of the embeddings is kept only where both sides are known to mean the same: all rows where the folder was trained on the
very same timelines, those that its `vocabulary.parquet` matches elsewhere, none where it says nothing, even if the
sizes agree. The other rows stay as a new model draws them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ehrctx.artifacts import MANIFEST, fingerprint
from ehrctx.errors import InputError
from ehrctx.models import gpt, hyena, llama, mamba, mamba2
from ehrctx.models.folder import read_json
from ehrctx.models.model import CLASSES, HEAD, SPECIAL, TimelineModel, build_model, model_of
from ehrctx.pretrain.distribution import is_first_process
from ehrctx.pretrain.release import KIND as EXPORT
from ehrctx.pretrain.release import VOCABULARY
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.pretrain.trained import weight_files
from ehrctx.study import ModelId, Rope
from ehrctx.timelines.store import Timelines

ARCHITECTURE_OF = {"gpt2": "gpt", "llama": "llama", "mamba": "mamba", "mamba2": "mamba2", "ehrctx_hyena": "hyena"}
SIZES = {"gpt": gpt.SIZES, "llama": llama.SIZES, "mamba": mamba.SIZES, "mamba2": mamba2.SIZES, "hyena": hyena.SIZES}
MEANING = ("kind", "code", "unit", "lower", "upper", "text")
# What a training module puts before the names of its network.
WRAPPERS = ("", "model.", "network.", "module.", "_orig_mod.")
# Constants that older versions of transformers saved.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# What a config says about the file it came from, not about the network.
ELSEWHERE = ("auto_map", "architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version")
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of `folder`, by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = weight_files(folder)
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError):
        raise InputError(f"{folder}: the weights are damaged. Fetch or make the folder again.") from None


def _positioned(values: dict[str, Any], config: Any, rope: Rope, context: int) -> dict[str, Any]:
    """The values of a llama's config with `rope` in the place of its own; what `rope` leaves out is the folder's.

    Stretching begins at the context before the folder's own was stretched, if it was.
    """
    known = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    base = known.pop("rope_theta", None) or config.rope_theta  # transformers 4 keeps it apart
    theta, longest = rope.theta or base, config.max_position_embeddings
    rest = {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling", "rope_parameters")}
    stretched = known.get("rope_type", "default") != "default"
    if rope.scaling == "none":
        return rest | {"rope_theta": theta} | ({"rope_scaling": known} if stretched else {})
    before = round(longest / known["factor"]) if stretched else longest
    original = rope.original_context or known.get("original_max_position_embeddings") or before
    return rest | llama.positions(rope.model_copy(update={"theta": theta, "original_context": original}), context)


def _checked_config(folder: Path, model: ModelId, rope: Rope) -> Any:
    """The folder's config, free of dropout, positioned by `rope` where that says anything.

    Refused where its architecture or shape is not what `model` names.
    """
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    arch = ARCHITECTURE_OF.get(str(kind))
    if arch is None:
        raise InputError(
            f"{folder}/config.json: no model type {kind!r} here; known: {', '.join(ARCHITECTURE_OF)}. "
            f"Start from one of these."
        )
    if arch != model.arch:
        raise InputError(
            f"{folder} holds a {arch}, but the model to train is a {model.arch}. Name a {arch}, or another folder."
        )
    config_class = CLASSES[str(kind)].config_class
    try:
        read, _ = config_class.get_config_dict(folder, local_files_only=True)  # knows how infinities are written
        values = {k: v for k, v in read.items() if k not in ELSEWHERE and (k != "n_positions" or arch == "gpt")}
        config = config_class.from_dict(values)
        if arch == "llama" and rope != Rope():
            config = config_class.from_dict(_positioned(values, config, rope, model.context))
    except (TypeError, ValueError):
        raise InputError(
            f"{folder}/config.json is not the config of a {kind}. Fetch or make the folder again."
        ) from None
    _check_shape(folder, config, model)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.use_cache = False
    return config


def _check_shape(folder: Path, config: Any, model: ModelId) -> None:
    sizes = SIZES[model.arch]
    shape = {name: getattr(config, name) for name in sizes[model.size]}
    if shape != sizes[model.size]:
        same = [size for size, wanted in sizes.items() if shape == wanted]
        remedy = f"Name the model {model.arch}-{same[0]}-{model.context}." if same else "No size here has this shape."
        found, wanted = (", ".join(f"{k} {v}" for k, v in one.items()) for one in (shape, sizes[model.size]))
        raise InputError(f"{folder} has {found}; {model.arch}-{model.size} means {wanted}. {remedy}")
    if model.arch == "gpt" and config.n_positions < model.context:
        raise InputError(
            f"{folder} learned {config.n_positions:,} positions, fewer than the context length of {model.context:,}, "
            f"and a gpt has no others. Use a context length of at most {config.n_positions:,}, or another architecture."
        )


def _aligned(folder: Path, weights: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights under transformers' names, each of which is there once and has the shape that the config asks for.

    A prefix that a training module left is taken off, and the base model's is put before names that lack it.
    """
    with torch.device("meta"):
        network = CLASSES[config.model_type](config)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found = {name: tensor for name, tensor in weights.items() if not name.endswith(BUFFERS)}

    def renamed(wrapper: str, base: str) -> dict[str, Tensor]:
        return {
            HEAD if name.endswith(HEAD) else base + name.removeprefix(wrapper): tensor for name, tensor in found.items()
        }

    bases = ("", f"{network.base_model_prefix}.")
    candidates = [renamed(wrapper, base) for wrapper in WRAPPERS for base in bases]
    state = max(candidates, key=lambda names: len(names.keys() & expected.keys()))
    lacking = expected.keys() - state.keys() - ({HEAD} if config.tie_word_embeddings else set())
    misshapen = {name for name in state.keys() & expected.keys() if state[name].shape != expected[name]}
    for names, what in (
        (lacking, "are not in its weights"),
        (state.keys() - expected.keys() | misshapen, "are in its weights with no place or another shape"),
    ):
        if names:
            raise InputError(
                f"{folder}: {len(names):,} tensors {what}, as its config.json describes the model; the first is "
                f"{min(names)!r}. Give config and weights of one model."
            )
    if config.tie_word_embeddings and HEAD in state:  # some trained a head of its own and kept the config's default
        config.tie_word_embeddings = torch.equal(state[HEAD], state[_input_embeddings(network)])
    return state


def _input_embeddings(network: PreTrainedModel) -> str:
    """The name of the table of input embeddings."""
    weight = network.get_input_embeddings().weight
    return next(name for name, parameter in network.named_parameters() if parameter is weight)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of ours; empty for a published one."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = read_json(folder / MANIFEST)
    return manifest if manifest.get("kind") in (MODEL, EXPORT) else {}


def matched_rows(theirs: Path, ours: Path, size: int) -> np.ndarray:
    """For each token of the vocabulary file `ours`, the token of `theirs` with the same meaning, or else with that of
    its `initial` one; int64[n], -1: none.

    `size` is how many rows the embeddings that belong to `theirs` have.
    """
    import polars as pl

    from ehrctx.timelines.vocabulary import SCHEMA

    try:
        there, here = (
            pl.read_parquet(file).select(pl.col(name).cast(SCHEMA[name]) for name in ("token", *MEANING, *more))
            for file, more in ((theirs, ()), (ours, ("initial",)))
        )
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(
            f"{theirs} is not a vocabulary: it needs the columns token, {', '.join(MEANING)}. Make the folder again."
        ) from None
    if there.filter(pl.col("token") < size)["token"].n_unique() < there.height:
        raise InputError(f"{theirs}: the token ids do not fit the {size:,} rows of the weights. Make the folder again.")
    from_there = there.unique(MEANING, keep="first", maintain_order=True).rename({"token": "row"})
    found = here.join(from_there, on=MEANING, how="left", nulls_equal=True, maintain_order="left")
    rows = found["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    # a token that was added to their vocabulary begins as the one that stood for it
    initial = found["initial"].cast(pl.Int64).fill_null(-1).to_numpy()
    return np.where((rows < 0) & (initial >= 0), rows[initial], rows)


def _kept_rows(folder: Path, manifest: dict[str, Any], store: Timelines, size: int) -> tuple[str, np.ndarray]:
    """('same', 'matched' or 'drawn', the folder's row for each token of the store or -1; int64[vocabulary])."""
    recorded = manifest.get("inputs", {}).get("timelines", manifest.get("settings", {}).get("timelines"))
    if recorded is not None and recorded == fingerprint(store.path):
        return "same", np.arange(store.vocabulary_size)
    if (folder / VOCABULARY).is_file():
        return "matched", matched_rows(folder / VOCABULARY, store.path / VOCABULARY, size)
    return "drawn", np.full(store.vocabulary_size, -1)


@torch.no_grad()
def _filled(state: dict[str, Tensor], config: Any, rows: np.ndarray, seed: int) -> TimelineModel:
    """A model drawn from `seed` whose body is `state` and whose embeddings are those rows of it that are kept."""
    size = len(rows)
    for name, value in {**SPECIAL, "vocab_size": size}.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_of(config)
    network = model.network
    tables = {_input_embeddings(network), HEAD}
    kept = np.flatnonzero(rows >= 0)
    for name in tables & state.keys():
        table = network.get_parameter(name)
        table[kept] = state[name][rows[kept]].to(table.dtype)
    network.load_state_dict({n: t for n, t in state.items() if n not in tables}, strict=False)
    return model


def _record_positions(config: Any, context: int) -> None:
    """Plain rotary positions have no limit: it is only recorded. Scaled ones are computed from theirs, and keep it."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") == "default":
        config.max_position_embeddings = context


def first_weights(
    model_id: ModelId, store: Timelines, seed: int, rope: Rope, folder: Path | None, out: Path
) -> tuple[TimelineModel, dict[str, Any]]:
    """A model for the store's vocabulary, drawn from `seed` or begun from `folder`, and the facts of that start.

    Facts: vocabulary ('same', 'matched' or 'drawn', see above), rows_kept (share of the store's tokens), earlier_tokens
    (what the folder's model was trained on, if it says so); none where all was drawn.
    Raises InputError where the folder cannot be the start of `model_id`, or is `out`, which the training replaces.
    """
    if folder is None:
        return build_model(model_id, store.vocabulary_size, seed, rope), {}
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--from: no such folder: {folder}. Give a folder on this machine; nothing is fetched.")
    if folder.resolve() == Path(out).resolve():
        raise InputError(f"--from and --out are both {folder}, which would be replaced. Give another --out.")
    config = _checked_config(folder, model_id, rope)
    state = _aligned(folder, _read_weights(folder), config)
    manifest = _manifest(folder)
    how, rows = _kept_rows(folder, manifest, store, config.vocab_size)
    said = [f"Starts from {folder}:"]
    if how == "drawn":
        said.append(f"embeddings drawn anew, the rest kept (no {VOCABULARY} says what its tokens mean).")
    else:
        n = int((rows >= 0).sum())
        said.append(f"{n:,} of {len(rows):,} tokens ({n / len(rows):.1%}) keep their embeddings, and all else is kept.")
    if model_id.arch == "llama" and config.max_position_embeddings < model_id.context:
        said.append(
            f"It was made for at most {config.max_position_embeddings:,} positions; longer ones are new to it "
            f"(pretraining.rope can stretch them)."
        )
        _record_positions(config, model_id.context)
    if is_first_process():
        print(" ".join(said), file=sys.stderr, flush=True)
    facts = manifest.get("facts", {})
    earlier = facts.get("tokens", 0) + facts.get("earlier_tokens", facts.get("start", {}).get("earlier_tokens", 0))
    started = {"vocabulary": how, "rows_kept": float(np.mean(rows >= 0)), "earlier_tokens": earlier}
    return _filled(state, config, rows, seed), started
