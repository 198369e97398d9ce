"""Choices of experts in a recording, as frames of `RoutingRecorder` have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.structure.chosen import Choice, Decisions
from moetool.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("call", "run", "batch_index", "position", "token_axis", "module", "expert")
_HINT = "Give a RoutingRecorder of the same module, or what its to_frame returned."


class Recording(Protocol):
    """A recorder that has recorded calls."""

    def to_frame(self) -> pd.DataFrame:
        """Return its calls as a frame."""


def read_choices(
    recording: Recording | pd.DataFrame, layers: Iterable[MoeLayer], *, name: str
) -> dict[MoeLayer, Choice]:
    """Return what the layers of a module chose, without layers that were not recorded.

    Args:
        recording: A recorder, or its frame.
        layers: All routed layers of the module.
        name: What the module is called in messages.

    Raises:
        UsageError: It is not a recording, is empty, or is one of another module.
    """
    take: Any = getattr(recording, "to_frame", None)
    frame: Any = recording if take is None else take()
    missing = [column for column in _COLUMNS if column not in getattr(frame, "columns", ())]
    if missing:
        raise UsageError(
            f"The recording can't be of type {type(recording).__name__}."
            if len(missing) == len(_COLUMNS)
            else f"The recording has no column '{missing[0]}'.",
            hint=_HINT,
        )
    if not len(frame):
        raise UsageError(
            "The recording holds no decisions.",
            hint="Call the module within the recorder, and take its calls after this.",
        )
    by_path = {layer.experts_path: layer for layer in layers}
    choices = {}
    for path, rows in frame.groupby("module", observed=True):
        layer = by_path.get(str(path))
        num_ids = layer.num_experts + layer.num_identity_experts if layer else 0
        if layer is None or int(rows["expert"].max()) >= num_ids:
            has = f"only {num_ids}" if layer else "none"
            raise UsageError(
                f"The recording is not of this {name}: of its experts in '{path}', there are {has}.",
                hint=_HINT,
            )
        choices[layer] = _read_choice(rows)
    return choices


def _read_choice(rows: pd.DataFrame) -> Choice:
    call, run, batch_index, position, experts = (
        rows[name].to_numpy().astype(np.int64)
        for name in ("call", "run", "batch_index", "position", "expert")
    )
    # The same for all layers of a call.
    tokens = (call << 42) + (batch_index << 22) + position
    different, numbers = np.unique(tokens, return_inverse=True)
    decisions, numbers = np.unique(numbers * (run.max() + 1) + run, return_inverse=True)
    chosen = np.bincount(numbers, weights=experts >= 0)
    tokens_of_call = np.bincount(different >> 42)
    runs_of_call = np.bincount(np.unique(np.stack([call, run]), axis=1)[0])
    axes = rows["token_axis"].unique()
    return Choice(
        fewest=int(chosen.min()),
        most=int(chosen.max()),
        mean=float(chosen.mean()),
        decisions=Decisions(
            tokens=tokens,
            experts=experts,
            token_axis=str(axes[0]) if len(axes) == 1 else "",
            are_of_same_tokens=len(decisions) == int(tokens_of_call @ runs_of_call),
        ),
    )
