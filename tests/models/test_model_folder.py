"""A model's folder that is damaged, or is none: one sentence that names the file, whoever reads it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ehrctx.errors import InputError
from ehrctx.models.export import write_standalone
from ehrctx.models.model import build_model, check_model_folder, load_model, save_model
from ehrctx.study import ARCHITECTURES, ModelId

VOCABULARY = 23


@pytest.fixture
def folder(tmp_path):
    save_model(build_model(ModelId.parse("gpt-tiny-32"), VOCABULARY, 0), tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-1_000])


DAMAGE = {
    "weights cut off": (lambda f: cut_off(f / "model.safetensors"), r"model\.safetensors is damaged or cut off"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("x" * 99), r"model\.safetensors is damaged"),
    "weights a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        r"holds no model\.safetensors",
    ),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), r"holds no model\.safetensors"),
    "a tensor missing": (
        lambda f: change_weights(f, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight")),
        r"model\.safetensors: 1 tensors are missing.*'transformer\.h\.1\.mlp\.c_fc\.weight'",
    ),
    "a tensor too many": (
        lambda f: change_weights(f, lambda tensors: tensors.update(extra=torch.zeros(1))),
        r"model\.safetensors: 1 tensors .*'extra'",
    ),
    "fewer layers": (lambda f: change_config(f, n_layer=2), r"model\.safetensors: \d+ tensors .*'transformer\.h\.2"),
    "another vocabulary": (lambda f: change_config(f, vocab_size=24), r"model\.safetensors: 1 tensors .*wte"),
    "config missing": (lambda f: (f / "config.json").unlink(), r"holds no config\.json"),
    "config cut off": (lambda f: cut_off(f / "config.json"), r"config\.json is damaged"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), r"config\.json is damaged"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json is damaged"),
    "no model type": (lambda f: change_config(f, model_type=None), r"config\.json: no model type None here"),
    "another model type": (lambda f: change_config(f, model_type="llama"), r"(config|model)\.(json|safetensors)"),
    "heads do not divide": (lambda f: change_config(f, n_head=7), r"config\.json does not describe a gpt2"),
    "a value is text": (lambda f: change_config(f, n_embd="wide"), r"config\.json does not describe a gpt2"),
    "a negative value": (lambda f: change_config(f, n_layer=-1, vocab_size=-4), r"config\.json|model\.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_by_file(folder, name):
    damage, words = DAMAGE[name]
    damage(folder)
    out = folder.parent / "export"
    out.mkdir()
    for read in (load_model, check_model_folder, lambda path: write_standalone(path, out)):
        with pytest.raises(InputError, match=words) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_and_its_export_pass_the_check(tmp_path, arch):
    model, out = build_model(ModelId.parse(f"{arch}-tiny-32"), VOCABULARY, 0), tmp_path / "export"
    save_model(model, tmp_path / "model")
    out.mkdir()
    write_standalone(tmp_path / "model", out)
    for path in (tmp_path / "model", out):
        assert check_model_folder(path).vocab_size == VOCABULARY
        state = load_model(path).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
