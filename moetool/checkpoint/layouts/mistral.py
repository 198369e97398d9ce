"""Models in Mistral's own format: params.json, and weights in files named consolidated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from moetool.checkpoint.files import read_json
from moetool.checkpoint.headers.local_headers import read_weight_file
from moetool.checkpoint.headers.tensor_headers import join_headers
from moetool.checkpoint.headers.weight_files import WeightFiles, read_indexed_files
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import MISTRAL, list_names

_PARAMS = "params.json"
_INDEX = "consolidated.safetensors.index.json"
_WEIGHTS = re.compile(r"consolidated\S*\.(safetensors|pth)")

# Names that a config.json has for the fields of params.json, and of its part on experts.
_FIELDS = {
    "n_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "vocab_size": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
}
_MOE_FIELDS = {
    "num_experts": "num_local_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}


def read_mistral(folder: Path) -> FoundCheckpoint:
    """Return a model in Mistral's format, and the facts in its params.json.

    Raises:
        InputError: A file is missing or broken.
    """
    params = read_json(folder / _PARAMS, missing=f"'{folder}' lost its {_PARAMS}.")
    names = list_names(folder)
    if _INDEX in names:
        index = read_json(folder / _INDEX, missing=f"'{folder}' lost its index.")
        files = read_indexed_files(
            f"{folder}/{_INDEX}", index, label=str(folder), is_present=names.__contains__
        )
    else:
        files = WeightFiles(tuple(name for name in names if _WEIGHTS.fullmatch(name)))
    parts = [read_weight_file(folder / name, file=name) for name in files.names]
    headers = join_headers(parts, weight_map=files.weight_map, label=str(folder))
    return FoundCheckpoint(MISTRAL, headers, read_params(params))


def read_params(params: Mapping[str, object]) -> dict[str, object]:
    """Return the facts of a params.json under the names that a config.json has for them."""
    moe = params.get("moe")
    stated = moe if isinstance(moe, Mapping) else {}
    return {
        **{name: params[own] for own, name in _FIELDS.items() if own in params},
        **{name: stated[own] for own, name in _MOE_FIELDS.items() if own in stated},
    }
