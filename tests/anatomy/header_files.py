"""Tensor headers made by hand, and the layouts in which published formats store a linear layer.

The layouts are written from the formats' own documentation or code, named at each, and know nothing
of how moetool reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from tests.checkpoint.safetensors_files import BITS_PER_ELEMENT

Tensors = dict[str, tuple[str, list[int]]]
Layout = Callable[[str, int, int], Tensors]


def make_headers(tensors: Mapping[str, tuple[str, list[int]]]) -> TensorHeaders:
    """Return the headers of tensors in one file."""
    headers = []
    for name, (dtype, shape) in tensors.items():
        num_bits = BITS_PER_ELEMENT[dtype]
        for size in shape:
            num_bits *= size
        headers.append(TensorHeader(name, dtype, tuple(shape), num_bits // 8, "model.safetensors"))
    return TensorHeaders(
        tensors=tuple(headers),
        file_bytes={"model.safetensors": sum(tensor.num_bytes for tensor in headers)},
    )


def plain(name: str, outputs: int, inputs: int) -> Tensors:
    return {f"{name}.weight": ("BF16", [outputs, inputs])}


def fp8_blocks(name: str, outputs: int, inputs: int) -> Tensors:
    """As DeepSeek-V3's README_WEIGHTS.md has it: a float32 for each block of 128 x 128."""
    scales = [ceil(outputs / 128), ceil(inputs / 128)]
    return {
        f"{name}.weight": ("F8_E4M3", [outputs, inputs]),
        f"{name}.weight_scale_inv": ("F32", scales),
    }


def fp8_per_tensor(name: str, outputs: int, inputs: int) -> Tensors:
    """As vLLM's and Model Optimizer's static FP8 checkpoints, with scales of the KV cache."""
    scalars: list[int] = []
    return {
        f"{name}.weight": ("F8_E4M3", [outputs, inputs]),
        f"{name}.weight_scale": ("F32", scalars),
        f"{name}.input_scale": ("F32", scalars),
        f"{name}.k_scale": ("F32", scalars),
    }


def fp8_per_channel(name: str, outputs: int, inputs: int) -> Tensors:
    """compressed-tensors' `float-quantized`."""
    return {
        f"{name}.weight": ("F8_E4M3", [outputs, inputs]),
        f"{name}.weight_scale": ("BF16", [outputs, 1]),
    }


