"""Facts that configurations and modules state under one of several names.

Every list of names is here, and each fact has one function. The number of experts and top-k are in
`checkpoint.stated.top_k_fields`, because contradictions in them are refused as soon as a config.json is
read; its quantization is in `checkpoint.stated.quantization`.

A configuration is a config.json as a mapping, or what transformers made of it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TEXT_CONFIGS = ("text_config", "thinker_config", "llm_config", "language_config")
# The last one is from models with code in their repository (ChatGLM), and from BLOOM.
_CONTEXT = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
_HIDDEN_SIZE = ("hidden_size", "d_model", "n_embd")
_EXPERT_GROUPS = ("n_group", "num_expert_group")
_NUM_HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
    "decoder_attention_heads",
)
_MTP_LAYERS = (
    "num_nextn_predict_layers",
    "num_mtp_modules",
    "mtp_num_hidden_layers",
    "num_mtp_layers",
)
# The last one is Hunyuan's.
_SHARED_EXPERTS = (
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "num_shared_expert",
)


def read_count(holder: object, *names: str) -> int | None:
    """Return the first positive whole number that a holder has under one of some names.

    None if it has none: zero, booleans and values of other types are passed over.
    """
    for name in names:
        number = _get(holder, name)
        if isinstance(number, int) and not isinstance(number, bool) and number > 0:
            return number
    return None


def read_text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the part of a config.json that describes the text model: all of it in a text model."""
    for name in _TEXT_CONFIGS:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            return read_text_config(inner)
    return config


def find_context(config: PreTrainedConfig) -> int | None:
    """Return the context length that a configuration states, in tokens; None if it states none."""
    return read_count(config.get_text_config(), *_CONTEXT)


def find_position_limit(config: PreTrainedConfig) -> int | None:
    """Return the context length that binds a model's code; None if there is none.

    Fields that the configuration's class does not use are passed over: T5's `n_positions` and
    BLOOM's `seq_length` state the length of training sequences, and both models take longer ones.
    """
    text_config = config.get_text_config()
    used = list_declared_fields(type(text_config))
    return read_count(text_config, *(name for name in _CONTEXT if name in used))


def find_hidden_size(config: PreTrainedConfig | Mapping[str, object]) -> int | None:
    """Return the width of the text model's hidden states; None if the configuration states none."""
    return read_count(_find_text_config(config), *_HIDDEN_SIZE)


def find_num_expert_groups(config: Mapping[str, object]) -> int | None:
    """Return how many groups of experts a router limits its choice to; None if none are stated."""
    return read_count(read_text_config(config), *_EXPERT_GROUPS)


def find_num_heads(holder: object) -> int | None:
    """Return how many query heads an attention module or a text configuration states."""
    return read_count(holder, *_NUM_HEADS)


def find_vocab_size(config: PreTrainedConfig) -> int | None:
    """Return the size of the text model's vocabulary; None if the configuration states none."""
    return read_count(config.get_text_config(), "vocab_size")


def find_num_layers(config: Mapping[str, object]) -> int | None:
    """Return how many layers a config.json says the text model has; None if it doesn't."""
    return read_count(read_text_config(config), "num_hidden_layers")


def find_num_mtp_layers(config: Mapping[str, object]) -> int | None:
    """Return how many layers that predict further tokens a config.json states; None without any."""
    text_config = read_text_config(config)
    return read_count(text_config, *_MTP_LAYERS) or read_count(config, *_MTP_LAYERS)


def find_num_shared_experts(config: PreTrainedConfig | Mapping[str, object]) -> int | None:
    """Return how many shared experts a configuration states; None if it states none.

    A list has the number of each layer; then it is the largest.
    """
    text_config = _find_text_config(config)
    for name in _SHARED_EXPERTS:
        stated = _get(text_config, name)
        numbers = stated if isinstance(stated, list | tuple) else [stated]
        largest = max((number for number in numbers if type(number) is int), default=0)
        if largest > 0:
            return largest
    return None


def is_tied(config: Mapping[str, object]) -> bool | None:
    """Return whether the embedding is the head too; None if config.json doesn't say."""
    for holder in (config, read_text_config(config)):
        stated = holder.get("tie_word_embeddings")
        if isinstance(stated, bool):
            return stated
    return None


def list_declared_fields(config_class: type) -> Collection[str]:
    """Return the names of the fields that a configuration class uses."""
    if issubclass(config_class, Mapping):
        return ()
    named = set(getattr(config_class, "attribute_map", None) or {})
    named.update(getattr(config_class, "sub_configs", None) or {})
    if dataclasses.is_dataclass(config_class):
        named.update(field.name for field in dataclasses.fields(config_class))
    named.update(inspect.signature(config_class.__init__).parameters)
    return named


def _find_text_config(config: PreTrainedConfig | Mapping[str, object]) -> object:
    """Return the part of a configuration that describes the text model."""
    return read_text_config(config) if isinstance(config, Mapping) else config.get_text_config()


def _get(holder: object, name: str) -> object:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
