"""The component, layer and stack of each parameter of a model, by the modules that hold it.

Experts and routers are those of the routed layers that the finder sees; embedding and head are those
that the model names; towers lie outside the language model; all else goes by the names of modules.
Tensor names in files are read by other rules, in `tensor_names`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.routing.moe_layers import MoeLayer, find_layer_number
from moetool.anatomy.routing.rules import RoutingRule, is_grouped_linear
from moetool.anatomy.routing.walk import walk_modules

# Each is matched with single words of a module's path.
_NORM = re.compile(r"(^|_)(layer)?norm(_?\d+)?$|^norm_f$|^ln(_\w+)?$", re.IGNORECASE)
_MIXER = re.compile(
    r"attention$|(^|_)(attn|mamba|conv|convolution|sconv|ssm)$|^(mixer|indexer)$", re.IGNORECASE
)
_MLP = re.compile(
    r"(^|_)(mlps?|ffn?|feed_?forward|densereludense)$|^(fc\d+|w[io])$|^(gate|up|down)_proj$",
    re.IGNORECASE,
)
_MLP_PROJECTION = re.compile(r"^(gate|up|down)_proj$")
_ROUTER = re.compile(r"gate|router|classifier|bias|scale", re.IGNORECASE)
# Gates for the output of an earlier pass through the same layers.
_MESSAGE = re.compile(r"_message_gate$")
_SHARED = re.compile(r"shared", re.IGNORECASE)
_HEAD = re.compile(r"^(lm_head|embed_out|score|classifier)$")
_POSITION = re.compile(r"pos|^wpe$", re.IGNORECASE)
_TOWER = re.compile(r"vision|visual|image|audio|speech|sound", re.IGNORECASE)
_AUDIO = re.compile(r"audio|speech|sound|talker|code2wav", re.IGNORECASE)

_TEXT_STACKS = ("decoder", "encoder")


class Placement:
    """Finds the place of every parameter of a model.

    Args:
        model: Any model, also on the meta device. Only one of transformers, or one that such a model
            is a part of, has towers.
        moe_layers: Its routed layers.
        other_experts: Module paths of experts that no rule reads.
    """

    def __init__(
        self,
        model: nn.Module,
        moe_layers: Sequence[MoeLayer],
        other_experts: Iterable[str] = (),
    ) -> None:
        self._modules: dict[str, nn.Module] = dict(walk_modules(model))
        self._moe_layers = tuple(moe_layers)
        # By the paths of their blocks, because a model may have a thousand.
        self._numbers_by_block: dict[str, list[int]] = {}
        for number, layer in enumerate(moe_layers):
            self._numbers_by_block.setdefault(layer.block_path, []).append(number)
        self._other_experts = tuple(other_experts)
        self._routed_places = {(_name_part(layer.stack), layer.layer) for layer in moe_layers}
        known = find_known_model(model)
        self._has_towers = known is not None
        self._language_models = self._find_language_models(known) if known else []
        self._heads = self._find_heads(known)
        # A layer may have thousands of parameters in its experts, which all have the same place.
        self._place_of_experts: dict[str, Place | None] = {
            layer.experts_path: None
            for layer in moe_layers
            if layer.experts_path != layer.block_path
            and find_layer_number(layer.experts_path) is not None
        }

    def place(self, path: str) -> Place:
        """Return the place of the parameter at a path."""
        holder = path
        while holder := holder.rpartition(".")[0]:
            if holder in self._place_of_experts:
                found = self._place_of_experts[holder] or self._find(path)
                self._place_of_experts[holder] = found
                return found
        return self._find(path)

    def _find(self, path: str) -> Place:
        component = self._name_component(path)
        if component in TOWERS:
            return Place(component.value, None, component)
        return Place(_name_text_stack(path), find_layer_number(path), component)

    def _name_component(self, path: str) -> Component:
        if path in self._heads:
            return Component.LM_HEAD
        if self._is_in_tower(path):
            is_audio = any(_AUDIO.search(word) for word in path.split("."))
            return Component.AUDIO if is_audio else Component.VISION
        if any(_is_within(path, experts) for experts in self._other_experts):
            return Component.ROUTED_EXPERTS
        for layer in self._find_blocks_around(path):
            component = self._name_part_of_block(path, layer)
            if component is not None:
                return component
        return self._name_part_of_layer(path)

    def _find_blocks_around(self, path: str) -> list[MoeLayer]:
        """Return the routed layers whose blocks contain the parameter at a path."""
        words = path.split(".")
        holders = (".".join(words[:depth]) for depth in range(len(words)))
        numbers = [n for holder in holders for n in self._numbers_by_block.get(holder, ())]
        return [self._moe_layers[number] for number in sorted(numbers)]

    def _is_in_tower(self, path: str) -> bool:
        if not self._has_towers:
            return False
        if self._language_models:
            return not any(_is_within(path, model) for model in self._language_models)
        return any(_TOWER.search(word) for word in path.split("."))

    def _name_part_of_block(self, path: str, layer: MoeLayer) -> Component | None:
        """Return the component of a parameter in a block that routes.

        None if it takes no part in routing: in some families the router and the experts are
        children of the decoder layer itself.
        """
        if self._is_expert(path, layer):
            return Component.ROUTED_EXPERTS
        word, *rest = path.removeprefix(f"{layer.block_path}.").split(".")
        if layer.rule is RoutingRule.SORTED_ROWS and not rest:
            # JetMoE adds the same bias to the output of any experts.
            return Component.OTHER
        if _SHARED.search(word):
            return Component.SHARED_EXPERTS
        if _MIXER.search(word) or _NORM.search(word) or _MLP_PROJECTION.search(word):
            return None
        if word.endswith("_proj"):
            # Projections into the narrower space of the experts, and out of it.
            return Component.OTHER
        return Component.ROUTER if _ROUTER.search(word) else None

    def _is_expert(self, path: str, layer: MoeLayer) -> bool:
        if layer.experts_path != layer.block_path:
            return _is_within(path, layer.experts_path)
        owner = self._modules[path.rpartition(".")[0]]
        return is_grouped_linear(owner) or isinstance(owner, nn.Embedding)

    def _name_part_of_layer(self, path: str) -> Component:
        words = path.split(".")[:-1]
        holders = [
            (word, self._modules[".".join(words[: depth + 1])]) for depth, word in enumerate(words)
        ]
        owner = holders[-1][1] if holders else None
        if any(_MESSAGE.search(word) for word in words):
            return Component.OTHER
        if any(_MIXER.search(word) and not _is_mlp(module) for word, module in holders):
            return Component.MIXER
        if isinstance(owner, nn.Embedding):
            is_position = any(_POSITION.search(word) for word in words)
            return Component.OTHER if is_position else Component.EMBEDDING
        if any(_NORM.search(word) for word in words) or "Norm" in type(owner).__name__:
            return Component.NORM
        if any(_SHARED.search(word) for word in words):
            routes = (_name_text_stack(path), find_layer_number(path)) in self._routed_places
            return Component.SHARED_EXPERTS if routes else Component.DENSE_MLP
        if any(_MLP.search(word) or _is_mlp(module) for word, module in holders):
            return Component.DENSE_MLP
        return Component.OTHER

    def _find_language_models(self, model: PreTrainedModel) -> list[str]:
        """Return the paths of the text models within a model of several modalities."""
        config = model.config
        if not any(_TOWER.search(name) for name in config.sub_configs):
            return []
        text_config = config.get_text_config()
        by_config = [
            path
            for path, module in self._modules.items()
            if path and isinstance(module, PreTrainedModel) and module.config is text_config
        ]
        # DiffusionGemma's decoder has the configuration of the whole model.
        by_routing = [
            re.split(r"\.\w+\.\d+\.", layer.experts_path)[0]
            for layer in self._moe_layers
            if _name_part(layer.stack) in _TEXT_STACKS
        ]
        return list(dict.fromkeys([*by_config, *by_routing]))

    def _find_heads(self, model: PreTrainedModel | None) -> set[str]:
        head = model.get_output_embeddings() if model else None  # type: ignore[no-untyped-call]
        return {
            f"{path}.{name}"
            for path, module in self._modules.items()
            if module is head or _HEAD.search(path.rpartition(".")[2])
            if not any(_is_within(path, layer.block_path) for layer in self._moe_layers)
            for name, _ in module.named_parameters()
        }


def find_known_model(module: nn.Module) -> PreTrainedModel | None:
    """Return the model of transformers that a module is, or that it wraps; None if it is another.

    A module that has parameters next to such a model is another.
    """
    known = next((each for each in module.modules() if isinstance(each, PreTrainedModel)), None)
    if known is None or known is module:
        return known
    inside = {id(parameter) for parameter in known.parameters()}
    return known if all(id(parameter) in inside for parameter in module.parameters()) else None


def _is_within(path: str, module_path: str) -> bool:
    return not module_path or path.startswith(f"{module_path}.")


def _is_mlp(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("MLP", "FeedForward", "FFN"))


def _name_text_stack(path: str) -> str:
    return "encoder" if "encoder" in path.split(".") else "decoder"


def _name_part(stack: str) -> str:
    return stack.partition(".")[0]
