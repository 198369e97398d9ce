"""The totals of all models of the catalogue, and the models built from their configurations."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel

from moetool.anatomy.skeleton.build import created_on, find_auto_class

# Parameters of the class that a model is counted with, its extra parameters left out.
TOTALS = {
    "dbrx": 131_596_523_520,
    "deepseek-moe-16b": 16_375_728_128,
    "deepseek-r1": 671_026_404_352,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "deepseek-v3.2": 671_877_929_216,
    "deepseek-v3.2-nvfp4": 671_877_929_216,
    "deepseek-v4-flash": 284_332_230_231,
    "deepseek-v4-pro": 1_572_997_179_491,
    "dots.llm1": 142_774_373_888,
    "ernie-4.5-21b-a3b": 21_825_437_888,
    "ernie-4.5-300b-a47b": 298_636_913_856,
    "gemma-4-26b-a4b": 25_805_933_872,
    "glm-4.5": 352_797_814_784,
    "glm-4.5-air": 106_852_245_504,
    "glm-5": 743_911_199_232,
    "glm-5.1": 743_911_199_232,
    "glm-5.2": 743_377_000_704,
    "glm-5.3": 743_377_000_704,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "granite-3.0-1b-a400m": 1_334_628_352,
    "granite-3.0-3b-a800m": 3_298_793_472,
    "grok-1": 315_684_034_560,
    "hunyuan-a13b": 80_393_183_232,
    "jamba-v0.1": 51_570_323_328,
    "jetmoe-8b": 8_522_237_952,
    "kimi-k2": 1_026_408_209_408,
    "kimi-k2.5": 1_026_879_353_328,
    "lfm2-8b-a1b": 8_339_929_856,
    "ling-lite": 16_801_974_272,
    "ling-mini-2.0": 16_255_638_528,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-405b": 405_853_388_800,
    "llama-4-maverick-17b-128e": 401_583_781_376,
    "llama-4-scout-17b-16e": 108_641_793_536,
    "mimo-v2-flash": 308_778_768_832,
    "minimax-m1-80k": 456_089_655_296,
    "minimax-m2": 228_689_748_992,
    "minimax-m2.7": 228_689_748_992,
    "minimax-m3": 426_174_565_632,
    "minimax-text-01": 456_089_655_296,
    "mixtral-8x22b": 140_620_634_112,
    "mixtral-8x7b": 46_702_792_704,
    "moonlight-16b-a3b": 15_960_108_544,
    "nemotron-3-nano-30b-a3b": 31_577_937_344,
    "nemotron-3-ultra-550b-a55b": 549_308_968_960,
    "nllb-moe-54b": 54_500_569_088,
    "olmoe-1b-7b": 6_919_161_856,
    "phi-3.5-moe": 41_873_153_344,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-30b-a3b-fp8": 30_532_122_624,
    "qwen3-coder-480b-a35b": 480_154_875_392,
    "qwen3-next-80b-a3b": 79_674_391_296,
    "qwen3-vl-235b-a22b": 235_670_022_896,
    "qwen3-vl-30b-a3b": 31_070_754_032,
    "qwen3.5-122b-a10b": 122_562_817_776,
    "qwen3.5-35b-a3b": 35_107_181_936,
    "qwen3.5-397b-a17b": 396_802_360_816,
    "snowflake-arctic": 478_584_357_888,
    "step-3.7-flash": 198_937_133_056,
    "switch-base-8": 619_339_008,
    "switch-c-2048": 1_571_261_049_120,
}

# Those whose vendor publishes another total; the catalogue says why.
UNLIKE_PUBLISHED = {"gemma-4-26b-a4b", "glm-4.5", "grok-1", "minimax-m3"}


def build_as_published(config: Mapping[str, object]) -> PreTrainedModel:
    """Return the whole model on torch's meta device, towers for images included."""
    values: dict[str, Any] = json.loads(json.dumps(config))
    parsed = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    own = getattr(transformers, values["architectures"][0], None)
    model_class: Any = own or getattr(transformers, find_auto_class(parsed))
    build = model_class if own else model_class.from_config
    # Switch-C has 61,440 experts: half of the time would go into looking for garbage among them.
    gc.disable()
    try:
        with created_on("meta"):
            model: PreTrainedModel = build(parsed)
    finally:
        gc.enable()
    return model


def count_parameters(model: PreTrainedModel) -> int:
    """Return how many there are, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
