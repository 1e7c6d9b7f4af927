"""What a training leaves behind, readable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ehrctx.artifacts import read_manifest

KIND = "model"


def final_validation(facts: dict[str, Any]) -> list[float] | None:
    """[tokens, loss] of the weights that a folder with these `facts` holds; None if they were never validated."""
    if facts.get("weights") == "best" and facts["best"]:
        return list(facts["best"])
    return facts["validation"][-1] if facts["validation"] else None


def trained_model(folder: Path) -> tuple[str, dict[str, Any]]:
    """The id of the model in `folder` and the facts of its training (see `pretrain.run.pretrain`)."""
    manifest = read_manifest(folder, KIND)
    return manifest["settings"]["model"], manifest["facts"]
