"""REAP's observer file: sums of every expert's outputs over a calibration run, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moetool.errors import InputError
from moetool.interchange.imports.reading.torch_files import load_torch
from moetool.printable import printable

SALIENCY_KEY = "reap"
_HINT = "Give the file that moetool route-trace --saliency or REAP's observer wrote."


def read_saliency(path: Path) -> dict[int, list[float]]:
    """Return each expert's mean of weight times norm of its output, by layer number.

    Args:
        path: A `.pt` file with `{layer: {"reap": tensor, …}}`, as REAP's observer writes it.

    Raises:
        InputError: The file is missing, damaged, of another kind, or holds more than tensors.
    """
    saliency = {}
    for layer, values in _load(path).items():
        if not isinstance(layer, int) or not isinstance(values, Mapping):
            raise _is_other(path, seen=f"the key {printable(repr(layer)[:80], max_length=60)}")
        if SALIENCY_KEY not in values:
            keys = ", ".join(map(str, list(values)[:12]))
            raise _is_other(path, seen=f"{printable(keys, max_length=200)} in layer {layer}")
        saliency[layer] = _read_scores(path, layer, values[SALIENCY_KEY])
    return saliency


def _load(path: Path) -> Mapping[Any, Any]:
    content = load_torch(path)
    if not isinstance(content, Mapping) or not content:
        raise _is_other(path, seen=f"a {type(content).__name__}")
    return content


def _read_scores(path: Path, layer: int, values: Any) -> list[float]:
    import torch

    if (
        not isinstance(values, torch.Tensor)
        or values.layout is not torch.strided
        or not values.is_floating_point()
        or values.dim() != 1
        or not values.numel()
    ):
        raise _is_other(path, seen=f"no list of experts in layer {layer}")
    scores = values.detach().double()
    if not bool(torch.isfinite(scores).all()) or bool((scores < 0).any()):
        raise InputError(
            f"'{printable(path)}' has a saliency in layer {layer} that is negative or not finite.",
            hint="Record it again.",
        )
    return [float(score) for score in scores.tolist()]


def _is_other(path: Path, *, seen: str) -> InputError:
    return InputError(
        f"'{printable(path)}' is not an observer file of REAP.", hint=_HINT, facts=[f"seen: {seen}"]
    )
