"""The components that a model's parameters are counted under."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Component(StrEnum):
    """The part of a model that a parameter belongs to.

    Attributes:
        EMBEDDING: Tables in which token ids are looked up. A tied one is the head too.
        LM_HEAD: The matrix from the last hidden state to the vocabulary, unless it is tied.
        MIXER: Modules that let tokens see each other: attention of any kind, convolution, Mamba,
            linear attention, with the norms inside them.
        ROUTER: Modules that score and select experts.
        ROUTED_EXPERTS: Experts that are chosen for each token, also those in attention.
        SHARED_EXPERTS: Experts that every token runs in addition to routed ones, and their own
            gates.
        DENSE_MLP: MLPs of layers, or of parts of layers, that do not route.
        NORM: Norms outside mixers and routers.
        VISION: Vision towers, with the projections of their output into the text model.
        AUDIO: Audio towers, with such projections.
        OTHER: Everything else, such as hyper-connections and residual scales.
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


# They turn images and sounds into hidden states. No text token runs them.
TOWERS = (Component.VISION, Component.AUDIO)


@dataclass(frozen=True)
class Place:
    """The place of a parameter in a model.

    Attributes:
        stack: As in `ParameterRow`.
        layer: The model's own layer index; None outside layers and in towers.
        component: The component that the parameter belongs to.
    """

    stack: str
    layer: int | None
    component: Component
