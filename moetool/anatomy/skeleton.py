"""From a configuration to the real transformers model, without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moetool.errors import UntraceableError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Tried in order: the first whose mapping has the configuration's class is the model's own. The
# text-only class of a multimodal checkpoint comes first, because prompts are text.
_AUTO_CLASSES = (
    ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    ("AutoModelForMultimodalLM", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
    ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
)


def find_auto_class(config: PreTrainedConfig) -> str:
    """Return the name of the auto class that builds this configuration's language model.

    Raises:
        UntraceableError: transformers offers no language-model class for it.
    """
    import transformers

    for auto_class, mapping in _AUTO_CLASSES:
        if type(config) in getattr(transformers, mapping, {}):
            return auto_class
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "AutoModelForCausalLM"
    raise UntraceableError(
        f"transformers has no language-model class for model_type '{config.model_type}'.",
        hint="moetool traces language models; name the language-model checkpoint.",
    )


def build_skeleton(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model on torch's meta device: every module and shape, no weights.

    Takes 0.1 to 2 s and next to no memory, whatever the model's size.
    """
    import transformers

    auto_class: Any = getattr(transformers, find_auto_class(config))
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return model
