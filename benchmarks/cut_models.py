"""Published geometries with fewer layers, and families not published at a usable size.

Every layer is as wide as in the published model, so that one GPU runs each kind of layer at its
real size.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A list with an entry for each layer may have a few more, for layers that predict further tokens.
_MOST_FURTHER_LAYERS = 4
_NAMES_OF_DEPTH = ("num_hidden_layers", "n_layers")


def write_cut_model(
    model: str, *, num_layers: int, fields: Mapping[str, Any] | None = None
) -> Path:
    """Write the configuration of a model cut to its first layers, and return its folder.

    Args:
        model: A name in the catalogue, or a model type of transformers, built with the defaults
            of its class.
        num_layers: Layers that are left.
        fields: Further changes to the language model's configuration.
    """
    from moetool.catalogue.published import read_published_config, read_published_models

    if model in read_published_models():
        config = copy.deepcopy(read_published_config(model))
        # It is loaded in bfloat16, like every other model here.
        config.pop("quantization_config", None)
    else:
        from transformers import CONFIG_MAPPING

        config = CONFIG_MAPPING[model]().to_dict()
        # JSON has no infinity, and the class has its default.
        config.pop("time_step_limit", None)
    text: Any = config.get("text_config", config)
    name = next(name for name in _NAMES_OF_DEPTH if name in text)
    _cut_lists(text, num_before=text[name], num_layers=num_layers)
    text[name] = num_layers
    text.update(fields or {})
    folder = Path(tempfile.mkdtemp(prefix="cut-"))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _cut_lists(value: dict[str, Any], *, num_before: int, num_layers: int) -> None:
    """Cut every list that has an entry for each layer, at any depth."""
    for name, item in value.items():
        if isinstance(item, dict):
            _cut_lists(item, num_before=num_before, num_layers=num_layers)
        elif isinstance(item, list) and 0 <= len(item) - num_before <= _MOST_FURTHER_LAYERS:
            value[name] = item[:num_layers]
