"""Checkpoints that are quantized already: bytes by hand, and reasons where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moetool.anatomy.skeleton import build_whole_skeleton
from moetool.checkpoint.tensor_headers import TensorHeader, TensorHeaders
from moetool.inspection.subject import Subject
from moetool.memory.stored_weights import find_stored_weights
from tests.tiny_models import build_config

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
H100, A100, V100 = (9, 0), (8, 0), (7, 0)
NOT_READ = "Bytes as stored are unknown: no files were read"


def build(name: str, **options: Any) -> PreTrainedModel:
    return build_whole_skeleton(build_config(name, **options), dtype=torch.bfloat16)


def make_subject(stated: dict[str, Any] | None, headers: TensorHeaders | None = None) -> Subject:
    config = {} if stated is None else {"quantization_config": stated}
    return Subject(
        model="tiny", config=config, place="here", headers=headers, code=None, revision=None
    )


def in_blocks(*sizes: int) -> int:
    return sum(-(-size // 512) * 512 for size in sizes)


# Vocabulary 256, width 64, 3 layers; 4 heads of 16 and 2 of keys; 8 experts of width 96.
EMBEDDINGS = 256 * 64
ATTENTION = (64 * 64, 32 * 64, 32 * 64, 64 * 64)
EXPERTS = (8 * 2 * 96 * 64, 8 * 64 * 96)
ROUTER = 8 * 64
IN_BFLOAT16 = [*(2 * [2 * EMBEDDINGS]), 2 * 64, *(3 * [2 * ROUTER, 2 * 64, 2 * 64])]
FREQUENCIES = [8 * 4, 8 * 4]


def test_fp8_stays_fp8_with_a_scale_for_each_block() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("mixtral"), compute_capability=H100
    )

    # Scales in float32: one for each matrix of attention, for two blocks of 128 rows of an expert's
    # first matrix, and one for its second.
    layer = [*ATTENTION, *(4 * [4]), *EXPERTS, 8 * 2 * 4, 8 * 4]
    assert stored is not None
    assert stored.loaded_bytes == in_blocks(*IN_BFLOAT16, *FREQUENCIES, *(3 * layer))
    assert stored.is_dequantized is False
    assert stored.method == "fp8, blocks of 128 x 128"
    assert [note.startswith(NOT_READ) for note in notes] == [True]


def test_fp8_is_dequantized_for_gpus_that_can_not_compute_in_it() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("mixtral"), compute_capability=A100
    )

    layer = [2 * size for size in (*ATTENTION, *EXPERTS)]
    assert stored is not None
    assert stored.loaded_bytes == in_blocks(*IN_BFLOAT16, *FREQUENCIES, *(3 * layer))
    assert stored.is_dequantized is True
    assert "before compute capability 8.9; this one has 8.0" in notes[-1]


def test_the_first_gpu_that_computes_in_fp8_keeps_it() -> None:
    stored, _ = find_stored_weights(make_subject(FP8), build("mixtral"), compute_capability=(8, 9))

    assert stored is not None
    assert stored.is_dequantized is False


def test_a_skeleton_is_left_as_it_was() -> None:
    skeleton = build("mixtral")
    before = {path: (p.shape, p.dtype) for path, p in skeleton.named_parameters()}

    find_stored_weights(make_subject(FP8), skeleton, compute_capability=H100)

    assert {path: (p.shape, p.dtype) for path, p in skeleton.named_parameters()} == before


def test_experts_with_biases_are_not_taken_by_transformers_fp8() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("gpt_oss"), compute_capability=H100
    )

    assert stored is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, None)
    assert "transformers can't load them" in notes[-1]


@pytest.mark.parametrize(("capability", "has_kernels"), [(H100, False), (V100, True)])
def test_mxfp4_is_dequantized_without_its_kernels(
    capability: tuple[int, int], has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_kernels_available", lambda: has_kernels)
    skeleton = build("gpt_oss")

    stored, notes = find_stored_weights(
        make_subject({"quant_method": "mxfp4"}), skeleton, compute_capability=capability
    )

    tensors = (*skeleton.parameters(), *skeleton.buffers())
    assert stored is not None
    assert stored.loaded_bytes == in_blocks(*(tensor.nbytes for tensor in tensors))
    assert stored.is_dequantized is True
    assert "`kernels` is missing" in notes[-1] or "has 7.0" in notes[-1]


def test_mxfp4_stays_packed_by_kernels_whose_padding_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_kernels_available", lambda: True)

    stored, notes = find_stored_weights(
        make_subject({"quant_method": "mxfp4"}), build("gpt_oss"), compute_capability=(7, 5)
    )

    assert stored is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, False)
    assert "padding" in notes[-1]


@pytest.mark.parametrize(
    ("stated", "is_dequantized", "reason"),
    [
        ({"quant_method": "compressed-tensors"}, True, "until the first forward"),
        ({"quant_method": "gptq", "bits": 4}, None, "the library behind gptq"),
        ({"quant_method": "awq", "bits": 4}, None, "the library behind awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, "behind bitsandbytes"),
        ({"quant_method": "nvfp4"}, None, "can't load stored nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, None, "no quantizer"),
        ({"bits": 4}, None, "no quantizer"),
    ],
)
def test_what_other_libraries_lay_out_is_unknown_with_a_reason(
    stated: dict[str, Any], is_dequantized: bool | None, reason: str
) -> None:
    stored, notes = find_stored_weights(
        make_subject(stated), build("mixtral"), compute_capability=H100
    )

    assert stored is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, is_dequantized)
    assert reason in notes[-1]


@pytest.mark.parametrize("stated", [FP8, {"quant_method": "mxfp4"}])
def test_without_a_known_gpu_nothing_is_said_of_loading(stated: dict[str, Any]) -> None:
    stored, notes = find_stored_weights(
        make_subject(stated), build("mixtral"), compute_capability=None
    )

    assert stored is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, None)
    assert "isn't known" in notes[-1]


def test_bytes_as_stored_are_those_of_the_headers() -> None:
    tensors = (
        TensorHeader("a.weight", "F8_E4M3", (16, 8), 128, "a.safetensors"),
        TensorHeader("a.weight_scale_inv", "F32", (1, 1), 4, "a.safetensors"),
    )
    headers = TensorHeaders(tensors=tensors, file_bytes={"a.safetensors": 500})

    stored, notes = find_stored_weights(
        make_subject(FP8, headers), build("mixtral"), compute_capability=H100
    )

    assert stored is not None
    assert stored.stored_bytes == 132
    assert notes == ()


def test_a_text_model_inside_another_states_its_quantization_too() -> None:
    subject = Subject(
        model="tiny",
        config={"text_config": {"quantization_config": FP8}},
        place="here",
        headers=None,
        code=None,
        revision=None,
    )

    stored, _ = find_stored_weights(subject, build("mixtral"), compute_capability=A100)

    assert stored is not None
    assert stored.is_dequantized is True


def test_full_precision_has_nothing_to_tell() -> None:
    subject = make_subject(None)

    assert find_stored_weights(subject, build("mixtral"), compute_capability=H100) == (None, ())
