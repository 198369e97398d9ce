"""Estimates of every family of models that the library can build, from tiny configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.errors import InputError, MoetoolError, UntraceableError, UsageError
from moetool.memory.answers.figures import Method
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from tests.families.tiny.models import available
from tests.memory.saved_configs import save_config

TINY = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=3, dtype="float32")
FIGURES = (
    *("weights_bytes", "cache_bytes", "peak_allocated_bytes", "peak_reserved_bytes"),
    "total_device_bytes",
)

# Families that are refused, and why.
REFUSED: dict[str, tuple[type[MoetoolError], str]] = {
    "deepseek_ocr2_text": (UntraceableError, "no language-model class"),
    "diffusion_gemma": (InputError, "its forward needs"),
    "glm5_next": (InputError, "its forward needs data"),
    "openai_privacy_filter": (UsageError, "doesn't generate text"),
    "qwen3_omni_moe_talker_text": (UntraceableError, "no language-model class"),
    "unlimited_ocr_text": (UntraceableError, "no language-model class"),
}
# Their code asks which experts were chosen.
APPROXIMATE = ["dbrx", "jetmoe", "longcat_flash", "nllb-moe", "step3p7", "switch_transformers"]


@pytest.mark.parametrize("family", [name for name in available() if name not in REFUSED])
def test_every_family_is_estimated(family: str, tmp_path: Path) -> None:
    (estimate,) = estimate_memory(save_config(family, tmp_path), [TINY])
    assert (estimate.method is Method.APPROXIMATE) == (family in APPROXIMATE)
    assert estimate.at_peak is not None
    assert estimate.at_peak.allocated_bytes == estimate.figures.peak_allocated_bytes
    assert all((getattr(estimate.figures, name) or 0) > 0 for name in FIGURES)


# `torch.distributions` warns of torch's own code.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("family", [name for name in available() if name in REFUSED])
def test_a_family_that_can_not_be_estimated_is_refused_with_a_reason(
    family: str, tmp_path: Path
) -> None:
    kind, words = REFUSED[family]
    with pytest.raises(kind, match=words) as caught:
        estimate_memory(save_config(family, tmp_path), [TINY])
    assert caught.value.hint
