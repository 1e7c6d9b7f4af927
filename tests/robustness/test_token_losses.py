"""Losses of every token of held-out timelines against one window per token, cut and scored by itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.models.model import TimelineModel, build_model, load_model, save_model
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.robustness.progression import read_token_losses
from ehrctx.robustness.token_losses import losses_of, repeats, scored_spans, write_token_losses
from ehrctx.study import ARCHITECTURES, ModelId, Perplexity
from ehrctx.timelines.spec import BOS
from ehrctx.timelines.store import KIND as TIMELINES
from ehrctx.timelines.store import SUBJECT, Timelines
from ehrctx.timelines.windows import Windows

torch.set_num_threads(1)

SPECIAL, VOCABULARY = 7, 30
SPLITS = ("train", "held_out", "tuning", "held_out", "held_out")


def store_with(timed: list[int], n_static: list[int] | None = None, seed: int = 0) -> Timelines:
    """Random tokens of subjects with so many timed and static ones."""
    rng = np.random.default_rng(seed)
    n_static = n_static or [i % 3 for i in range(len(timed))]
    offsets = np.concatenate([[0], np.cumsum(np.array(timed) + n_static)]).astype(np.int64)
    subjects = np.zeros(len(timed), dtype=SUBJECT)
    subjects["subject_id"], subjects["n_static"] = 200 + 7 * np.arange(len(timed)), n_static
    subjects["split"] = [SPLITS[i % len(SPLITS)] for i in range(len(timed))]
    return Timelines(
        path=Path("in memory"),
        tokens=rng.integers(SPECIAL, VOCABULARY, size=offsets[-1]).astype(np.uint16),
        seconds=np.zeros(offsets[-1], dtype=np.uint32),
        event=np.zeros(offsets[-1], dtype=np.uint32),
        offsets=offsets,
        subjects=subjects,
        manifest={"facts": {"vocabulary_size": VOCABULARY}},
    )


def model_of(arch: str, context: int = 24) -> TimelineModel:
    """Untrained, with larger weights, so that every token of the history shows in the losses."""
    model = build_model(ModelId.parse(f"{arch}-tiny-{context}"), VOCABULARY, seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not name.endswith("A_log") and ".filter." not in name:
                parameter.mul_(2.0)
    return model


MODELS = {arch: model_of(arch) for arch in ARCHITECTURES}


def parts(store: Timelines, subject: int) -> tuple[list[int], list[int]]:
    """The static and the timed tokens."""
    own = store.tokens[store.offsets[subject] : store.offsets[subject + 1]].tolist()
    n_static = int(store.subjects["n_static"][subject])
    return own[:n_static], own[n_static:]


def first_of_window(position: int, n: int, room: int, stride: int) -> int:
    """The first timed token (from 0) of the window that scores timed token `position`, from the rule in words.

    The first window holds as many tokens as fit. Each next one ends `stride` tokens further, or at the timeline's end,
    and holds as many before it as fit. A token belongs to the first window that holds it.
    """
    end = min(room, n)
    while position >= end:
        end = min(end + stride, n)
    return max(0, end - room)


@torch.no_grad()
def one_at_a_time(model: TimelineModel, store: Timelines, subject: int, context: int, stride: int) -> list[float]:
    """Each token's loss from a window of its own that ends just before it."""
    static, timed = parts(store, subject)
    room = context - 1 - len(static)
    losses = []
    for position, token in enumerate(timed):
        first = first_of_window(position, len(timed), room, stride)
        window = torch.tensor([[BOS, *static, *timed[first:position]]])
        losses.append(float(F.cross_entropy(model.logits(window)[0, -1], torch.tensor(token))))
    return losses


