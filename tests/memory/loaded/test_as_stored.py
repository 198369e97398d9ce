"""Checkpoints that are quantized already: bytes by hand, and reasons where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moetool.anatomy.skeleton.build import build_whole_skeleton
from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.subject import Subject
from moetool.memory.answers.figures import Basis, StoredWeights
from moetool.memory.loaded.as_stored import hold_as_stored
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import make_loader
from tests.tiny_models import build_config

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
H100, A100, V100 = (9, 0), (8, 0), (7, 0)
NOT_READ = "Size on disk unknown: no files were read"


def build(name: str, **options: Any) -> PreTrainedModel:
    return build_whole_skeleton(build_config(name, **options), dtype=torch.bfloat16)


def make_subject(stated: dict[str, Any] | None, headers: TensorHeaders | None = None) -> Subject:
    config = {} if stated is None else {"quantization_config": stated}
    return Subject(
        model="tiny", config=config, label="here", headers=headers, code=None, revision=None
    )


def find_stored_weights(
    subject: Subject, skeleton: PreTrainedModel, **options: Any
) -> tuple[StoredWeights | None, tuple[str, ...]]:
    found = hold_as_stored(subject, skeleton, **options)
    return found.weights, found.notes


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
    assert [note.startswith(NOT_READ) for note in notes] == [True, False]
    assert "without `kernels`" in notes[-1]


def test_fp8_is_dequantized_for_gpus_that_can_not_compute_in_it() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("mixtral"), compute_capability=A100
    )

    layer = [2 * size for size in (*ATTENTION, *EXPERTS)]
    assert stored is not None
    assert stored.loaded_bytes == in_blocks(*IN_BFLOAT16, *FREQUENCIES, *(3 * layer))
    assert stored.is_dequantized is True
    assert (
        "before compute capability 8.9, whichever packages are installed; this one has 8.0"
        in notes[-1]
    )


def test_the_first_gpu_that_computes_in_fp8_keeps_it() -> None:
    stored, _ = find_stored_weights(make_subject(FP8), build("mixtral"), compute_capability=(8, 9))

    assert stored is not None
    assert stored.is_dequantized is False


def test_a_skeleton_is_left_as_it_was() -> None:
    skeleton = build("mixtral")
    before = {path: (p.shape, p.dtype) for path, p in skeleton.named_parameters()}

    find_stored_weights(make_subject(FP8), skeleton, compute_capability=H100)

    assert {path: (p.shape, p.dtype) for path, p in skeleton.named_parameters()} == before


def test_the_model_that_is_held_is_the_one_whose_bytes_count() -> None:
    skeleton = build("mixtral")
    for capability in (H100, None):
        found = hold_as_stored(make_subject(FP8), skeleton, compute_capability=capability)
        assert found.held is not None
        assert found.weights is not None
        tensors = (*found.held.parameters(), *found.held.buffers())
        assert in_blocks(*(tensor.nbytes for tensor in tensors)) == found.weights.held_bytes
    old = hold_as_stored(make_subject(FP8), skeleton, compute_capability=A100)
    assert old.held is skeleton


def test_what_can_not_be_converted_is_not_held_and_says_why_once() -> None:
    found = hold_as_stored(make_subject(FP8), build("gpt_oss"), compute_capability=H100)
    assert found.held is None
    assert [note for note in found.notes if "can't load them" in note] == [found.notes[-1]]


def test_experts_with_biases_are_not_taken_by_transformers_fp8() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("gpt_oss"), compute_capability=H100
    )

    assert stored is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, None)
    assert "transformers can't load them" in notes[-1]


MXFP4 = {"quant_method": "mxfp4"}


def count_full_bytes(skeleton: PreTrainedModel) -> int:
    tensors = (*skeleton.parameters(), *skeleton.buffers())
    return in_blocks(*(tensor.nbytes for tensor in tensors))


@pytest.mark.parametrize(
    ("capability", "is_traced", "reason"),
    [(V100, False, "this one has 7.0"), (H100, True, "bypass hooks")],
)
def test_mxfp4_is_dequantized_for_old_gpus_and_to_be_traced(
    capability: tuple[int, int], is_traced: bool, reason: str
) -> None:
    skeleton = build("gpt_oss")

    stored, notes = find_stored_weights(
        make_subject(MXFP4), skeleton, compute_capability=capability, is_traced=is_traced
    )

    assert stored is not None
    assert stored.loaded_bytes == stored.held_bytes == count_full_bytes(skeleton)
    assert stored.is_dequantized is True
    assert stored.basis is Basis.LOADED
    assert reason in notes[-1]


@pytest.mark.parametrize("capability", [H100, (7, 5), None])
@pytest.mark.parametrize("has_kernels", [False, True])
def test_mxfp4_counts_as_published_whatever_is_installed_here(
    capability: tuple[int, int] | None, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_kernels_available", lambda: has_kernels)
    skeleton = build("gpt_oss")

    stored, notes = find_stored_weights(
        make_subject(MXFP4), skeleton, compute_capability=capability
    )

    experts = {
        path: parameter
        for path, parameter in skeleton.named_parameters()
        if path.endswith(("experts.gate_up_proj", "experts.down_proj"))
    }
    # Half a byte for each weight, and a byte for each 32 inputs of an output. On Hopper, 16 outputs
    # and 64 inputs make a tile: the inputs of the second matrix, 96, are padded to 128.
    is_hopper = capability == H100
    padded = {"gate_up_proj": 64, "down_proj": 128 if is_hopper else 96}
    biases = [p for path, p in skeleton.named_parameters() if path.endswith("_proj_bias")]
    added = sum(in_blocks(2 * p.nbytes) - in_blocks(p.nbytes) for p in biases)
    saved = [
        in_blocks(p.nbytes)
        - in_blocks(p.shape[0] * p.shape[2] * padded[path.rpartition(".")[2]] // 2)
        - in_blocks(p.shape[0] * p.shape[2] * -(-p.shape[1] // 32))
        for path, p in experts.items()
    ]
    assert stored is not None
    assert len(experts) == 2 * skeleton.config.num_hidden_layers
    assert stored.packed_bytes == count_full_bytes(skeleton) - sum(saved) + added
    assert stored.held_bytes == stored.packed_bytes
    assert stored.dequantized_bytes == count_full_bytes(skeleton)
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, None)
    assert stored.basis is Basis.PUBLISHED
    assert "`kernels` and `triton`" in notes[-1]


def test_gpt_oss_takes_what_its_published_files_take() -> None:
    """The 13,761,264,768 and 65,248,815,744 bytes of tensors in `openai/gpt-oss-*`, in blocks.

    transformers holds the experts' biases in float32, which the files have in bfloat16.
    """
    for model, published_bytes in (
        ("gpt-oss-20b", 13_761_264_768 + 24 * 32 * (5760 + 2880) * 2),
        ("gpt-oss-120b", 65_248_815_744 + 36 * 128 * (5760 + 2880) * 2),
    ):
        stored = make_loader(model).load(Scenario()).stored
        assert stored is not None
        assert stored.packed_bytes is not None
        assert 0 <= stored.packed_bytes - published_bytes < 2**20


def test_the_dtype_of_experts_is_read_where_transformers_reads_it() -> None:
    """DeepSeek-V4 publishes its experts in 4 bits: half a byte, and a byte for each 32."""
    stored = make_loader("deepseek-v4-flash", gpu="h100").load(Scenario()).stored
    routed = 43 * 256 * 3 * 4096 * 2048

    assert stored is not None
    assert stored.method == "fp8, blocks of 128 x 128, experts in fp4"
    assert stored.loaded_bytes is not None
    assert routed * (1 / 2 + 1 / 32) < stored.loaded_bytes < routed * (1 / 2 + 1 / 32) + 20 * 10**9


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


def test_without_a_known_gpu_fp8_counts_as_published() -> None:
    stored, notes = find_stored_weights(
        make_subject(FP8), build("mixtral"), compute_capability=None
    )
    known, _ = find_stored_weights(make_subject(FP8), build("mixtral"), compute_capability=H100)

    assert stored is not None
    assert known is not None
    assert (stored.loaded_bytes, stored.is_dequantized) == (None, None)
    assert stored.held_bytes == known.loaded_bytes
    assert stored.basis is Basis.PUBLISHED
    assert "compute capability is unknown" in notes[-1]


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
    assert not any(note.startswith(NOT_READ) for note in notes)


def test_a_text_model_inside_another_states_its_quantization_too() -> None:
    subject = Subject(
        model="tiny",
        config={"text_config": {"quantization_config": FP8}},
        label="here",
        headers=None,
        code=None,
        revision=None,
    )

    stored, _ = find_stored_weights(subject, build("mixtral"), compute_capability=A100)

    assert stored is not None
    assert stored.is_dequantized is True


def test_full_precision_is_not_described_as_stored() -> None:
    subject = make_subject(None)

    assert find_stored_weights(subject, build("mixtral"), compute_capability=H100) == (None, ())
