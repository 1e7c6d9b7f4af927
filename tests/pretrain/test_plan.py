"""The plan of a study against built models, counts by hand and torch's own counter; studies whose data are not here."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from ehrctx.artifacts import MANIFEST, new_artifact
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, build_model
from ehrctx.pretrain import plan as module
from ehrctx.pretrain.batches import TrainingBatches
from ehrctx.pretrain.flop import flop_per_token, matmul_rate
from ehrctx.pretrain.measure import DOES_NOT_FIT, Measurement
from ehrctx.pretrain.plan import plan, plan_models, plan_text, vocabulary_of
from ehrctx.pretrain.trained import check_starts
from ehrctx.study import ARCHITECTURES, ModelId, Pretraining, Study
from ehrctx.timelines.store import KIND as TIMELINES
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

torch.set_num_threads(1)

VOCABULARY = 500
SETTINGS = Pretraining(tokens=1_000_000, tokens_per_step=4_096, batch_tokens=2_048)


def built(name: str) -> TimelineModel:
    return build_model(ModelId.parse(name), VOCABULARY, seed=0)


def counted_by_torch(model: TimelineModel, length: int) -> float:
    """Operations of matrix products per token, forward and backward; attention as full products."""
    if model.network.config.model_type in ("gpt2", "llama"):
        # transformers' own class, whose attention can be told to be plain products: the counter knows no fused ones
        model = TimelineModel(AutoModelForCausalLM.from_config(model.network.config, attn_implementation="eager"))
    tokens = torch.randint(0, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(0))
    # the counter does not know products that are added in place
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, *_, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model.loss(tokens, torch.tensor([length, length]))[0].backward()
    return counter.get_total_flops() / tokens.numel()


@pytest.fixture
def at_the_repository(repository, monkeypatch):
    """A quick plan, run where the study files are."""
    monkeypatch.chdir(repository)
    monkeypatch.setattr(module, "matmul_rate", lambda device, threads: 1e11)
    return repository


def study_of(**changes) -> Study:
    keys = {"name": "planned", "data": "nowhere", "models": ("gpt-tiny-64",), "tasks": ("guo_los",)}
    return Study.model_validate(keys | changes)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_parameters_are_those_of_the_built_model(arch, size):
    (row,) = plan_models([f"{arch}-{size}-64"], VOCABULARY, SETTINGS, "cpu", 1e11)
    assert row.model == f"{arch}-{size}-64"
    assert row.parameters == sum(p.numel() for p in built(row.model).parameters())


def test_planning_allocates_no_weights(monkeypatch):
    """The largest models of the study, of half a gigabyte each, in moments."""
    made = []
    build = module.build_model

    def watched(*args, **kwargs) -> TimelineModel:
        made.append(build(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(module, "build_model", watched)
    plan_models([f"{arch}-paper-4096" for arch in ARCHITECTURES], 39_818, SETTINGS, "cpu", 1e11)
    assert len(made) == len(ARCHITECTURES)
    assert all(p.device.type == "meta" for model in made for p in model.parameters())


@pytest.mark.parametrize(("tokens", "tokens_per_step"), [(1_000_000, 4_096), (10_000, 4_096), (10, 4_096), (9, 3)])
def test_tokens_and_steps_are_those_of_the_training(small_timelines, tokens, tokens_per_step):
    settings = Pretraining(tokens=tokens, tokens_per_step=tokens_per_step)
    (row,) = plan_models(["gpt-tiny-64"], VOCABULARY, settings, "cpu", 1e11)
    store = Timelines.open(small_timelines)
    batches = TrainingBatches(Windows(store, 64), store.in_split("train"), settings, 0)
    assert (row.tokens, row.steps) == (tokens, batches.n_steps)


@pytest.mark.parametrize(("batch_tokens", "expected"), [(2_048, 32), (100_000, 64), (63, 1), (128, 2), (191, 2)])
def test_windows_of_a_batch_fit_its_tokens(batch_tokens, expected):
    """And those of a step: a batch is never more than one."""
    settings = SETTINGS.model_copy(update={"batch_tokens": batch_tokens})
    (row,) = plan_models(["gpt-tiny-64"], VOCABULARY, settings, "cpu", 1e11)
    assert row.windows_per_batch == expected


def test_operations_of_a_small_gpt_by_hand():
    """6 for each weight of a product, and causal attention: half of the pairs, two products of the width, thrice."""
    width, layers, length = 128, 4, 64
    products = VOCABULARY * width + layers * 12 * width**2
    attention = layers * 3 * 2 * 2 * length * width / 2
    assert flop_per_token(built("gpt-tiny-64"), "gpt", length) == pytest.approx(6 * products + attention, rel=1e-9)


def test_operations_of_a_small_llama_by_hand():
    """The embedding is looked up and not multiplied; two of four heads have keys and values."""
    width, layers, length = 128, 4, 64
    products = VOCABULARY * width + layers * (3 * width**2 + 3 * width * 448)
    attention = layers * 3 * 2 * 2 * length * width / 2
    assert flop_per_token(built("llama-tiny-64"), "llama", length) == pytest.approx(6 * products + attention, rel=1e-9)


@pytest.mark.parametrize("arch", ["gpt", "llama"])
@pytest.mark.parametrize("length", [64, 512])
def test_operations_of_transformers_are_those_that_torch_counts(arch, length):
    """Torch counts attention to all positions, of which causal attention needs half."""
    model = built(f"{arch}-tiny-{length}")
    counted = counted_by_torch(model, length)
    found = flop_per_token(model, arch, length)
    assert found == pytest.approx(counted, rel=0.35)
    assert found == pytest.approx(counted - 4 * 6 * length * 128, rel=0.01)


@pytest.mark.parametrize("arch", ["mamba", "mamba2", "hyena"])
def test_operations_of_the_others_are_near_what_torch_counts(arch):
    """Torch's counter sees no scan but that of Mamba-2, and no transform, which add some."""
    model = built(f"{arch}-tiny-256")
    counted = counted_by_torch(model, 256)
    assert counted < flop_per_token(model, arch, 256) < 1.25 * counted


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_longer_windows_cost_more_only_where_attention_or_transforms_are(arch):
    short, long = (flop_per_token(built(f"{arch}-tiny-{n}"), arch, n) for n in (64, 1_024))
    if arch in ("mamba", "mamba2"):
        assert long == short
    elif arch == "hyena":
        assert short < long < 1.2 * short
    else:
        assert long - short == pytest.approx(4 * 6 * (1_024 - 64) * 128)


