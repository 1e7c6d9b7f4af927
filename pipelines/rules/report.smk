# Scores with intervals, the page, the executed notebooks.
SCORED = [
    "scores", "differences", "wins", "few_shot", "calibration", "reliability", "net_benefit", "subgroups", "labels",
    "models", "curves",
]
TABLES = [*SCORED, "strata", "perplexity"]
NOTEBOOKS = ["overview", "copy_forwarding", "irregular_intervals", "disease_progression"]


rule score:
    input:
        tracked=rules.tracking_store.output,
        predictions=PREDICTIONS,
        models=expand(rules.pretrain.output, model=STUDY.models),
        labels=rules.label.output,
        groups=rules.groups.output,
        splits=SPLITS,
    output:
        expand(f"{RESULTS}/report/{{table}}.csv", table=SCORED),
        f"{RESULTS}/report/provenance.json",
    params:
        folder=f"{RESULTS}/report",
        settings=STUDY.section("statistics"),
        privacy=STUDY.section("privacy"),
        store=TRACKING,
        experiment=STUDY.name,
        predictions=lambda _, input: [f"--predictions {p}" for p in input.predictions],
        models=lambda _, input: [f"--model {m}" for m in input.models],
    shell:
        "ehrctx score {params.predictions} {params.models} --labels {input.labels} --groups {input.groups} "
        "--splits {input.splits} "
        "--settings {params.settings:q} --privacy {params.privacy:q} --out {params.folder} "
        "--tracking {params.store} --experiment {params.experiment}"


rule report:
    input:
        rules.score.output,
        rules.robustness.output,
        timelines=TIMELINES,
        summary=rules.check.output,
    output:
        f"{RESULTS}/report/index.html",
    params:
        folder=f"{RESULTS}/report",
        study=lambda _: STUDY.model_dump_json(),
    shell:
        "ehrctx report --tables {params.folder} --timelines {input.timelines} "
        "--summary {input.summary} --study {params.study:q} --out {output}"


rule notebook:
    input:
        rules.score.output,
        rules.robustness.output,
        notebook="notebooks/{notebook}.ipynb",
    output:
        notebook=f"{RESULTS}/report/{{notebook}}.ipynb",
        page=f"{RESULTS}/report/{{notebook}}.html",
    params:
        folder=f"{RESULTS}/report",
    wildcard_constraints:
        notebook="|".join(NOTEBOOKS),
    shell:
        "papermill --log-level WARNING --no-progress-bar -p tables {params.folder} {input.notebook} {output.notebook} && "
        "jupyter nbconvert --log-level WARN --no-input --to html {output.notebook}"
