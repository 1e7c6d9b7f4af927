"""Whether what lies in results/<study>/ was made as the study says, down to the raw data.

Every artefact records the settings and the fingerprints of what it was made from. `chain` says what a study expects of
each, `misfits` compares. Stages refuse what does not fit (`require_current`), and the workflow makes it again
(`outdated`): neither relies on times of files, or on what Snakemake remembers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ehrctx.artifacts import MANIFEST, Files, Fingerprints, Source, by_place, new_file, try_lock
from ehrctx.configuration import Difference, differences, load
from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.simulate.parameters import parameters_of
from ehrctx.events.sources import source_inputs
from ehrctx.events.splits import PROVENANCE
from ehrctx.pretrain.trained import learned_settings
from ehrctx.probe.few_shot import shot_inputs
from ehrctx.study import ModelId, Perplexity, Study
from ehrctx.tasks.label_sets import label_inputs, label_settings, read_definitions
from ehrctx.timelines.spec import TokenizerSpec, find_spec

RESULTS = Path("results")
LOCK = ".lock"  # held while the study runs, by the process that runs it
STUDY_FILE = "study.json"  # in the study's folder: what its stages check against
# What makes an artefact look outdated: 40 years more. Before OLDEST no artefact was made (seconds).
AGE, OLDEST = 40 * 365 * 86_400, 10**9
FINGERPRINTS = ".fingerprints.json"  # remembered in the study's folder
SUMMARY, SPLITS = Path("events/summary.json"), Path("events/subject_splits.parquet")
BASELINE = "counts"  # the folder of the predictions on counts
# In report/: what the tables of `score`, those of `robustness`, and the page are made from.
SCORES, ROBUSTNESS, PAGE = "provenance.json", "robustness.json", "page.json"


class Expected(NamedTuple):
    """What a study says of one artefact."""

    settings: Mapping[str, Any]  # as the artefact records them
    inputs: Mapping[str, Source] | None  # by the name under which the artefact records each; None: not compared
    called: Mapping[str, str] = {}  # a recorded setting's first name -> what the study calls it
    free: frozenset[tuple[str, ...]] = frozenset()  # settings that the machine decides


def results_of(study: Study, results: Path = RESULTS) -> Path:
    """The folder of the study's results."""
    return results / study.name


def _as_recorded(settings: Any) -> Any:
    """Settings as JSON holds them."""
    return json.loads(json.dumps(settings, default=str))


def _events(study: Study, events: Path) -> Iterator[tuple[Path, Expected]]:
    if study.simulate is not None:
        made = parameters_of(study.simulate.preset, study.simulate.parameters, "study: simulate.parameters")
        chosen = {"subjects": study.simulate.subjects, "seed": study.simulate.seed}
        settings = {"parameters": made.model_dump(mode="json"), **chosen}
        called = {name: f"simulate.{name}" for name in settings}
        yield events, Expected(settings, {}, called)
    elif study.source is not None:
        options = study.source.model_dump(exclude={"folder", "concepts"})
        called = {name: f"source.{name}" for name in options}
        yield events, Expected(options, source_inputs(study.source), called)


def _models(study: Study, models: Path, timelines: Path) -> Iterator[tuple[Path, Expected]]:
    for model in study.models:
        model_id = ModelId.parse(model)
        learned = learned_settings(study.pretraining, model_id)
        free = {("settings", "precision")}
        if study.pretraining.precision == "auto":
            learned["precision"] = None
        else:
            free = set()
        inputs: dict[str, Source] = {"timelines": timelines}
        if start := study.start_of(model, str(models)):
            inputs["start"] = Path(start)  # not compared once it is gone: a finished model needs its start no more
        called = {"settings": "pretraining"}
        yield models / model, Expected({"model": model, "settings": learned}, inputs, called, frozenset(free))


def _probes(
    study: Study, folder: Path, timelines: Path, labels: Path, tasks: list[str]
) -> Iterator[tuple[Path, Expected]]:
    probe, shots = study.probe.model_dump(), shot_inputs(study.probe.few_shot, tasks)
    for model in study.models:
        context = ModelId.parse(model).context
        inputs = {"model": folder / "models" / model, "timelines": timelines, "labels": labels}
        pooled = study.embedding.model_dump()
        called = {name: f"embedding.{name}" for name in pooled}
        settings = {"model": model, "context": context, **pooled}
        yield folder / "embeddings" / model, Expected(settings, inputs, called)
        made_from = {"embeddings": folder / "embeddings" / model, "labels": labels, **shots}
        yield folder / "probes" / model, Expected({"model": model, "probe": probe}, made_from)
    made_from = {"timelines": timelines, "labels": labels, **shots}
    yield folder / "probes" / BASELINE, Expected({"model": BASELINE, "probe": probe}, made_from)


