"""What is kept on the way, what is said of leaps of the loss, and what is logged."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, Logger

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.models.model import build_model, load_model
from ehrctx.pretrain import module
from ehrctx.pretrain.callbacks import BEST
from ehrctx.pretrain.flop import flop_per_token
from ehrctx.pretrain.release import export
from ehrctx.pretrain.run import pretrain
from ehrctx.pretrain.trained import KIND, final_validation, trained_model
from ehrctx.study import ModelId, Pretraining

PLAN = Pretraining(
    tokens=1_200, tokens_per_step=200, batch_tokens=120, validations=3, checkpoint_seconds=0, threads=1,
    accelerator="cpu", learning_rate=1e-3,
)  # fmt: skip


class Weights(Callback):
    """The weights after every step, by tokens seen."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_batch_end(self, trainer, module, *_):
        state = module.model.state_dict()
        self.after[module.progress["tokens"]] = {name: value.clone() for name, value in state.items()}


class Planted(Callback):
    """Makes the loss of some steps leap: their windows are all of one token, which no window ever holds."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, module, step, *_):
        if step.index in self.steps:
            for tokens, _ in step.batches[-1:]:
                tokens[:] = 2


def run(timelines, folder, plan=PLAN, name="gpt-tiny-32", **more):
    return pretrain(timelines, name, plan, folder / "model", folder / "checkpoints", **more)


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_models_are_kept_every_so_many_tokens(small_timelines, tmp_path):
    weights = Weights()
    run(small_timelines, tmp_path, PLAN.model_copy(update={"keep_every_tokens": 500}), callbacks=[weights])
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert found == ["tokens-1000", "tokens-500"]
    for at in (500, 1_000):
        folder = tmp_path / f"checkpoints/tokens-{at}"
        name, facts = trained_model(folder)
        assert name == "gpt-tiny-32"
        first = min(tokens for tokens in weights.after if tokens >= at)
        assert facts["tokens"] == first
        assert same(load_model(folder).state_dict(), weights.after[first])
        assert [tokens for tokens, _ in facts["validation"]] == [t for t, _ in facts["validation"] if t <= first]


def test_other_settings_remove_what_was_kept(small_timelines, tmp_path):
    kept = PLAN.model_copy(update={"keep_every_tokens": 400, "weights": "best"})
    run(small_timelines, tmp_path, kept)
    assert (tmp_path / "checkpoints/tokens-400").is_dir()
    run(small_timelines, tmp_path, PLAN.model_copy(update={"seed": 3}))
    assert not [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]


@pytest.mark.parametrize("weights", ["last", "best"])
def test_the_model_ends_with_the_best_weights_only_if_asked(small_timelines, tmp_path, monkeypatch, weights):
    losses = iter([3.0, 1.5, 2.0])
    monkeypatch.setattr(module.PretrainingModule, "validation_loss", lambda self: next(losses))
    recorded = Weights()
    facts = run(small_timelines, tmp_path, PLAN.model_copy(update={"weights": weights}), callbacks=[recorded])
    assert [loss for _, loss in facts["validation"]] == [3.0, 1.5, 2.0]
    assert facts["best"] == facts["validation"][1]
    at = facts["validation"][1 if weights == "best" else 2][0]
    assert same(load_model(tmp_path / "model").state_dict(), recorded.after[at])
    assert (tmp_path / "checkpoints" / BEST).exists() == (weights == "best")


LONG = PLAN.model_copy(update={"tokens": 6_000})  # 30 steps: 20 are needed to know a leap


def spike_lines(caplog) -> list[str]:
    return [record.message for record in caplog.records if "loss spike" in record.message]


@pytest.fixture
def spikes_at(monkeypatch):
    """Calls the loss of these steps, all below 50, a spike."""

    def choose(*steps: int) -> None:
        monkeypatch.setattr(module, "is_spike", lambda loss, recent: len(recent) in steps)

    return choose


def test_loss_spikes_are_told_once_with_their_number(small_timelines, tmp_path, caplog, capfd, spikes_at):
    spikes_at(22, 25, 28)
    with caplog.at_level(logging.WARNING):
        facts = run(small_timelines, tmp_path, LONG)
    assert [step for step, _ in facts["loss_spikes"]] == [22, 25, 28]
    worst_step, worst = max(facts["loss_spikes"], key=lambda spike: spike[1])
    assert spike_lines(caplog) == [
        f"loss spikes at 3 of 30 steps (the first at step 22, the highest, {worst:.2f} nats, at step {worst_step}): "
        f"training went on."
    ]
    assert "loss spikes 3" in capfd.readouterr().err  # in the bar, while it trains
    assert read_manifest(tmp_path / "model", KIND)["facts"]["loss_spikes"] == facts["loss_spikes"]


class Ends(Callback):
    """Ends a training before a step, as a kill would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, module, step, *_):
        if step.index == self.at:
            raise RuntimeError("killed")


