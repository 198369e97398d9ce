"""Parts of a model that aren't trained."""

from __future__ import annotations

from enum import StrEnum


class FrozenPart(StrEnum):
    """The part of a model whose parameters stay as they are."""

    NONE = "none"
    ROUTER = "router"
    EXPERTS = "experts"
    SHARED_EXPERTS = "shared-experts"
    ATTENTION = "attention"
    DENSE_MLP = "dense-mlp"
    EMBEDDINGS = "embeddings"
