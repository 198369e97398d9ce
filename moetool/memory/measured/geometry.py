"""The identity of a model's geometry, whatever its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from moetool.memory.measured.measurement import Geometry

# These say how a configuration was written, and nothing about what is computed.
_NOT_GEOMETRY = ("_name_or_path", "transformers_version", "architectures", "auto_map")
_NAMES_OF_DEPTH = ("num_hidden_layers", "n_layers", "num_layers")


def describe_geometry(config: Mapping[str, object]) -> Geometry:
    """Return the type, the depth and the hash of a configuration."""
    text = config.get("text_config", config)
    holders = (text, config) if isinstance(text, Mapping) else (config,)
    depths = (holder.get(name) for holder in holders for name in _NAMES_OF_DEPTH)
    model_type = config.get("model_type")
    return Geometry(
        config_sha256=hash_config(config),
        model_type=model_type if isinstance(model_type, str) else None,
        num_layers=next((depth for depth in depths if isinstance(depth, int)), None),
    )


def hash_config(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a configuration, which is the same whatever the order of its fields.

    Fields that name the model's origin or the library's version don't count.
    """
    kept = {name: value for name, value in config.items() if name not in _NOT_GEOMETRY}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