def _report(study: Study, folder: Path, splits: Path, timelines: Path) -> Iterator[tuple[Path, Expected]]:
    probes = [folder / "probes" / name for name in (*study.models, BASELINE)]
    models = [folder / "models" / model for model in study.models]
    losses = [folder / "robustness" / "perplexity" / model for model in study.models]
    scored = [*probes, *models, folder / "labels", folder / "probes" / "groups", splits]
    shown = {"statistics": study.statistics.model_dump(), "privacy": study.privacy.model_dump()}
    yield folder / "report" / SCORES, Expected(shown, by_place(scored))
    cut = by_place([*probes, folder / "robustness" / "properties", *losses])
    yield folder / "report" / ROBUSTNESS, Expected({**shown, "perplexity": study.perplexity.model_dump()}, cut)
    page = by_place([folder / "report" / SCORES, folder / "report" / ROBUSTNESS, folder / SUMMARY])
    settings = {"study": study.model_dump(mode="json")}
    yield folder / "report" / PAGE, Expected(settings, {**page, "timelines": timelines})


def chain(study: Study, results: Path = RESULTS) -> dict[Path, Expected]:
    """Every artefact of the study, from the events to the page, and what the study expects of it.

    Raises InputError where a file that the study names is missing or wrong.
    """
    folder = results_of(study, results)
    made_events = folder / "events" / "meds"
    given = Path(study.data) if study.data is not None else None
    # where the data cannot be reached (results on another machine), all is compared but them
    events: Source = open_dataset(given).source() if given is not None and given.is_dir() else given or made_events
    profile = load(DatasetProfile, find_profile(study.profile)).model_dump()
    spec = find_spec(study.tokenizer)
    splits, timelines, labels = folder / SPLITS, folder / "timelines" / spec.stem, folder / "labels"
    groups, properties = folder / "probes" / "groups", folder / "robustness" / "properties"
    definitions = read_definitions(study.tasks, study.labels)
    ontology = Path(study.ontology) if study.ontology else None
    chosen_splits = "given" if study.splits == "given" else study.splits.model_dump()
    tokenizer = {"tokenizer": load(TokenizerSpec, spec).model_dump(), "profile": profile}
    scored = Perplexity.model_validate(study.perplexity.model_dump(exclude=set(Perplexity.TABLE))).model_dump()
    expected = {
        **dict(_events(study, made_events)),
        folder / SUMMARY: Expected({"profile": profile}, {"events": events}),
        splits: Expected({"splits": chosen_splits}, {"events": events}),
        timelines: Expected(tokenizer, {"events": events, "splits": splits}),
        labels: Expected(
            label_settings(definitions, study.labels, profile),
            label_inputs(events, definitions, study.labels, ontology),
        ),
        **dict(_models(study, folder / "models", timelines)),
        **dict(_probes(study, folder, timelines, labels, [task.task for task in definitions])),
        groups: Expected({"profile": profile}, {"events": events, "labels": labels}),
        properties: Expected({}, {"timelines": timelines, "labels": labels}),
        **{
            folder / "robustness" / "perplexity" / model: Expected(
                {"model": model, "perplexity": scored}, {"model": folder / "models" / model, "timelines": timelines}
            )
            for model in study.models
        },
        **dict(_report(study, folder, splits, timelines)),
    }
    return {path: one._replace(settings=_as_recorded(one.settings)) for path, one in expected.items()}


def _recorded(path: Path) -> dict[str, Any]:
    """What an artefact records of what made it: `inputs`, and its settings beside them or in `settings`.

    Raises InputError where it records nothing.
    """
    try:
        if path.suffix == ".parquet":
            held = json.loads((pq.read_metadata(path).metadata or {})[PROVENANCE])
        else:
            held = json.loads((path / MANIFEST if path.is_dir() else path).read_text(encoding="utf-8"))
        settings, inputs = held.get("settings", held), held["inputs"]
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException):
        raise InputError(f"{path} does not say what it was made from. Delete it and run the study again.") from None
    return {"settings": settings, "inputs": inputs, "files": held.get("files", {})}


def _sentence(expected: Expected, one: Difference) -> str:
    first, *rest = one.key
    return one._replace(key=(expected.called.get(first, first), *rest)).sentence()


def misfits(path: Path, expected: Expected, fingerprints: Fingerprints) -> Iterator[str]:
    """In which settings and inputs the artefact at `path` is not what is expected, a few words for each.

    Settings beyond those that are expected (how it was run) are not compared, inputs beyond them are.
    Raises InputError where the artefact does not say what it was made from.
    """
    recorded = _recorded(path)
    settings = {name: recorded["settings"].get(name) for name in expected.settings}
    for one in differences(settings, expected.settings):
        if one.key not in expected.free:
            yield _sentence(expected, one)
    if expected.inputs is not None:
        yield from _other_inputs(recorded["inputs"], expected.inputs, fingerprints)
    for name, digest in recorded["files"].items():
        file = path / name if path.is_dir() else path.with_name(name)
        if not file.is_file():
            yield f"{name} is missing"
        elif fingerprints.of(file) != digest:
            yield f"{name} is not the one that was written with it"


def _other_inputs(recorded: Mapping[str, str], expected: Mapping[str, Source], known: Fingerprints) -> Iterator[str]:
    for name in sorted(recorded.keys() | expected.keys()):
        if name not in expected:
            yield f"made with {name}, which the study does not have"
        elif name not in recorded:
            yield f"made without {name}"
        elif _exists(expected[name]) and known.of(expected[name]) != recorded[name]:
            yield f"made from another {name}"


