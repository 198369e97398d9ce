"""Load a model with quantized weights from Python, its routed experts included."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from moetool.checkpoint.config import load_config
from moetool.checkpoint.files import open_checkpoint
from moetool.checkpoint.reference import ModelReference
from moetool.checkpoint.stated.quantization import find_method
from moetool.choices import choose
from moetool.errors import UsageError
from moetool.library.given_models import find_reference
from moetool.memory.scenario import Dtype
from moetool.quantizing.choice import choose_quantization
from moetool.registration import METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_quantized(
    model: str | PathLike[str] | ModelReference,
    quantization: str | None = None,
    *,
    double_quant: bool = False,
    quantize_experts: bool = True,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Return a model whose weights are quantized while they load, in evaluation mode.

    Linear layers become bitsandbytes' own, as transformers quantizes them. So do the matrices of
    routed experts, each with the codes and scales that bitsandbytes gives it as a linear layer. One
    expert is in its own dtype at a time, or a layer's if a file has them in one tensor. Routers, gates of shared experts,
    norms, embeddings and the head stay as they are. `trace_model` takes the model with its
    tokenizer.

    Args:
        model: A folder, a Hub id or `demo`.
        quantization: `nf4`, `fp4` or `int8`; None for that of a checkpoint that
            `quantize_checkpoint` wrote, and else for `nf4`.
        double_quant: Quantize the scales of 4-bit weights too.
        quantize_experts: Quantize routed experts too, or linear layers only.
        dtype: Of weights that aren't quantized, and of computations; None for the checkpoint's own.
        device: None takes a GPU if there is one.
        device_map: Spreads the model over several GPUs instead: `auto`, or a JSON file.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.

    Raises:
        UsageError: Options contradict each other; the experts aren't a fused pair of matrices, or
            bitsandbytes has no kernels for the device or a width of the model.
        InputError: The checkpoint can't be read, or is quantized already, in another format or with
            options given here.
        OutOfMemoryError: The device has too little memory.
    """
    choice = choose_quantization(
        quantization or "nf4", double_quantization=double_quant, quantize_experts=quantize_experts
    )
    if choice is None:
        raise UsageError(
            "A model can't be loaded quantized in no format.",
            hint="Give nf4, fp4 or int8, or load it by transformers.",
        )
    if device is not None and device_map is not None:
        raise UsageError(
            "A device and a device map exclude each other.",
            hint="Leave out the device, or the device map.",
        )
    chosen_dtype = None if dtype in (None, "auto") else choose(dtype, Dtype, name="dtype")
    checkpoint = open_checkpoint(
        find_reference(model),
        revision=revision,
        with_code=trust_remote_code,
        announce=lambda _: None,
    )
    from moetool.anatomy.skeleton.build import build_skeleton, find_auto_class, refuse_unbuildable
    from moetool.quantizing.checks import check_requantized
    from moetool.tracing.quantization import check_loadable
    from moetool.tracing.running.devices import (
        check_device_map,
        choose_device,
        choose_device_map,
    )
    from moetool.tracing.running.load_model import load_model

    config = load_config(checkpoint, trust_remote_code=trust_remote_code)
    places: str | dict[str, Any] = (
        {"": choose_device(device)} if device_map is None else choose_device_map(device_map)
    )
    with refuse_unbuildable(checkpoint.name, config, trust_remote_code=trust_remote_code):
        skeleton = build_skeleton(config, trust_remote_code=trust_remote_code)
    if device_map is not None:
        check_device_map(places, skeleton, name=device_map)
    is_default = quantization is None and choice == choose_quantization("nf4")
    is_reloaded = is_default and find_method(config) == METHOD
    if is_reloaded:
        check_requantized(config, skeleton, device_map=places)
    else:
        check_loadable(
            config, skeleton, choice, name=checkpoint.name, device_map=places, dtype=chosen_dtype
        )
    return load_model(
        checkpoint,
        config,
        auto_class=find_auto_class(config),
        device_map=places,
        dtype=chosen_dtype,
        quantization=None if is_reloaded else choice,
        trust_remote_code=trust_remote_code,
    )
