"""Each control against numbers that were planted: one that should hold does, one that should fail does."""

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress
from sklearn.metrics import roc_auc_score

from ehrctx.configuration import load, validate
from ehrctx.controls.arms import ARMS, Controls, both_contexts, by_context
from ehrctx.controls.levels import FOLLOWS, level_table, steps_that_follow
from ehrctx.controls.negative import chance_table, could_fail, excluded
from ehrctx.controls.positive import BLIND, ORACLE, aurocs, difference, read_truth, recovered
from ehrctx.controls.progression import paired_slope
from ehrctx.errors import InputError
from ehrctx.probe.statistics import Intervals
from ehrctx.robustness.progression import position_bins
from ehrctx.study import Statistics

TASK = "new_acutemi"
STATISTICS = Statistics(replicates=400)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, write_predictions, write_truth):
    """Labels of 1,500 subjects; models that know their probability, half of it, and nothing."""
    root, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    cause = rng.random(1_500) < 0.35
    probability = np.where(cause, 0.45, 0.04)
    y = rng.random(1_500) < probability
    events = write_truth(root / "events", TASK, probability, np.full(1_500, 0.18))
    half = np.where(rng.random(1_500) < 0.5, probability, 0.18)
    folders = [
        write_predictions(root / name, name, {TASK: (y, p)})
        for name, p in (("gpt-tiny-512", probability), ("llama-tiny-512", half), ("gpt-tiny-128", rng.random(1_500)))
    ]
    return aurocs(events, folders, TASK, STATISTICS), y, probability, half


def test_the_oracle_and_the_models_have_their_aurocs(planted):
    found, y, probability, half = planted
    assert found.values[ORACLE] == pytest.approx(roc_auc_score(y, probability))
    assert found.values["llama-tiny-512"] == pytest.approx(roc_auc_score(y, half))
    assert found.values[BLIND] == 0.5
    assert found.subjects == y.sum()


def test_what_is_recovered_of_the_oracle(planted):
    found, y, probability, half = planted
    intervals = Intervals(0.95)
    value, drawn = recovered(found, "gpt-tiny-512")
    assert value == 1
    assert (drawn == 1).all()
    value, drawn = recovered(found, "llama-tiny-512")
    low, high = intervals.of(drawn, found.subjects)
    assert value == pytest.approx((roc_auc_score(y, half) - 0.5) / (roc_auc_score(y, probability) - 0.5))
    assert 0.4 < low < value < high < 0.9
    low, high = intervals.of(recovered(found, "gpt-tiny-128")[1], found.subjects)
    assert low < 0 < high


def test_differences_are_paired(planted):
    found, *_ = planted
    value, drawn = difference(found, "gpt-tiny-512", found, "llama-tiny-512")
    apart = np.var(found.replicates["gpt-tiny-512"]) + np.var(found.replicates["llama-tiny-512"])
    assert value == found.values["gpt-tiny-512"] - found.values["llama-tiny-512"]
    assert drawn.var() < 0.8 * apart


def test_a_subject_counts_once_at_the_first_prediction_time(tmp_path, write_predictions, write_truth):
    """Only there the cause is as far away as was planted."""
    first = np.arange(200) % 2 == 0
    y, p = np.concatenate([first, ~first]), np.tile(first.astype(float), 2)
    probability = np.concatenate([first * 0.8, ~first * 0.8]) + 0.1
    times = np.repeat([0, 30], 200)
    events = write_truth(
        tmp_path / "events", TASK, probability, probability, days=times, subjects=np.tile(np.arange(200), 2)
    )
    folder = write_predictions(tmp_path / "m", "gpt-tiny-64", {TASK: (y, p)}, times, np.tile(np.arange(200), 2))
    found = aurocs(events, [folder], TASK, STATISTICS)
    assert found.values["gpt-tiny-64"] == found.values[ORACLE] == 1
    assert found.subjects == 100


def test_an_oracle_that_knows_nothing_is_refused(tmp_path, write_predictions, write_truth):
    y = np.random.default_rng(0).random(200) < 0.3
    folder = write_predictions(tmp_path / "m", "gpt-tiny-64", {TASK: (y, y + 0.0)})
    events = write_truth(tmp_path / "events", TASK, np.full(200, 0.3), np.full(200, 0.3))
    with pytest.raises(InputError, match="the oracle itself is not surely better than chance"):
        aurocs(events, [folder], TASK, STATISTICS)