def reasons_against(path: Path, expected: Expected, fingerprints: Fingerprints) -> str:
    """All `misfits` in one text; nothing where there are none. What does not say what it was made from does not fit."""
    try:
        return "; ".join(misfits(path, expected, fingerprints))
    except InputError:
        return "it does not say what it was made from"


def _require_data_as_imported(study: Study, fingerprints: Fingerprints) -> None:
    """Raises InputError where an import or a simulation wrote `data`, and a file of it is another by now."""
    manifest = Path(study.data or "") / MANIFEST
    if study.data is None or not manifest.is_file():
        return
    for reason in misfits(manifest.parent, Expected({}, None), fingerprints):
        raise InputError(f"{manifest.parent}: {reason}. Import or simulate it again, or delete its {MANIFEST}.")


def _exists(source: Source) -> bool:
    return isinstance(source, Files) or source.exists()


def _upstream(path: Path, expected: Mapping[Path, Expected]) -> Iterator[Path]:
    """The artefact at `path`, after all that it is made from, directly or not."""
    for source in (expected[path].inputs or {}).values():
        if isinstance(source, Path) and source in expected:
            yield from _upstream(source, expected)
    yield path


def needed_for(study: Study, artefacts: Iterable[Path], results: Path = RESULTS) -> list[Path]:
    """`artefacts` of the study and all artefacts that they are made from, those first, each once.

    Raises InputError for a path that is none of the study's.
    """
    expected = chain(study, results)
    places = {os.path.abspath(path): path for path in expected}
    known = []
    for path in artefacts:
        if os.path.abspath(path) not in places:
            raise InputError(
                f"{path} is no artefact of the study {study.name!r}, whose results lie in "
                f"{results_of(study, results)}. Give its own, or leave out --study."
            )
        known.append(places[os.path.abspath(path)])
    return list(dict.fromkeys(above for path in known for above in _upstream(path, expected)))


def require_current(study: Study, artefacts: Iterable[Path], results: Path = RESULTS) -> None:
    """Raises InputError where one of `artefacts`, or anything that it was made from, is not what the study says.

    The sentence names the artefact, and the key or input that differs.
    """
    expected = chain(study, results)
    fingerprints = Fingerprints(results_of(study, results) / FINGERPRINTS)
    _require_data_as_imported(study, fingerprints)
    for path in needed_for(study, artefacts, results):
        if not path.exists():
            raise InputError(f"{path} is not there. Run the study again, which makes what is missing.")
        if reasons := list(misfits(path, expected[path], fingerprints)):
            raise InputError(
                f"{path} does not fit the study {study.name!r} ({'; '.join(reasons)}). Delete it, and run the study "
                f"again."
            )
    fingerprints.save()


def outdated(study: Study, results: Path = RESULTS) -> dict[Path, str]:
    """The artefacts that are there and do not fit the study, and in which settings and inputs."""
    folder = results_of(study, results)
    fingerprints = Fingerprints(folder / FINGERPRINTS)
    reasons: dict[Path, str] = {}
    _require_data_as_imported(study, fingerprints)
    for path, expected in chain(study, results).items():
        if path.exists() and (reason := reasons_against(path, expected, fingerprints)):
            reasons[path] = reason
    if folder.is_dir():
        fingerprints.save()
    return reasons


def _times_of(path: Path) -> list[Path]:
    """The files whose times Snakemake reads for an output."""
    stamp = path / ".snakemake_timestamp"
    return [path, stamp] if stamp.exists() else [path]


def mark(artefacts: Iterable[Path], outdated: Collection[Path]) -> None:
    """Makes those of `artefacts` that are `outdated` look older than anything else; gives the others their own time
    back, if they were marked before."""
    for path in filter(Path.exists, artefacts):
        for place in _times_of(path):
            status = place.stat()
            is_marked = status.st_mtime < OLDEST
            if is_marked != (path in outdated):
                shift = AGE if is_marked else -AGE
                os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns + shift * 10**9))


def prepare(study: Study, outdated: Collection[Path], results: Path = RESULTS) -> None:
    """Before Snakemake plans: writes the study for its stages to check against, and marks `outdated` artefacts, so that
    they are made again. Does nothing while another process runs the study.

    Snakemake decides by times of files, by what it remembers of a path, and by whether an output is wanted; none of
    these sees an artefact that was made by other settings and whose record is lost.
    """
    folder = results_of(study, results)
    lock = try_lock(folder / LOCK)
    if lock is None:
        return
    with lock:
        mark(chain(study, results), outdated)
        # not by a rule: Snakemake looks at no stage behind one that runs where its output is taken as `ancient`
        if not _holds(folder / STUDY_FILE, study):
            with new_file(folder / STUDY_FILE) as partial:
                partial.write_text(f"{study.model_dump_json()}\n")


def _holds(file: Path, study: Study) -> bool:
    try:
        return load(Study, file) == study
    except InputError:
        return False
