"""The files of a model's folder in Hugging Face's layout, readable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ehrctx.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a model's folder. Raises InputError where it is not there, or is no JSON object."""
    if not file.is_file():
        raise InputError(f"{file.parent} holds no {file.name}. Give a folder of a model in Hugging Face's layout.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged: it is not a JSON object. Fetch or make the folder again.")
    return values
