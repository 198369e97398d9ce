"""Code that runs past hooks: what is known before is refused first, kernels are named afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import UntraceableError
from moetool.tracing.recording.hooks import KEPT_BECAUSE

# transformers' own, which replace the body of an experts module's forward and so keep its hooks.
_SEEN_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
_TRACING_MODES = (
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


def check_not_compiled(model: nn.Module, layers: Sequence[MoeLayer]) -> None:
    """Check that no part of a model that contains a routed layer, or is in one, runs past hooks.

    Raises:
        UntraceableError: Names the first part that does.
    """
    for path, module in model.named_modules():
        if not any(_are_nested(path, layer.block_path) for layer in layers):
            continue
        name = _name(model, path, module)
        if _is_compiled(module):
            raise UntraceableError(
                f"{name} was compiled before recording: compiled code runs past hooks.",
                hint="Enter the recorder first and compile within, or record an uncompiled model.",
            )
        if _is_graphed(module):
            raise UntraceableError(
                f"{name} was captured into a CUDA graph, which is replayed past hooks.",
                hint="Record a module that was not captured.",
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise _refuse_script(name)
        devices = getattr(module, "device_ids", None) or ()
        if isinstance(module, nn.DataParallel) and len(devices) > 1:
            raise UntraceableError(
                f"{name} divides each call among copies on {len(devices)} GPUs, which run past hooks.",
                hint="Record the module within it, `.module`, and call that one.",
            )


def check_not_scripted(model: nn.Module) -> None:
    """Check that no part of a model is TorchScript, in which experts can't be recognised.

    Raises:
        UntraceableError: Names the first part that is.
    """
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise _refuse_script(_name(model, path, module))


def check_runs(module: nn.Module) -> None:
    """Check that a call computes values, and computes them now.

    Raises:
        UntraceableError: It does not.
    """
    name = type(module).__name__
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise UntraceableError(
            f"{name} is called within a transform of torch.func, such as vmap or grad, where tensors "
            "do not have the values of one call.",
            hint="Call it outside of the transform while it is recorded.",
        )
    is_traced = torch._C._get_tracing_state() is not None
    if is_traced or any(torch._C._get_dispatch_mode(mode) for mode in _TRACING_MODES):
        raise UntraceableError(
            f"{name} is being traced: what the recorder does would become part of the graph.",
            hint="Record the module itself, before it is traced or exported.",
        )
    has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if has_gpu and torch.cuda.is_current_stream_capturing():
        raise UntraceableError(
            f"{name} is being captured into a CUDA graph: what it decides is known only when the graph "
            "is replayed, past hooks.",
            hint="Record calls outside of the capture.",
        )


def check_end(model: nn.Module, error: BaseException | None, *, was_called: bool) -> None:
    """Check how a recording ended.

    Args:
        model: The recorded model.
        error: What the code that was recorded ended in.
        was_called: Whether the model was.

    Raises:
        UntraceableError: Hooks broke a full graph, which torch says in its own words, or there was no
            error and no call.
    """
    if error is None:
        if not was_called:
            raise UntraceableError(
                f"No call of {type(model).__name__} was seen.",
                hint="Call the recorded model itself: a copy that torch.compile made earlier runs past "
                "hooks.",
            )
    elif type(error).__module__.startswith("torch._dynamo") and KEPT_BECAUSE in str(error):
        raise UntraceableError(
            f"{type(model).__name__} can't be compiled as one full graph while it is recorded: the "
            "recorder's hooks read values, and end the graph.",
            hint="Record the uncompiled module, or compile it without fullgraph=True.",
        ) from error


def explain_silence(model: nn.Module, silent: Sequence[MoeLayer], *, num_layers: int) -> Exception:
    """Return the error for layers that ran unseen, with the likely reason.

    Args:
        model: The recorded model.
        silent: The layers, at least one.
        num_layers: Number of layers that should have been seen.
    """
    block = model.get_submodule(silent[0].block_path)
    return UntraceableError(
        f"{len(silent)} of {num_layers} routed layers ran without being seen.",
        hint=_find_remedy(model, silent[0]),
        facts=[
            *(f"silent: {layer.experts_path}" for layer in silent[:3]),
            *(f"seen: {line}" for line in _describe_kernels(model, block, silent[0])),
        ],
    )


def _refuse_script(name: str) -> UntraceableError:
    return UntraceableError(
        f"{name} is TorchScript, which runs past hooks.",
        hint="Record the module that it was made from.",
    )


def _name(model: nn.Module, path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})" if path else type(model).__name__


def _is_graphed(module: nn.Module) -> bool:
    """Return whether `torch.cuda.make_graphed_callables` replaced a module's forward."""
    forward = module.__dict__.get("forward")
    return getattr(forward, "__qualname__", "").startswith("make_graphed_callables.")


