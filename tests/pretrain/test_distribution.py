"""Two processes that share a training, on the CPU: the same weights as one, up to rounding; and who takes what."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback

from ehrctx.artifacts import read_manifest
from ehrctx.models.model import load_model
from ehrctx.pretrain.callbacks import CHECKPOINT
from ehrctx.pretrain.distribution import is_first_process, processes, shares
from ehrctx.pretrain.run import pretrain
from ehrctx.pretrain.trained import KIND
from ehrctx.study import ARCHITECTURES, Pretraining
from ehrctx.timelines.windows import pad

PLAN = Pretraining(
    tokens=1_200, tokens_per_step=200, batch_tokens=120, validations=3, checkpoint_seconds=0, threads=1,
    accelerator="cpu", learning_rate=1e-3,
)  # fmt: skip


class Die(Callback):
    """Kills its process before a step's update, as the system would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_before_optimizer_step(self, trainer, module, *_):
        if module.progress["steps"] == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def _train(environment: dict[str, str], names: list[str], plan: Pretraining, timelines: Path, out: Path, die_at: int):
    """One process of several."""
    os.environ.update(environment)
    for name in names:
        pretrain(timelines, name, plan, out / name, out / "checkpoints" / name, callbacks=[Die(die_at)])


@pytest.fixture(scope="module")
def together(small_timelines):
    """A function that trains with two processes, in the environment that torchrun gives them, and returns exit codes.

    Both are forked from a process that has imported everything: the imports take longer than the trainings.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ehrctx.pretrain.run"])
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{20_000 + os.getpid() % 20_000}", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip

    def train(names: list[str], plan: Pretraining, out: Path, die_at: int = -1) -> list[int]:
        started = [
            context.Process(
                target=_train,
                args=(shared | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}, names, plan, small_timelines, out, die_at),
            )
            for rank in range(2)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=240)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()  # one that hangs
        assert None not in codes
        assert codes == [0, 0] or die_at >= 0
        return codes

    return train


class Stop(BaseException):
    """As a kill for Python: nothing in Lightning catches it."""


class Steps(Callback):
    """The steps that are done; ends the training before step `stop`."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.seen = stop, []

    def on_train_batch_start(self, trainer, module, step, *_):
        if step.index == self.stop:
            raise Stop
        self.seen.append(step.index)


def assert_alike(one: Path, two: Path) -> None:
    """The same weights up to rounding."""
    first, second = (load_model(folder).state_dict() for folder in (one, two))
    assert first.keys() == second.keys()
    for weight in first:
        difference = (first[weight] - second[weight]).abs()
        # Adam's first steps are signs: a gradient of rounding noise may move a weight the other way
        assert difference.median() < 1e-6, weight
        assert (difference > 1e-4).float().mean() < 0.01, weight


@pytest.fixture(scope="module")
def alone(small_timelines, tmp_path_factory) -> Path:
    """Every architecture, trained by one process."""
    out = tmp_path_factory.mktemp("alone")
    for arch in ARCHITECTURES:
        name = f"{arch}-tiny-32"
        pretrain(small_timelines, name, PLAN, out / name, out / "checkpoints" / name)
    return out


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def shared(request, together, tmp_path_factory) -> tuple[Pretraining, Path]:
    """The same, by two processes."""
    plan = PLAN.model_copy(update={"strategy": request.param})
    out = tmp_path_factory.mktemp(request.param)
    together([f"{arch}-tiny-32" for arch in ARCHITECTURES], plan, out)
    return plan, out


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_two_processes_learn_what_one_learns(alone, shared, arch):
    folders = [alone / f"{arch}-tiny-32", shared[1] / f"{arch}-tiny-32"]
    assert_alike(*folders)
    facts = [read_manifest(folder, KIND)["facts"] for folder in folders]
    for fact in ("tokens", "padded_tokens", "steps", "subjects", "passes", "parameters"):
        assert facts[0][fact] == facts[1][fact]
    np.testing.assert_allclose(facts[0]["validation"], facts[1]["validation"], rtol=1e-4)


