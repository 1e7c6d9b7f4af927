"""`ehrctx export`: a pretrained model as a folder that others load with transformers alone, and may be given.

What a token id means is shipped on request. A meaning that fewer than `minimum_count` train subjects share could tell
that one of them exists, or repeat what was written about them, so it is withheld: its row keeps the id alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ehrctx.artifacts import new_artifact, read_manifest, require_same_input
from ehrctx.errors import InputError
from ehrctx.models.export import write_standalone
from ehrctx.pretrain.trained import KIND as MODEL
from ehrctx.pretrain.trained import final_validation
from ehrctx.timelines.spec import FIXED_KINDS
from ehrctx.timelines.store import Timelines

if TYPE_CHECKING:
    import polars as pl

KIND = "export"
VOCABULARY = "vocabulary.parquet"
WITHHELD = "withheld"
CARD = """---
library_name: transformers
tags: [ehr, {arch}]
---
# {model}

A causal language model of timelines of electronic health records, trained by ehrctx.

| | |
| --- | --- |
| architecture, size | {arch}, {size} |
| parameters | {parameters:,} |
| hidden size | {hidden_size:,} |
| context length | {context:,} tokens |
| trained on | {tokens:,} tokens{earlier} |
| validation loss | {loss} |
| tokenizer | {tokenizer} |

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})
```

A window opens with `[BOS]` (id 0) and is padded on the right. {meaning}

The weights were learned from patients' records: share them as your data's terms allow. Not for clinical use.
"""


def subjects_by_token(store: Timelines) -> np.ndarray:
    """How many train subjects have each token; int64[vocabulary]."""
    counts = np.zeros(store.vocabulary_size, dtype=np.int64)
    for i in store.in_split("train"):
        counts[np.unique(store.tokens[store.offsets[i] : store.offsets[i + 1]])] += 1
    return counts


def shared_vocabulary(store: Timelines, minimum_count: int) -> pl.DataFrame:
    """The store's vocabulary without counts and weights; tokens of fewer than `minimum_count` subjects keep their id.

    (token, kind, code, unit, lower, upper, text, description), by token; `kind` is 'withheld' where the rest is null.
    """
    import polars as pl

    file = store.path / VOCABULARY
    try:
        table = pl.read_parquet(file).drop("count", "weight", "initial")
    except (pl.exceptions.PolarsError, OSError):
        table = pl.DataFrame()
    if table.height != store.vocabulary_size:
        raise InputError(f"{file} is damaged: it does not have a row for each token. Tokenize again.")
    many = pl.Series(subjects_by_token(store) >= minimum_count)
    of_code = (pl.col("kind") == "code") & pl.col("code").is_in(table.filter(many)["code"].implode())
    # what the spec says is nobody's; a code is known where one of its values or texts is
    known = pl.col("kind").is_in(FIXED_KINDS) | many | of_code
    meaning = [name for name in table.columns if name not in ("token", "kind")]
    kind = pl.when(known).then("kind").otherwise(pl.lit(WITHHELD))
    return table.with_columns(kind.alias("kind"), *(pl.when(known).then(name).alias(name) for name in meaning))


def _card(model: str, facts: dict[str, Any], tokenizer: str, with_vocabulary: bool) -> str:
    validation, earlier = final_validation(facts), facts["earlier_tokens"]
    return CARD.format_map(
        facts
        | {
            "model": model,
            "tokenizer": tokenizer,
            "earlier": f", after {earlier:,} of the model it started from" if earlier else "",
            "loss": f"{validation[1]:.4f} nats a token" if validation else "not known",
            "trust": ", trust_remote_code=True" if facts["arch"] == "hyena" else "",
            "meaning": f"`{VOCABULARY}` says what each token id means, but for rare tokens."
            if with_vocabulary
            else "What the token ids mean is not part of this folder.",
        }
    )


def export(model_folder: Path, out: Path, timelines: Path | None = None, minimum_count: int = 10) -> dict[str, Any]:
    """Writes config, weights, a model card and, given the model's `timelines`, its vocabulary to the folder `out`.

    Returns the facts of the artefact: arch, size, context, parameters, hidden_size, tokens, earlier_tokens, validation,
    best, weights (which of them), and the tokens of the vocabulary and how many of them are withheld. Raises InputError
    if the model was trained on other timelines.
    """
    manifest = read_manifest(model_folder, MODEL)
    trained, settings = manifest["facts"], manifest["settings"]
    inputs = {"model": model_folder}
    tokenizer = "not part of this folder"
    store = None if timelines is None else Timelines.open(timelines)
    if timelines is not None:
        require_same_input(model_folder, MODEL, "timelines", timelines)
        inputs["timelines"] = timelines
    names = ("arch", "size", "context", "parameters", "hidden_size", "tokens", "validation", "best", "weights")
    facts = {name: trained[name] for name in names if name in trained}  # older models do not tell all
    facts["earlier_tokens"] = trained.get("start", {}).get("earlier_tokens", 0)
    choices = settings | {"timelines": manifest["inputs"]["timelines"], "minimum_count": minimum_count}
    with new_artifact(out, KIND, choices, inputs, facts) as folder:
        write_standalone(model_folder, folder)
        if store is not None:
            tokenizer = store.manifest["settings"]["tokenizer"]["name"]
            table = shared_vocabulary(store, minimum_count)
            table.write_parquet(folder / VOCABULARY)
            facts |= {"vocabulary": table.height, "withheld": int((table["kind"] == WITHHELD).sum())}
        (folder / "README.md").write_text(_card(settings["model"], facts, tokenizer, timelines is not None))
    return facts
