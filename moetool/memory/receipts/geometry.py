"""The identity of a model's geometry, whatever its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

# These say how a configuration was written, and nothing about what is computed.
_NOT_GEOMETRY = ("_name_or_path", "transformers_version", "architectures", "auto_map")


def hash_config(config: Mapping[str, object]) -> str:
    """Return the SHA-256 of a configuration, which is the same whatever the order of its fields.

    Fields that name the model's origin or the library's version don't count.
    """
    kept = {name: value for name, value in config.items() if name not in _NOT_GEOMETRY}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
