"""Load a checkpoint, and refuse it unless all weights of the model come from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moetool.anatomy.headers.published_format import name_packed
from moetool.checkpoint.config import first_line, missing_package
from moetool.checkpoint.files import Checkpoint, read_json
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.stated.quantization import find_method, name_quantization
from moetool.errors import InputError, MoetoolError, OutOfMemoryError
from moetool.process.quiet import following_weights, quiet_transformers
from moetool.quantizing.choice import QuantizationChoice
from moetool.tracing.out_of_memory import is_out_of_memory
from moetool.wording import number_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@quiet_transformers()
def load_model(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    *,
    auto_class: str,
    device_map: str | dict[str, Any] | None,
    offload_folder: str | None = None,
    distributed_config: Any = None,
    dtype: str | None = None,
    quantization: QuantizationChoice | None = None,
    trust_remote_code: bool = False,
    advance: Callable[[int, int], None] = lambda *_: None,
) -> PreTrainedModel:
    """Return the checkpoint's model in evaluation mode.

    Weights in MXFP4 are loaded as bfloat16, because the kernels that compute with MXFP4 run past
    hooks.

    Args:
        checkpoint: Files with weights.
        config: The checkpoint's configuration.
        auto_class: Name of transformers' class that loads it, see `find_auto_class`.
        device_map: Devices of the weights, as accelerate takes them; None if processes share them.
        offload_folder: Takes the weights that the device map sends to disk.
        distributed_config: How processes share the weights, see `make_distributed_config`.
        dtype: Convert the weights to it; None keeps the checkpoint's own.
        quantization: Quantize weights while they load, after `check_quantizable`.
        trust_remote_code: Run the repository's own code.
        advance: Called with the number of tensors that are loaded, and of all.

    Raises:
        InputError: The weights do not match the configuration, or can't be loaded.
        OutOfMemoryError: They don't fit.
    """
    import transformers

    loader: Any = getattr(transformers, auto_class)
    stated = read_json(checkpoint.folder / "config.json", missing="")
    _refuse_format(checkpoint, stated)
    wishes: dict[str, Any] = {}
    if distributed_config is not None:
        wishes["distributed_config"] = distributed_config
    if find_method(config) == "mxfp4":
        make_config: Any = getattr(transformers, "Mxfp4Config")  # noqa: B009 - lazily exported
        wishes["quantization_config"] = make_config(dequantize=True)
    if quantization is not None:
        from moetool.quantizing.quantizer import make_config as make_quantization

        wishes["quantization_config"] = make_quantization(quantization)
    try:
        with following_weights(advance):
            model, report = loader.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=str(dtype or "auto"),
                device_map=device_map,
                offload_folder=offload_folder,
                trust_remote_code=trust_remote_code,
                # Reported below in plainer words.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **wishes,
            )
    except ImportError as error:
        raise missing_package(checkpoint.name, error) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"Out of memory while loading {checkpoint.name}.",
                hint="Use a smaller --dtype, --device-map auto, or a device with more memory.",
            ) from error
        if distributed_config is not None:
            raise _unshareable(checkpoint, [f"seen: {first_line(error)}"]) from error
        raise InputError(
            f"The weights of {checkpoint.name} can't be loaded.",
            hint="Check that config.json and the weight files belong together."
            if _find_quantization(checkpoint, stated) is None
            else "Run it on hardware that supports its quantization, or name a checkpoint in bfloat16.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    # transformers fills missing weights with random numbers: their routing would be noise.
    wrong = [*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])]
    if wrong:
        stored = _find_quantization(checkpoint, stated)
        if stored is not None:
            raise _unloadable(checkpoint, stored)
        if distributed_config is not None:
            raise _unshareable(checkpoint, [f"unfit: {key}" for key in sorted(wrong)[:3]])
        raise InputError(
            f"The weights of {checkpoint.name} do not match its config.json: "
            f"{number_of(len(wrong), 'tensor')} {'is' if len(wrong) == 1 else 'are'} missing or of "
            "another shape.",
            hint="Use the config.json and the weight files of the same checkpoint.",
            facts=[f"unfit: {key}" for key in sorted(wrong)[:3]],
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _refuse_format(checkpoint: Checkpoint, stated: Mapping[str, object]) -> None:
    """Refuse quantized weights that transformers would read as if they were plain."""
    method = find_method(stated)
    named = name_quantization(stated)
    if named is None:
        return
    # Imports every quantizer, which takes a second.
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    if method == "bitsandbytes" or method in AUTO_QUANTIZER_MAPPING:
        return
    raise _unloadable(checkpoint, named)


def _unloadable(checkpoint: Checkpoint, stored: str) -> InputError:
    return InputError(
        f"The weights of {checkpoint.name} are quantized in a format that transformers can't load: "
        f"{stored}.",
        hint="Name a checkpoint in bfloat16, or one in a format that transformers loads.",
    )


def _unshareable(checkpoint: Checkpoint, facts: Sequence[str]) -> InputError:
    return InputError(
        f"transformers can't share the weights of {checkpoint.name} among processes.",
        hint="Use --device-map auto instead of --parallel, without torchrun.",
        facts=facts,
    )


def _find_quantization(checkpoint: Checkpoint, stated: Mapping[str, object]) -> str | None:
    """Return the quantized format of the weights; None if they are plain or it is unknown."""
    named = name_quantization(stated)
    if named is not None:
        return named
    try:
        headers = read_local_headers(checkpoint.folder)
    except MoetoolError:
        return None
    return None if headers is None else name_packed(headers, stated)
