"""The studies that come with the project are valid, and hold what they promise."""

import pytest

from ehrctx.configuration import load
from ehrctx.study import ModelId, Study

CONTROLS = "controls"  # several studies in one file
ARCHITECTURES = ("gpt", "llama", "mamba", "hyena")  # those of the paper
# The tasks of the paper (Wornow et al., arXiv 2412.16178), in the names of EHRSHOT.
PUBLISHED_TASKS = {
    "guo_los", "guo_readmission", "guo_icu",
    "lab_thrombocytopenia", "lab_hyperkalemia", "lab_hypoglycemia", "lab_hyponatremia", "lab_anemia",
    "new_hypertension", "new_hyperlipidemia", "new_pancan", "new_celiac", "new_lupus", "new_acutemi",
}  # fmt: skip


@pytest.fixture
def shipped(repository):
    """A function: the shipped study of this name."""
    return lambda name: load(Study, repository / "pipelines" / "studies" / f"{name}.yaml")


def test_every_shipped_study_is_valid(repository, shipped, monkeypatch):
    from ehrctx.events.profile import DatasetProfile, find_profile
    from ehrctx.tasks.definition import load_definition
    from ehrctx.timelines.spec import TokenizerSpec, find_spec

    monkeypatch.chdir(repository)
    names = sorted(file.stem for file in (repository / "pipelines" / "studies").iterdir() if file.stem != CONTROLS)
    assert names == ["context_clues", "demo", "ehrshot", "mimic_iv_demo", "smoke", "synthea27nj"]
    for name in names:
        study = shipped(name)
        assert study.name == name
        profile = load(DatasetProfile, find_profile(study.profile))
        load(TokenizerSpec, find_spec(study.tokenizer))
        for task in study.tasks:
            definition = load_definition(task)
            assert definition.task == task
            # a profile fills what the tasks need, unless the labels are given
            assert study.labels.given or all(getattr(profile, key) for key in definition.needs)


def test_every_arm_of_the_controls_is_a_valid_study(repository, monkeypatch):
    from ehrctx.controls.arms import ARMS, Controls, contexts
    from ehrctx.events.simulate.parameters import parameters_of

    monkeypatch.chdir(repository)
    controls = load(Controls, repository / "pipelines" / "studies" / f"{CONTROLS}.yaml")
    studies = controls.studies()
    assert tuple(studies) == ARMS
    made = {arm: parameters_of(study.simulate.preset, study.simulate.parameters, arm) for arm, study in studies.items()}
    short, long = contexts(studies["far"].models)
    assert (made["far"].cause.distance_tokens, made["near"].cause.distance_tokens) == (short, 0)
    assert made["far"].cause.distance_tokens + made["far"].cause.events < long
    assert made["hidden"] == made["far"].model_copy(
        update={"cause": made["far"].cause.model_copy(update={"shown": False})}
    )
    assert set(studies["permuted"].tasks) == PUBLISHED_TASKS
    assert studies["permuted"].labels.permuted is not None
    assert made["steady"] == made["progressing"].model_copy(update={"progression": 0})
    for arm in ("copy_rate", "gap_shape", "visit_rate"):
        levels = made[f"{arm}_levels"].levels
        assert (levels.property, len(levels.values)) == (arm, 10)


def grid_of(study):
    """(size, {architecture: its context lengths}) of a study with one seed."""
    parsed = [ModelId.parse(model) for model in study.models]
    (size,) = {model.size for model in parsed}
    assert all(model.seed == 0 for model in parsed)
    return size, {arch: sorted(m.context for m in parsed if m.arch == arch) for arch in {m.arch for m in parsed}}


def test_context_clues_is_the_papers_grid(shipped):
    study = shipped("context_clues")
    assert len(study.models) == 16
    transformers, others = [512, 1_024, 2_048, 4_096], [1_024, 4_096, 8_192, 16_384]
    assert grid_of(study) == (
        "paper",
        {"gpt": transformers, "llama": transformers, "mamba": others, "hyena": others},
    )
    pretraining = study.pretraining
    assert pretraining.tokens == 2_000_000_000
    assert pretraining.tokens_per_step == 65_536
    assert (pretraining.learning_rate, pretraining.final_learning_rate) == (2e-4, 1e-5)
    assert set(study.tasks) == PUBLISHED_TASKS
    assert len(study.tasks) == 14
    assert study.labels.max_times_per_subject is None
    assert study.perplexity.stride == 32
    assert study.statistics.replicates == 1_000
    assert study.privacy.minimum_count == 10  # private data


@pytest.mark.parametrize(("name", "contexts"), [("demo", [64, 512]), ("mimic_iv_demo", [512, 4_096])])
def test_the_demos_hold_the_papers_architectures_at_two_lengths(shipped, name, contexts):
    study = shipped(name)
    assert grid_of(study) == ("tiny", dict.fromkeys(ARCHITECTURES, contexts))
    assert len(study.models) == 8
    assert set(study.tasks) == PUBLISHED_TASKS
    assert (study.simulate is None) is (name == "mimic_iv_demo")


def test_ehrshot_takes_its_own_splits_and_labels(shipped):
    study = shipped("ehrshot")
    assert study.splits == "given"
    assert study.labels.given == f"{study.data}/labels"
    assert set(study.tasks) == PUBLISHED_TASKS
    size, contexts = grid_of(study)
    assert size == "small"
    assert set(contexts) == set(ARCHITECTURES)
    assert all(len(lengths) == 2 for lengths in contexts.values())
    assert study.privacy.minimum_count == 10


def test_the_smoke_study_is_small(shipped):
    study = shipped("smoke")
    assert study.models == ("gpt-tiny-64", "hyena-tiny-128")
    assert study.tasks == ("guo_los", "lab_hyponatremia", "new_acutemi", "new_celiac")
    assert study.pretraining.tokens <= 20_000
    assert study.simulate.subjects <= 200