def test_time_is_operations_over_the_rate():
    (row,) = plan_models(["gpt-tiny-64"], VOCABULARY, SETTINGS, "cpu", 2e11)
    operations = flop_per_token(built("gpt-tiny-64"), "gpt", 64) * 1_000_000
    assert row.petaflop == pytest.approx(operations / 1e15)
    assert row.seconds == pytest.approx(operations / (2e11 * module.EFFICIENCY["cpu"]["gpt"]))
    (double,) = plan_models(["gpt-tiny-64"], VOCABULARY, SETTINGS.model_copy(update={"tokens": 2_000_000}), "cpu", 2e11)
    assert double.seconds == pytest.approx(2 * row.seconds)


def test_several_devices_share_the_time_and_with_fsdp_the_weights():
    (one,), (ddp,), (fsdp,) = (
        plan_models(["gpt-paper-512"], VOCABULARY, SETTINGS.model_copy(update=changes), "cuda", 1e14)
        for changes in ({}, {"devices": 4}, {"devices": 4, "strategy": "fsdp"})
    )
    assert ddp.seconds == fsdp.seconds == one.seconds / 4
    assert ddp.memory_gib == one.memory_gib
    assert one.memory_gib - fsdp.memory_gib == pytest.approx(0.75 * 16 * one.parameters / 2**30)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_holds_weights_gradients_and_moments_at_least(arch, device):
    (row,) = plan_models([f"{arch}-paper-1024"], 39_818, Pretraining(), device, 1e11)
    assert row.memory_gib > 16 * row.parameters / 2**30
    (less,) = plan_models([f"{arch}-paper-1024"], 39_818, Pretraining(batch_tokens=4_096), device, 1e11)
    assert 16 * row.parameters / 2**30 < less.memory_gib < row.memory_gib
    (full,) = plan_models([f"{arch}-paper-1024"], 39_818, Pretraining(precision="32-true"), device, 1e11)
    assert (full.memory_gib > row.memory_gib) == (device == "cuda"), "bfloat16 halves activations on CUDA alone"