def test_labels_without_a_truth_are_refused(tmp_path, write_predictions, write_truth):
    y = np.arange(40) % 2 == 0
    events = write_truth(tmp_path / "events", TASK, np.full(30, 0.5), np.full(30, 0.5))
    folder = write_predictions(tmp_path / "gpt-tiny-64", "gpt-tiny-64", {TASK: (y, np.full(40, 0.5))})
    with pytest.raises(InputError, match="oracle predicts other labels of 'new_acutemi'"):
        aurocs(events, [folder], TASK, STATISTICS)
    with pytest.raises(InputError, match="holds no truth/labels"):
        read_truth(tmp_path, "labels")


def test_chance_is_not_excluded_and_a_signal_is(tmp_path, write_predictions):
    rng = np.random.default_rng(3)
    tasks = {f"task {i}": (rng.random(300) < 0.3, rng.random(300)) for i in range(20)}
    table = chance_table(
        [write_predictions(tmp_path / "gpt-tiny-64", "gpt-tiny-64", tasks)], Statistics(replicates=4_000)
    )
    assert table.height == 20
    assert excluded(table, 0.95) == 0
    assert (table["p_holm"] >= table["p"]).all()
    y = rng.random(300) < 0.3
    tasks["a leak"] = y, np.where(y, 0.6, 0.4) + 0.3 * rng.standard_normal(300)
    table = chance_table(
        [write_predictions(tmp_path / "gpt-tiny-128", "gpt-tiny-128", tasks)], Statistics(replicates=4_000)
    )
    assert excluded(table, 0.95) == 1
    assert table.sort("p_holm")["task"][0] == "a leak"


def test_a_control_that_could_not_fail_is_refused(tmp_path, write_predictions):
    rng = np.random.default_rng(3)
    tasks = {f"task {i}": (rng.random(300) < 0.3, rng.random(300)) for i in range(20)}
    folder = write_predictions(tmp_path / "gpt-tiny-64", "gpt-tiny-64", tasks)
    with pytest.raises(InputError, match=r"400 bootstrap draws .* 20 AUROCs .* at least 1,600"):
        chance_table([folder], STATISTICS)


def test_what_could_not_fail_is_no_test(tmp_path, write_predictions):
    """Not a task of one class, nor one with three positive subjects, however well it is told."""
    rng = np.random.default_rng(3)
    few = np.arange(300) < 3
    tasks = {
        "one class": (np.zeros(300, dtype=bool), rng.random(300)),
        "few": (few, few + 0.1 * rng.random(300)),
        "many": (rng.random(300) < 0.3, rng.random(300)),
    }
    statistics = Statistics(replicates=4_000)
    table = chance_table([write_predictions(tmp_path / "m", "gpt-tiny-64", tasks)], statistics)
    of = {row["task"]: row for row in table.to_dicts()}
    assert of["few"]["auroc"] == 1
    assert np.isnan([of[task]["p_holm"] for task in ("one class", "few")]).all()
    assert of["many"]["p_holm"] == of["many"]["p"]  # the only test
    assert excluded(table, 0.95) == 0
    del tasks["many"]
    with pytest.raises(InputError, match="none of 2 AUROCs rests on enough held-out subjects"):
        chance_table([write_predictions(tmp_path / "n", "gpt-tiny-64", tasks)], statistics)


@given(st.lists(st.floats(1e-6, 1) | st.just(float("nan")), min_size=1, max_size=12))
def test_the_tests_are_the_most_that_can_all_be_rejected(smallest):
    chosen = could_fail(np.array(smallest), 0.05)
    p = np.nan_to_num(smallest, nan=1.0)
    assert (p[chosen] * chosen.sum() < 0.05).all()
    for cut in p:
        larger = p <= cut
        if larger.sum() > chosen.sum():
            assert (p[larger] * larger.sum()).max() >= 0.05


@pytest.mark.parametrize("planted", FOLLOWS)
def test_levels_that_a_property_follows_and_that_it_does_not(tmp_path, write_truth, write_properties, planted):
    level = np.repeat(np.arange(1, 11) / 10, 20)
    events = write_truth(tmp_path / "events", TASK, np.zeros(200), np.zeros(200), level)
    noise = 0.001 * np.random.default_rng(0).standard_normal(200)
    values = {name: 5 + sign * level + noise for name, sign in FOLLOWS[planted].items()}
    table, correlations = level_table(planted, events, write_properties(tmp_path / "p", values))
    for name, sign in FOLLOWS[planted].items():
        assert steps_that_follow(table, planted, name) == 9
        assert correlations[name] == pytest.approx(sign, abs=0.01)
        own = table.filter(property=name).sort("level")
        assert own["level"].to_list() == pytest.approx(sorted(set(level)))
        assert own["mean"][0] == pytest.approx(values[name][:20].mean())  # the last prediction time of each subject
        assert own["n_subjects"].to_list() == [20] * 10
    name = next(iter(values))
    values[name] = np.where(level == level[100], values[name][0], values[name])
    table, _ = level_table(planted, events, write_properties(tmp_path / "q", values))
    assert steps_that_follow(table, planted, name) < 9


