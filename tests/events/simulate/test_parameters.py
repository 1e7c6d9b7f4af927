"""What a cohort may choose: presets that ship, changes on top, and refusals that name the key."""

import pytest

from ehrctx.errors import InputError
from ehrctx.events.simulate.cohort import simulate
from ehrctx.events.simulate.parameters import Parameters, parameters_of

PRESETS = ("published", "long", "planted")


@pytest.fixture
def changed(repository):
    return lambda changes: parameters_of(str(repository / "pipelines" / "cohorts" / "published.yaml"), changes, "study")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_ship_under_their_own_names(repository, name):
    file = repository / "pipelines" / "cohorts" / f"{name}.yaml"
    assert parameters_of(str(file), {}, "study").name == name
    assert {path.stem for path in file.parent.glob("*.yaml")} == set(PRESETS)


def test_changes_go_on_top_key_by_key(changed):
    published, other = changed({}), changed({"cause": {"distance_tokens": 7}, "visits": {"offspring": 0.1}})
    assert other.cause.distance_tokens == 7
    assert other.visits.rate == published.visits.rate
    assert other.visits.offspring == 0.1
    assert other.cause.share == published.cause.share


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"copy_rate": 1.2}, "`copy_rate`"),
        ({"copy_rate": 0.02}, r"copy_rate_spread \(0\.25\)"),
        ({"cause": {"share": -0.1}}, r"`cause\.share`"),
        ({"cause": {"risk": 1}}, r"`cause\.risk`"),
        ({"cause": {"background": 2}}, r"`cause\.background`"),
        ({"cause": {"events": 0}}, r"`cause\.events`"),
        ({"cause": {"distance_tokens": 100_000}}, r"distance_tokens \(100,000\).*more than any timeline"),
        ({"cause": {"distance_years": 18}}, r"distance_years \(18\) is more than any timeline"),
        ({"cause": {"distance_years": 5}, "record_years": 4}, r"cause\.distance_years \(5\).*record_years is 4"),
        ({"visits": {"rate": 0}}, r"`visits\.rate`"),
        ({"visits": {"offspring": 1}}, r"`visits\.offspring`"),
        ({"visits": {"gap_shap": 1}}, "did you mean 'gap_shape'"),
        ({"stays": {"work_up": 1.01}}, r"`stays\.work_up`"),
        ({"stays": {"index_years": [3, 2]}}, "must rise"),
        ({"stays": {"index_years": [1, 3]}}, r"stays\.index_years.*shortest_record_years is 0\.03"),
        ({"record_years": 19}, "`record_years`"),
        ({"age": [17, 40]}, r"`age\.0`"),
        ({"age": [40, 40]}, "must rise"),
        ({"shortest_record_years": 5, "record_years": 4}, r"shortest_record_years \(5\)"),
        ({"levels": {"property": "copy_rate", "values": [0.5]}}, r"`levels\.values`"),
        ({"levels": {"property": "copy_rate", "values": [0.5, 1.5]}}, "copy_rate of 1.5 is not between 0 and 1"),
        ({"levels": {"property": "copy_rate", "values": [0.5, 0.5]}}, "given twice"),
        (
            {"levels": {"property": "visit_rate", "values": [1, 121]}},
            r"visit_rate of 121 is more than visits\.most \(120\)",
        ),
        ({"levels": {"property": "age", "values": [1, 2]}}, r"`levels\.property`"),
        ([1], "expected keys and values"),
    ],
)
def test_bad_parameters_are_refused_by_name(changed, changes, said):
    with pytest.raises(InputError, match=said):
        changed(changes)


@pytest.mark.parametrize(
    ("subjects", "said"), [(0, "0 subjects are no cohort"), (10, r"10 subjects cannot each live at 3 levels")]
)
def test_sizes_that_are_none_are_refused(tmp_path, changed, subjects, said):
    parameters = changed({"levels": {"property": "copy_rate", "values": [0, 0.3, 0.6]}})
    with pytest.raises(InputError, match=said):
        simulate(parameters, subjects, 0, tmp_path / "events")
    assert list(tmp_path.iterdir()) == []


def test_defaults_are_a_cohort():
    assert Parameters().cause.share == 0.35


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subjects", "0"], "--subjects"),
        (["--subjects", "9"], "--subjects"),
        (["--preset", "publishd"], "did you mean 'published'"),
        (["--parameters", "{cause: {share: 2}}"], r"--parameters: `cause.share`"),
        (["--parameters", "{"], "--parameters: not valid YAML"),
        (["--parameters", "{stays: {work_up: 1, work_up: 0}}"], "given twice"),
        (["--workers", "0"], "--workers"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_the_command_refuses_with_exit_code_2(run, tmp_path, words, said):
    code, _, error = run("simulate", "--out", tmp_path / "events", *words)
    assert code == 2
    assert said in error
    assert list(tmp_path.iterdir()) == []