def fp4_in_int8(name: str, outputs: int, inputs: int) -> Tensors:
    """DeepSeek-V4's experts: two 4-bit floats to a signed byte, an exponent for 32 of them."""
    return {
        f"{name}.weight": ("I8", [outputs, inputs // 2]),
        f"{name}.scale": ("F8_E8M0", [outputs, inputs // 32]),
    }


def mxfp8(name: str, outputs: int, inputs: int) -> Tensors:
    """The Open Compute Project's microscaling format of eight bits, exponents as plain bytes."""
    return {
        f"{name}.weight": ("F8_E4M3", [outputs, inputs]),
        f"{name}.weight_scale": ("U8", [outputs, inputs // 32]),
    }


def mxfp4_packed(name: str, outputs: int, inputs: int) -> Tensors:
    """compressed-tensors' `mxfp4-pack-quantized`."""
    return {
        f"{name}.weight_packed": ("U8", [outputs, inputs // 2]),
        f"{name}.weight_scale": ("U8", [outputs, inputs // 32]),
    }


def mxfp6_packed(name: str, outputs: int, inputs: int) -> Tensors:
    """compressed-tensors' `mxfp6`: four codes in three bytes."""
    return {
        f"{name}.weight_packed": ("U8", [outputs, inputs * 3 // 4]),
        f"{name}.weight_scale": ("U8", [outputs, inputs // 32]),
    }


def nvfp4_modelopt(name: str, outputs: int, inputs: int) -> Tensors:
    """NVIDIA's Model Optimizer: an FP8 scale for 16 weights, and a float32 for all."""
    scalar: list[int] = []
    return {
        f"{name}.weight": ("U8", [outputs, inputs // 2]),
        f"{name}.weight_scale": ("F8_E4M3", [outputs, inputs // 16]),
        f"{name}.weight_scale_2": ("F32", scalar),
        f"{name}.input_scale": ("F32", scalar),
    }


def int4_modelopt(name: str, outputs: int, inputs: int) -> Tensors:
    """Model Optimizer's `W4A16_AWQ`: two rows to a byte, a scale for 128 weights."""
    return {
        f"{name}.weight": ("U8", [outputs // 2, inputs]),
        f"{name}.weight_scale": ("F32", [outputs, inputs // 128]),
        f"{name}.pre_quant_scale": ("BF16", [inputs]),
    }


def nvfp4_packed(name: str, outputs: int, inputs: int) -> Tensors:
    """compressed-tensors' `nvfp4-pack-quantized`."""
    return {
        f"{name}.weight_packed": ("U8", [outputs, inputs // 2]),
        f"{name}.weight_scale": ("F8_E4M3", [outputs, inputs // 16]),
        f"{name}.weight_global_scale": ("F32", [1]),
        f"{name}.input_global_scale": ("F32", [1]),
    }


def int8_per_channel(name: str, outputs: int, inputs: int) -> Tensors:
    """compressed-tensors' `int-quantized`."""
    return {
        f"{name}.weight": ("I8", [outputs, inputs]),
        f"{name}.weight_scale": ("BF16", [outputs, 1]),
        f"{name}.weight_zero_point": ("I8", [outputs, 1]),
    }


def pack_quantized(bits: int, group_size: int | None) -> Layout:
    """compressed-tensors' `pack-quantized`: rows of 32-bit words without gaps, the last padded."""

    def lay_out(name: str, outputs: int, inputs: int) -> Tensors:
        num_groups = ceil(inputs / group_size) if group_size else 1
        return {
            f"{name}.weight_packed": ("I32", [outputs, ceil(inputs * bits / 32)]),
            f"{name}.weight_scale": ("BF16", [outputs, num_groups]),
            f"{name}.weight_shape": ("I64", [2]),
            f"{name}.weight_zero_point": ("I32", [ceil(outputs * bits / 32), num_groups]),
        }

    return lay_out


def gptq(bits: int, group_size: int, *, with_order: bool = True) -> Layout:
    """AutoGPTQ's and GPTQModel's `QuantLinear`: 32 weights of an output in `bits` 32-bit words."""

    def lay_out(name: str, outputs: int, inputs: int) -> Tensors:
        num_groups = ceil(inputs / group_size)
        tensors: Tensors = {
            f"{name}.qweight": ("I32", [inputs // 32 * bits, outputs]),
            f"{name}.qzeros": ("I32", [num_groups, outputs // 32 * bits]),
            f"{name}.scales": ("F16", [num_groups, outputs]),
        }
        if with_order:
            tensors[f"{name}.g_idx"] = ("I32", [inputs])
        return tensors

    return lay_out


def awq(name: str, outputs: int, inputs: int) -> Tensors:
    """AutoAWQ's `WQLinear_GEMM`: eight outputs to a 32-bit word."""
    return {
        f"{name}.qweight": ("I32", [inputs, outputs // 8]),
        f"{name}.qzeros": ("I32", [inputs // 64, outputs // 8]),
        f"{name}.scales": ("F16", [inputs // 64, outputs]),
    }


def mlx(bits: int) -> Layout:
    """MLX's affine mode: 32-bit words along the inputs, a scale and a bias for 64 weights."""

    def lay_out(name: str, outputs: int, inputs: int) -> Tensors:
        return {
            f"{name}.weight": ("U32", [outputs, inputs * bits // 32]),
            f"{name}.scales": ("BF16", [outputs, inputs // 64]),
            f"{name}.biases": ("BF16", [outputs, inputs // 64]),
        }

    return lay_out


def aqlm(name: str, outputs: int, inputs: int) -> Tensors:
    """AQLM's `QuantizedLinear`, two codebooks for groups of eight inputs."""
    return {
        f"{name}.codes": ("I16", [outputs, inputs // 8, 2]),
        f"{name}.codebooks": ("F16", [2, 1 << 16, 1, 8]),
        f"{name}.scales": ("F16", [outputs, 1, 1, 1]),
    }


def bitnet(name: str, outputs: int, inputs: int) -> Tensors:
    """transformers' `BitLinear`: four rows of ternary weights in one."""
    return {
        f"{name}.weight": ("U8", [outputs // 4, inputs]),
        f"{name}.weight_scale": ("BF16", [1]),
    }


def eetq(name: str, outputs: int, inputs: int) -> Tensors:
    """transformers' `EetqLinear`."""
    return {
        f"{name}.weight": ("I8", [inputs, outputs]),
        f"{name}.weight_scales": ("F16", [outputs]),
    }


def torchao_int8(name: str, outputs: int, inputs: int) -> Tensors:
    """The output of torchao's `flatten_tensor_state_dict` for an `Int8Tensor`."""
    return {
        f"{name}._weight_qdata": ("I8", [outputs, inputs]),
        f"{name}._weight_scale": ("F32", [outputs, 1]),
        f"{name}._weight_zero_point": ("I8", [outputs, 1]),
    }


def torchao_float8(name: str, outputs: int, inputs: int) -> Tensors:
    """The output of torchao's `flatten_tensor_state_dict` for a `Float8Tensor`."""
    return {
        f"{name}._weight_qdata": ("F8_E4M3", [outputs, inputs]),
        f"{name}._weight_scale": ("F32", [outputs, 1]),
    }


def quanto(bits: int) -> Layout:
    """optimum-quanto's state dict: values of two or four bits in bytes, in groups of 128."""

    def lay_out(name: str, outputs: int, inputs: int) -> Tensors:
        scalar: list[int] = []
        num_groups = outputs * inputs // 128
        held: Tensors = {
            f"{name}.weight._data._data": ("U8", [128 * bits // 8, num_groups]),
            f"{name}.weight._scale": ("F32", [1, num_groups]),
            f"{name}.weight._shift": ("F32", [1, num_groups]),
        }
        if bits == 8:
            held = {
                f"{name}.weight._data": ("I8", [outputs, inputs]),
                f"{name}.weight._scale": ("F32", [outputs, 1]),
            }
        return {
            **held,
            f"{name}.input_scale": ("F32", scalar),
            f"{name}.output_scale": ("F32", scalar),
        }

    return lay_out


def hqq(name: str, outputs: int, inputs: int) -> Tensors:
    """HQQ's `HQQLinear`, whose layout of four bits is stored as data."""
    return {
        f"{name}.W_q": ("U8", [outputs // 2, inputs]),
        f"{name}.scale": ("BF16", [outputs * inputs // 64, 1]),
        f"{name}.zero": ("BF16", [outputs * inputs // 64, 1]),
        f"{name}.shape": ("I32", [2]),
        f"{name}.nbits": ("U8", [1]),
        f"{name}.axis": ("U8", [1]),
    }