@hypothesis_settings(max_examples=300)
@given(n=st.integers(0, 120), room=st.integers(1, 60), share=st.floats(0, 1))
def test_spans_score_every_token_once_with_enough_history(n, room, share):
    stride = 1 + int(share * (room - 1))
    spans = scored_spans(n, room, stride)
    scored = [token for first, to in spans for token in range(first, to)]
    assert scored == list(range(n)), "each timed token exactly once, in order"
    for number, (first, to) in enumerate(spans):
        begins = max(0, to - room)  # a window ends at `to` and holds at most `room` tokens
        assert begins <= first < to
        if number:
            assert to - first <= stride
            assert first - begins >= room - stride
        else:
            assert begins == first == 0
    assert all(to - first == stride for first, to in spans[1:-1]), "only the first and the last differ"
    assert len(spans) == (0 if n == 0 else 1 + -(-max(0, n - room) // stride))


def test_spans_written_out():
    assert scored_spans(0, 5, 2) == []
    assert scored_spans(4, 5, 2) == scored_spans(4, 4, 4) == [(0, 4)]
    assert scored_spans(10, 5, 2) == [(0, 5), (5, 7), (7, 9), (9, 10)]
    assert scored_spans(10, 5, 5) == [(0, 5), (5, 10)]
    assert scored_spans(4, 1, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]


@given(tokens=st.lists(st.integers(0, 9), max_size=40))
def test_repeats_are_what_a_set_has_seen(tokens):
    seen, expected = set(), []
    for token in tokens:
        expected.append(token in seen)
        seen.add(token)
    found = repeats(np.array(tokens, dtype=np.uint16))
    assert found.dtype == bool
    assert found.tolist() == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("context", "stride"), [(8, 1), (13, 4), (24, 21)])
def test_each_loss_is_that_of_the_token_in_a_window_of_its_own(arch, context, stride):
    store = store_with([0, 3, context - 1, context, 40, 1, 27], seed=context)
    subjects = np.array([1, 6, 0, 4, 3, 2, 5])  # in no order
    found, passed = losses_of(MODELS[arch], Windows(store, context), subjects, stride, batch_tokens=150)
    assert len(found) == len(subjects)
    cost = 0
    for subject, losses in zip(subjects.tolist(), found, strict=True):
        assert losses.dtype == np.float32
        expected = one_at_a_time(MODELS[arch], store, subject, context, stride)
        np.testing.assert_allclose(losses, expected, atol=1e-4)
        static, timed = parts(store, subject)
        room = context - 1 - len(static)
        for _, to in scored_spans(len(timed), room, stride):
            cost += 1 + len(static) + min(to, room)
    assert passed == cost
    assert np.concatenate(found).std() > 0.1, "the losses must differ for this test to mean anything"


@hypothesis_settings(max_examples=10)
@given(
    timed=st.lists(st.integers(0, 35), min_size=1, max_size=3),
    context=st.integers(6, 24),
    share=st.floats(0, 1),
    batch_tokens=st.integers(1, 200),
    seed=st.integers(0, 100),
)
def test_losses_of_any_store(timed, context, share, batch_tokens, seed):
    store = store_with(timed, seed=seed)
    stride = 1 + int(share * (context - 4))
    subjects = np.arange(len(timed))
    found, _ = losses_of(MODELS["llama"], Windows(store, context), subjects, stride, batch_tokens)
    for subject, losses in enumerate(found):
        expected = one_at_a_time(MODELS["llama"], store, subject, context, stride)
        np.testing.assert_allclose(losses, np.array(expected, dtype=np.float32), atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_batches_do_not_matter(arch):
    store = store_with([30, 3, 22, 41], seed=3)
    args = (MODELS[arch], Windows(store, 16), np.arange(4), 6)
    one, passed = losses_of(*args, batch_tokens=1)
    for batch_tokens in (40, 100_000):
        found, also = losses_of(*args, batch_tokens=batch_tokens)
        assert also == passed
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(one), atol=2e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_after_a_token_changes_its_loss(arch):
    """Other tokens after it, none after it, other subjects: the loss stays."""
    store = store_with([30, 33], n_static=[2, 1], seed=4)
    context, stride = 14, 4
    before, _ = losses_of(MODELS[arch], Windows(store, context), np.array([0, 1]), stride, 100)
    for cut in (1, 10, 11, 12, 15, 29):
        tokens = store.tokens.copy()
        later = slice(int(store.offsets[0]) + 2 + cut, len(tokens))
        tokens[later] = SPECIAL + (tokens[later] - SPECIAL + 5) % (VOCABULARY - SPECIAL)
        changed = dataclasses.replace(store, tokens=tokens)
        after, _ = losses_of(MODELS[arch], Windows(changed, context), np.array([0, 1]), stride, 100)
        np.testing.assert_allclose(after[0][:cut], before[0][:cut], atol=2e-5)
        assert abs(after[0][cut] - before[0][cut]) > 1e-4, "the change itself is seen"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_shorter_timeline_scores_its_tokens_as_the_longer_one_did(arch):
    """Windows are placed from the beginning: the tokens of all full spans do not learn that more was to come."""
    store = store_with([40], n_static=[1], seed=5)
    context, stride = 14, 4  # room for 12 tokens: windows end at 12, 16, 20 …
    whole, _ = losses_of(MODELS[arch], Windows(store, context), np.array([0]), stride, 100)
    for n in (5, 12, 16, 28):
        short = dataclasses.replace(store, tokens=store.tokens[: n + 1], offsets=np.array([0, n + 1]))
        found, _ = losses_of(MODELS[arch], Windows(short, context), np.array([0]), stride, 100)
        np.testing.assert_allclose(found[0], whole[0][:n], atol=2e-5)


def test_every_token_of_the_window_and_none_before_it_matters():
    store = store_with([30], n_static=[1], seed=6)
    context, stride = 12, 3  # room for 10: windows end at 10, 13 … 28, 30
    before, _ = losses_of(MODELS["gpt"], Windows(store, context), np.array([0]), stride, 100)
    for position in range(30):
        tokens = store.tokens.copy()
        tokens[1 + position] = SPECIAL + (tokens[1 + position] - SPECIAL + 1) % (VOCABULARY - SPECIAL)
        altered = dataclasses.replace(store, tokens=tokens)
        after, _ = losses_of(MODELS["gpt"], Windows(altered, context), np.array([0]), stride, 100)
        for scored in range(30):
            seen = first_of_window(scored, 30, 10, stride) <= position <= scored
            assert (before[0][scored] != after[0][scored]) == seen, (position, scored)


def test_no_timed_tokens_at_all():
    store = store_with([0, 0], n_static=[0, 2])
    found, passed = losses_of(MODELS["gpt"], Windows(store, 10), np.array([0, 1]), 3, 100)
    assert [len(losses) for losses in found] == [0, 0]
    assert passed == 0


# ---------------------------------------------------------------- the artefact


@pytest.fixture(scope="module")
def timelines(tmp_path_factory) -> Path:
    """A store on disk of 20 subjects, of whom 12 are held out; one held-out subject has no timed token."""
    rng = np.random.default_rng(0)
    timed = rng.integers(2, 45, size=20).tolist()
    timed[3] = 0
    store = store_with(timed, seed=7)
    folder = tmp_path_factory.mktemp("losses") / "timelines"
    with new_artifact(folder, TIMELINES, {}, {}, store.manifest["facts"]) as partial:
        for name in ("tokens", "seconds", "event", "offsets", "subjects"):
            np.save(partial / f"{name}.npy", getattr(store, name))
    return folder


def write_model(folder: Path, name: str, timelines: Path) -> Path:
    identity = ModelId.parse(name)
    with new_artifact(
        folder, MODEL, {"model": name}, {"timelines": timelines}, {"context": identity.context}
    ) as partial:
        save_model(model_of(identity.arch, identity.context), partial)
    return folder


@pytest.fixture(scope="module", params=["gpt-tiny-16", "hyena-tiny-16"])
def model_folder(request, timelines, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / request.param, request.param, timelines)


@pytest.fixture(scope="module")
def gpt(timelines, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "gpt", "gpt-tiny-16", timelines)


@pytest.fixture(scope="module")
def mamba(timelines, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "mamba", "mamba-tiny-16", timelines)


def held_out(timelines: Path) -> list[int]:
    subjects = np.load(timelines / "subjects.npy")
    return [i for i in range(len(subjects)) if subjects["split"][i] == "held_out"]


def test_the_artefact_holds_every_token_of_the_held_out_split(model_folder, timelines, tmp_path):
    out = tmp_path / "losses"
    facts = write_token_losses(model_folder, timelines, Perplexity(), out, threads=1)
    name, recorded, losses = read_token_losses(out)
    store = Timelines.open(timelines)
    assert name == model_folder.name
    assert losses.schema == {
        "subject_id": pl.Int64, "position": pl.Int64, "repeat": pl.Boolean, "loss": pl.Float32
    }  # fmt: skip
    model = load_model(model_folder).eval()
    scored = 0
    for subject in held_out(timelines):
        _, timed = parts(store, subject)
        rows = losses.filter(pl.col("subject_id") == int(store.subjects["subject_id"][subject]))
        assert rows["position"].to_list() == list(range(1, len(timed) + 1))
        assert rows["repeat"].to_list() == [token in timed[:i] for i, token in enumerate(timed)]
        np.testing.assert_allclose(rows["loss"], one_at_a_time(model, store, subject, 16, 8), atol=1e-4)
        scored += len(timed)
    assert losses.height == scored > 100
    assert recorded == facts
    assert {k: facts[k] for k in ("split", "subjects", "window", "stride", "tokens_scored")} == {
        "split": "held_out", "subjects": 12, "window": 16, "stride": 8, "tokens_scored": scored
    }  # fmt: skip
    assert facts["tokens_passed"] > scored
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "token losses"
    assert set(manifest["inputs"]) == {"model", "timelines"}
    assert manifest["settings"]["perplexity"] == Perplexity().model_dump()


def test_window_and_stride_are_the_study_s(mamba, timelines, tmp_path):
    settings = Perplexity(window=12, stride=3)
    facts = write_token_losses(mamba, timelines, settings, tmp_path / "losses", threads=1)
    assert (facts["window"], facts["stride"]) == (12, 3)
    _, _, losses = read_token_losses(tmp_path / "losses")
    store, model = Timelines.open(timelines), load_model(mamba).eval()
    for subject in held_out(timelines)[:4]:
        rows = losses.filter(pl.col("subject_id") == int(store.subjects["subject_id"][subject]))
        np.testing.assert_allclose(rows["loss"], one_at_a_time(model, store, subject, 12, 3), atol=1e-4)


def test_a_window_beyond_the_training_length_where_positions_have_no_end(mamba, timelines, tmp_path):
    facts = write_token_losses(mamba, timelines, Perplexity(window=40), tmp_path / "losses", threads=1)
    assert (facts["window"], facts["stride"]) == (40, 20)


def test_other_subjects_do_not_enter(gpt, timelines, tmp_path):
    """Tokens of the other splits are others: the same losses, to the bit."""
    first = write_token_losses(gpt, timelines, Perplexity(), tmp_path / "first", threads=1)
    copy = shutil.copytree(timelines, tmp_path / "timelines")
    tokens, offsets = np.load(copy / "tokens.npy"), np.load(copy / "offsets.npy")
    for subject in set(range(20)) - set(held_out(timelines)):
        tokens[offsets[subject] : offsets[subject + 1]] = SPECIAL
    np.save(copy / "tokens.npy", tokens)
    again = write_token_losses(
        write_model(tmp_path / "gpt", "gpt-tiny-16", copy), copy, Perplexity(), tmp_path / "again", threads=1
    )
    assert again == first
    assert read_token_losses(tmp_path / "again")[2].equals(read_token_losses(tmp_path / "first")[2])


def test_some_subjects_are_drawn_by_the_seed(gpt, timelines, tmp_path):
    """Without replacement and in the store's order; each one's losses are those that it has among all."""
    write_token_losses(gpt, timelines, Perplexity(), tmp_path / "all", threads=1)
    _, _, everything = read_token_losses(tmp_path / "all")
    drawn = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        settings = Perplexity(subjects=5, seed=seed)
        facts = write_token_losses(gpt, timelines, settings, tmp_path / name, threads=1)
        assert facts["subjects"] == 5
        _, _, losses = read_token_losses(tmp_path / name)
        drawn[name] = losses["subject_id"].unique(maintain_order=True).to_list()
        assert 4 <= len(drawn[name]) <= 5, "one subject has no timed token"
        assert drawn[name] == sorted(drawn[name])
        of_drawn = everything.filter(pl.col("subject_id").is_in(drawn[name]))
        assert losses.drop("loss").equals(of_drawn.drop("loss"))
        np.testing.assert_allclose(losses["loss"], of_drawn["loss"], atol=2e-5)
    assert drawn["a"] == drawn["b"]
    assert len({tuple(ids) for ids in drawn.values()}) > 1


def test_a_window_longer_than_the_positions_is_refused(gpt, timelines, tmp_path):
    with pytest.raises(InputError, match=r"window is 17, but gpt-tiny-16 learned 16 positions.*at most 16"):
        write_token_losses(gpt, timelines, Perplexity(window=17), tmp_path / "losses", threads=1)
    assert not (tmp_path / "losses").exists()


def test_a_stride_that_skips_tokens_is_refused(gpt, timelines, tmp_path):
    """Room beside [BOS] and two static tokens: 13 of 16."""
    write_token_losses(gpt, timelines, Perplexity(stride=13), tmp_path / "losses", threads=1)
    with pytest.raises(InputError, match=r"stride is 14, more than a window of 16 holds"):
        write_token_losses(gpt, timelines, Perplexity(stride=14), tmp_path / "other", threads=1)
    assert not (tmp_path / "other").exists()


def test_other_timelines_than_the_models_are_refused(gpt, timelines, tmp_path):
    copy = shutil.copytree(timelines, tmp_path / "timelines")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["settings"] = {"other": True}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="other timelines"):
        write_token_losses(gpt, copy, Perplexity(), tmp_path / "losses", threads=1)


def test_a_store_without_held_out_subjects_is_refused(timelines, tmp_path):
    copy = shutil.copytree(timelines, tmp_path / "timelines")
    subjects = np.load(copy / "subjects.npy")
    subjects["split"] = "train"
    np.save(copy / "subjects.npy", subjects)
    model = write_model(tmp_path / "gpt", "gpt-tiny-16", copy)
    with pytest.raises(InputError, match="'held_out' holds no subject"):
        write_token_losses(model, copy, Perplexity(), tmp_path / "losses", threads=1)