@pytest.mark.parametrize("slope", [0.0, 0.05, -0.05])
def test_the_slope_of_the_paired_difference(tmp_path, write_losses, slope):
    rng = np.random.default_rng(1)
    own = rng.normal(2, 1, (60, 1)) + rng.normal(0, 0.2, (60, 256))  # subjects differ far more than the cohorts
    position = np.arange(1, 257)
    edges = position_bins(256, 1)
    middle = np.sqrt(edges[:-1] * (edges[1:] - 1))[np.searchsorted(edges, position, side="right") - 1]
    more = own + slope * np.log2(middle) + rng.normal(0, 0.2, (60, 256))
    folders = write_losses(tmp_path / "more", more), write_losses(tmp_path / "steady", own)
    found = paired_slope(*folders, STATISTICS)
    assert found.lower < slope < found.upper
    assert found.upper - found.lower < 0.03
    assert found.n_subjects == 60
    by_bin = found.table
    expected = linregress(np.log2(np.sqrt(by_bin["position_from"] * by_bin["position_to"])), by_bin["difference"])
    assert found.value == pytest.approx(expected.slope, abs=0.01)  # every subject is in every bin: the same fit
    assert by_bin["n_subjects"].to_list() == [60] * by_bin.height


def test_who_leaves_the_panel_makes_no_slope(tmp_path, write_losses):
    """A difference that never changes, but is the larger the longer the timeline: pooled over bins, it would rise."""
    rng = np.random.default_rng(2)
    lengths = np.where(np.arange(60) % 3 == 0, 40, 256)
    own = rng.normal(2, 0.2, (60, 256))
    more = own + np.where(lengths > 40, 1.0, 0.0)[:, None] + rng.normal(0, 0.2, (60, 256))
    folders = write_losses(tmp_path / "more", more, lengths), write_losses(tmp_path / "steady", own, lengths)
    found = paired_slope(*folders, STATISTICS)
    assert found.table["position_to"].to_list() == [31, 63]  # a third of the subjects reach no other bin
    assert found.n_subjects == 60
    assert found.lower < 0 < found.upper
    lengths[:5] = 20  # less than a tenth leave: the panel is of the others
    folders = write_losses(tmp_path / "more 2", more, lengths), write_losses(tmp_path / "steady 2", own, lengths)
    assert paired_slope(*folders, STATISTICS).n_subjects == 55


def test_positions_that_one_cohort_lacks_are_no_pairs(tmp_path, write_losses):
    """Beyond the shorter timeline the other one's losses soar: they count for nothing."""
    losses = np.ones((30, 128))
    soaring = losses + np.where(np.arange(128) >= 100, 50.0, 0.0)
    folders = (
        write_losses(tmp_path / "more", soaring),
        write_losses(tmp_path / "steady", losses, np.full(30, 100)),
    )
    found = paired_slope(*folders, STATISTICS)
    assert found.table["difference"].to_list() == [0, 0, 0]


def test_losses_of_too_few_positions_are_refused(tmp_path, write_losses):
    folders = [write_losses(tmp_path / str(i), np.ones((30, 20))) for i in range(2)]
    with pytest.raises(InputError, match="too few positions"):
        paired_slope(*folders, STATISTICS)
    folders = [write_losses(tmp_path / f"few {i}", np.ones((19, 100))) for i in range(2)]
    with pytest.raises(InputError, match=r"19 subjects have token losses in both .* fewer than 20"):
        paired_slope(*folders, STATISTICS)


@pytest.fixture
def design(repository):
    return load(Controls, repository / "pipelines" / "studies" / "controls.yaml").model_dump()


