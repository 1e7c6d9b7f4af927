"""What is exported is loaded in a process that has no ehrctx, by transformers alone, and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from ehrctx.errors import InputError
from ehrctx.models.export import standalone_sources, write_standalone
from ehrctx.models.hyena import HyenaForCausalLM
from ehrctx.models.model import build_model, load_model, save_model
from ehrctx.study import ARCHITECTURES, ModelId

torch.set_num_threads(1)

VOCABULARY, CONTEXT = 61, 64
NEW = 5
EVERY = pytest.mark.parametrize("arch", ARCHITECTURES)


def prompts() -> torch.Tensor:
    return torch.randint(7, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def continued(model, prompt: torch.Tensor, n: int) -> list[list[int]]:
    """Greedy continuations, written out: the whole sequence again for every token, PAD after [EOS]."""
    rows, ended = prompt, torch.zeros(len(prompt), dtype=torch.bool)
    with torch.no_grad():
        for _ in range(n):
            chosen = model.logits(rows)[:, -1].argmax(-1)
            rows = torch.cat([rows, torch.where(ended, 4, chosen)[:, None]], dim=1)
            ended |= chosen == 1
    return rows[:, prompt.shape[1] :].tolist()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """arch -> the folder of a random model, and the folder exported from it."""
    root, folders = tmp_path_factory.mktemp("exported"), {}
    for arch in ARCHITECTURES:
        model = build_model(ModelId.parse(f"{arch}-tiny-{CONTEXT}"), VOCABULARY, seed=3)
        source, out = root / arch, root / f"{arch}.export"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and not name.endswith("A_log"):
                    parameter.mul_(1.0 if arch == "mamba" else 2.0)
        save_model(model, source)
        out.mkdir()
        write_standalone(source, out)
        folders[arch] = source, out
    return folders


@pytest.fixture(scope="module")
def elsewhere(exported, tmp_path_factory) -> dict[str, dict]:
    """What a process without ehrctx, network and our caches finds: class, logits, continuations, what was refused."""
    folder = tmp_path_factory.mktemp("elsewhere")
    np.save(folder / "prompts.npy", prompts().numpy())
    script = f"""
        import json, sys
        sys.modules["ehrctx"] = None  # an import of it fails
        import numpy as np, torch
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(1)
        prompt = torch.from_numpy(np.load("prompts.npy"))
        for arch, folder in { ({arch: str(out) for arch, (_, out) in exported.items()})!r}.items():
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=arch == "hyena").eval()
            with torch.no_grad():
                np.save(arch + ".npy", model(prompt).logits.numpy())
            mask = torch.ones_like(prompt)
            found = {{"class": type(model).__name__, "dtype": str(model.dtype)}}
            rows = model.generate(prompt, attention_mask=mask, max_new_tokens={NEW})
            found["new"] = rows[:, prompt.shape[1]:].tolist()
            if arch == "hyena":
                mask[0, 0] = 0
                try:
                    model.generate(prompt, attention_mask=mask, max_new_tokens=1)
                except ValueError as error:
                    found["padded"] = str(error)
            print(json.dumps({{"arch": arch, **found}}))
    """
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {row["arch"]: row | {"logits": np.load(folder / f"{row['arch']}.npy")} for row in rows}


@EVERY
def test_transformers_alone_computes_the_same_logits(exported, elsewhere, arch):
    with torch.no_grad():
        ours = load_model(exported[arch][0]).eval().logits(prompts()).numpy()
    assert np.abs(ours).max() > 0.5, "differences must show"
    np.testing.assert_allclose(elsewhere[arch]["logits"], ours, atol=1e-5, rtol=1e-5)
    names = {
        "gpt": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "mamba": "MambaForCausalLM",
        "mamba2": "Mamba2ForCausalLM",
    }
    assert elsewhere[arch]["class"] == names.get(arch, "HyenaForCausalLM")
    assert elsewhere[arch]["dtype"] == "torch.float32"


@EVERY
def test_transformers_alone_generates(exported, elsewhere, arch):
    expected = continued(load_model(exported[arch][0]).eval(), prompts(), NEW)
    assert len({token for row in expected for token in row}) > 2, "not one token only"
    assert elsewhere[arch]["new"] == [row[: len(elsewhere[arch]["new"][0])] for row in expected]


def test_hyena_refuses_padded_prompts(elsewhere):
    assert "Hyena cannot leave out padding" in elsewhere["hyena"]["padded"]


@EVERY
def test_the_config_is_complete_and_the_weights_are_the_same_bytes(exported, arch):
    source, out = exported[arch]
    config, generation = (json.loads((out / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    assert len(config["architectures"]) == 1
    assert (config["bos_token_id"], config["eos_token_id"], config["vocab_size"]) == (0, 1, VOCABULARY)
    assert [generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [0, 1, 4]
    assert config["use_cache"] is generation["use_cache"] is (arch != "hyena")
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    code = {"hyena.py", "long_convolution.py", "short_convolution.py"} if arch == "hyena" else set()
    assert {p.name for p in out.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"} | code


@EVERY
def test_we_load_an_export_ourselves(exported, arch):
    source, out = exported[arch]
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(out).eval().logits(prompts()), load_model(source).eval().logits(prompts()), atol=0, rtol=0
        )
    assert arch != "hyena" or type(load_model(out).network) is HyenaForCausalLM


def test_the_shipped_modules_import_nothing_of_ours():
    sources = standalone_sources()
    assert "from .long_convolution import long_convolution" in sources["hyena.py"]
    for name, source in sources.items():
        compile(source, name, "exec")
        assert not [line for line in source.splitlines() if line.lstrip().startswith(("from ehrctx", "import ehrctx"))]


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        write_standalone(tmp_path, tmp_path)
