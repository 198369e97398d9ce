"""Tools whose files a selection of experts can be written as."""

from __future__ import annotations

from enum import StrEnum


class SelectionFormat(StrEnum):
    """Files of other tools that a selection can be written as.

    Attributes:
        ESFT: `expert_cfg.json` of ESFT.
        LLM_COMPRESSOR: Retained experts, as llm-compressor's REAPPruningModifier reports them.
        FREEZE_LIST: Names of parameters to train, and the rows of fused ones.
        PEFT: The keys of a LoraConfig that name what it adapts.
    """

    ESFT = "esft"
    LLM_COMPRESSOR = "llm-compressor"
    FREEZE_LIST = "freeze-list"
    PEFT = "peft"