def kept_bytes(model: TimelineModel, rows: int, length: int, kind: str) -> int:
    """What the backward keeps of a batch's states, every storage once; as on CUDA, with the scan in plain torch."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    with (
        patch("ehrctx.models.ops.selective_scan.backend_for", return_value="torch"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"),
    ):
        states = model.states(tokens)
    assert states.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_activations_are_those_that_the_backward_keeps(arch, kind):
    """Per token: two batches, as autocast's copies of the weights do not grow with the batch."""
    model = built(f"{arch}-small-128")
    layers, width = model.network.config.num_hidden_layers, model.hidden_size
    grown = kept_bytes(model, 4, 128, kind) - kept_bytes(model, 2, 128, kind)
    numbers = grown / (2 * 128 * layers * width * (2 if kind == "bfloat16" else 4))
    assert module.ACTIVATIONS[kind][arch] == pytest.approx(numbers, rel=0.2)


def test_a_scan_in_plain_torch_is_bound_by_its_steps_on_cuda(monkeypatch):
    """The longer the windows, the fewer go side by side, and the more steps there are."""
    monkeypatch.setattr(module, "backend_for", lambda device: "torch")
    settings = Pretraining(tokens=10_000_000)
    short, long = plan_models(["mamba-paper-1024", "mamba-paper-16384"], VOCABULARY, settings, "cuda", 1e15)
    assert (short.windows_per_batch, long.windows_per_batch) == (16, 1)
    steps = 24 * 10_000_000 * module.SCAN_STEP_SECONDS
    assert long.seconds - short.seconds == pytest.approx(steps * (1 - 1 / 16))
    on_cpu = plan_models(["mamba-paper-1024", "mamba-paper-16384"], VOCABULARY, settings, "cpu", 1e15)
    assert on_cpu[0].seconds == on_cpu[1].seconds
    monkeypatch.setattr(module, "backend_for", lambda device: "triton")
    kernels = plan_models(["mamba-paper-1024", "mamba-paper-16384"], VOCABULARY, settings, "cuda", 1e15)
    assert kernels[0].seconds == kernels[1].seconds < short.seconds


def test_one_window_longer_than_a_batch_is_in_memory_all_the_same():
    settings = Pretraining(batch_tokens=512)
    short, long = plan_models(["mamba-tiny-512", "mamba-tiny-16384"], VOCABULARY, settings, "cpu", 1e11)
    assert long.windows_per_batch == 1
    assert long.memory_gib > 2 * short.memory_gib


def test_the_vocabulary_is_that_of_the_timelines_where_they_are(tmp_path, at_the_repository):
    study = study_of(tokenizer="clmbr_4k")
    assert vocabulary_of(study, tmp_path) == (4_096, False), "what the spec allows"
    folder = tmp_path / "planned" / "timelines" / "clmbr_4k"
    with new_artifact(folder, TIMELINES, {}, {}, {"vocabulary_size": 777}) as partial:
        (partial / "x").touch()
    assert vocabulary_of(study, tmp_path) == (777, True)
    assert vocabulary_of(study_of(name="other", tokenizer="clmbr_4k"), tmp_path) == (4_096, False)


@pytest.mark.parametrize(("name", "models"), [("context_clues", 16), ("ehrshot", 8)])
def test_studies_are_planned_before_their_data_are_here(at_the_repository, name, models):
    study = load(Study, Path("pipelines/studies") / f"{name}.yaml")
    found = plan(study)
    assert (found["study"], found["vocabulary"]) == (name, 39_818)
    assert [row["model"] for row in found["models"]] == list(study.models)
    assert len(found["models"]) == models
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["models"]))
    for row in found["models"]:
        assert row["tokens"] == study.pretraining.tokens
        assert row["steps"] == round(row["tokens"] / study.pretraining.tokens_per_step)
        assert all(row[key] > 0 for key in ("seconds", "memory_gib", "petaflop", "windows_per_batch"))
    text = plan_text(found)
    assert all(model in text for model in study.models)
    assert "at most 39,818 tokens" in text


