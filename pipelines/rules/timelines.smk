# Events -> integer timelines; the vocabulary is fitted on the train split. A large data set is tokenized in parts, which a
# cluster does side by side (another number: --set-scatter timelines=N); the result is the same to the byte.
DATA_OPTIONS = lambda _: f"--splits {SPLITS} --profile {quote(str(find_profile(STUDY.profile)))}"
PARTS = workflow.resource_settings.overwrite_scatter.get("timelines", PARTS_BY_SIZE)
WORK = f"{RESULTS}/timelines/.{Path(TOKENIZER).stem}"


scattergather:
    timelines=PARTS,


if PARTS == 1:

    rule tokenize:
        input:
            EVENTS,
            splits=SPLITS,
            tokenizer=TOKENIZER,
            profile=PROFILE,
            study=WHOLE_STUDY,
        output:
            directory(TIMELINES),
        params:
            data=DATA,
            options=DATA_OPTIONS,
        priority: EARLY
        threads: 2
        shell:
            "ehrctx tokenize {params.data:q} {params.options} --tokenizer {input.tokenizer:q} --out {output:q} --threads {threads} "
            "--study {input.study}"

else:

    rule count:
        input:
            EVENTS,
            splits=SPLITS,
            profile=PROFILE,
            study=WHOLE_STUDY,
        output:
            temp(directory(f"{WORK}/counted/{{scatteritem}}")),
        params:
            data=DATA,
            options=DATA_OPTIONS,
        priority: EARLY
        threads: 2
        shell:
            "ehrctx count {params.data:q} {params.options} --part {wildcards.scatteritem} --out {output:q} --threads {threads} "
            "--study {input.study}"

    rule fit:
        input:
            counted=gather.timelines(f"{WORK}/counted/{{scatteritem}}"),
            tokenizer=TOKENIZER,
            study=WHOLE_STUDY,
        output:
            temp(directory(f"{WORK}/vocabulary")),
        params:
            data=DATA,
            options=DATA_OPTIONS,
            counted=lambda _, input: [f"--counted {quote(part)}" for part in input.counted],
        priority: EARLY
        shell:
            "ehrctx fit {params.data:q} {params.options} {params.counted} --tokenizer {input.tokenizer:q} --out {output:q} "
            "--study {input.study}"

    rule encode:
        input:
            counted=f"{WORK}/counted/{{scatteritem}}",
            vocabulary=rules.fit.output,
            study=WHOLE_STUDY,
        output:
            temp(directory(f"{WORK}/encoded/{{scatteritem}}")),
        params:
            data=DATA,
            options=DATA_OPTIONS,
        priority: EARLY
        threads: 2
        shell:
            "ehrctx encode {params.data:q} {params.options} --counted {input.counted:q} --vocabulary {input.vocabulary:q} "
            "--out {output:q} --threads {threads} --study {input.study}"

    rule gather:
        input:
            encoded=gather.timelines(f"{WORK}/encoded/{{scatteritem}}"),
            vocabulary=rules.fit.output,
            study=WHOLE_STUDY,
        output:
            directory(TIMELINES),
        params:
            data=DATA,
            options=DATA_OPTIONS,
            encoded=lambda _, input: [f"--encoded {quote(part)}" for part in input.encoded],
        priority: EARLY
        shell:
            "ehrctx gather {params.data:q} {params.options} --vocabulary {input.vocabulary:q} {params.encoded} --out {output:q} "
            "--study {input.study}"