@pytest.mark.parametrize("choice", ["warn", "skip"])
def test_a_resumed_training_tells_all_its_loss_spikes(small_timelines, tmp_path, caplog, spikes_at, choice):
    spikes_at(22, 27)
    plan = LONG.model_copy(update={"on_loss_spike": choice})
    with caplog.at_level(logging.WARNING):
        with pytest.raises(RuntimeError, match="killed"):
            run(small_timelines, tmp_path, plan, callbacks=[Ends(25)])
        assert spike_lines(caplog) == []
        facts = run(small_timelines, tmp_path, plan)
    assert [step for step, _ in facts["loss_spikes"]] == [22, 27]
    (line,) = spike_lines(caplog)
    assert line.startswith("loss spikes at 2 of 30 steps (the first at step 22,")
    assert line.endswith("their updates were left out." if choice == "skip" else "training went on.")


def test_a_spike_changes_no_update_unless_asked(small_timelines, tmp_path, spikes_at):
    plain, warned = Weights(), Weights()
    run(small_timelines, tmp_path / "plain", PLAN, callbacks=[plain])
    spikes_at(3)
    run(small_timelines, tmp_path / "warned", PLAN, callbacks=[warned])
    assert all(same(plain.after[tokens], warned.after[tokens]) for tokens in plain.after)


def test_a_planted_spike_is_found(small_timelines, tmp_path):
    facts = run(small_timelines, tmp_path, LONG, callbacks=[Planted(25)])
    assert [step for step, _ in facts["loss_spikes"]] == [25]


