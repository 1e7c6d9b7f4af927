# The study: validated before any job runs, and held by one run at a time.
import json
import os
import sys
from pathlib import Path
from shlex import quote

from ehrctx.artifacts import begin_run, try_lock
from ehrctx.configuration import read_yaml, validate
from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.events.ontology import athena_files
from ehrctx.events.profile import find_profile
from ehrctx.events.simulate.parameters import find_preset, parameters_of
from ehrctx.events.sources import source_files
from ehrctx.pretrain.trained import check_starts
from ehrctx.probe.few_shot import shot_files
from ehrctx.provenance import LOCK, STUDY_FILE, outdated, prepare, results_of
from ehrctx.study import ModelId, Study
from ehrctx.tasks.definition import load_definitions
from ehrctx.tasks.imports import watched_files
from ehrctx.timelines.spec import find_spec

# Jobs find this environment's commands, whether or not it was activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Threads that spin while they wait make parallel jobs many times slower where cores are few (Snakemake runs jobs side by side).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def plain(path):
    """A path that Snakemake reads as it is: it takes what is in braces for wildcards, and knows no escape."""
    if {"{", "}"} & set(str(path)):
        raise InputError(f"{path}: the workflow takes braces for wildcards. Rename it, or give a link to it without braces.")
    return str(path)


def all_plain(paths):
    return [plain(path) for path in paths]


try:
    if not config:
        raise InputError("no study given. Add --configfile pipelines/studies/demo.yaml, or your own study file.")
    for file in workflow.configfiles:
        read_yaml(file)  # refuses a key given twice, of which Snakemake took the last one
    STUDY = validate(Study, config, "study")
    check_starts(STUDY)
    PROFILE = plain(find_profile(STUDY.profile))
    TOKENIZER = plain(find_spec(STUDY.tokenizer))
    TASKS = load_definitions(STUDY.tasks)
    # A MEDS data set is used in place; without one, another format is imported, or the cohort simulated.
    RESULTS = str(results_of(STUDY))
    MADE_EVENTS = f"{RESULTS}/events/meds"
    DATA = plain(STUDY.data or MADE_EVENTS)
    if STUDY.simulate:
        PRESET = plain(find_preset(STUDY.simulate.preset))
        parameters_of(STUDY.simulate.preset, STUDY.simulate.parameters, "study: simulate.parameters")  # refused before anything runs
    SOURCE = all_plain(source_files(STUDY.source)) if STUDY.source else []
    GIVEN = all_plain(watched_files(TASKS, STUDY.labels.given))
    DRAWN = STUDY.probe.few_shot.shots if STUDY.probe.few_shot else None
    SHOTS = all_plain(shot_files(Path(DRAWN), [task.task for task in TASKS]).values()) if DRAWN else []
    ONTOLOGY = all_plain(athena_files(Path(STUDY.ontology)).values()) if STUDY.ontology else []
    EVENT_FILES = open_dataset(Path(STUDY.data)).files() if STUDY.data else []
    EVENTS = all_plain(EVENT_FILES) if STUDY.data else MADE_EVENTS
    if workflow.is_main_process:  # not the process of a job, which runs while others make what it needs
        OUTDATED = outdated(STUDY)
        for artefact, reason in OUTDATED.items():
            print(f"{artefact} does not fit the study and will be made again: {reason}.", file=sys.stderr)
        prepare(STUDY, OUTDATED)
except InputError as error:
    raise WorkflowError(str(error)) from None

# One part of a data set is about 4 GiB of parquet, some 300 million events.
PARTS_BY_SIZE = 1 + sum(os.path.getsize(file) for file in EVENT_FILES) // 2**32
TIMELINES = f"{RESULTS}/timelines/{Path(TOKENIZER).stem}"
SPLITS = f"{RESULTS}/events/subject_splits.parquet"
TRACKING = "results/mlflow.db"
# What the stages check their inputs against; `ancient`, so that a changed key runs only what depends on it.
WHOLE_STUDY = ancient(f"{RESULTS}/{STUDY_FILE}")
# Jobs before the trainings go first: of several studies side by side (the controls), those that want all cores would starve.
EARLY = 2


wildcard_constraints:
    model="|".join(STUDY.models),


onstart:
    # Snakemake's own lock outlives a killed run (the profile switches it off); the kernel drops this one with its holder.
    globals()["HELD"] = try_lock(Path(RESULTS) / LOCK)
    if HELD is None:
        raise WorkflowError(f"another run of the study {STUDY.name!r} is going on. Wait for it, or stop it.")
    begin_run(HELD)


