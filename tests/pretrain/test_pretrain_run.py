"""`pretrain` end to end: what it learns, what it records, and that a killed run ends as if it had never been killed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning import Callback

from ehrctx.errors import InputError
from ehrctx.models.model import build_model, load_model
from ehrctx.pretrain import run
from ehrctx.pretrain.batches import TrainingBatches
from ehrctx.pretrain.module import PretrainingModule
from ehrctx.pretrain.run import CHECKPOINT, pretrain
from ehrctx.study import ARCHITECTURES, ModelId, Pretraining, Rope
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

# The most expensive tests train two: transformers' own network, and one with a kernel of ours.
TWO = ["gpt", "mamba"]
OF_TWO = pytest.mark.parametrize("uninterrupted", TWO, indirect=True)
MOMENTS = [(0, "during"), (1, "after"), (3, "before"), (4, "during"), (6, "after")]
COHORT_PLAN = Pretraining(
    tokens=6_000, tokens_per_step=1_000, batch_tokens=1_000, validations=2, checkpoint_seconds=0, threads=1,
    accelerator="cpu", learning_rate=1e-3,
)  # fmt: skip
PLAN = COHORT_PLAN.model_copy(update={"tokens": 1_200, "tokens_per_step": 200, "batch_tokens": 120, "validations": 3})
STEPS = 6


class Kill(BaseException):
    """As SIGKILL for Python: nothing in the package catches it."""


class KillAt(Callback):
    """Dies at step `step`: before it, between its gradients and its update, or after it and its checkpoint."""

    def __init__(self, step: int, moment: str) -> None:
        self.step, self.moment = step, moment

    def _kill(self, module, moment: str) -> None:
        if moment == self.moment and module.progress["steps"] == self.step:
            raise Kill

    def on_train_batch_start(self, trainer, module, *_):
        self._kill(module, "before")

    def on_before_optimizer_step(self, trainer, module, *_):
        self._kill(module, "during")

    def on_train_batch_end(self, trainer, module, *_):
        self._kill(module, "after")


class Recorder(Callback):
    """The batches, learning rates and tokens of every step."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.tokens: list[int] = []
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, step, *_):
        digest = hashlib.sha256()
        for tokens, lengths in step.batches:
            digest.update(tokens.tobytes() + lengths.tobytes())
        self.digests.append(digest.hexdigest())
        self.tokens.append(step.tokens)
        self.rates.append(float(trainer.callback_metrics["learning_rate"]))
        self.losses.append(float(trainer.callback_metrics["train_loss"]))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def lasting(facts: dict) -> dict:
    """All facts but those that tell the time."""
    return {k: v for k, v in facts.items() if k not in ("seconds", "tokens_per_second")}


def mean_loss(model, store: Timelines, context: int, split: str) -> float:
    """Mean loss by windows taken one at a time, written out: [BOS], prefix, as many tokens as fit, [EOS] at the end."""
    total, n = 0.0, 0
    for i in np.flatnonzero(store.subjects["split"] == split):
        own = store.tokens[store.offsets[i] : store.offsets[i + 1]].astype(np.int64)
        n_static = int(store.subjects["n_static"][i])
        prefix, body = [0, *own[:n_static]], [*own[n_static:], 1]
        room = context - len(prefix)
        for first in range(0, len(body), room):
            window = torch.tensor([prefix + body[first : first + room]], dtype=torch.int64)
            with torch.no_grad():
                logits = model.logits(window)[0, :-1]
            total += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
            n += window.shape[1] - 1
    return total / n


@pytest.fixture(scope="module", params=TWO)
def trained(request, cohort, tmp_path_factory):
    """A model trained on the cohort without interruption: its folder, facts, store, and what was recorded."""
    folder = tmp_path_factory.mktemp(request.param)
    recorder = Recorder()
    name = f"{request.param}-tiny-64"
    facts = pretrain(
        cohort.timelines, name, COHORT_PLAN, folder / "model", folder / "checkpoints", callbacks=[recorder]
    )
    return name, folder, facts, recorder


