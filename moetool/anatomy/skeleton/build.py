"""Skeletons: transformers models built from a configuration, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from moetool.checkpoint.config import find_named_classes, first_line, missing_package
from moetool.checkpoint.stated.quantization import find_method
from moetool.errors import InputError, MoetoolError, UntraceableError
from moetool.process.quiet import quiet_transformers
from moetool.process.turns import in_turn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moetool.checkpoint.headers.tensor_headers import TensorHeaders

# The first whose mapping has the configuration's class builds the model. The text-only class of a
# multimodal checkpoint comes first, because prompts are text.
_AUTO_CLASSES: tuple[tuple[str, str], ...] = (
    ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    ("AutoModelForMultimodalLM", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
    ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
)

# By safetensors' names.
_PLAIN_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# A third of the time that it takes to create a linear layer on the meta device.
_FILL_FUNCTIONS = (
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.constant_,
    nn.init.kaiming_uniform_,
)

# Switch-C, whose 2,048 experts a layer are separate modules, has 123,000. More take minutes.
_MOST_PARAMETER_TENSORS = 150_000


def find_auto_class(config: PreTrainedConfig) -> str:
    """Return the name of the auto class that builds this configuration's language model.

    Raises:
        UntraceableError: transformers offers no language-model class for it.
    """
    import transformers

    for auto_class, mapping in _AUTO_CLASSES:
        # Without a default, because a renamed mapping would silently change the class.
        if type(config) in getattr(transformers, mapping):
            return auto_class
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "AutoModelForCausalLM"
    raise UntraceableError(
        f"transformers has no language-model class for model_type '{config.model_type}'.",
        hint="moetool traces language models; name the language-model checkpoint.",
    )


def find_whole_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return transformers' class for the whole checkpoint; None if it has none.

    That is the class that the configuration names, with all that a text model leaves out, such as
    towers, if the class takes this configuration. Else it is the class that an auto class chooses.
    """
    import transformers

    for named in find_named_classes(getattr(config, "architectures", None)):
        if named is not None and named.config_class is type(config):
            return named
    others: list[type[PreTrainedModel]] = []
    # The last one builds models without a head, for those that have no language-model head.
    for mapping in (*(mapping for _, mapping in _AUTO_CLASSES), "MODEL_MAPPING"):
        models: Any = getattr(transformers, mapping)
        if type(config) in models:
            found = models[type(config)]
            chosen: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            # An auto class may name the text model, which takes only the configuration inside.
            if chosen.config_class is type(config):
                return chosen
            others.append(chosen)
    return others[0] if others else None


def build_whole_skeleton(
    config: PreTrainedConfig, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return the model of a whole checkpoint on the meta device, in evaluation mode.

    Args:
        config: The configuration of the checkpoint.
        dtype: Dtype of the parameters; None for the configuration's own.
        trust_remote_code: Run the repository's own code.

    Raises:
        UntraceableError: transformers has no class for it.
    """
    found = find_whole_class(config)
    if found is None:
        return build_skeleton(config, trust_remote_code=trust_remote_code)
    return build_model(found, config, dtype=dtype, device="meta")


@in_turn()
def build_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None,
    device: str,
) -> PreTrainedModel:
    """Return a model on a device, in evaluation mode. Its weights are random, or absent on `meta`.

    Args:
        model_class: A class of transformers.
        config: A configuration that it takes.
        dtype: Dtype of the parameters; None for the configuration's own.
        device: A device; `meta` for a skeleton.
    """
    with created_on(device):
        model: PreTrainedModel = model_class._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    return model


class _NoInitialValues(TorchFunctionMode):
    """Passes over the functions that fill new parameters with random numbers."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILL_FUNCTIONS:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            # torch warns of tensors without elements.
            if tensor.is_meta and tensor.numel():
                return tensor
        return func(*args, **kwargs)


@contextmanager
def created_on(device: str) -> Iterator[None]:
    """Create tensors on a device, on `meta` without filling them."""
    with torch.device(device), without_initial_values() if device == "meta" else nullcontext():
        yield


def without_initial_values() -> AbstractContextManager[object]:
    """Create parameters on `meta` without filling them."""
    return _NoInitialValues()


def find_embedding(model: PreTrainedModel) -> nn.Module | None:
    """Return the module that looks up the embeddings of token ids; None if there is none.

    The code of a repository need not name it. Then it is the first embedding.
    """
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)


def find_dtype(
    config: PreTrainedConfig, *, headers: TensorHeaders | None = None
) -> torch.dtype | None:
    """Return the dtype that transformers converts a checkpoint's weights to; None if unknown.

    That is the one that the configuration states. If it states none, mxfp4 is unpacked to bfloat16,
    and other weights keep the dtype of the files.

    Args:
        config: The configuration; what it states for the whole model counts before its text model's.
        headers: Of the weight files; None where there are none. Files with several dtypes of plain
            floats decide nothing.
    """
    for holder in (config, config.get_text_config()):
        dtype = getattr(holder, "dtype", None)
        if isinstance(dtype, torch.dtype):
            return dtype
    if find_method(config) == "mxfp4":
        return torch.bfloat16
    stored = set() if headers is None else {tensor.dtype for tensor in headers.tensors}
    plain = [dtype for name, dtype in _PLAIN_DTYPES.items() if name in stored]
    return plain[0] if len(plain) == 1 else None


@contextmanager
def refuse_unbuildable(
    name: str, config: PreTrainedConfig, *, trust_remote_code: bool
) -> Iterator[None]:
    """Turn any exception of a family's code into an error while a model is built.

    Models that would take minutes to build, because of implausible numbers in their configuration,
    are refused as soon as they exceed the limit.

    Args:
        name: The model as the user named it.
        config: Its configuration.
        trust_remote_code: Whether its repository's own code is run.

    Raises:
        InputError: The model can't be built, or needs a missing package.
    """
    registered = 0

    def count(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal registered
        registered += 1
        if registered > _MOST_PARAMETER_TENSORS:
            raise ValueError(f"it asks for more than {_MOST_PARAMETER_TENSORS:,} tensors")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except MoetoolError:
        raise
    except ImportError as error:
        raise missing_package(name, error) from error
    except Exception as error:
        has_code = trust_remote_code and getattr(config, "auto_map", None)
        raise InputError(
            f"No model can be built from the config.json of {name}.",
            hint="Install the packages that its own Python code needs."
            if has_code
            else "Use the config.json that came with the checkpoint.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    finally:
        handle.remove()


@quiet_transformers()
def build_skeleton(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, device: str = "meta"
) -> PreTrainedModel:
    """Return a language model on torch's meta device, with all modules and shapes and no weights.

    It takes 0.1 to 2 s and hardly any memory, regardless of the model's size.

    Args:
        config: The model's configuration.
        trust_remote_code: Run the repository's own code.
        device: Another device, for a model with random weights.
    """
    import transformers

    auto_class: Any = getattr(transformers, find_auto_class(config))
    with created_on(device):
        model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return model