def test_an_arms_mistake_is_told_with_the_arms_name(design):
    controls = validate(Controls, design | {"near": {"models": ["gtp-tiny-64"]}}, "controls")
    with pytest.raises(InputError, match=r"controls: near: `models\.0`"):
        controls.studies()
    controls = validate(Controls, design | {"far": {"name": "mine"}}, "controls")
    with pytest.raises(InputError, match="`far` has the key `name`, which is the controls' own"):
        controls.studies()


@pytest.mark.parametrize(
    ("arm", "models", "needs"),
    [
        ("far", ["gpt-tiny-64", "llama-tiny-64"], "both the shortest and the longest context"),
        ("far", ["gpt-tiny-64", "llama-tiny-512"], "both the shortest and the longest context"),
        ("near", ["gpt-tiny-128", "llama-tiny-512"], "both the shortest and the longest context"),
        ("hidden", ["gpt-tiny-128", "llama-tiny-128"], "`far`'s models of the short context"),
        ("needle", ["gpt-tiny-128"], "`far`'s long context"),
        ("steady", ["gpt-tiny-512"], "the models of `progressing`"),
    ],
)
def test_models_that_leave_nothing_to_compare_are_refused(design, repository, monkeypatch, arm, models, needs):
    monkeypatch.chdir(repository)
    controls = validate(Controls, design | {arm: design[arm] | {"models": models}}, "controls")
    with pytest.raises(InputError, match=f"controls: `{arm}` needs .*{needs}"):
        controls.studies()


@pytest.mark.parametrize(
    ("arm", "key", "value", "said"),
    [
        ("hidden", "cause", {"distance_tokens": 128}, "`hidden` and `far` must differ in `cause.shown`"),
        ("hidden", "cause", {"distance_tokens": 64, "shown": False}, "`hidden` and `far` must differ in `cause.shown`"),
        ("progressing", "deaths", 1, "`progressing` and `steady` must differ in `progression`, and in nothing else"),
        (
            "copy_rate_levels",
            "levels",
            {"property": "gap_shape", "values": [1, 2]},
            "`levels` of the property copy_rate",
        ),
        ("far", "cause", {"distance_tokens": 64}, "between its context lengths, 128 and 512 tokens"),
        ("far", "cause", {"distance_tokens": 500}, "between its context lengths, 128 and 512 tokens"),
    ],
)
def test_cohorts_that_do_not_compare_are_refused(design, repository, monkeypatch, arm, key, value, said):
    monkeypatch.chdir(repository)
    design = deepcopy(design)
    design[arm]["simulate"]["parameters"] |= {key: value}
    if arm == "far":
        design["hidden"]["simulate"]["parameters"] |= {key: value | {"shown": False}}
    with pytest.raises(InputError, match=f"controls: .*{said}"):
        validate(Controls, design, "controls").studies()


@pytest.mark.parametrize("change", [{"seed": 1}, {"subjects": 100}])
def test_pairs_of_cohorts_have_one_seed_and_size(design, repository, monkeypatch, change):
    monkeypatch.chdir(repository)
    design = deepcopy(design)
    design["steady"]["simulate"] |= change
    with pytest.raises(InputError, match="`progressing` and `steady` must differ"):
        validate(Controls, design, "controls").studies()


def test_the_compared_task_is_asked_of_every_arm(design, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match="`far` has not the task 'guo_los'"):
        validate(Controls, design | {"task": "guo_los"}, "controls").studies()
    design = design | {"near": design["near"] | {"simulate": None, "data": "somewhere"}}
    with pytest.raises(InputError, match="`near` has no `simulate`"):
        validate(Controls, design, "controls").studies()


def test_models_are_paired_by_all_but_their_context():
    models = [
        "gpt-tiny-512",
        "gpt-tiny-128",
        "llama-tiny-512-s1",
        "llama-tiny-128",
        "gpt-small-512",
        "llama-tiny-128-s1",
    ]
    assert by_context(models, 512) == ["gpt-tiny-512", "llama-tiny-512-s1", "gpt-small-512"]
    assert both_contexts(models, 128, 512) == [
        ("gpt-tiny-128", "gpt-tiny-512"),
        ("llama-tiny-128-s1", "llama-tiny-512-s1"),
    ]
    assert both_contexts(models, 512, 512) == []


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_asked_for(design, arm):
    with pytest.raises(InputError, match=f"`{arm}`"):
        validate(Controls, {key: value for key, value in design.items() if key != arm}, "controls")


def test_bars_that_contradict_each_other_are_refused(design):
    with pytest.raises(InputError, match="is less than"):
        validate(Controls, design | {"bars": {"recovered": 0.9, "stretch": 0.8}}, "controls")