SEVERAL = {"model.safetensors.index.json": '{"weight_map": {"a": "one", "b": "two"}}', "one": "", "two": ""}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no such folder: {start}. Give a folder on this machine; nothing is fetched."),
        ({}, "{start} holds no config.json. Give a folder of a model in Hugging Face's layout."),
        ({"config.json": "{}"}, "{start} holds no model.safetensors. Give a folder of a model in"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "{start} holds pytorch_model.bin and no model.safetensors: a"),
        ({"config.json": "[", "model.safetensors": ""}, "{start}/config.json is damaged: it is not a JSON object."),
        ({"config.json": "{}", **SEVERAL, "two": ...}, "{start} holds no two. Give a folder of a model in"),
        *(
            (
                {"config.json": "{}", "model.safetensors.index.json": index},
                "{start}/model.safetensors.index.json is damaged: it names no files of weights.",
            )
            for index in ("{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}')
        ),
    ],
)
def test_a_folder_to_start_from_that_holds_no_model_is_refused(at_the_repository, tmp_path, files, words):
    start = tmp_path / "published"
    if files is not None:
        start.mkdir()
    for name, content in (files or {}).items():
        if content is not ...:
            (start / name).write_text(content)
    with pytest.raises(InputError) as caught:
        plan(study_of(start_from={"gpt-tiny-64": str(start)}))
    assert str(caught.value).startswith(f"`start_from` of gpt-tiny-64: {words.format(start=start)}")
    assert "\n" not in str(caught.value)


def test_a_trained_model_needs_its_start_no_more(tmp_path):
    study = study_of(start_from={"gpt-tiny-64": str(tmp_path / "removed")})
    with pytest.raises(InputError, match="no such folder"):
        check_starts(study, tmp_path)
    (tmp_path / "planned/models/gpt-tiny-64").mkdir(parents=True)
    (tmp_path / "planned/models/gpt-tiny-64" / MANIFEST).write_text("{}")
    check_starts(study, tmp_path)


@pytest.mark.parametrize("several", [False, True])
def test_a_start_that_is_there_or_is_trained_first_is_planned(at_the_repository, tmp_path, several):
    for name, content in {"config.json": "{}", **(SEVERAL if several else {"model.safetensors": ""})}.items():
        (tmp_path / name).write_text(content)
    starts = {"gpt-tiny-64": str(tmp_path), "llama-tiny-128": "llama-tiny-64"}
    study = study_of(models=("gpt-tiny-64", "llama-tiny-64", "llama-tiny-128"), start_from=starts)
    assert len(plan(study)["models"]) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_plan_of_days_without_a_gpu_says_so(at_the_repository):
    text = plan_text(plan(load(Study, Path("pipelines/studies/context_clues.yaml"))))
    assert "This wants a GPU" in text
    assert "days" in text
    assert "wants a GPU" not in plan_text(plan(load(Study, Path("pipelines/studies/smoke.yaml"))))


def test_the_threads_and_the_machine_are_told(at_the_repository, monkeypatch):
    monkeypatch.setattr(module, "available_gib", lambda device: 5.0)
    study = study_of(pretraining={"threads": 3, "accelerator": "cpu", "tokens": 1_000})
    found = plan(study)
    assert (found["device"], found["threads"], found["available_gib"]) == ("cpu", 3, 5.0)
    assert found["gflop_per_second"] == pytest.approx(100)
    text = plan_text(found)
    assert "3 thread(s)" in text
    assert "100 GFLOP/s" in text


def test_models_too_large_for_the_memory_are_named(at_the_repository, monkeypatch):
    models = ("gpt-tiny-64", "llama-paper-512", "mamba-paper-512")
    study = study_of(models=models, pretraining={"accelerator": "cpu"})
    memory = {row["model"]: row["memory_gib"] for row in plan(study)["models"]}
    between = (memory["gpt-tiny-64"] + min(memory["llama-paper-512"], memory["mamba-paper-512"])) / 2
    monkeypatch.setattr(module, "available_gib", lambda device: between)
    notes = [line for line in plan_text(plan(study)).splitlines() if line.startswith("Too large")]
    assert [note.split(": ")[1].split(";")[0] for note in notes] == ["llama-paper-512", "mamba-paper-512"]
    monkeypatch.setattr(module, "available_gib", lambda device: 1e6)
    assert "Too large" not in plan_text(plan(study))


