"""The kinds of parts that a model's parameters are counted under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Component(StrEnum):
    """What a parameter belongs to.

    Attributes:
        EMBEDDING: Tables that a token's id is looked up in. A tied one is the head too.
        LM_HEAD: From the last hidden state to the vocabulary, unless tied to the embedding.
        MIXER: What lets tokens see each other: attention of any kind, convolution, Mamba, linear
            attention, with the norms inside it.
        ROUTER: What scores and selects experts.
        ROUTED_EXPERTS: Experts chosen per token, those of attention as well.
        SHARED_EXPERTS: Experts that every token runs beside the routed ones, with their own gate.
        DENSE_MLP: MLPs of layers, or of parts of layers, that do not route.
        NORM: Norms outside mixers and routers.
        VISION: Vision towers, with what projects their output into the text model.
        AUDIO: Audio towers, likewise.
        OTHER: Whatever is none of these, such as hyper-connections and residual scales.
    """

    EMBEDDING = "embedding"
    LM_HEAD = "lm_head"
    MIXER = "mixer"
    ROUTER = "router"
    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    DENSE_MLP = "dense_mlp"
    NORM = "norm"
    VISION = "vision"
    AUDIO = "audio"
    OTHER = "other"


# They turn images and sounds into hidden states: no text token runs them.
TOWERS = (Component.VISION, Component.AUDIO)


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs.

    Attributes:
        stack: As in `ParameterRow`.
        layer: The model's own layer index; None outside layers and in towers.
        component: What it is part of.
    """

    stack: str
    layer: int | None
    component: Component
