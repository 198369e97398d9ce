"""The contents of a checkpoint in another format than Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moetool.checkpoint.headers.tensor_headers import TensorHeaders
from moetool.checkpoint.layouts.kinds import Layout


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint without a config.json.

    Attributes:
        layout: Its format.
        headers: Its tensors.
        config: The facts that its files state, under the names that a config.json has for them.
        notes: Remarks on what was read.
        adapter: The adapter's configuration; None for models.
    """

    layout: Layout
    headers: TensorHeaders
    config: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapter: Mapping[str, object] | None = None
