"""What a training leaves behind, and what another may start from, readable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ehrctx.artifacts import MANIFEST, read_manifest
from ehrctx.errors import InputError
from ehrctx.models.folder import CONFIG, WEIGHTS, read_json
from ehrctx.study import ModelId, Pretraining, Study

KIND = "model"
# Settings that may differ when a run is resumed. The precision, which changes what is learned, is recorded as resolved.
MAY_DIFFER = frozenset({*Pretraining.RUNNING, "accelerator"})


def learned_settings(settings: Pretraining, model: ModelId) -> dict[str, Any]:
    """The settings on which what `model` learns depends, as JSON holds them."""
    without = {*MAY_DIFFER, *settings.without_effect(model)}
    learned: dict[str, Any] = json.loads(settings.model_dump_json(exclude=without))
    return learned


def final_validation(facts: dict[str, Any]) -> list[float] | None:
    """[tokens, loss] of the weights that a folder with these `facts` holds; None if they were never validated."""
    if facts.get("weights") == "best" and facts["best"]:
        return list(facts["best"])
    return facts["validation"][-1] if facts["validation"] else None


def trained_model(folder: Path) -> tuple[str, dict[str, Any]]:
    """The id of the model in `folder` and the facts of its training (see `pretrain.run.pretrain`)."""
    manifest = read_manifest(folder, KIND)
    return manifest["settings"]["model"], manifest["facts"]


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the files that its index names. Raises InputError where one of them is not there."""
    index = folder / f"{WEIGHTS}.index.json"
    names = {WEIGHTS}
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
            raise InputError(f"{index} is damaged: it names no files of weights. Fetch or make the folder again.")
        names = set(named.values())
    files = [folder / Path(name).name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".ckpt", ".pt", ".pth"))
        if pickled:
            raise InputError(
                f"{folder} holds {pickled[0]} and no {missing[0]}: a pickle can run code, so it is never opened here. "
                f"If you trust it, convert it once: AutoModelForCausalLM.from_pretrained({str(folder)!r})"
                f".save_pretrained(NEW_FOLDER) in Python, or, for a .ckpt, safetensors.torch.save_file of the "
                f"state_dict that torch.load(FILE, weights_only=True) holds, beside its config.json."
            )
        raise InputError(f"{folder} holds no {missing[0]}. Give a folder of a model in Hugging Face's layout.")
    return files


def check_starts(study: Study, results: Path = Path("results")) -> None:
    """Raises InputError if a folder that a model of `study` will start from is not there, or holds no model.

    A model that is finished under `results` needs its start no more.
    """
    for model, start in study.start_from.items():
        if start in study.models or (results / study.name / "models" / model / MANIFEST).is_file():
            continue
        folder = Path(start)
        try:
            if not folder.is_dir():
                raise InputError(f"no such folder: {folder}. Give a folder on this machine; nothing is fetched.")
            read_json(folder / CONFIG)
            weight_files(folder)
        except InputError as error:
            raise InputError(f"`start_from` of {model}: {error}") from None
