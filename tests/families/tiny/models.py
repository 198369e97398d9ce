"""Tiny random models of every Mixture-of-Experts family, and what their text path is given."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families.tiny.configs import build_config
from tests.families.tiny.families import FAMILIES, find_family
from tests.families.tiny.family import Family
from tests.families.tiny.sizes import HIDDEN_SIZE, VOCAB_SIZE

ENCODER_DECODERS = ("nllb-moe", "switch_transformers")

# It reads a prompt, and refines a canvas of tokens that it would else draw at random.
CANVAS_FAMILIES = ("diffusion_gemma",)

# Their tokens are not text: the model around them makes their embeddings.
EMBEDDING_FAMILIES = ("qwen3_omni_moe_talker_text",)

# Ids 0, 1 and 2 pad, begin and end a text.
_FIRST_TOKEN = 3

# Added to the scores that decide which experts a token goes to. Most scores lie between 0 and 1.
_EXPERT_BIASES = ("correction_bias", "expert_bias", "balancing_biases")
_EXPERT_BIAS_STD, _LOGIT_BIAS_STD = 0.05, 0.5
_LOGIT_BIAS_FAMILIES = ("kolibri1",)

# Zaya's scores come out of three layers that would shrink them to nothing.
_WIDE_ROUTER, _WIDE_ROUTER_STD = "router_mlp.out_proj", 4.0


# Some of their layers run several times in one call.
LOOPED_FAMILIES = ("inkling2_loop_text",)


def available() -> list[str]:
    """Return the families that the installed transformers has and can run."""
    return [name for name in _installed() if name not in broken()]


@cache
def broken() -> dict[str, str]:
    """Return the families that the installed transformers can build but not call, and its error."""
    version = ".".join(map(str, Version(transformers.__version__).release[:2]))
    return {
        name: FAMILIES[name].broken_in[version]
        for name in _installed()
        if version in FAMILIES[name].broken_in
    }


@cache
def _installed() -> tuple[str, ...]:
    return tuple(name for name, family in FAMILIES.items() if _is_installed(family))


def _is_installed(family: Family) -> bool:
    installed = Version(transformers.__version__)
    if family.runs_since is not None and installed < Version(family.runs_since):
        return False
    if family.model_type not in CONFIG_MAPPING:
        return False
    if family.model_class is None:
        return family.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return hasattr(transformers, family.model_class)


def build_family(
    name: str, *, seed: int = 0, is_automatic: bool = False, **overrides: Any
) -> PreTrainedModel:
    """Return a tiny random model of a family in float32, its routing as lively as a trained one's.

    Args:
        name: The family, one of `available()`, `broken()` or `NOT_ROUTED`.
        seed: What the weights depend on. The global random state is left as it was.
        is_automatic: Let `AutoModelForCausalLM` choose the class, whatever the family's is.
        overrides: Fields of the configuration, as in `build_config`.
    """
    config = build_config(name, **overrides)
    model_class = None if is_automatic else find_family(name).model_class
    # A few vectors, such as decay rates, keep what the model's own initialisation drew.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = (
            AutoModelForCausalLM.from_config(config)
            if model_class is None
            else getattr(transformers, model_class)(config)
        )
        _randomize(model)
    model.eval()
    return model


def _randomize(model: PreTrainedModel) -> None:
    """Give a model weights in place that make every part of it matter.

    Vectors are disturbed rather than drawn: norms stay near their initial value, and biases, sinks
    and scales, most of which start at 0 or 1, come to differ.
    """
    on_logits = model.config.model_type in _LOGIT_BIAS_FAMILIES
    bias_std = _LOGIT_BIAS_STD if on_logits else _EXPERT_BIAS_STD
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_EXPERT_BIASES):
                parameter.normal_(std=bias_std)
            elif parameter.dim() >= 2:
                parameter.normal_(std=_WIDE_ROUTER_STD if _WIDE_ROUTER in name else 0.12)
            else:
                parameter.add_(0.05 * torch.randn_like(parameter))
        # A token has to outweigh what attention adds to it, which is much the same for all tokens.
        if model.config.model_type in FAMILIES:
            model.get_input_embeddings().get_parameter("weight").normal_(std=1.25)
        for name, buffer in model.named_buffers():
            if name.endswith(_EXPERT_BIASES):
                buffer.normal_(std=bias_std)
            elif name.endswith("tid2eid"):
                # The experts of each token id, which are initially 0, 0 and 0.
                num_tokens, top_k = buffer.shape
                scores = torch.rand(num_tokens, model.config.n_routed_experts)
                buffer.copy_(scores.argsort(dim=1)[:, :top_k])


def text_inputs(
    model: PreTrainedModel | str, *, num_rows: int = 2, num_columns: int = 7, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Return what the plain text path of a family is called with.

    Args:
        model: A model of `build_family`, or the name of its family.
        num_rows: Texts in the batch.
        num_columns: Tokens of each text, and of the decoder's text or canvas where there is one.
        seed: What the tokens depend on. No two are the same.
    """
    name = model if isinstance(model, str) else model.config.model_type
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, num_columns)
    attention_mask = torch.ones(shape, dtype=torch.long)
    if name in EMBEDDING_FAMILIES:
        embeddings = torch.randn(*shape, HIDDEN_SIZE, generator=generator)
        return {"inputs_embeds": embeddings, "attention_mask": attention_mask}
    tokens = _FIRST_TOKEN + torch.randperm(VOCAB_SIZE - _FIRST_TOKEN, generator=generator)
    num_tokens = num_rows * num_columns
    inputs = {"input_ids": tokens[:num_tokens].view(shape), "attention_mask": attention_mask}
    if name in ENCODER_DECODERS + CANVAS_FAMILIES:
        inputs["decoder_input_ids"] = tokens[num_tokens : 2 * num_tokens].view(shape)
    return inputs