@pytest.fixture(scope="module", params=ARCHITECTURES)
def uninterrupted(request, small_timelines, tmp_path_factory):
    """The same on the small store, the reference of all interrupted runs."""
    out = tmp_path_factory.mktemp("whole") / "model"
    name = f"{request.param}-tiny-32"
    facts = pretrain(small_timelines, name, PLAN, out, out.with_name("checkpoints"))
    return name, out, facts


def test_the_manifest_says_what_was_done(trained):
    name, folder, facts, recorder = trained
    manifest = json.loads((folder / "model" / "manifest.json").read_text())
    assert manifest["kind"] == "model"
    assert manifest["settings"]["model"] == name
    assert manifest["settings"]["settings"]["tokens"] == 6_000
    assert manifest["facts"] == facts
    assert facts["steps"] == len(recorder.tokens) == 6
    assert facts["tokens"] == sum(recorder.tokens)
    assert abs(facts["tokens"] - 6_000) <= 500
    assert facts["padded_tokens"] >= facts["tokens"]
    assert facts["real_token_share"] == facts["tokens"] / facts["padded_tokens"]
    assert facts["tokens_per_second"] == pytest.approx(facts["tokens"] / facts["seconds"])
    assert (facts["arch"], facts["size"], facts["context"]) == (name.split("-")[0], "tiny", 64)
    assert facts["device"] == "cpu"
    loaded = load_model(folder / "model")
    assert facts["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert facts["hidden_size"] == loaded.hidden_size
    assert [p.name for p in (folder / "model").iterdir() if "ckpt" in p.name] == [], "checkpoints lie elsewhere"


def test_validation_is_even_and_ends_with_the_final_weights(trained, cohort):
    _, folder, facts, recorder = trained
    at = [tokens for tokens, _ in facts["validation"]]
    assert at == [sum(recorder.tokens[:3]), facts["tokens"]]
    loss = mean_loss(load_model(folder / "model"), Timelines.open(cohort.timelines), 64, "tuning")
    assert facts["validation"][-1][1] == pytest.approx(loss, rel=1e-5)


def test_training_lowers_the_loss(trained):
    _, _, facts, recorder = trained
    assert facts["validation"][1][1] < facts["validation"][0][1]
    assert recorder.losses[-1] < recorder.losses[0]


def test_every_step_takes_the_rate_at_its_middle(trained):
    _, _, _, recorder = trained
    before = 0
    for tokens, rate in zip(recorder.tokens, recorder.rates, strict=True):
        share = min((before + tokens / 2) / 6_000, 1)
        expected = 1e-3 * share / 0.05 if share < 0.05 else 1e-3 - (share - 0.05) / 0.95 * (1e-3 - 1e-5)
        assert rate == pytest.approx(expected, rel=1e-5)
        before += tokens


def test_all_architectures_see_identical_batches(small_timelines, tmp_path):
    digests = []
    for name in ("gpt-tiny-32", "llama-tiny-32", "mamba-tiny-32", "mamba2-tiny-32", "hyena-tiny-32", "gpt-tiny-32-s1"):
        recorder = Recorder()
        pretrain(small_timelines, name, PLAN, tmp_path / name, tmp_path / f"{name}.c", callbacks=[recorder])
        digests.append(recorder.digests)
    assert len(digests[0]) == STEPS
    assert all(of_one == digests[0] for of_one in digests)
    assert weights(tmp_path / "gpt-tiny-32") != weights(tmp_path / "gpt-tiny-32-s1")


def test_the_loss_beats_that_of_untrained_weights(uninterrupted, small_timelines):
    name, out, _ = uninterrupted
    store = Timelines.open(small_timelines)
    untrained = build_model(ModelId.parse(name), store.vocabulary_size, PLAN.seed)
    assert mean_loss(load_model(out), store, 32, "tuning") < mean_loss(untrained, store, 32, "tuning") - 0.05


@pytest.mark.parametrize(
    ("uninterrupted", "step", "moment"),
    [(arch, *at) for arch in ARCHITECTURES for at in (MOMENTS if arch == "mamba" else MOMENTS[1:4:2])],
    indirect=["uninterrupted"],
)
def test_killed_and_resumed_is_never_killed(uninterrupted, small_timelines, tmp_path, step, moment):
    name, whole, facts = uninterrupted
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(small_timelines, name, PLAN, out, checkpoints, callbacks=[KillAt(step, moment)])
    assert not out.exists()
    assert (checkpoints / CHECKPOINT).exists() == (step > 0)
    recorder = Recorder()
    resumed = pretrain(small_timelines, name, PLAN, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS - step, "only what was lost is done again"
    assert weights(out) == weights(whole)
    assert lasting(resumed) == lasting(facts)


@OF_TWO
def test_killed_thrice_the_last_time_between_checkpoints(uninterrupted, small_timelines, tmp_path):
    """The last kill comes a step after the last checkpoint: that step is done again."""
    name, whole, facts = uninterrupted
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    for stop in (2, 4):
        with pytest.raises(Kill):
            pretrain(small_timelines, name, PLAN, out, checkpoints, callbacks=[KillAt(stop, "before")])
    saved = (checkpoints / CHECKPOINT).read_bytes()
    rare = PLAN.model_copy(update={"checkpoint_seconds": 3_600.0})
    recorder = Recorder()
    with pytest.raises(Kill):
        pretrain(small_timelines, name, rare, out, checkpoints, callbacks=[recorder, KillAt(5, "after")])
    assert len(recorder.tokens) == 1
    assert (checkpoints / CHECKPOINT).read_bytes() == saved, "a setting that may differ does not start over"
    assert lasting(pretrain(small_timelines, name, rare, out, checkpoints)) == lasting(facts)
    assert weights(out) == weights(whole)


@OF_TWO
def test_killed_while_the_weights_are_written(uninterrupted, small_timelines, tmp_path, monkeypatch):
    name, whole, facts = uninterrupted
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"

    def die(model, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(run, "save_model", die)
        with pytest.raises(Kill):
            pretrain(small_timelines, name, PLAN, out, checkpoints)
    assert not out.exists()
    recorder = Recorder()
    assert lasting(pretrain(small_timelines, name, PLAN, out, checkpoints, callbacks=[recorder])) == lasting(facts)
    assert recorder.tokens == []
    assert weights(out) == weights(whole)


@pytest.mark.parametrize("uninterrupted", ["mamba"], indirect=True)
def test_sigkill(uninterrupted, small_timelines, tmp_path):
    """A true SIGKILL of a process, in the middle of a step; mamba, which has a scan of its own."""
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    script = f"""
        import os, signal
        from pathlib import Path
        from lightning import Callback
        from ehrctx.pretrain.run import pretrain
        from ehrctx.study import Pretraining

        class Die(Callback):
            def on_before_optimizer_step(self, trainer, module, *_):
                if module.progress["steps"] == 3:
                    os.kill(os.getpid(), signal.SIGKILL)

        plan = Pretraining.model_validate_json({PLAN.model_dump_json()!r})
        paths = [Path(p) for p in {[str(out), str(checkpoints)]!r}]
        pretrain(Path({str(small_timelines)!r}), "mamba-tiny-32", plan, *paths, callbacks=[Die()])
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert (checkpoints / CHECKPOINT).is_file()
    assert not out.exists()
    recorder = Recorder()
    pretrain(small_timelines, "mamba-tiny-32", PLAN, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS - 3
    assert weights(out) == weights(uninterrupted[1])


def test_a_checkpoint_of_other_settings_is_not_resumed(small_timelines, tmp_path):
    changed = PLAN.model_copy(update={"learning_rate": 3e-3})
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[KillAt(4, "before")])
    recorder = Recorder()
    pretrain(small_timelines, "gpt-tiny-32", changed, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS
    pretrain(small_timelines, "gpt-tiny-32", changed, tmp_path / "fresh", tmp_path / "other")
    assert weights(out) == weights(tmp_path / "fresh")


def test_other_settings_move_checkpoint_and_kept_models_aside_and_name_each_key(small_timelines, tmp_path, capsys):
    keeping = PLAN.model_copy(update={"keep_every_tokens": PLAN.tokens_per_step, "weights": "best"})
    changed = keeping.model_copy(update={"learning_rate": 3e-3, "seed": 4})
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(small_timelines, "gpt-tiny-32", keeping, out, checkpoints, callbacks=[KillAt(4, "before")])
    before = {path.relative_to(checkpoints): path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    assert {path.parts[0] for path in before} >= {CHECKPOINT, "run.json", "best"}
    assert any(path.parts[0].startswith("tokens-") for path in before)
    pretrain(small_timelines, "gpt-tiny-32", changed, out, checkpoints)
    aside = tmp_path / "checkpoints.replaced-1"
    assert {path.relative_to(aside): path.read_bytes() for path in aside.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().err
    rate = PLAN.learning_rate
    assert f"`settings.learning_rate`: {rate}, now 0.003; `settings.seed`: {PLAN.seed}, now 4)" in said
    assert str(aside) in said
    pretrain(small_timelines, "gpt-tiny-32", changed, tmp_path / "fresh", tmp_path / "other")
    assert weights(out) == weights(tmp_path / "fresh")
    pretrain(small_timelines, "gpt-tiny-32", keeping, out, checkpoints)
    assert (tmp_path / "checkpoints.replaced-2" / CHECKPOINT).is_file()
    assert (aside / CHECKPOINT).is_file()


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "a text": lambda data: b"not a checkpoint",
    "noise": lambda data: bytes(range(256)) * 40,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_the_remedy(small_timelines, tmp_path, damage):
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    keeping = PLAN.model_copy(update={"keep_every_tokens": PLAN.tokens_per_step})
    with pytest.raises(Kill):
        pretrain(small_timelines, "gpt-tiny-32", keeping, out, checkpoints, callbacks=[KillAt(4, "before")])
    file = checkpoints / CHECKPOINT
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(InputError, match=r"last\.ckpt is damaged: .* Delete it, .* --from .*tokens-\d+ and another"):
        pretrain(small_timelines, "gpt-tiny-32", keeping, out, checkpoints)
    file.unlink()
    pretrain(small_timelines, "gpt-tiny-32", keeping, out, checkpoints)
    pretrain(small_timelines, "gpt-tiny-32", keeping, tmp_path / "fresh", tmp_path / "other")
    assert weights(out) == weights(tmp_path / "fresh")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "gpt-tiny-32"}'])
def test_a_checkpoint_of_which_nobody_says_whose_it_is_is_moved_aside(small_timelines, tmp_path, text, capsys):
    out, checkpoints, recorder = tmp_path / "model", tmp_path / "checkpoints", Recorder()
    with pytest.raises(Kill):
        pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[KillAt(4, "before")])
    (checkpoints / "run.json").write_text(text)
    pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS
    assert (tmp_path / "checkpoints.replaced-1" / CHECKPOINT).is_file()
    assert "their settings are not recorded" in capsys.readouterr().err


@pytest.mark.parametrize("uninterrupted", ["gpt"], indirect=True)
def test_sigterm_saves_a_checkpoint_and_is_no_success(uninterrupted, small_timelines, tmp_path):
    """As a scheduler ends a job: Lightning would end the process with 0, and nothing written."""
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    rarely_saved = PLAN.model_copy(update={"checkpoint_seconds": 3_600.0}).model_dump_json()
    script = f"""
        import os, signal
        from pathlib import Path
        from lightning import Callback
        from ehrctx.pretrain.run import pretrain
        from ehrctx.study import Pretraining

        class Ask(Callback):
            def on_before_optimizer_step(self, trainer, module, *_):
                if module.progress["steps"] == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

        plan = Pretraining.model_validate_json({rarely_saved!r})
        paths = [Path(p) for p in {[str(out), str(checkpoints)]!r}]
        pretrain(Path({str(small_timelines)!r}), "gpt-tiny-32", plan, *paths, callbacks=[Ask()])
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120, check=False
    )
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr.decode()[-2000:]
    assert not out.exists()
    recorder = Recorder()
    pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS - 4, "the step in which the signal came is saved"
    assert weights(out) == weights(uninterrupted[1])


@pytest.mark.parametrize(("arch", "again"), [("llama", STEPS), ("gpt", 0)])
def test_other_rotary_positions_train_llama_alone_again(small_timelines, tmp_path, arch, again):
    out, checkpoints, recorder = tmp_path / "model", tmp_path / "checkpoints", Recorder()
    pretrain(small_timelines, f"{arch}-tiny-32", PLAN, out, checkpoints)
    changed = PLAN.model_copy(update={"rope": Rope(scaling="yarn", factor=4)})
    pretrain(small_timelines, f"{arch}-tiny-32", changed, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == again
    config = json.loads((out / "config.json").read_text())
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    assert said.get("rope_type") == ("yarn" if arch == "llama" else None)


def test_a_checkpoint_of_other_timelines_is_not_resumed(small_timelines, write_timelines, tmp_path):
    other = write_timelines(tmp_path / "timelines", seed=1)
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    with pytest.raises(Kill):
        pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[KillAt(4, "before")])
    recorder = Recorder()
    pretrain(other, "gpt-tiny-32", PLAN, out, checkpoints, callbacks=[recorder])
    assert len(recorder.tokens) == STEPS


@OF_TWO
def test_a_finished_model_is_not_trained_again(uninterrupted, small_timelines):
    name, whole, facts = uninterrupted
    before = weights(whole)
    recorder = Recorder()
    again = pretrain(small_timelines, name, PLAN, whole, whole.with_name("checkpoints"), callbacks=[recorder])
    assert again == facts, "the very facts, times included"
    assert recorder.tokens == []
    assert weights(whole) == before


def test_other_settings_replace_a_finished_model(small_timelines, tmp_path):
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    pretrain(small_timelines, "gpt-tiny-32", PLAN, out, checkpoints)
    first = weights(out)
    pretrain(small_timelines, "gpt-tiny-32", PLAN.model_copy(update={"seed": 5}), out, checkpoints)
    assert weights(out) != first


@pytest.mark.parametrize("arch", TWO)
def test_a_loss_that_is_not_finite_stops_the_run(small_timelines, tmp_path, arch):
    plan = PLAN.model_copy(update={"learning_rate": 1e30, "warmup_share": 0.0})
    with pytest.raises(InputError, match=r"not finite at step [1-5] \([\d,]+ tokens\).*learning_rate"):
        pretrain(small_timelines, f"{arch}-tiny-32", plan, tmp_path / "model", tmp_path / "checkpoints")
    assert not (tmp_path / "model").exists()


def test_a_loss_that_is_not_finite_changes_no_weight(small_timelines, monkeypatch):
    module = PretrainingModule(*_parts(small_timelines, "gpt-tiny-32", PLAN))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    loss = module.model.loss
    monkeypatch.setattr(module.model, "loss", lambda *batch: (loss(*batch)[0] * math.nan, 1))
    with pytest.raises(InputError, match="step 0 "):
        module.training_step(next(module.batches.steps()), 0)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert module.progress["steps"] == 0


def _parts(timelines: Path, name: str, plan: Pretraining):
    store = Timelines.open(timelines)
    identity = ModelId.parse(name)
    batches = TrainingBatches(Windows(store, identity.context), store.in_split("train"), plan, plan.seed)
    return build_model(identity, store.vocabulary_size, plan.seed), batches, store.in_split("tuning"), plan


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_matrices_decay(small_timelines, arch):
    module = PretrainingModule(*_parts(small_timelines, f"{arch}-tiny-32", PLAN))
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(module.model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named) == len(decay_of)
    exempt = (".bias", "A_log", ".D", "norm.weight", "norm_f.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
    exempt += ("layernorm.weight", "norm1.weight", "norm2.weight", "frequency", "skip", "dt_bias")
    for name, parameter in named.items():
        # Hyena's filter is a function of time, as Mamba's A is, and its matrices are no weights of features
        expected = 0.0 if name.endswith(exempt) or ".filter." in name else PLAN.weight_decay
        assert decay_of[id(parameter)] == expected, name
    filters = [p for n, p in named.items() if ".filter." in n]
    assert len(filters) == (4 * 9 if arch == "hyena" else 0), "three layers, output, frequency and skip of each block"
    assert {0.0, PLAN.weight_decay} == set(decay_of.values())
    assert all(group["betas"] == PLAN.betas for group in optimizer.param_groups)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_step_is_one_update_by_the_mean_over_all_its_tokens(small_timelines, arch):
    """Weights after one step against AdamW of torch on the mean loss of the step's windows, one by one."""
    one = PLAN.model_copy(update={"tokens": 200, "gradient_clip": 0.5})
    model, batches, tuning, _ = _parts(small_timelines, f"{arch}-tiny-32", one)
    reference = build_model(ModelId.parse(f"{arch}-tiny-32"), 23, one.seed)
    step = next(batches.steps())
    assert len(step.batches) > 1

    module = PretrainingModule(model, batches, tuning, one)
    optimizer = module.configure_optimizers()
    module.optimizers = lambda: optimizer
    module.manual_backward = lambda loss: loss.backward()
    module.log_dict = lambda *args, **kwargs: None
    module.training_step(step, 0)

    losses = []
    for tokens, lengths in step.batches:
        for row, length in zip(tokens, lengths, strict=True):
            window = torch.from_numpy(row[:length])[None]
            losses.append(F.cross_entropy(reference.logits(window)[0, :-1], window[0, 1:], reduction="none"))
    torch.cat(losses).mean().backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in reference.parameters()))
    assert norm > 0.5, "the clip must matter here"
    for p in reference.parameters():
        p.grad *= 0.5 / norm
    named = list(reference.named_parameters())
    undecayed = [p for n, p in named if p.ndim < 2 or n.endswith("A_log") or ".filter." in n]
    decayed = [p for n, p in named if not any(p is other for other in undecayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": undecayed, "weight_decay": 0.0}]
    share = min(step.tokens / 2 / 200, 1)
    torch.optim.AdamW(groups, lr=1e-3 - (share - 0.05) / 0.95 * (1e-3 - 1e-5), betas=(0.9, 0.95)).step()
    ours = dict(module.model.named_parameters())
    for name, p in named:
        clear = p.grad.abs() > 1e-6  # where the gradient is rounding noise, Adam's first step is its sign
        assert clear.any(), name
        torch.testing.assert_close(ours[name].data[clear], p.data[clear], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_validation_loss_does_not_depend_on_its_batches(small_timelines, arch):
    losses = []
    for batch_tokens in (1, 150, 5_000):
        plan = PLAN.model_copy(update={"batch_tokens": batch_tokens})
        losses.append(PretrainingModule(*_parts(small_timelines, f"{arch}-tiny-32", plan)).validation_loss())
    model, *_ = _parts(small_timelines, f"{arch}-tiny-32", PLAN)
    expected = mean_loss(model, Timelines.open(small_timelines), 32, "tuning")
    assert losses == pytest.approx([expected] * 3, rel=1e-5)


@OF_TWO
def test_held_out_subjects_do_not_enter(small_timelines, uninterrupted, tmp_path):
    """Other tokens of the held-out split: the same weights and losses, byte for byte."""
    name, whole, facts = uninterrupted
    copy = shutil.copytree(small_timelines, tmp_path / "timelines")
    tokens, subjects = np.load(copy / "tokens.npy"), np.load(copy / "subjects.npy")
    offsets = np.load(copy / "offsets.npy")
    for i in np.flatnonzero(subjects["split"] == "held_out"):
        tokens[offsets[i] : offsets[i + 1]] = 7
    np.save(copy / "tokens.npy", tokens)
    changed = pretrain(copy, name, PLAN, tmp_path / "model", tmp_path / "checkpoints")
    assert weights(tmp_path / "model") == weights(whole)
    assert lasting(changed) == lasting(facts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(small_timelines, tmp_path):
    plan = PLAN.model_copy(update={"accelerator": "cuda"})
    with pytest.raises(InputError, match="no CUDA device"):
        pretrain(small_timelines, "gpt-tiny-32", plan, tmp_path / "model", tmp_path / "checkpoints")


def test_a_wrong_model_name_is_refused(small_timelines, tmp_path):
    with pytest.raises(InputError, match="did you mean 'mamba'"):
        pretrain(small_timelines, "mmaba-tiny-32", PLAN, tmp_path / "model", tmp_path / "checkpoints")


def test_a_store_without_tuning_subjects_is_refused(small_timelines, tmp_path):
    copy = shutil.copytree(small_timelines, tmp_path / "timelines")
    subjects = np.load(copy / "subjects.npy")
    subjects["split"][subjects["split"] == "tuning"] = "train"
    np.save(copy / "subjects.npy", subjects)
    with pytest.raises(InputError, match="'tuning' holds no subject"):
        pretrain(copy, "gpt-tiny-32", PLAN, tmp_path / "model", tmp_path / "checkpoints")


class Autocast(Callback):
    """Whether autocast is on in each backward, and in each forward of a validation."""

    def __init__(self) -> None:
        self.in_backward: set[bool] = set()
        self.in_validation: set[bool] = set()

    def on_fit_start(self, trainer, module):
        for parameter in module.parameters():
            parameter.register_hook(lambda gradient: self.in_backward.add(torch.is_autocast_enabled("cpu")))
        loss = module.model.loss

        def watched(*batch):
            if not module.model.training:
                self.in_validation.add(torch.is_autocast_enabled("cpu"))
            return loss(*batch)

        module.model.loss = watched


@pytest.mark.parametrize(("precision", "mixed"), [("bf16-mixed", True), ("32-true", False)])
def test_precision_is_that_of_the_forward_and_the_backward_follows_it(small_timelines, tmp_path, precision, mixed):
    """A backward within autocast would do our operators' float32 gradients in bfloat16."""
    watching = Autocast()
    plan = PLAN.model_copy(update={"precision": precision, "tokens": 400, "validations": 1})
    pretrain(small_timelines, "mamba-tiny-32", plan, tmp_path / "out", tmp_path / "checkpoints", (), [watching])
    assert watching.in_backward == {False}
    assert watching.in_validation == {mixed}


def test_the_scan_can_be_chosen(small_timelines, tmp_path, monkeypatch):
    """The same losses up to rounding, by the backend that was asked for; one of another device is refused."""
    import ehrctx.models.ops.selective_scan as scan

    plan = PLAN.model_copy(update={"tokens": 400, "validations": 1})
    used: set[str] = set()
    load = scan._load
    monkeypatch.setattr(scan, "_load", lambda backend: used.add(backend) or load(backend))
    losses = {}
    for backend in ("torch", "numba"):
        used.clear()
        chosen = plan.model_copy(update={"scan": backend})
        facts = pretrain(
            small_timelines, "mamba-tiny-32", chosen, tmp_path / backend, tmp_path / f"{backend}.checkpoints"
        )
        losses[backend] = facts["validation"][-1][1]
        assert used == {backend}
    assert losses["torch"] == pytest.approx(losses["numba"], rel=1e-4)
    triton = plan.model_copy(update={"scan": "triton"})
    with pytest.raises(InputError, match=r"pretraining\.scan: the triton backend runs on cuda only"):
        pretrain(small_timelines, "mamba-tiny-32", triton, tmp_path / "out", tmp_path / "checkpoints")
    assert not (tmp_path / "out").exists()
    # an architecture without a scan does not mind
    pretrain(small_timelines, "gpt-tiny-32", triton, tmp_path / "gpt", tmp_path / "gpt.checkpoints")
