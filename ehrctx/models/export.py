"""The folder that transformers alone loads: standard config and weights, with Hyena's class beside them.

transformers has no Hyena, so its module and the two operations it needs travel with the weights (`auto_map`,
https://huggingface.co/docs/transformers/custom_models); who loads them says `trust_remote_code=True`.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

from transformers import GenerationConfig

from ehrctx.models import hyena
from ehrctx.models.folder import CONFIG, WEIGHTS, read_json
from ehrctx.models.model import check_model_folder
from ehrctx.models.ops import long_convolution, short_convolution
from ehrctx.timelines.spec import BOS, EOS, PAD

SHIPPED = (hyena, long_convolution, short_convolution)
AUTO_MAP = {"AutoConfig": "hyena.HyenaConfig", "AutoModelForCausalLM": "hyena.HyenaForCausalLM"}


def standalone_sources() -> dict[str, str]:
    """File name -> source of Hyena's modules, which import nothing of ehrctx but each other, as neighbours."""
    return {
        f"{module.__name__.rpartition('.')[2]}.py": re.sub(
            r"^from ehrctx\.models\.(?:ops\.)?(\w+) import", r"from .\1 import", inspect.getsource(module), flags=re.M
        )
        for module in SHIPPED
    }


def write_standalone(model: Path, folder: Path) -> None:
    """Fills `folder` from `model`, a folder that `save_model` wrote: the same weights, byte for byte.

    The config allows a cache where the architecture has one, and the generation settings name the special tokens.
    Raises InputError as `check_model_folder`.
    """
    check_model_folder(model)
    config = read_json(model / CONFIG)
    ours = config["model_type"] == hyena.HyenaConfig.model_type
    config["use_cache"] = not ours  # Hyena's convolution has no state that a step could go on from
    if ours:
        config["auto_map"] = AUTO_MAP
        for name, source in standalone_sources().items():
            (folder / name).write_text(source)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(model / WEIGHTS, folder / WEIGHTS)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, use_cache=not ours).save_pretrained(folder)
