# One study, from raw events to a report. The study file holds the choices, `ehrctx` does the work, Snakemake owns files
# and order:  snakemake --cores 2 --configfile pipelines/studies/demo.yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.0")


if "shared" in config:  # several studies in one: the controls

    include: "pipelines/rules/controls.smk"

    rule all:
        default_target: True
        input:
            rules.controls.output,

else:

    include: "pipelines/rules/study.smk"
    include: "pipelines/rules/events.smk"
    include: "pipelines/rules/timelines.smk"
    include: "pipelines/rules/labels.smk"
    include: "pipelines/rules/models.smk"
    include: "pipelines/rules/probes.smk"
    include: "pipelines/rules/robustness.smk"
    include: "pipelines/rules/report.smk"

    rule all:
        default_target: True
        input:
            # all of them: an intermediate result that is missing is made again
            EVENTS,
            rules.check.output,
            SPLITS,
            TIMELINES,
            rules.label.output,
            rules.groups.output,
            rules.properties.output,
            expand(rules.pretrain.output, model=STUDY.models),
            expand(rules.perplexity.output, model=STUDY.models),
            expand(rules.embed.output, model=STUDY.models),
            PREDICTIONS,
            rules.score.output,
            rules.robustness.output,
            rules.report.output,
            expand(f"{RESULTS}/report/{{notebook}}.html", notebook=NOTEBOOKS),
