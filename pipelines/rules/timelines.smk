# Events -> integer timelines; the vocabulary is fitted on the train split.
rule tokenize:
    input:
        EVENTS,
        splits=SPLITS,
        tokenizer=TOKENIZER,
        profile=PROFILE,
    output:
        directory(TIMELINES),
    params:
        data=DATA,
    shell:
        "ehrctx tokenize {params.data:q} --splits {input.splits} --tokenizer {input.tokenizer:q} "
        "--profile {input.profile:q} --out {output}"
