"""`pretrain --from`: which weights are kept, by transformers' own classes, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from ehrctx.artifacts import fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.models.mamba import ScanMixer
from ehrctx.models.model import build_model, load_model, save_model
from ehrctx.pretrain.release import export
from ehrctx.pretrain.run import CHECKPOINT, pretrain
from ehrctx.pretrain.start import first_weights, matched_rows
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.study import ARCHITECTURES, ModelId, Pretraining, Rope
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.vocabulary import SCHEMA

PLAN = Pretraining(
    tokens=800, tokens_per_step=200, batch_tokens=200, validations=2, checkpoint_seconds=0, threads=1,
    accelerator="cpu", learning_rate=1e-3,
)  # fmt: skip
STEPS = 4
OURS, THEIRS = 23, 40  # tokens of the store's vocabulary, and of the published folder's
SPECIALS = ["[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]


class Kill(BaseException):
    pass


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if module.progress["steps"] == self.step:
            raise Kill


def published(arch: str, **changes: Any):
    """A random network of transformers' own class, with the settings that published ones have and ours have not."""
    torch.manual_seed(11)
    if arch == "gpt":
        shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(**{"vocab_size": THEIRS, **shape, **changes})).eval()  # dropout 0.1
    if arch == "llama":
        shape = {
            "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 448, "max_position_embeddings": 64, "rope_theta": 10_000.0, "rms_norm_eps": 1e-6,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**{"vocab_size": THEIRS, **shape, **changes})).eval()
    shape = {"num_hidden_layers": 4, "hidden_size": 128, "state_size": 16, "expand": 2}
    return MambaForCausalLM(MambaConfig(**{"vocab_size": THEIRS, **shape, **changes})).eval()


def as_folder(network, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder


def rename(folder: Path, name_of) -> None:
    """Rewrites the weights under other names; None drops a tensor."""
    file = folder / "model.safetensors"
    renamed = {name_of(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in renamed.items() if name is not None}, file)


def vocabulary(codes: list[str], **columns: list) -> pl.DataFrame:
    """Specials, then one plain code a row; `columns` replace the values of the rows after the specials."""
    n = len(codes)
    rows = {"kind": ["code"] * n, "code": codes} | columns
    filled = {name: [None] * len(SPECIALS) + rows.get(name, [None] * n) for name in SCHEMA if name != "token"}
    filled["kind"][: len(SPECIALS)], filled["code"][: len(SPECIALS)] = ["special"] * len(SPECIALS), SPECIALS
    return pl.DataFrame({"token": list(range(n + len(SPECIALS))), **filled}, schema=SCHEMA)


@pytest.fixture(scope="module")
def store(small_timelines, tmp_path_factory) -> Path:
    """The small store with a vocabulary: code A0, A1 … is token 7, 8 …; it counts none of them."""
    folder = shutil.copytree(small_timelines, tmp_path_factory.mktemp("store") / "timelines")
    vocabulary([f"A{i}" for i in range(OURS - 7)]).write_parquet(folder / "vocabulary.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["tokenizer"] = {"name": "letters"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


PLAIN = Rope()


def start(name: str, folder: Path, store: Path, seed: int = 0, rope: Rope = PLAIN):
    out = folder.parent / "out"
    model, facts = first_weights(ModelId.parse(name), Timelines.open(store), seed, rope, folder, out)
    return model.eval(), facts


def windows(high: int = OURS) -> torch.Tensor:
    return torch.randint(0, high, (2, 32), generator=torch.Generator().manual_seed(2))


PUBLISHED = pytest.mark.parametrize("arch", ["gpt", "llama", "mamba"])


@PUBLISHED
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_published_folder_with_a_vocabulary_gives_its_own_logits(store, tmp_path, arch, wrapped):
    """Our token i is their token 39 - i: logits are those of their class on their ids, picked in our order."""
    network = published(arch)
    folder = as_folder(network, tmp_path / "published")
    if wrapped:
        rename(folder, lambda name: f"model.{name}")
    codes = [f"B{i}" for i in range(THEIRS - OURS)] + [f"A{i}" for i in reversed(range(OURS - 7))]
    table = vocabulary(codes)
    table.write_parquet(folder / "vocabulary.parquet")
    model, facts = start(f"{arch}-tiny-64", folder, store)
    ids = torch.tensor([*range(7), *(THEIRS - 1 - i for i in range(OURS - 7))])
    assert [table["code"][int(i)] for i in ids[7:]] == [f"A{i}" for i in range(OURS - 7)]
    with torch.no_grad():
        expected = network(ids[windows()]).logits[..., ids]
        torch.testing.assert_close(model.logits(windows()), expected, atol=1e-5, rtol=1e-5)
    assert facts == {"vocabulary": "matched", "rows_kept": 1.0, "earlier_tokens": 0}


@PUBLISHED
def test_without_a_vocabulary_the_body_is_kept_and_the_embeddings_are_new(store, tmp_path, capsys, arch):
    """Even if the sizes agree, ids may stand for other things."""
    network = published(arch, vocab_size=OURS)
    folder = as_folder(network, tmp_path / "published")
    model, facts = start(f"{arch}-tiny-64", folder, store)
    theirs = network.state_dict()
    tables = {n for n in theirs if n.endswith(("lm_head.weight", "wte.weight", "embed_tokens.weight"))}
    tables |= {n for n in theirs if n.endswith("embeddings.weight")}
    ours = model.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert len(tables) == 2
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) == (name not in tables), name
    # drawn as a new model draws them
    spread = network.config.initializer_range
    for name in tables:
        assert float(ours[name].std()) == pytest.approx(spread, rel=0.1)
        assert not (ours[name][:, None] == theirs[name]).all(dim=-1).any()
    again, _ = start(f"{arch}-tiny-64", folder, store)
    other, _ = start(f"{arch}-tiny-64", folder, store, seed=1)
    assert all(torch.equal(again.network.state_dict()[n], ours[n]) for n in ours)
    assert not torch.equal(other.network.get_input_embeddings().weight, model.network.get_input_embeddings().weight)
    assert facts == {"vocabulary": "drawn", "rows_kept": 0.0, "earlier_tokens": 0}
    assert "embeddings drawn anew" in capsys.readouterr().err


@PUBLISHED
def test_a_start_has_our_special_tokens_and_no_dropout(store, tmp_path, arch):
    config = start(f"{arch}-tiny-64", as_folder(published(arch), tmp_path / "published"), store)[0].network.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, None)
    assert config.vocab_size == OURS
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        assert getattr(config, name, 0.0) == 0.0
    if arch == "llama":
        assert config.rms_norm_eps == 1e-6, "what shapes no tensor stays the folder's"


def test_what_was_matched_in_part_is_counted_and_the_rest_is_new(store, tmp_path, capsys):
    network = published("llama")
    folder = as_folder(network, tmp_path / "published")
    known = [f"A{i}" for i in range(0, OURS - 7, 2)]  # every other code of ours
    codes = [f"B{i}" for i in range(THEIRS - 7 - len(known))] + known
    vocabulary(codes).drop("count", "weight", "description").write_parquet(folder / "vocabulary.parquet")
    model, facts = start("llama-tiny-64", folder, store)
    kept = 7 + len(known)
    assert facts["rows_kept"] == pytest.approx(kept / OURS)
    assert f"{kept} of {OURS} tokens ({kept / OURS:.1%}) keep their embeddings" in capsys.readouterr().err
    for ours, theirs in (
        (model.network.get_input_embeddings(), network.get_input_embeddings()),
        (model.network.get_output_embeddings(), network.get_output_embeddings()),
    ):
        for token in range(OURS):
            same = (theirs.weight == ours.weight[token]).all(dim=1).nonzero().flatten().tolist()
            if token < 7:
                assert same == [token]
            else:
                i = token - 7
                assert same == ([7 + codes.index(f"A{i}")] if i % 2 == 0 else [])


def test_meanings_are_matched_by_all_of_kind_code_unit_bounds_and_text(tmp_path):
    inf = math.inf
    columns = {
        "kind": ["code", "text", "text", "number", "number", "number", "withheld"],
        "unit": [None, None, None, "mg", "mg", None, None],
        "lower": [None, None, None, -inf, 1.5, -inf, None],
        "upper": [None, None, None, 1.5, inf, 1.5, None],
        "text": [None, "low", "high", None, None, None, None],
    }
    theirs, ours = tmp_path / "theirs.parquet", tmp_path / "ours.parquet"
    vocabulary(["X", "X", "X", "X", "X", "X", None], **columns).write_parquet(theirs)
    order = [5, 4, 3, 2, 1, 0]
    mine = {name: [values[i] for i in order] for name, values in columns.items()}
    mine = {name: [*values, *more] for (name, values), more in zip(
        mine.items(), (["code", "text", "number"], [None, None, "g"], [None, None, 1.5], [None, None, inf],
                       [None, "Low", None]), strict=True)}  # fmt: skip
    vocabulary(["X"] * 6 + ["Y", "X", "X"], **mine).write_parquet(ours)
    rows = matched_rows(theirs, ours, size=14)
    assert rows.tolist() == [*range(7), *(7 + i for i in order), -1, -1, -1]


@pytest.mark.parametrize("tokens", [[0, 0], [0, 40], [0, None]])
def test_a_vocabulary_that_does_not_fit_the_weights_is_refused(store, tmp_path, tokens):
    folder = as_folder(published("gpt"), tmp_path / "published")
    table = vocabulary([]).head(2).with_columns(token=pl.Series(tokens, dtype=pl.UInt32))
    table.write_parquet(folder / "vocabulary.parquet")
    with pytest.raises(InputError, match="the token ids do not fit the 40 rows of the weights"):
        start("gpt-tiny-64", folder, store)
    table.drop("unit").write_parquet(folder / "vocabulary.parquet")
    with pytest.raises(InputError, match="it needs the columns token, kind, code"):
        start("gpt-tiny-64", folder, store)
    (folder / "vocabulary.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="is not a vocabulary"):
        start("gpt-tiny-64", folder, store)


# --- layouts ---


def identical(folder: Path) -> None:
    """Gives the folder the small store's vocabulary, so that all its rows are kept."""
    vocabulary([f"A{i}" for i in range(OURS - 7)]).write_parquet(folder / "vocabulary.parquet")


def test_a_base_model_and_a_head_beside_it(store, tmp_path):
    """A training module that held `self.model = AutoModel(…)` and a head of its own, though the config ties them."""
    network = published("gpt", vocab_size=OURS)
    folder = as_folder(network, tmp_path / "published")
    rename(folder, lambda name: name.replace("transformer.", "model."))
    head = torch.randn(OURS, 128, generator=torch.Generator().manual_seed(1))
    save_file(load_file(folder / "model.safetensors") | {"lm_head.weight": head}, folder / "model.safetensors")
    identical(folder)
    model, _ = start("gpt-tiny-64", folder, store)
    with torch.no_grad():
        states = network.transformer(windows()).last_hidden_state
        expected = states @ head.t()
        torch.testing.assert_close(model.logits(windows()), expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
        save_model(model, tmp_path / "saved")
        again = load_model(tmp_path / "saved").eval()
        torch.testing.assert_close(again.logits(windows()), model.logits(windows()), atol=0, rtol=0)


def test_several_files_half_precision_and_old_buffers(store, tmp_path):
    network = published("gpt", vocab_size=OURS)
    folder = as_folder(network.to(torch.bfloat16), tmp_path / "published")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: weights[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    identical(folder)
    model, _ = start("gpt-tiny-64", folder, store)
    with torch.no_grad():
        expected = network.float()(windows()).logits
        torch.testing.assert_close(model.logits(windows()), expected, atol=1e-5, rtol=1e-5)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    file = folder / "config.json"
    values = {k: v for k, v in json.loads(file.read_text()).items() if k not in drop} | changes
    file.write_text(json.dumps(values))


def test_extra_keys_of_a_config_change_nothing(store, tmp_path):
    folder = as_folder(published("llama", vocab_size=OURS), tmp_path / "published")
    edit(
        folder, n_positions=16, auto_map={"AutoConfig": "x.y"}, torch_dtype="bfloat16", wandb_run="abc", eos_token_id=9
    )
    model, _ = start("llama-tiny-64", folder, store)
    assert model.context_limit is None
    save_model(model, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "auto_map" not in saved
    assert "n_positions" not in saved
    assert saved["eos_token_id"] == 1


def test_rotary_positions_as_older_versions_wrote_them(store, tmp_path):
    network = published("llama", vocab_size=OURS, rope_theta=777.0)
    folder = as_folder(network, tmp_path / "published")
    edit(folder, drop=("rope_parameters",), rope_theta=777.0, rope_scaling=None)
    identical(folder)
    model, _ = start("llama-tiny-64", folder, store)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(windows()), network(windows()).logits, atol=1e-5, rtol=1e-5)
    edit(folder, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert start("llama-tiny-128", folder, store)[0].network.config.max_position_embeddings == 64


def test_only_gpt_is_bound_to_its_positions(store, tmp_path, capsys):
    gpt = as_folder(published("gpt"), tmp_path / "gpt")
    with pytest.raises(InputError, match=r"learned 64 positions, fewer than the context length of 128.*at most 64"):
        start("gpt-tiny-128", gpt, store)
    assert start("gpt-tiny-32", gpt, store)[0].context_limit == 64
    capsys.readouterr()
    llama, _ = start("llama-tiny-128", as_folder(published("llama"), tmp_path / "llama"), store)
    assert "made for at most 64 positions" in capsys.readouterr().err
    assert llama.network.config.max_position_embeddings == 128
    assert llama.states(torch.zeros(1, 128, dtype=torch.int64)).shape == (1, 128, 128)
    hyena = tmp_path / "hyena"
    save_model(build_model(ModelId.parse("hyena-tiny-64"), OURS, 0), hyena)
    assert start("hyena-tiny-128", hyena, store)[0].network.config.filter_length == 64


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (Rope(theta=2e6), {"rope_type": "default", "rope_theta": 2e6}),
        (Rope(scaling="linear", factor=4), {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        (
            Rope(scaling="yarn", factor=4),
            {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_the_positions_of_a_start_are_stretched(store, tmp_path, rope, expected):
    """What the study leaves out is the folder's: its base, and the 64 tokens it was made for. Logits: transformers'."""
    network = published("llama", vocab_size=OURS)
    folder = as_folder(network, tmp_path / "llama")
    vocabulary([f"A{i}" for i in range(OURS - 7)]).write_parquet(folder / "vocabulary.parquet")
    model, _ = start("llama-tiny-256", folder, store, rope=rope)
    scaling = {key: value for key, value in expected.items() if key != "rope_theta"}
    theirs = LlamaConfig(
        vocab_size=OURS, num_hidden_layers=4, hidden_size=128, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=448, rms_norm_eps=1e-6, max_position_embeddings=256, rope_theta=expected["rope_theta"],
        rope_scaling=None if rope.scaling == "none" else scaling,
    )  # fmt: skip
    stretched = LlamaForCausalLM(theirs).eval()
    stretched.load_state_dict(network.state_dict())
    tokens = torch.randint(0, OURS, (2, 256), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, wanted, before = model.logits(tokens), stretched(tokens).logits, network(tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert (found - before).abs().max() > 0.01


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_a_start_that_is_stretched_stays_so(store, tmp_path, scaling):
    """The same key for a model and for the one that starts from it: 256 are 4 x 64 for both."""
    rope = Rope(scaling=scaling, factor=4)
    network = build_model(ModelId.parse("llama-tiny-256"), OURS, 0, rope).network
    folder = as_folder(network, tmp_path / "llama")
    frequencies = network.model.rotary_emb.inv_freq
    for said in (rope, PLAIN, Rope(theta=500_000)):
        started = start("llama-tiny-256", folder, store, rope=said)[0].network.model.rotary_emb.inv_freq
        torch.testing.assert_close(started, frequencies)
    other = start("llama-tiny-256", folder, store, rope=Rope(theta=1e4))[0].network.model.rotary_emb.inv_freq
    assert other[-1] > 2 * frequencies[-1]
    expected = build_model(ModelId.parse("llama-tiny-256"), OURS, 0, rope.model_copy(update={"theta": 1e4}))
    torch.testing.assert_close(other, expected.network.model.rotary_emb.inv_freq)


# --- refusals ---


def refusal(name: str, folder: Path, store: Path) -> str:
    with pytest.raises(InputError) as caught:
        start(name, folder, store)
    return str(caught.value)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "last.ckpt"])
def test_pickles_are_never_opened(store, tmp_path, pickle):
    folder = as_folder(published("gpt"), tmp_path / "published")
    (folder / "model.safetensors").unlink()
    (folder / pickle).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    said = refusal("gpt-tiny-64", folder, store)
    assert said.startswith(f"{folder} holds {pickle} and no model.safetensors: a pickle can run code")
    assert "save_pretrained(NEW_FOLDER)" in said
    assert "save_file" in said


def test_what_cannot_be_a_start_is_refused(store, tmp_path):
    folder = as_folder(published("gpt"), tmp_path / "published")
    assert "no such folder" in refusal("gpt-tiny-64", tmp_path / "nowhere", store)
    assert "holds a gpt, but the model to train is a llama" in refusal("llama-tiny-64", folder, store)
    said = refusal("gpt-small-64", folder, store)
    assert "n_layer 4, n_head 4, n_embd 128; gpt-small means n_layer 6, n_head 6, n_embd 384" in said
    assert said.endswith("Name the model gpt-tiny-64.")
    other = as_folder(published("gpt", n_layer=2), tmp_path / "other")
    assert refusal("gpt-tiny-64", other, store).endswith("No size here has this shape.")
    rename(folder, lambda name: None if name == "transformer.ln_f.bias" else name)
    assert "1 tensors are not in its weights" in refusal("gpt-tiny-64", folder, store)
    rename(folder, lambda name: name.replace("h.1.ln_1.bias", "h.1.ln_9.bias"))
    assert "2 tensors are not in its weights" in refusal("gpt-tiny-64", folder, store)
    save_file({}, folder / "model.safetensors")
    assert "tensors are not in its weights" in refusal("gpt-tiny-64", folder, store)
    (folder / "model.safetensors").write_bytes(b"broken")
    assert "the weights are damaged" in refusal("gpt-tiny-64", folder, store)
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal("gpt-tiny-64", folder, store)
    edit(folder, model_type="hyenadna")
    assert "no model type 'hyenadna' here; known: gpt2, llama, mamba" in refusal("gpt-tiny-64", folder, store)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refusal("gpt-tiny-64", folder, store)
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal("gpt-tiny-64", folder, store)


def test_tensors_of_other_shapes_or_names_are_refused(store, tmp_path):
    folder = as_folder(published("llama"), tmp_path / "published")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.extra.weight": torch.ones(2)}, folder / "model.safetensors")
    assert "1 tensors are in its weights with no place or another shape" in refusal("llama-tiny-64", folder, store)
    save_file(weights | {"model.norm.weight": torch.ones(64)}, folder / "model.safetensors")
    assert "the first is 'model.norm.weight'" in refusal("llama-tiny-64", folder, store)


def test_the_folder_that_would_be_replaced_is_refused(store, tmp_path):
    folder = as_folder(published("gpt"), tmp_path / "model")
    with pytest.raises(InputError, match="--from and --out are both"):
        pretrain(store, "gpt-tiny-32", PLAN, folder, tmp_path / "checkpoints", start=folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# --- our own folders, and the run ---


@pytest.fixture(scope="module")
def base(store, tmp_path_factory) -> Path:
    """A short training of gpt-tiny-32 on the store."""
    folder = tmp_path_factory.mktemp("base") / "model"
    pretrain(store, "gpt-tiny-32", PLAN, folder, folder.with_name("checkpoints"))
    return folder


@pytest.fixture
def untrained(store, tmp_path):
    """A function: arch -> a folder as `pretrain` writes it, with random weights."""

    def make(arch: str) -> Path:
        model = build_model(ModelId.parse(f"{arch}-tiny-32"), OURS, seed=8)
        facts = {"arch": arch, "size": "tiny", "context": 32, "parameters": 1, "hidden_size": 128, "tokens": 700}
        facts |= {"validation": [], "start": {"earlier_tokens": 50}}
        with new_artifact(
            tmp_path / "model", MODEL, {"model": f"{arch}-tiny-32"}, {"timelines": store}, facts
        ) as partial:
            save_model(model, partial)
        return tmp_path / "model"

    return make


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_our_model_and_its_export_keep_every_weight(untrained, store, tmp_path, arch):
    folder = untrained(arch)
    before = load_file(folder / "model.safetensors")
    export(folder, tmp_path / "export")
    for begin in (folder, tmp_path / "export"):
        model, facts = start(f"{arch}-tiny-32-s4", begin, store)
        now = model.network.state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
        assert facts == {"vocabulary": "same", "rows_kept": 1.0, "earlier_tokens": 750}
        assert (type(model.network.base_model.layers[0].mixer) is ScanMixer) if arch == "mamba" else True


def test_our_model_on_other_timelines_keeps_only_what_is_matched(untrained, write_timelines, store, tmp_path):
    folder = untrained("hyena")
    other = write_timelines(tmp_path / "timelines", seed=3)
    vocabulary([f"A{i}" for i in range(OURS - 10)] + ["C1", "C2", "C3"]).write_parquet(other / "vocabulary.parquet")
    assert start("hyena-tiny-32", folder, other)[1]["vocabulary"] == "drawn"
    export(folder, tmp_path / "export", store, minimum_count=1)
    model, facts = start("hyena-tiny-32", tmp_path / "export", other)
    assert facts["vocabulary"] == "matched"
    assert facts["rows_kept"] == pytest.approx(20 / 23)
    kept = load_file(folder / "model.safetensors")["model.embeddings.weight"]
    mine = model.network.get_input_embeddings().weight
    assert [bool(torch.equal(kept[i], mine[i])) for i in range(OURS)] == [True] * 20 + [False] * 3


def test_a_start_that_is_killed_and_resumed_is_never_killed(base, store, tmp_path):
    name = "gpt-tiny-32-s1"
    whole = pretrain(store, name, PLAN, tmp_path / "whole", tmp_path / "w.checkpoints", start=base)
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(store, name, PLAN, out, checkpoints, callbacks=[KillAt(2)], start=base)
    assert (checkpoints / CHECKPOINT).is_file()
    resumed = pretrain(store, name, PLAN, out, checkpoints, start=base)
    times = ("seconds", "tokens_per_second")
    assert {k: v for k, v in resumed.items() if k not in times} == {k: v for k, v in whole.items() if k not in times}
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    # it begins where the other ended
    first = json.loads((base / "manifest.json").read_text())["facts"]["validation"]
    assert whole["validation"][-1][1] < first[0][1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"]["start"] == manifest["settings"]["start"] == fingerprint(base)
    assert manifest["facts"]["start"]["vocabulary"] == "same"
    longer = start("gpt-tiny-32", out, store)[1]
    assert longer["earlier_tokens"] == whole["tokens"] + whole["start"]["earlier_tokens"] > whole["tokens"]


class Steps(Callback):
    def __init__(self) -> None:
        self.n = 0

    def on_train_batch_end(self, *_):
        self.n += 1


def test_another_start_is_another_run(base, store, tmp_path):
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(store, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[KillAt(2)], start=base)
    copy = shutil.copytree(base, tmp_path / "copy")
    for begin, steps in ((copy, STEPS - 2), (None, STEPS), (None, 0), (base, STEPS)):
        counted = Steps()
        pretrain(store, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[counted], start=begin)
        assert counted.n == steps, "the same folder at another place is the same start; any other is not"
    alone = json.loads((checkpoints / "run.json").read_text())
    assert alone["start"] == fingerprint(base)
    del alone["start"]
    assert set(alone) == {"model", "timelines", "settings"}, "a run without a start is known as before"


def test_the_published_sizes_are_those_of_paper():
    """The parameters that the study's model cards state for llama-base, with its vocabulary of 39,818."""
    with torch.device("meta"):
        model = build_model(ModelId.parse("llama-paper-512"), 39_818, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 123_301_632