def test_without_loss_spikes_nothing_is_said(small_timelines, tmp_path, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        run(small_timelines, tmp_path)
    assert spike_lines(caplog) == []
    assert "spikes" not in capfd.readouterr().err


def test_the_update_of_a_leap_can_be_left_out(small_timelines, tmp_path):
    weights = Weights()
    facts = run(
        small_timelines, tmp_path, LONG.model_copy(update={"on_loss_spike": "skip"}), callbacks=[Planted(25), weights]
    )
    assert [step for step, _ in facts["loss_spikes"]] == [25]
    after = list(weights.after.values())
    assert [i for i in range(1, len(after)) if same(after[i - 1], after[i])] == [25]


def test_a_leap_can_end_the_training(small_timelines, tmp_path):
    with pytest.raises(InputError, match=r"leaps to .* at step 25 .*batch \d of \d.*on_loss_spike"):
        run(small_timelines, tmp_path, LONG.model_copy(update={"on_loss_spike": "stop"}), callbacks=[Planted(25)])
    assert not (tmp_path / "model").exists()


def test_what_a_leap_does_may_change_before_the_first_one(small_timelines, tmp_path):
    """A training that a leap ended goes on from its last checkpoint, as it would have with the other choice."""
    stop, skip = (LONG.model_copy(update={"on_loss_spike": choice}) for choice in ("stop", "skip"))
    with pytest.raises(InputError, match="Go on from the last checkpoint"):
        run(small_timelines, tmp_path / "stopped", stop, callbacks=[Planted(25)])
    weights = Weights()
    run(small_timelines, tmp_path / "stopped", skip, callbacks=[weights, Planted(25)])
    assert len(weights.after) == 5, "steps 25 to 29"
    run(small_timelines, tmp_path / "skipped", skip, callbacks=[Planted(25)])
    one, two = (load_model(tmp_path / which / "model").state_dict() for which in ("stopped", "skipped"))
    assert same(one, two)
    # with a leap behind it, the choice has mattered
    run(small_timelines, tmp_path / "skipped", LONG, callbacks=[again := Weights()])
    assert len(again.after) == 30


def test_the_validation_of_a_model_is_that_of_its_weights(small_timelines, tmp_path, monkeypatch):
    losses = iter([3.0, 1.5, 2.0] * 2)
    monkeypatch.setattr(module.PretrainingModule, "validation_loss", lambda self: next(losses))
    for weights, expected in (("last", 2.0), ("best", 1.5)):
        facts = run(small_timelines, tmp_path / weights, PLAN.model_copy(update={"weights": weights}))
        assert final_validation(facts)[1] == expected
        export(tmp_path / weights / "model", tmp_path / weights / "exported")
        assert f"| validation loss | {expected:.4f} nats" in (tmp_path / weights / "exported/README.md").read_text()
    assert final_validation(facts | {"weights": "last", "validation": []}) is None


def test_a_start_among_the_checkpoints_that_it_would_empty_is_refused(small_timelines, tmp_path):
    run(small_timelines, tmp_path, PLAN.model_copy(update={"keep_every_tokens": 400}))
    kept = tmp_path / "checkpoints/tokens-400"
    with pytest.raises(InputError, match="lies in the folder of this training's checkpoints"):
        run(small_timelines, tmp_path, start=kept)
    assert kept.is_dir()
    run(small_timelines, tmp_path / "other", start=kept)


class Recorded(CSVLogger):
    """A logger that keeps in memory what it is given."""

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.entries: list[tuple[int | None, dict]] = []

    def log_metrics(self, metrics, step=None):
        self.entries.append((step, dict(metrics)))


@pytest.mark.parametrize("per_step", [90, 250])
def test_the_bar_ends_where_the_training_does(small_timelines, tmp_path, capfd, per_step):
    """Whole windows make up a step: these steps hold fewer, or more, than they were asked for."""
    plan = PLAN.model_copy(update={"tokens_per_step": per_step, "batch_tokens": 90})
    facts = run(small_timelines, tmp_path, plan)
    assert facts["tokens"] != facts["steps"] * per_step
    last = re.split(r"[\r\n]", capfd.readouterr().err.strip())[-1]
    assert last.startswith("gpt-tiny-32: 100%"), last


def test_what_a_training_logs(small_timelines, tmp_path):
    logger: Logger = Recorded(tmp_path / "logs")
    facts = run(small_timelines, tmp_path, loggers=[logger])
    logged = {name for _, metrics in logger.entries for name in metrics}
    assert logged >= {
        "train_loss", "validation_loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second",
        "real_token_share", "loss_spikes", "model_flop_utilization", "peak_memory_gib",
    }  # fmt: skip
    usage = [metrics for _, metrics in logger.entries if "model_flop_utilization" in metrics]
    assert len(usage) == facts["steps"]
    assert all(0 < metrics["model_flop_utilization"] < 1 for metrics in usage)
    assert all(0.1 < metrics["peak_memory_gib"] < 100 for metrics in usage)


def test_model_flop_utilization_is_the_share_of_the_rate(small_timelines, tmp_path, monkeypatch):
    """At a rate of one operation per second, what is logged times the seconds are the operations themselves."""
    monkeypatch.setattr("ehrctx.pretrain.callbacks.matmul_rate", lambda device, threads: 1.0)
    steps = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, module, outputs, step, *_):
            steps.append((step, module.progress["seconds"]))

    logger = Recorded(tmp_path / "logs")
    run(small_timelines, tmp_path, loggers=[logger], callbacks=[Steps()])
    model = build_model(ModelId.parse("gpt-tiny-32"), 23, 0)
    before = 0.0
    usage = [metrics["model_flop_utilization"] for _, metrics in logger.entries if "model_flop_utilization" in metrics]
    for found, (step, seconds) in zip(usage, steps, strict=True):
        flop = sum(int(n.sum()) * flop_per_token(model, "gpt", tokens.shape[1]) for tokens, n in step.batches)
        assert found * (seconds - before) == pytest.approx(flop, rel=1e-6)
        before = seconds


def test_compiled_layers_learn_the_same(small_timelines, tmp_path, monkeypatch):
    """With the eager backend, which needs no compiler: names of weights, checkpoints and results stay."""
    compiled = []
    compile_ = torch.nn.Module.compile

    def eagerly(self, **options):
        compiled.append(options)
        compile_(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    torch._dynamo.reset()
    short = PLAN.model_copy(update={"tokens": 400})
    run(small_timelines, tmp_path / "plain", short)
    assert not compiled
    run(small_timelines, tmp_path / "compiled", short.model_copy(update={"compile": True}))
    assert compiled == [{"dynamic": True}]
    one, two = (load_model(tmp_path / which / "model").state_dict() for which in ("plain", "compiled"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-3)