@pytest.mark.parametrize("budget", [512, 4_096, 32_768])
def test_the_remedy_is_the_largest_batch_that_fits(budget):
    """Of halves of the batch; by the plan's own estimate."""
    settings = Pretraining(batch_tokens=65_536, accelerator="cpu")

    def needed(tokens: int) -> float:
        fewer = settings.model_copy(update={"batch_tokens": tokens})
        return plan_models(["llama-small-512"], VOCABULARY, fewer, "cpu", 1e11)[0].memory_gib

    between = (needed(budget) + needed(2 * budget)) / 2
    words = module.remedy("llama-small-512", VOCABULARY, settings, "cpu", between, factor=1.0)
    assert words == f"lower pretraining.batch_tokens to {budget:,}"


def test_where_one_window_is_too_much_the_remedy_says_so():
    words = module.remedy("llama-small-16384", VOCABULARY, Pretraining(), "cpu", 1.0, factor=1.0)
    assert "shorter context length or a smaller size" in words


def test_a_measured_plan_takes_time_and_memory_from_the_measurement(at_the_repository, monkeypatch):
    asked = []

    def measured(model, vocabulary, settings, device, limit):
        asked.append((model, vocabulary, device, limit))
        return Measurement(20, 500.0, 3.0) if model == "gpt-tiny-64" else DOES_NOT_FIT

    monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(module, "available_gib", lambda device: 5.0)
    study = study_of(
        models=("gpt-tiny-64", "llama-tiny-512", "gpt-paper-16384"),
        pretraining={"accelerator": "cpu", "tokens": 1_000_000, "batch_tokens": 4_096},
    )
    found = plan(study, measured=True)
    assert [name for name, *_ in asked] == ["gpt-tiny-64", "llama-tiny-512"], "the third is hopeless"
    assert {(device, limit) for _, _, device, limit in asked} == {("cpu", 5.0)}
    first, second, third = found["models"]
    assert (first["seconds"], first["memory_gib"], first["measured_steps"], first["remedy"]) == (2_000, 3.0, 20, None)
    assert (second["seconds"], second["memory_gib"]) == (None, None)
    assert second["remedy"] == "lower pretraining.batch_tokens to 2,048"
    assert "shorter context length" in third["remedy"]
    text = plan_text(found)
    assert "Measured over 20 steps" in text
    assert "too much" in text
    with pytest.raises(InputError, match=r"5\.0 GiB.*llama-tiny-512 \(lower .*2,048\); gpt-paper-16384 \(even one"):
        module.refuse_what_does_not_fit(found)
    module.refuse_what_does_not_fit(found | {"models": [first]})


def test_what_would_take_minutes_a_step_is_not_measured(at_the_repository, monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(module, "available_gib", lambda device: 1e6)
    study = study_of(models=("llama-paper-16384",), pretraining={"accelerator": "cpu", "batch_tokens": 65_536})
    found = plan(study, measured=True)
    assert found["models"] == plan(study)["models"]
    module.refuse_what_does_not_fit(found)


def test_the_memory_of_this_machine_is_told():
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = int(next(line for line in lines if line.startswith("MemTotal")).split()[1])
    assert module.available_gib("cpu") == pytest.approx(kilobytes / 2**20, rel=1e-3)


def test_measuring_the_rate_restores_the_number_of_threads():
    before = torch.get_num_threads()
    rate = matmul_rate("cpu", before + 1, seconds=0.05)
    assert torch.get_num_threads() == before
    assert 1e8 < rate < 1e14
    assert math.isfinite(rate)


def test_rows_of_the_text_line_up():
    rows = plan_models(["gpt-tiny-64", "mamba-tiny-16384"], VOCABULARY, SETTINGS, "cpu", 1e11)
    found = {
        "study": "s", "device": "cpu", "threads": 1, "gflop_per_second": 1.0, "available_gib": 1e3,
        "vocabulary": VOCABULARY, "vocabulary_known": True, "models": [dataclasses.asdict(row) for row in rows],
        "seconds": 10.0,
    }  # fmt: skip
    lines = plan_text(found).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("model"))
    table = lines[header : header + 3]
    assert len({len(line) for line in table}) == 1
    assert f"{rows[0].parameters:,}" in table[1]
    assert "vocabulary 500 tokens" in lines[0]
    assert "10 s" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1, "1 s"), (119, "119 s"), (120, "2.0 min"), (7_200, "2.0 h"), (400_000, "4.6 days")]
)
def test_durations_are_told_in_their_own_units(seconds, text):
    assert module._duration(seconds) == text