@pytest.mark.parametrize("shared", ["fsdp"], indirect=True)
def test_killed_and_resumed_by_two_processes(shared, together, small_timelines, tmp_path):
    """FSDP, whose checkpoints are gathered from all processes and spread over them again."""
    plan, whole = shared
    codes = together(["mamba-tiny-32"], plan, tmp_path, die_at=4)
    assert -signal.SIGKILL in codes
    assert (tmp_path / "checkpoints/mamba-tiny-32" / CHECKPOINT).is_file()
    assert not (tmp_path / "mamba-tiny-32").exists()
    alone = shutil.copytree(tmp_path, tmp_path.with_name("alone"))
    together(["mamba-tiny-32"], plan, tmp_path)
    files = [folder / "mamba-tiny-32/model.safetensors" for folder in (whole, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    # one process goes on from what two have left
    recorder = Steps()
    pretrain(
        small_timelines, "mamba-tiny-32", plan, alone / "model", alone / "checkpoints/mamba-tiny-32",
        callbacks=[recorder],
    )  # fmt: skip
    assert recorder.seen == [4, 5]
    assert_alike(whole / "mamba-tiny-32", alone / "model")


@pytest.mark.parametrize("shared", ["fsdp"], indirect=True)
def test_two_processes_go_on_from_what_one_has_left(shared, together, small_timelines, tmp_path):
    """The moments of every weight go to that weight, though FSDP numbers weights in another order."""
    plan, whole = shared
    with pytest.raises(Stop):
        pretrain(
            small_timelines, "llama-tiny-32", plan, tmp_path / "llama-tiny-32", tmp_path / "checkpoints/llama-tiny-32",
            callbacks=[Steps(stop=3)],
        )  # fmt: skip
    together(["llama-tiny-32"], plan, tmp_path)
    assert_alike(whole / "llama-tiny-32", tmp_path / "llama-tiny-32")


def test_the_command_starts_its_own_processes(small_timelines, tmp_path):
    settings = PLAN.model_copy(update={"devices": 2, "tokens": 400}).model_dump_json()
    found = subprocess.run(
        [sys.executable, "-m", "ehrctx.cli", "pretrain", "--timelines", small_timelines, "--model", "gpt-tiny-32",
         "--out", tmp_path / "model", "--settings", settings],
        capture_output=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()[-3_000:]
    assert json.loads(found.stdout)["steps"] == 2, "printed once"
    assert read_manifest(tmp_path / "model", KIND)["settings"]["processes"] == 2


@st.composite
def some_batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [
        pad([rng.integers(2, 50, size=n) for n in draw(st.lists(st.integers(2, 30), min_size=1, max_size=6))])
        for _ in range(draw(st.integers(1, 7)))
    ]


@given(batches=some_batches(), world=st.integers(1, 9))
def test_every_window_is_taken_once_and_all_processes_take_equally_many(batches, world):
    taken = [shares(batches, rank, world) for rank in range(world)]
    assert len({len(own) for own in taken}) == 1
    found = [
        (position, tuple(row[:length]))
        for own in taken
        for position, (tokens, lengths) in own
        if position >= 0
        for row, length in zip(tokens, lengths, strict=True)
    ]
    expected = [
        (position, tuple(row[:length]))
        for position, (tokens, lengths) in enumerate(batches)
        for row, length in zip(tokens, lengths, strict=True)
    ]
    assert sorted(found) == sorted(expected)
    for own in taken:
        for _, (tokens, lengths) in own:
            assert tokens.shape[1] == lengths.max() >= 2
    for together_ in zip(*taken, strict=True):
        positions = [position for position, _ in together_]
        assert max(positions) >= 0, "no round of stand-ins alone"


@pytest.mark.parametrize(
    ("environment", "expected", "first"),
    [
        ({}, (3, 1), True),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}, (4, 2), False),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}, (4, 2), True),
        ({"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, (2, 2), False),
        ({"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}, (3, 1), True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "3"}, (3, 1), False),
    ],
)
def test_who_we_are(monkeypatch, environment, expected, first):
    for name in (
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "SLURM_NTASKS",
        "SLURM_NNODES",
        "SLURM_PROCID",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes(PLAN.model_copy(update={"devices": 3})) == expected
    assert is_first_process() == first
    assert torch.distributed.is_initialized() is False
