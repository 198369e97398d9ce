"""Recorded calls as frames of pandas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from moetool.tracing.recording.calls import RecordedCall, RecordedLayer

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = [
    "call",
    "batch_index",
    "position",
    "stack",
    "layer",
    "module",
    "rank",
    "expert",
    "weight",
    "run",
    "token_axis",
]


def make_frame(calls: Iterable[RecordedCall]) -> pd.DataFrame:
    """Return the assignments of calls, see `RoutingRecorder.to_frame`."""
    import pandas as pd

    frames = [_make_layer_frame(call, recorded) for call in calls for recorded in call.layers]
    if not frames:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(frames, ignore_index=True)


def _make_layer_frame(call: RecordedCall, recorded: RecordedLayer) -> pd.DataFrame:
    import pandas as pd

    num_tokens, top_k = recorded.experts.shape
    order = np.argsort(-recorded.weights, axis=1, kind="stable")
    return pd.DataFrame(
        {
            "call": call.call,
            "batch_index": np.repeat(call.batch_index, top_k),
            "position": np.repeat(call.position, top_k),
            "stack": recorded.layer.stack,
            "layer": recorded.layer.layer,
            "module": recorded.layer.experts_path,
            "rank": np.tile(np.arange(top_k), num_tokens),
            "expert": np.take_along_axis(recorded.experts, order, axis=1).ravel(),
            "weight": np.take_along_axis(recorded.weights, order, axis=1).ravel(),
            "run": call.run,
            "token_axis": call.token_axis.value,
        }
    )