def _is_compiled(module: nn.Module) -> bool:
    """Return whether a module's calls go to compiled code."""
    # torch.compile(module) wraps the module, module.compile() sets an attribute.
    is_wrapper = isinstance(getattr(module, "_orig_mod", None), nn.Module)
    if is_wrapper or getattr(module, "_compiled_call_impl", None) is not None:
        return True
    # Set by torch.compile on functions, but also by torch.compiler.disable.
    return hasattr(module.forward, "_torchdynamo_orig_callable") and not getattr(
        module.forward, "_torchdynamo_disable", False
    )


def _are_nested(path: str, other: str) -> bool:
    """Return whether two paths name the same module, or one within the other."""
    short, long = sorted((path, other), key=len)
    return not short or f"{long}.".startswith(f"{short}.")


def _describe_kernels(model: nn.Module, block: nn.Module, layer: MoeLayer) -> Iterator[str]:
    experts = model.get_submodule(layer.experts_path)
    yield f"block {type(block).__name__}, experts {type(experts).__name__}"
    forward = _find_replaced_forward(block)
    if forward is not None:
        yield f"forward of {layer.block_path} is {forward}"
    implementation = _find_implementation(model)
    if implementation is not None:
        yield f"experts_implementation {implementation}"
    quantization = _find_quantization(model)
    if quantization is not None:
        yield f"quantization {quantization}"


def _find_remedy(model: nn.Module, layer: MoeLayer) -> str:
    """Return a hint that avoids the kernel that probably ran."""
    block = model.get_submodule(layer.block_path)
    experts = model.get_submodule(layer.experts_path)
    names = (type(block).__name__, type(experts).__name__)
    if any(name.startswith("Mxfp4") for name in names) or _find_quantization(model) == "mxfp4":
        return "Load it with quantization_config=Mxfp4Config(dequantize=True)."
    if getattr(model, "use_kernels", False) or _find_replaced_forward(block) is not None:
        return "Load it with use_kernels=False, and leave the forward of its blocks as it is."
    implementation = _find_implementation(model)
    if implementation is not None and implementation not in _SEEN_IMPLEMENTATIONS:
        return 'Load it with experts_implementation="eager".'
    if _has_compiled():
        return (
            "Call torch.compiler.reset() first: code compiled for a similar model is used again, "
            "and runs past hooks."
        )
    return "Load it without compiled code and without kernels that replace its code."


def _has_compiled() -> bool:
    """Return whether torch.compile compiled anything in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return bool(dynamo and dynamo.counters["frames"])


def _find_replaced_forward(module: nn.Module) -> str | None:
    """Return the name of the function that a kernel put in place of a module's own forward."""
    forward = module.__dict__.get("forward")
    # accelerate's hooks replace it too, but still call it.
    if forward is None or hasattr(module, "_hf_hook"):
        return None
    function = getattr(forward, "__func__", forward)
    return str(getattr(function, "__qualname__", type(function).__name__))


def _find_implementation(model: nn.Module) -> str | None:
    config = _text_config(model)
    return getattr(config, "_experts_implementation", None)


def _find_quantization(model: nn.Module) -> str | None:
    config = getattr(model, "config", None)
    return None if config is None else find_method(config)


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    choose = getattr(config, "get_text_config", None)
    return choose() if choose else config
