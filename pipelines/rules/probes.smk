# Representations at the labels' prediction times, linear probes on them, and the same head on counts.
rule embed:
    input:
        model=rules.pretrain.output,
        timelines=TIMELINES,
        labels=rules.label.output,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/embeddings/{{model}}"),
    params:
        batch_tokens=STUDY.pretraining.batch_tokens,
        settings=lambda _: STUDY.section("embedding"),
    threads: STUDY.pretraining.threads
    shell:
        "ehrctx embed --model {input.model} --timelines {input.timelines:q} --labels {input.labels} --out {output} "
        "--settings {params.settings:q} --study {input.study} --batch-tokens {params.batch_tokens} --threads {threads}"


rule probe:
    input:
        SHOTS,
        embeddings=rules.embed.output,
        labels=rules.label.output,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/probes/{{model}}"),
    params:
        settings=lambda _: STUDY.section("probe"),
    shell:
        "ehrctx probe --embeddings {input.embeddings} --labels {input.labels} "
        "--settings {params.settings:q} --study {input.study} --out {output}"


rule probe_counts:
    input:
        SHOTS,
        timelines=TIMELINES,
        labels=rules.label.output,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/probes/counts"),
    params:
        settings=lambda _: STUDY.section("probe"),
    priority: 1  # as long as a training where the grids are the full ones: at the end, all would wait for it
    shell:
        "ehrctx probe --timelines {input.timelines:q} --labels {input.labels} "
        "--settings {params.settings:q} --study {input.study} --out {output}"


# Whose results are told apart: age, sex, what the profile names.
rule groups:
    input:
        EVENTS,
        labels=rules.label.output,
        profile=PROFILE,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/probes/groups"),
    params:
        data=DATA,
    shell:
        "ehrctx groups {params.data:q} --labels {input.labels} --profile {input.profile:q} --out {output} --study {input.study}"


PREDICTIONS = [*expand(rules.probe.output, model=STUDY.models), *rules.probe_counts.output]
