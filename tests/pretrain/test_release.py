"""`ehrctx export`: what leaves the house, and what does not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import fingerprint, new_artifact
from ehrctx.errors import InputError
from ehrctx.models.model import build_model, save_model
from ehrctx.pretrain.release import export, shared_vocabulary, subjects_by_token
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.study import ModelId
from ehrctx.timelines.store import Timelines


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """The folder of a hyena-tiny-64 on the cohort, as `ehrctx pretrain` writes it, with random weights."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    store = Timelines.open(cohort.timelines)
    facts = {
        "arch": "hyena", "size": "tiny", "context": 64, "parameters": 1_234_567, "hidden_size": 128, "tokens": 54_321,
        "subjects": 3, "passes": 1.5, "validation": [[27_000, 4.5], [54_321, 3.21987]],
    }  # fmt: skip
    settings = {"model": "hyena-tiny-64", "timelines": fingerprint(cohort.timelines)}
    with new_artifact(folder, MODEL, settings, {"timelines": cohort.timelines}, facts) as partial:
        save_model(build_model(ModelId.parse("hyena-tiny-64"), store.vocabulary_size, 0), partial)
    return folder


def counted(store: Timelines) -> dict[int, int]:
    """Distinct train subjects of each token, subject by subject."""
    who: dict[int, set[int]] = {token: set() for token in range(store.vocabulary_size)}
    for i in range(len(store)):
        if store.subjects["split"][i] == "train":
            for token in store.tokens[store.offsets[i] : store.offsets[i + 1]].tolist():
                who[token].add(i)
    return {token: len(subjects) for token, subjects in who.items()}


def test_meanings_that_few_subjects_share_are_withheld(cohort, trained, tmp_path):
    store = Timelines.open(cohort.timelines)
    subjects = counted(store)
    assert subjects_by_token(store).tolist() == list(subjects.values())
    facts = export(trained, tmp_path / "export", cohort.timelines)
    shipped = pl.read_parquet(tmp_path / "export" / "vocabulary.parquet")
    whole = pl.read_parquet(cohort.timelines / "vocabulary.parquet")
    assert shipped.columns == ["token", "kind", "code", "unit", "lower", "upper", "text", "description"]
    assert shipped["token"].to_list() == list(range(whole.height))
    withheld = []
    for mine, original in zip(shipped.iter_rows(named=True), whole.iter_rows(named=True), strict=True):
        of_code = [
            subjects[t] for t, code in zip(whole["token"], whole["code"], strict=True) if code == original["code"]
        ]
        n = max(of_code) if original["kind"] == "code" else subjects[mine["token"]]
        if original["kind"] != "special" and n < 10:
            withheld.append(mine["token"])
            assert mine.pop("kind") == "withheld"
            assert {v for name, v in mine.items() if name != "token"} == {None}
        else:
            assert mine == {name: original[name] for name in mine}
    assert 0 < len(withheld) < whole.height / 2
    assert (facts["vocabulary"], facts["withheld"]) == (whole.height, len(withheld))


def test_one_talkative_subject_is_not_many(cohort, tmp_path):
    """Ten thousand events of one subject: the count of events is large, that of subjects is not."""
    copy = shutil.copytree(cohort.timelines, tmp_path / "timelines")
    tokens, offsets = np.load(copy / "tokens.npy"), np.load(copy / "offsets.npy")
    subjects = np.load(copy / "subjects.npy")
    i = np.flatnonzero(subjects["split"] == "train")[0]
    vocabulary = pl.read_parquet(copy / "vocabulary.parquet")
    rare = int(vocabulary.filter(pl.len().over("code") == 1)["token"].max())  # no other token of its code is common
    tokens[tokens == rare] = 7
    tokens[offsets[i] : offsets[i + 1]] = rare
    np.save(copy / "tokens.npy", tokens)
    assert shared_vocabulary(Timelines.open(copy), 2)["kind"][rare] == "withheld"
    assert shared_vocabulary(Timelines.open(copy), 1)["kind"][rare] != "withheld"


def test_the_card_and_the_manifest_hold_aggregates_only(cohort, trained, tmp_path):
    out = tmp_path / "export"
    facts = export(trained, out, cohort.timelines)
    card = (out / "README.md").read_text()
    for words in (
        "hyena-tiny-64", "| hyena, tiny |", "1,234,567", "64 tokens", "54,321 tokens |", "3.2199 nats", "| clmbr |",
        "trust_remote_code=True", "library_name: transformers", "`vocabulary.parquet` says",
    ):  # fmt: skip
        assert words in card
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "export"
    assert manifest["facts"] == facts
    assert not {"subjects", "passes"} & facts.keys()
    assert manifest["inputs"] == {"model": fingerprint(trained), "timelines": fingerprint(cohort.timelines)}
    assert manifest["settings"]["model"] == "hyena-tiny-64"
    assert "README.md" in manifest["files"]


def test_without_timelines_no_meaning_is_shipped(trained, tmp_path):
    out = tmp_path / "export"
    facts = export(trained, out)
    assert not (out / "vocabulary.parquet").exists()
    assert "withheld" not in facts
    assert "What the token ids mean is not part of this folder." in (out / "README.md").read_text()


def test_other_timelines_are_refused(cohort, trained, write_timelines, tmp_path):
    other = write_timelines(tmp_path / "timelines")
    with pytest.raises(InputError, match="was made from other timelines than those now at"):
        export(trained, tmp_path / "export", other)
    with pytest.raises(InputError, match="is not a finished model folder"):
        export(tmp_path, tmp_path / "export", cohort.timelines)
    assert [p.name for p in tmp_path.iterdir()] == ["timelines"]


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_vocabulary_is_refused_by_name(cohort, trained, tmp_path, monkeypatch, content):
    copy = shutil.copytree(cohort.timelines, tmp_path / "timelines")
    if content is None:
        pl.read_parquet(copy / "vocabulary.parquet").head(0).write_parquet(copy / "vocabulary.parquet")
    else:
        (copy / "vocabulary.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"vocabulary\.parquet is damaged"):
        shared_vocabulary(Timelines.open(copy), 10)
