"""The study file: what is accepted, and that each mistake is answered with the words that mend it."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ehrctx.configuration import load, settings
from ehrctx.errors import InputError
from ehrctx.study import ModelId, Pretraining, Probe, Study

MINIMAL = {"name": "demo", "simulate": {"subjects": 300}, "models": ["mamba-tiny-64"], "tasks": ["guo_los"]}


@pytest.fixture
def refused(tmp_path):
    """A function: the sentence with which a study of these values is refused; ... removes a key."""

    def sentence(**changes):
        file = tmp_path / "study.yaml"
        values = {k: v for k, v in (MINIMAL | changes).items() if v is not ...}
        file.write_text(yaml.safe_dump(values))
        with pytest.raises(InputError) as caught:
            load(Study, file)
        assert str(caught.value).startswith(str(file))
        return str(caught.value)

    return sentence


def test_valid_file_is_loaded_with_its_values_and_defaults(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: demo\nsimulate: {subjects: 300, seed: 7}\nsplits: {hash: [.5, .2, .3], seed: 2}\n"
        "models: [mamba-tiny-64, gpt-tiny-128-s3]\ntasks: [guo_los]\npretraining: {tokens: 5_000, betas: [.8, .9]}\n"
        "probe: {regularization: [1e-8, 1]}\n"
    )
    study = load(Study, file)
    assert (study.simulate.subjects, study.simulate.seed) == (300, 7)
    assert study.splits.hash == (0.5, 0.2, 0.3)
    assert study.splits.seed == 2
    assert study.models == ("mamba-tiny-64", "gpt-tiny-128-s3")
    assert study.pretraining.tokens == 5_000
    assert study.pretraining.betas == (0.8, 0.9)
    assert study.pretraining.learning_rate == 2e-4
    assert study.probe.regularization == (1e-8, 1.0)
    assert study.labels.max_times_per_subject is None
    assert study.labels.censored == "published"
    with pytest.raises(ValidationError):
        study.name = "other"


def test_data_may_take_the_place_of_simulate(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**MINIMAL, "simulate": None, "data": "somewhere"}))
    assert load(Study, file).data == "somewhere"


@pytest.mark.parametrize(
    ("changes", "wrong", "right"),
    [
        ({"modls": ["gpt-tiny-64"]}, "`modls`", "'models'"),
        ({"pretraining": {"tokns": 5}}, "`pretraining.tokns`", "'tokens'"),
        ({"simulate": {"subjcts": 300}}, "`simulate.subjcts`", "'subjects'"),
        ({"splits": {"hsh": [0.5, 0.2, 0.3]}}, "`splits.hsh`", "'hash'"),
        ({"labels": {"max_time_per_subject": 2}}, "`labels.max_time_per_subject`", "'max_times_per_subject'"),
        ({"privacy": {"min_count": 2}}, "`privacy.min_count`", "'minimum_count'"),
        ({"labels": {"gven": "folder"}}, "`labels.gven`", "'given'"),
        ({"embedding": {"pool": "mean"}}, "`embedding.pool`", "'pooling'"),
        ({"probe": {"baseline": ["lightgbm"]}}, "`probe.baseline`", "'baselines'"),
        ({"probe": {"forest": {"tree": [10]}}}, "`probe.forest.tree`", "'trees'"),
        ({"probe": {"boosting": {"leafs": [10]}}}, "`probe.boosting.leafs`", "'leaves'"),
        ({"perplexity": {"strides": 32}}, "`perplexity.strides`", "'stride'"),
        ({"perplexity": {"bin_per_octave": 2}}, "`perplexity.bin_per_octave`", "'bins_per_octave'"),
        ({"pretraining": {"rope": {"thta": 1e4}}}, "`pretraining.rope.thta`", "'theta'"),
        ({"perplexty": {"stride": 32}}, "`perplexty`", "'perplexity'"),
        ({"Statistics": {"level": 0.9}}, "`Statistics`", "'statistics'"),
        ({"pretraining": {"Batch_tokens": 5}}, "`pretraining.Batch_tokens`", "'batch_tokens'"),
        ({"pretraining": {"batch-tokens": 8}}, "`pretraining.batch-tokens`", "'batch_tokens'"),
        ({"splits": {"hash": [0.5, 0.2, 0.3], "sed": 1}}, "`splits.sed`", "'seed'"),
    ],
)
def test_unknown_key_names_the_nearest_right_one(refused, changes, wrong, right):
    sentence = refused(**changes)
    assert f"unknown key {wrong}; did you mean {right}?" in sentence
    assert "expected 'given'" not in sentence


def test_unknown_key_that_resembles_nothing_lists_the_known_ones(refused):
    sentence = refused(statistics={"zzz": 1})
    assert "unknown key `statistics.zzz`; known: level, replicates, seed, thresholds." in sentence


def test_new_keys_are_read_and_have_the_published_defaults(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    study = load(Study, file)
    assert study.labels.given is None
    assert study.probe.baselines == ("logistic_regression", "random_forest", "lightgbm")
    assert (study.probe.forest.trees, study.probe.forest.depth) == ((10, 20, 50, 100, 300), (3, 5, 10, 20, 50))
    boosting = study.probe.boosting
    assert (boosting.depth, boosting.learning_rate, boosting.leaves) == ((3, 6, -1), (0.02, 0.1, 0.5), (10, 25, 100))
    assert (study.perplexity.window, study.perplexity.stride) == (None, None)
    assert (study.perplexity.minimum_tokens, study.perplexity.minimum_subjects) == (30, 10)
    file.write_text(
        yaml.safe_dump(MINIMAL)
        + "labels: {given: somewhere/labels}\n"
        + "probe: {baselines: [lightgbm], forest: {trees: [7]}, boosting: {depth: [-1], rounds: 5}}\n"
        + "perplexity: {stride: 32, window: 64, subjects: 9}\n"
    )
    study = load(Study, file)
    assert study.labels.given == "somewhere/labels"
    assert study.probe.baselines == ("lightgbm",)
    assert (study.probe.forest.trees, study.probe.forest.depth) == ((7,), (3, 5, 10, 20, 50))
    assert (study.probe.boosting.depth, study.probe.boosting.rounds) == ((-1,), 5)
    assert (study.perplexity.stride, study.perplexity.window, study.perplexity.subjects) == (32, 64, 9)


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"embedding": {"windows": "girds"}}, "`embedding.windows`", "'grid'"),
        ({"probe": {"baselines": ["lightgb"]}}, "`probe.baselines.0`", "'lightgbm'"),
        ({"probe": {"baselines": []}}, "`probe.baselines`", "at least 1 item"),
        ({"probe": {"forest": {"trees": [0]}}}, "`probe.forest.trees.0`", "greater than or equal to 1"),
        ({"probe": {"forest": {"depth": []}}}, "`probe.forest.depth`", "at least 1 item"),
        ({"probe": {"boosting": {"leaves": [1]}}}, "`probe.boosting.leaves.0`", "greater than or equal to 2"),
        ({"probe": {"boosting": {"learning_rate": [0]}}}, "`probe.boosting.learning_rate.0`", "greater than 0"),
        ({"probe": {"boosting": {"rounds": 0}}}, "`probe.boosting.rounds`", "greater than or equal to 1"),
        ({"perplexity": {"stride": 0}}, "`perplexity.stride`", "greater than or equal to 1"),
        ({"perplexity": {"window": 7}}, "`perplexity.window`", "greater than or equal to 8"),
        ({"perplexity": {"subjects": "all"}}, "`perplexity.subjects`", "expected a whole number, found 'all'"),
        ({"perplexity": {"stride": 8.5}}, "`perplexity.stride`", "expected a whole number, found 8.5"),
        ({"labels": {"given": 3}}, "`labels.given`", "expected text, found 3"),
        ({"labels": {"censored": "lost"}}, "`labels.censored`", "'negative'"),
        ({"labels": {"given": "g", "censored": "negative"}}, "`labels`", "`given` ones are made already"),
        ({"labels": {"given": "g"}, "ontology": "o"}, "`labels.given` are made already", "`ontology`"),
        ({"labels": None}, "`labels`", "expected keys and values, as in {key: value}, found nothing"),
        ({"models": "gpt-tiny-64"}, "`models`", "expected a list, as in [a, b], found 'gpt-tiny-64'"),
        ({"start_from": ["x"]}, "`start_from`", "expected keys and values, as in {key: value}, found a list"),
        ({"start_from": {"gpt-tiny-64": ["x"]}}, "`start_from.gpt-tiny-64`", "expected text, found a list"),
        ({"start_from": {"gpt-tiny-64": None}}, "`start_from.gpt-tiny-64`", "expected text, found nothing"),
        ({"start_from": {3: "x"}}, "`start_from`", "a key in `start_from` is 3, not text: put it in quotes"),
        ({"pretraining": {3: 4}}, "`pretraining`", "a key in `pretraining` is 3, not text: put it in quotes"),
        ({"pretraining": {"compile": "maybe"}}, "`pretraining.compile`", "expected true or false, found 'maybe'"),
        ({"pretraining": {"rope": 3}}, "`pretraining.rope`", "expected keys and values, as in {key: value}, found 3"),
        ({"pretraining": {"rope": {"factor": "abc"}}}, "`pretraining.rope.factor`", "expected a number, found 'abc'"),
        ({"pretraining": {"rope": {"factor": {"s": 4}}}}, "`pretraining.rope.factor`", "found keys and values"),
        ({"pretraining": {"rope": {"theta": [2]}}}, "`pretraining.rope.theta`", "expected a number, found a list"),
        ({"splits": "hash"}, "`splits`", "expected 'given' or keys and values, as in {key: value}, found 'hash'"),
        ({"splits": {"hash": 0.5}}, "`splits.hash`", "expected a list, as in [a, b], found 0.5"),
        ({"splits": {"hash": [0.5, 0.2, "rest"]}}, "`splits.hash.2`", "expected a number, found 'rest'"),
        ({"splits": {"hash": [0.5, 0.2, 0.2]}}, "`splits`", "must be positive and add up to 1"),
        ({"statistics": {"level": 1}}, "`statistics.level`", "less than 1"),
        ({"pretraining": {"betas": [0.9, 1.5]}}, "`pretraining.betas.1`", "less than 1"),
        ({"pretraining": {"betas": [0.9, 0.9, 0.9]}}, "`pretraining.betas`", "expected at most 2 items, found a list"),
        ({"pretraining": {"rope": {"theta": 1}}}, "`pretraining.rope.theta`", "greater than 1"),
        ({"pretraining": {"rope": {"factor": 0.5}}}, "`pretraining.rope.factor`", "greater than or equal to 1"),
        ({"pretraining": {"rope": {"scaling": "dynamic"}}}, "`pretraining.rope.scaling`", "'linear' or 'yarn'"),
        ({"pretraining": {"rope": {"factor": 4}}}, "`pretraining.rope`", "'none' does not go with factor 4"),
        ({"pretraining": {"rope": {"scaling": "yarn"}}}, "`pretraining.rope`", "'yarn' does not go with factor 1"),
        (
            {"pretraining": {"rope": {"original_context": 64}}},
            "`pretraining.rope`",
            "`original_context` goes with a scaling",
        ),
    ],
)
def test_wrong_value_is_refused_in_one_sentence_that_names_its_key(refused, changes, key, words):
    sentence = refused(**changes)
    assert sentence.count(key) == 1
    assert words in sentence
    assert "\n" not in sentence
    assert "; " not in sentence  # one mistake, one complaint


def test_a_baseline_given_twice_is_refused(refused):
    assert "lightgbm" in refused(probe={"baselines": ["lightgbm", "lightgbm"]})


def test_few_shot_learning_is_asked_for_and_then_the_study_s(refused):
    assert Probe().few_shot is None
    asked = Probe.model_validate({"few_shot": {}}).few_shot
    assert (asked.k, asked.replicates, asked.draw) == ((1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128), 5, "labels")
    assert asked.baselines == ("logistic_regression",)
    assert Probe.model_validate({"few_shot": {"baselines": []}}).few_shot.baselines == ()
    assert "names 8 twice" in refused(probe={"few_shot": {"k": [4, 8, 8]}})
    assert "`shots` are draws already" in refused(probe={"few_shot": {"shots": "folder", "draw": "subjects"}})
    assert "did you mean 'replicates'?" in refused(probe={"few_shot": {"replicate": 3}})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mmba-tiny-512", "did you mean 'mamba'?"),
        ("lama-tiny-512", "did you mean 'llama'?"),
        ("mmba2-tiny-512", "did you mean 'mamba2'?"),
        ("hyna-tiny-512", "did you mean 'hyena'?"),
        ("bert-tiny-512", "known: gpt, hyena, llama, mamba, mamba2."),
        ("mamba-tny-512", "did you mean 'tiny'?"),
        ("llama-smal-512", "did you mean 'small'?"),
        ("hyena-papr-512", "did you mean 'paper'?"),
        ("hyena-huge-512", "known: paper, small, tiny."),
        ("mamba", "<arch>-<size>-<context>[-s<seed>]"),
        ("mamba-tiny-4", "at least 8 tokens"),
        ("mamba-tiny-64-s", "<arch>-<size>-<context>[-s<seed>]"),
    ],
)
def test_bad_model_id_is_refused_with_a_hint(refused, model, words):
    sentence = refused(models=["gpt-tiny-64", model])
    assert "`models.1`" in sentence
    assert repr(model) in sentence
    assert words in sentence


def test_one_mistyped_model_gets_one_complaint(refused):
    """The only model mistyped does not mean that no model is given."""
    assert "at least 1 item" not in refused(models=["mmba-tiny-512"])


@pytest.mark.parametrize("changes", [{"data": "somewhere"}, {"simulate": ...}])
def test_both_or_neither_of_data_and_simulate(refused, changes):
    assert "one of `data` (a MEDS folder), `simulate` and `source`" in refused(**changes)


def test_a_source_is_imported_first(refused):
    imported = MINIMAL | {"simulate": None, "source": {"format": "omop", "folder": "cdm", "codes": "source"}}
    study = Study.model_validate(imported)
    assert (study.source.format, study.source.folder) == ("omop", "cdm")
    assert study.import_options() == "--implausible-time refuse --codes source --before-birth refuse"
    assert Study.model_validate(MINIMAL).import_options() == ""
    assert "one of `data` (a MEDS folder), `simulate` and `source`" in refused(
        simulate={}, source={"format": "omop", "folder": "cdm"}
    )
    assert "`source.format`: expected 'omop' or 'ehrshot' or 'femr', found 'fhir'" in refused(
        simulate=..., source={"format": "fhir", "folder": "cdm"}
    )
    assert "the key `source.folder` is missing" in refused(simulate=..., source={"format": "omop"})
    assert "unknown key `source.code`; did you mean 'codes'?" in refused(
        simulate=..., source={"format": "omop", "folder": "cdm", "code": "source"}
    )


@pytest.mark.parametrize("shares", [[0.5, 0.2, 0.2], [0.9, 0.2, -0.1], [1.0, 0.0, 0.0]])
def test_shares_must_be_positive_and_add_up(refused, shares):
    assert "must be positive and add up to 1" in refused(splits={"hash": shares})


@pytest.mark.parametrize("key", ["name", "models", "tasks"])
def test_missing_key_is_named(refused, key):
    assert f"the key `{key}` is missing" in refused(**{key: ...})


def test_a_name_given_twice_is_named(refused):
    assert "`models` names 'gpt-tiny-64' twice" in refused(models=["gpt-tiny-64", "mamba-tiny-64", "gpt-tiny-64"])
    assert "`tasks` names 'guo_los' twice" in refused(tasks=["guo_los", "guo_los"])


def test_wrong_type_names_the_key(refused):
    assert "`pretraining.tokens`" in refused(pretraining={"tokens": "many"})
    assert "`simulate.subjects`" in refused(simulate={"subjects": 3})


def test_a_section_is_json_of_that_section_alone(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    first = load(Study, file)
    file.write_text(yaml.safe_dump({**MINIMAL, "probe": {"max_iterations": 7}}))
    second = load(Study, file)
    assert json.loads(second.section("probe"))["max_iterations"] == 7
    assert first.section("probe") != second.section("probe")
    assert first.section("pretraining") == second.section("pretraining")
    assert settings(Pretraining, first.section("pretraining")) == first.pretraining


@given(
    st.sampled_from(["gpt", "llama", "mamba", "mamba2", "hyena"]),
    st.sampled_from(["tiny", "small", "paper"]),
    st.integers(8, 10**6),
    st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_model_id_is_read_back(arch, size, context, seed):
    text = f"{arch}-{size}-{context}" + ("" if seed is None else f"-s{seed}")
    parsed = ModelId.parse(text)
    assert (parsed.arch, parsed.size, parsed.context, parsed.seed) == (arch, size, context, seed or 0)


def test_a_context_longer_than_a_step_is_refused(refused):
    sentence = refused(models=["hyena-tiny-4096"], pretraining={"tokens_per_step": 4_095})
    assert "a context length of 4,096 is more than pretraining.tokens_per_step (4,095)" in sentence


def test_a_context_that_is_too_short_to_be_divided_is_refused_for_llama_alone(refused):
    rope = {"scaling": "yarn", "factor": 10}
    sentence = refused(models=["llama-tiny-64"], pretraining={"rope": rope})
    assert "a context length of 64 divided by pretraining.rope.factor (10) is less than 8 tokens" in sentence
    Study.model_validate(MINIMAL | {"models": ["gpt-tiny-64", "llama-tiny-80"], "pretraining": {"rope": rope}})


@pytest.mark.parametrize(
    ("perplexity", "words"),
    [
        (
            {"stride": 128},
            "`perplexity.stride` is 128, more than a window of gpt-tiny-64 (64 tokens), hyena-tiny-128 (128 tokens) "
            "holds besides its first token; use less than 64",
        ),
        (
            {"stride": 64},
            "`perplexity.stride` is 64, more than a window of gpt-tiny-64 (64 tokens) holds besides its first token; "
            "use less than 64",
        ),
        (
            {"window": 128},
            "`perplexity.window` is 128, more than the positions that gpt-tiny-64 will learn; "
            "use at most 64, or leave it out",
        ),
        (
            {"stride": 32, "window": 32},
            "`perplexity.stride` is 32, more than a window of gpt-tiny-64 (32 tokens), hyena-tiny-128 (32 tokens), "
            "mamba-tiny-256 (32 tokens) holds besides its first token; use less than 32",
        ),
    ],
)
def test_windows_of_perplexity_that_cannot_be_are_refused(refused, perplexity, words):
    models = ["gpt-tiny-64", "hyena-tiny-128", "mamba-tiny-256"]
    assert refused(models=models, perplexity=perplexity).endswith(words)


def test_a_stride_below_every_window_is_taken():
    for perplexity in ({"stride": 63}, {"stride": 8, "window": 9}, {"window": 8}):
        study = Study.model_validate(MINIMAL | {"models": ["gpt-tiny-64"], "perplexity": perplexity})
        assert study.perplexity.stride == perplexity.get("stride")


def test_a_gpt_that_starts_from_a_folder_may_know_more_positions():
    start = {"models": ["gpt-tiny-64"], "start_from": {"gpt-tiny-64": "published/gpt"}}
    assert Study.model_validate(MINIMAL | start | {"perplexity": {"window": 128}}).perplexity.window == 128


def test_a_model_is_handed_no_key_that_another_architecture_alone_reads():
    for arch, unread in {"llama": {"scan"}, "mamba": {"rope"}, "gpt": {"rope", "scan"}}.items():
        found = Pretraining().without_effect(ModelId.parse(f"{arch}-tiny-64"))
        assert found == unread | set(Pretraining.RUNNING)


@pytest.mark.parametrize(("threads", "devices", "each"), [(4, 1, 4), (4, 2, 2), (1, 2, 1), (5, 2, 2)])
def test_processes_share_the_threads_that_a_job_gets(threads, devices, each):
    plan = Pretraining(devices=devices, threads=8, checkpoint_seconds=5, learning_rate=0.5)
    study = Study(name="a", simulate={}, models=("gpt-tiny-64",), tasks=("guo_los",), pretraining=plan)
    running = json.loads(study.running(threads))
    assert set(running) == set(Pretraining.RUNNING)
    assert (running["threads"], running["devices"], running["checkpoint_seconds"]) == (each, devices, 5)


# --- start_from ---

STARTS = {"models": ["llama-tiny-64", "llama-tiny-512", "gpt-tiny-64", "gpt-tiny-128", "mamba-tiny-64"]}


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ({"llama-tiny-51": "x"}, "'llama-tiny-51', which is not in `models`; did you mean 'llama-tiny-512'?"),
        ({"llama-tiny-64": "llama-tiny-128"}, "'llama-tiny-128', which is not in `models`; add it there, or write './"),
        ({"llama-tiny-64": "mamba-tiny-64"}, "llama-tiny-64 cannot start from mamba-tiny-64, which has another shape"),
        ({"gpt-tiny-128": "gpt-tiny-64"}, "a gpt knows no positions beyond those it learned"),
        ({"mamba-tiny-64": "mamba-tiny-64"}, "goes in a circle: mamba-tiny-64 from mamba-tiny-64"),
        (
            {"llama-tiny-64": "llama-tiny-512", "llama-tiny-512": "llama-tiny-64"},
            "goes in a circle: llama-tiny-512 from llama-tiny-64 from llama-tiny-512",
        ),
    ],
)
def test_starts_that_cannot_be_are_refused(refused, starts, words):
    assert words in refused(**STARTS, start_from=starts)


def test_a_start_is_a_model_of_the_study_or_a_folder(tmp_path):
    file = tmp_path / "study.yaml"
    starts = {"llama-tiny-512": "llama-tiny-64", "gpt-tiny-64": "gpt-tiny-128", "mamba-tiny-64": "published/mamba"}
    file.write_text(yaml.safe_dump(MINIMAL | STARTS | {"start_from": starts}))
    study = load(Study, file)
    assert study.start_of("llama-tiny-512", "out/models") == "out/models/llama-tiny-64"
    assert study.start_of("gpt-tiny-64", "out/models") == "out/models/gpt-tiny-128"
    assert study.start_of("mamba-tiny-64", "out/models") == "published/mamba"
    assert study.start_of("llama-tiny-64", "out/models") is None
