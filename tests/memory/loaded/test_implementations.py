"""Formats as transformers loads them: the same on every machine, and two derivations that agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moetool import Scenario, estimate_memory
from moetool.errors import UsageError
from moetool.memory.answers.implementation import Implementation, Origin
from moetool.memory.loaded.loaded_format import sum_up
from moetool.memory.loaded.packed.fp8 import convert_to_fp8, find_undividable
from moetool.memory.loaded.packed.kernels_on_meta import MXFP4_KERNELS, offer_kernels_on_meta
from moetool.memory.loaded.packed.mxfp4 import convert_to_mxfp4, pack_mxfp4
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.report.memory.data import render_table_text
from tests.memory.loaded.packed_checkpoints import save_packed
from tests.memory.loaded.test_as_stored import FP8, H100, build, find_stored_weights, make_subject
from tests.memory.saved_configs import make_loader, save_config

MXFP4 = {"quant_method": "mxfp4"}
B200, T4 = (10, 0), (7, 5)
SHORT = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=3)


def list_implementations(
    stated: dict[str, Any], skeleton: PreTrainedModel, capability: tuple[int, int]
) -> tuple[Implementation, ...]:
    stored, _ = find_stored_weights(make_subject(stated), skeleton, compute_capability=capability)
    assert stored is not None
    return stored.implementations


@pytest.mark.parametrize("capability", [H100, B200, T4, None])
def test_mxfp4_by_its_rules_and_by_transformers_modules_takes_the_same(
    capability: tuple[int, int] | None,
) -> None:
    skeleton = build("gpt_oss")
    by_rule = pack_mxfp4(skeleton, MXFP4, compute_capability=capability)
    by_module = convert_to_mxfp4(skeleton, MXFP4, compute_capability=capability)
    assert by_rule is not None
    assert sum_up(by_rule) == sum_up(by_module)
    assert {type(m).__name__ for m in by_module.modules()} >= {"Mxfp4GptOssExperts"}
    is_padded = sum_up(by_rule) > sum_up(pack_mxfp4(skeleton, MXFP4) or skeleton)
    assert is_padded == (capability == H100)


def test_mxfp4_is_packed_with_kernels_and_triton_and_dequantized_without() -> None:
    skeleton = build("gpt_oss")
    packed, plain = list_implementations(MXFP4, skeleton, H100)
    assert [package.partition(">")[0] for package in packed.with_packages] == [
        "accelerate",
        "kernels",
        "triton",
    ]
    assert plain.without_packages == ("kernels", "triton")
    assert (packed.holds, plain.holds) == ("packed", "dequantized")
    assert packed.weights_bytes is not None
    assert plain.weights_bytes == sum_up(skeleton)
    assert packed.weights_bytes < plain.weights_bytes


def test_fp8_is_loaded_without_kernels_but_does_not_run() -> None:
    with_kernels, without = list_implementations(FP8, build("mixtral"), H100)
    assert with_kernels.weights_bytes == without.weights_bytes
    assert with_kernels.failure is None
    assert without.without_packages == ("kernels",)
    assert "ImportError" in (without.failure or "")


def test_without_kernels_transformers_itself_refuses_the_first_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.integrations import finegrained_fp8

    monkeypatch.setattr(finegrained_fp8, "is_kernels_available", lambda: False)
    linear = finegrained_fp8.FP8Linear(128, 128, (128, 128))
    rows = torch.zeros(2, 128, dtype=torch.bfloat16)
    with pytest.raises(ImportError, match="kernels"), torch.no_grad():
        linear(rows)
    with offer_kernels_on_meta(), torch.no_grad():
        assert linear.to("meta")(rows.to("meta")).shape == (2, 128)
    assert finegrained_fp8._FINEGRAINED_FP8 is None


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("awq", ("accelerate", "gptqmodel")),
        ("gptq", ("optimum>=1.24", "gptqmodel>=1.4.3")),
        ("compressed-tensors", ("compressed-tensors>=0.15",)),
    ],
)
def test_bytes_that_a_library_lays_out_are_reported_with_its_name(
    method: str, packages: tuple[str, ...], tmp_path: Path
) -> None:
    (estimate,) = estimate_memory(save_packed(method, tmp_path), [SHORT], gpu="h100")
    assert estimate.stored is not None
    with_all, without = estimate.stored.implementations
    assert (with_all.with_packages, with_all.origin) == (packages, Origin.REPORTED)
    assert with_all.weights_bytes in (
        estimate.stored.packed_bytes,
        estimate.stored.dequantized_bytes,
    )
    assert (without.holds, without.weights_bytes) == (None, None)
    page = " ".join(render_table_text([estimate]).split())
    assert "reported by the files' headers, not confirmed" in page
    assert "it doesn't load" in page
    # Fused experts are beyond these two.
    is_said = any("replaces linear layers only" in note for note in estimate.notes)
    assert is_said == (method in ("awq", "gptq"))


def test_stored_nvfp4_is_loaded_by_nothing() -> None:
    (only,) = list_implementations({"quant_method": "nvfp4"}, build("mixtral"), B200)
    assert (only.holds, only.weights_bytes) == (None, None)
    assert only.failure == "transformers can't load stored nvfp4."


def test_blocks_that_leave_a_rest_are_those_that_transformers_can_not_dequantize() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    dequantize: Any = Fp8Dequantize(None)
    for width in (128, 192, 256, 320, 576):
        rows = -(-width // 128)
        weight = torch.empty(width, 128, dtype=torch.float8_e4m3fn, device="meta")
        model: Any = build("mixtral", hidden_size=128, num_attention_heads=1, head_dim=width)
        found = find_undividable(convert_to_fp8(model, FP8))
        try:
            dequantize._dequantize_one(weight, torch.empty(rows, 1, device="meta"))
        except ValueError:
            assert found is not None
            assert f"{width:,}" in found
        else:
            assert found is None


def test_no_conversion_changes_the_class_of_the_experts_in_the_next() -> None:
    from transformers.integrations.finegrained_fp8 import FP8Experts

    before = dict(vars(FP8Experts))
    models = [convert_to_fp8(build("mixtral"), FP8) for _ in range(2)]
    assert dict(vars(FP8Experts)) == before
    for model in models:
        experts = [type(module) for module in model.modules() if isinstance(module, FP8Experts)]
        assert len(experts) > len(set(experts)) == 1


def test_fp8_that_an_older_gpu_can_not_load_is_refused_with_the_nearest_way() -> None:
    with pytest.raises(UsageError, match="kv_a_proj_with_mqa") as caught:
        estimate_memory("deepseek-v3", [SHORT], gpu="a100-80gb")
    assert "--dtype bfloat16" in caught.value.hint
    assert "can't be loaded on a100-80gb" in str(caught.value)


def test_decoding_packed_weights_copies_none_of_them(tmp_path: Path) -> None:
    """`batched_mm` copies the matrices of chosen experts, and kernels read them where they are."""
    for family, stated in (("gpt_oss", MXFP4), ("mixtral", FP8)):
        folder = tmp_path / family
        folder.mkdir()
        model = save_config(family, folder, dtype="bfloat16", quantization_config=stated)
        runs = ModelRuns(make_loader(model, gpu="h100"))
        packed, copy = (
            {peak.phase.value: peak.activation_bytes for peak in runs.simulate(each).peaks}
            for each in (SHORT, replace(SHORT, dtype="bfloat16"))
        )
        assert packed["decode"] < copy["decode"]


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 2048])
def test_a_product_in_mxfp4_leaves_rows_of_single_experts_behind_its_sums(num_tokens: int) -> None:
    kernels: Any = MXFP4_KERNELS
    logits = torch.empty(num_tokens, 32, dtype=torch.bfloat16, device="meta")
    routing, rows, back = kernels.routing.routing(logits, 4)
    bias = torch.empty(32, 2880, device="meta")
    chosen = torch.empty(4 * num_tokens, 2880, dtype=torch.bfloat16, device="meta")
    result = kernels.matmul_ogs.matmul_ogs(
        chosen, None, bias, routing, gather_indx=None, scatter_indx=back
    )
    assert result.shape == (num_tokens, 2880)
    # Few rows are split by inputs, whose parts are summed; many have a row for each expert.
    num_held = result.untyped_storage().nbytes() // (2 * 2880)
    assert num_held == (num_tokens if num_tokens < 64 else 5 * num_tokens)
    assert rows.shape == (4 * num_tokens,)
