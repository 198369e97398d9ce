"""From a configuration to the real transformers model, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from moetool.checkpoint.config import find_named_classes, first_line, missing_package
from moetool.checkpoint.quantization import find_method
from moetool.errors import InputError, MoetoolError, UntraceableError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from moetool.checkpoint.headers.tensor_headers import TensorHeaders

# Tried in order: the first whose mapping has the configuration's class is the model's own. The
# text-only class of a multimodal checkpoint comes first, because prompts are text.
_AUTO_CLASSES: tuple[tuple[str, str], ...] = (
    ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    ("AutoModelForMultimodalLM", "MODEL_FOR_MULTIMODAL_LM_MAPPING"),
    ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    ("AutoModelForSeq2SeqLM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
)

# By safetensors' names.
_PLAIN_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

# Switch-C, whose 2,048 experts a layer are modules of their own, has 123,000. More take minutes.
_MOST_PARAMETER_TENSORS = 150_000


def find_auto_class(config: PreTrainedConfig) -> str:
    """Return the name of the auto class that builds this configuration's language model.

    Raises:
        UntraceableError: transformers offers no language-model class for it.
    """
    import transformers

    for auto_class, mapping in _AUTO_CLASSES:
        # Without a default: were one renamed, a model would be built as another class in silence.
        if type(config) in getattr(transformers, mapping):
            return auto_class
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "AutoModelForCausalLM"
    raise UntraceableError(
        f"transformers has no language-model class for model_type '{config.model_type}'.",
        hint="moetool traces language models; name the language-model checkpoint.",
    )


def find_whole_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return transformers' class for all that a checkpoint holds; None if it has none.

    That is the class its configuration names, with the towers of a multimodal model and what else a
    text model leaves out, if it takes this configuration; else what an auto class makes of it.
    """
    import transformers

    for named in find_named_classes(getattr(config, "architectures", None)):
        if named is not None and named.config_class is type(config):
            return named
    others: list[type[PreTrainedModel]] = []
    # The last one builds what is below any head, for models that have no language model's.
    for mapping in (*(mapping for _, mapping in _AUTO_CLASSES), "MODEL_MAPPING"):
        models: Any = getattr(transformers, mapping)
        if type(config) in models:
            found = models[type(config)]
            chosen: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            # An auto class may name the text model's, which takes the configuration inside alone.
            if chosen.config_class is type(config):
                return chosen
            others.append(chosen)
    return others[0] if others else None


def build_whole_skeleton(
    config: PreTrainedConfig, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return all that a checkpoint holds as a model on the meta device, in evaluation mode.

    Args:
        config: Its configuration.
        dtype: Of the parameters; None for the configuration's own.
        trust_remote_code: Run the repository's own code.

    Raises:
        UntraceableError: transformers has no class for it.
    """
    found = find_whole_class(config)
    if found is None:
        return build_skeleton(config, trust_remote_code=trust_remote_code)
    return build_model(found, config, dtype=dtype, device="meta")


def build_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None,
    device: str,
) -> PreTrainedModel:
    """Return a model of a class on a device, in evaluation mode: with random weights, if any.

    Args:
        model_class: The class.
        config: Its configuration.
        dtype: Of the parameters; None for the configuration's own.
        device: Where it is: `meta` for a skeleton.
    """
    with torch.device(device):
        model: PreTrainedModel = model_class._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def find_embedding(model: PreTrainedModel) -> nn.Module | None:
    """Return the module that looks up the embeddings of token ids; None if there is none.

    Code of a repository's own need not say which: then it is the first that looks anything up.
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
    """Turn whatever a family's code raises while a model of it is built into a sentence.

    Models that would take minutes to build, for numbers in their configuration beyond all reason,
    are refused as soon as that shows.

    Args:
        name: The model as the user named it.
        config: Its configuration.
        trust_remote_code: Whether its repository's own code is run.

    Raises:
        InputError: No model can be built, or a package is missing for it.
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
            hint="Install what its own Python code needs."
            if has_code
            else "Use the config.json that came with the checkpoint.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    finally:
        handle.remove()


def build_skeleton(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, device: str = "meta"
) -> PreTrainedModel:
    """Return the model on torch's meta device: every module and shape, no weights.

    Takes 0.1 to 2 s and next to no memory, whatever the model's size.

    Args:
        config: Its configuration.
        trust_remote_code: Run the repository's own code.
        device: Another device, for a model with random weights.
    """
    import transformers

    auto_class: Any = getattr(transformers, find_auto_class(config))
    with torch.device(device):
        model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    return model
