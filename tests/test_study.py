"""The study file: what is accepted, and that each mistake is answered with the words that mend it."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ehrctx.errors import InputError, nearest
from ehrctx.study import ModelId, Pretraining, Study, find, load, settings

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
    ],
)
def test_unknown_key_names_the_nearest_right_one(refused, changes, wrong, right):
    sentence = refused(**changes)
    assert f"unknown key {wrong}; did you mean {right}?" in sentence


def test_unknown_key_that_resembles_nothing_lists_the_known_ones(refused):
    sentence = refused(statistics={"zzz": 1})
    assert "unknown key `statistics.zzz`; known: level, replicates, seed." in sentence


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("mmba-tiny-512", "did you mean 'mamba'?"),
        ("mamba-tny-512", "did you mean 'tiny'?"),
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
    assert "either `data` (a MEDS folder) or `simulate`" in refused(**changes)


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


def test_file_that_is_not_yaml_names_the_line(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: demo\nmodels: [gpt-tiny-64\ntasks: [guo_los]\n")
    with pytest.raises(InputError, match=r"study\.yaml, line 3: not valid YAML"):
        load(Study, file)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_file_without_keys(tmp_path, text):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="expected keys and values"):
        load(Study, file)


def test_file_that_is_not_text(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load(Study, file)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file: .*absent\.yaml"):
        load(Study, tmp_path / "absent.yaml")


def test_settings_from_the_command_line():
    assert settings(Pretraining, None) == Pretraining()
    assert settings(Pretraining, "{tokens: 2_000_000}").tokens == 2_000_000
    with pytest.raises(InputError, match=r"--settings: unknown key `tokns`; did you mean 'tokens'\?"):
        settings(Pretraining, "{tokns: 1}")
    with pytest.raises(InputError, match="--settings: not valid YAML"):
        settings(Pretraining, "{tokens: [")


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


@given(st.sampled_from(["gpt", "mamba"]), st.integers(8, 10**6), st.one_of(st.none(), st.integers(0, 10**6)))
def test_model_id_is_read_back(arch, context, seed):
    text = f"{arch}-tiny-{context}" + ("" if seed is None else f"-s{seed}")
    parsed = ModelId.parse(text)
    assert (parsed.arch, parsed.size, parsed.context, parsed.seed) == (arch, "tiny", context, seed or 0)


def test_find_takes_names_and_paths(tmp_path):
    file = tmp_path / "clmbr.yaml"
    file.write_text("")
    assert find("clmbr", tmp_path, "tokenizer") == file
    assert find(str(file), tmp_path / "elsewhere", "tokenizer") == file
    with pytest.raises(InputError, match=r"no tokenizer 'clmb' .*did you mean 'clmbr'\?"):
        find("clmb", tmp_path, "tokenizer")
    with pytest.raises(InputError, match="no such tokenizer file"):
        find(str(tmp_path / "absent.yaml"), tmp_path, "tokenizer")


def test_nearest_is_deterministic():
    assert nearest("tokns", ["seed", "tokens"]) == "did you mean 'tokens'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b."
