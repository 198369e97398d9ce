"""A skeleton with all that is known of its routing: found once, and handed on as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.config_fields import find_hidden_size
from moetool.anatomy.routing.moe_layers import FoundExperts, MoeLayer, find_experts
from moetool.anatomy.routing.top_k import find_each_top_k
from moetool.anatomy.skeleton.active_experts import is_run_by_text, list_expert_parameters
from moetool.anatomy.skeleton.build import find_embedding
from moetool.anatomy.skeleton.placement import Placement


@dataclass(frozen=True, eq=False)
class RoutedSkeleton:
    """A skeleton and its routed experts. What follows from the two is worked out when asked for.

    Attributes:
        model: On the meta device, in evaluation mode. It is not changed once it is in here.
        experts: Its routed experts; none in a dense model.
    """

    model: PreTrainedModel
    experts: FoundExperts

    @classmethod
    def of(cls, model: PreTrainedModel) -> RoutedSkeleton:
        """Return a model with the routed experts that are found in it."""
        return cls(model, find_experts(model))

    @property
    def layers(self) -> tuple[MoeLayer, ...]:
        """The routed layers whose decisions a rule reads."""
        return self.experts.layers

    @property
    def text_layers(self) -> tuple[MoeLayer, ...]:
        """Those of them that text tokens run."""
        return tuple(layer for layer in self.layers if is_run_by_text(layer))

    @cached_property
    def placement(self) -> Placement:
        """The component, layer and stack of each parameter."""
        return Placement(self.model, self.layers, self.experts.unreadable)

    @cached_property
    def expert_parameters(self) -> Mapping[MoeLayer, Mapping[str, nn.Parameter]]:
        """The parameters of each routed layer's experts by path, also those that layers share."""
        return {layer: list_expert_parameters(self.model, layer) for layer in self.layers}

    @cached_property
    def hidden_size(self) -> int:
        """Width of the hidden states; 0 where neither configuration nor embedding shows it."""
        stated = find_hidden_size(self.model.config)
        if stated is not None:
            return stated
        weight = getattr(find_embedding(self.model), "weight", None)
        return int(weight.shape[-1]) if isinstance(weight, torch.Tensor) else 0

    @cached_property
    def top_k(self) -> Mapping[MoeLayer, int | None]:
        """Experts that each routed layer chooses for a token; None where that is unknown."""
        return find_each_top_k(self.model, self.layers, hidden_size=self.hidden_size)
