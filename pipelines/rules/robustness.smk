# Where models break: repetition, irregularity and length at every prediction time; perplexity by token position.
rule properties:
    input:
        timelines=TIMELINES,
        labels=rules.label.output,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/robustness/properties"),
    shell:
        "ehrctx properties --timelines {input.timelines:q} --labels {input.labels} --out {output} --study {input.study}"


rule perplexity:
    input:
        model=rules.pretrain.output,
        timelines=TIMELINES,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/robustness/perplexity/{{model}}"),
    params:
        settings=lambda _: STUDY.section("perplexity", without=STUDY.perplexity.TABLE),
        batch_tokens=STUDY.pretraining.batch_tokens,
    threads: STUDY.pretraining.threads
    shell:
        "ehrctx perplexity --model {input.model} --timelines {input.timelines:q} --study {input.study} --settings {params.settings:q} "
        "--out {output} --batch-tokens {params.batch_tokens} --threads {threads}"


rule robustness:
    input:
        predictions=PREDICTIONS,
        properties=rules.properties.output,
        losses=expand(rules.perplexity.output, model=STUDY.models),
        study=WHOLE_STUDY,
    output:
        expand(f"{RESULTS}/report/{{file}}", file=["strata.csv", "perplexity.csv", "robustness.json"]),
    params:
        folder=f"{RESULTS}/report",
        statistics=lambda _: STUDY.section("statistics"),
        perplexity=lambda _: STUDY.section("perplexity"),
        privacy=lambda _: STUDY.section("privacy"),
        predictions=lambda _, input: [f"--predictions {p}" for p in input.predictions],
        losses=lambda _, input: [f"--losses {p}" for p in input.losses],
    shell:
        "ehrctx robustness --study {input.study} {params.predictions} --properties {input.properties} {params.losses} --out {params.folder} "
        "--statistics {params.statistics:q} --perplexity {params.perplexity:q} --privacy {params.privacy:q}"
