# The controls: each arm is the whole workflow with a study of its own, of which only what is compared is run.
import os
import sys
from pathlib import Path

from ehrctx.configuration import read_yaml, validate
from ehrctx.controls.arms import LEVELS, PROGRESSION, Controls
from ehrctx.errors import InputError

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

try:
    for file in workflow.configfiles:
        read_yaml(file)  # refuses a key given twice, of which Snakemake took the last one
    CONTROLS = validate(Controls, config, "controls")
    STUDIES = CONTROLS.studies()
except InputError as error:
    raise WorkflowError(str(error)) from None

OUT = f"results/{CONTROLS.name}/report"
COMPARED = []
for arm, STUDY in STUDIES.items():
    ARM = f"{arm}_"

    module:
        name:
            ARM
        snakefile:
            "../../Snakefile"
        config:
            STUDY.model_dump(mode="json")

    use rule * from ARM exclude all as ARM*

    FOLDER = f"results/{STUDY.name}"
    if arm in LEVELS:
        COMPARED.append(f"{FOLDER}/robustness/properties")
    elif arm in PROGRESSION:
        COMPARED += [f"{FOLDER}/robustness/perplexity/{model}" for model in STUDY.models]
    else:
        COMPARED += [f"{FOLDER}/probes/{model}" for model in (*STUDY.models, "counts")]


rule controls:
    input:
        COMPARED,
    output:
        expand(f"{OUT}/{{file}}", file=["index.html", "controls.csv"]),
    params:
        design=lambda _: CONTROLS.model_dump_json(),
        folder=OUT,
    shell:
        "ehrctx controls --design {params.design:q} --results results --out {params.folder}"
