"""Notes on models whose `model_type` transformers does not have, and the class that counts them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from transformers import PreTrainedConfig

from moetool.anatomy.config_fields import list_declared_fields

# Fields that say nothing about a model's shapes.
_NO_SHAPE = re.compile(
    r"^_|^auto_map$|token|(^|_)id$|version|^(torch_)?dtype$|^architectures$|^model_type$|dropout|rope"
)
_FEW_FIELDS = 5


def note_class(raw: Mapping[str, object], config: PreTrainedConfig) -> Iterator[str]:
    """Yield the notes on a model whose `model_type` transformers does not have.

    Args:
        raw: The config.json.
        config: The configuration that transformers made of it.
    """
    stated, used = raw.get("model_type"), config.model_type
    if stated == used or not type(config).__module__.startswith("transformers."):
        return
    known = {*list_declared_fields(type(config)), *list_declared_fields(PreTrainedConfig)}
    ignored = [name for name in raw if name not in known and not _NO_SHAPE.search(name)]
    yield (
        f"transformers does not have the model_type '{stated}': counted by the transformers class that "
        f"config.json names under architectures (model_type '{used}'), not by the repository's code."
    )
    if ignored:
        some = f"{', '.join(ignored[:_FEW_FIELDS])}{', …' if ignored[_FEW_FIELDS:] else ''}"
        yield f"That class ignores {len(ignored)} fields of config.json: {some}."
