"""How YAML is read: what is no YAML, keys given twice, sections on the command line, names of shipped files."""

from datetime import date

import pytest
import yaml

from ehrctx.configuration import find, load, settings
from ehrctx.errors import InputError, nearest
from ehrctx.study import Pretraining, Study

MINIMAL = {"name": "demo", "simulate": {"subjects": 300}, "models": ["mamba-tiny-64"], "tasks": ["guo_los"]}


def test_file_that_is_not_yaml_names_the_line(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: demo\nmodels: [gpt-tiny-64\ntasks: [guo_los]\n")
    with pytest.raises(InputError, match=r"study\.yaml, line 3: not valid YAML"):
        load(Study, file)


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        ("name: demo\nmodels: [gpt-tiny-64]\nname: other\n", 3, "name", 1),
        ("name: demo\n'name': other\n", 2, "name", 1),
        ("pretraining:\n  seed: 1\n  rope: {theta: 2, theta: 3}\n", 3, "theta", 3),
        ("name: demo\nprobe:\n  seed: 1\n\n  seed: 1\n", 5, "seed", 3),
        ("start_from: {gpt-tiny-64: a,\n  gpt-tiny-64: b}\n", 2, "gpt-tiny-64", 1),
    ],
)
def test_a_key_given_twice_is_refused_by_name_and_line(tmp_path, text, line, key, first):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load(Study, file)
    said = f"{file}, line {line}: not valid YAML (the key `{key}` is given twice, first in line {first})."
    assert str(caught.value) == said


def test_keys_of_an_anchor_may_be_given_again(tmp_path):
    """A merge (`<<`) is YAML's own way to give a key again, also where what is merged was merged before."""
    file = tmp_path / "study.yaml"
    shared = "labels: &a {seed: 1}\nprobe: &b {<<: *a, seed: 2}\nstatistics: {<<: *b, seed: 3}\nprivacy: {}\n"
    file.write_text(yaml.safe_dump(MINIMAL) + shared)
    study = load(Study, file)
    assert (study.labels.seed, study.probe.seed, study.statistics.seed) == (1, 2, 3)


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
    with pytest.raises(
        InputError, match=r"--settings: not valid YAML \(the key `seed` is given twice, first in line 1\)"
    ):
        settings(Pretraining, '{"seed": 1, "seed": 2}')


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({None: 1}, "a key is nothing, not text: put it in quotes"),
        ({"start_from": {1.5: "x"}}, "a key in `start_from` is 1.5, not text: put it in quotes"),
        ({"models": [{1: 2}]}, "a key in `models.0` is 1, not text: put it in quotes"),
        ({"pretraining": {True: 1}}, "a key in `pretraining` is true, not text: put it in quotes"),
        ({"name": date(2020, 1, 1)}, "`name`: expected text, found the date 2020-01-01"),
        ({"name": True}, "`name`: expected text, found true"),
    ],
)
def test_what_yaml_makes_of_words_is_said_in_words(tmp_path, changes, words):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(MINIMAL | changes, sort_keys=False))
    with pytest.raises(InputError) as caught:
        load(Study, file)
    assert str(caught.value) == f"{file}: {words}"
