"""The transformers configuration and the tokenizer of a checkpoint."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.checkpoint.files import Checkpoint, read_json
from moetool.checkpoint.native_messages import native_messages_dropped
from moetool.checkpoint.size_limits import TOKENIZER_FILES, check_tokenizer_files
from moetool.checkpoint.stated.top_k_fields import check_top_k
from moetool.errors import InputError, UntraceableError
from moetool.printable import printable, printable_number
from moetool.process.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Longer names are cut in messages.
_LONGEST_NAME = 60
# The largest plausible numbers, by words in the names of fields. Nothing larger is built, because
# building takes time and memory for each layer, expert and label.
_LIMITS = (
    (re.compile(r"layers$|^depth$|^n_layers?$|_layers_"), 1_000),
    (re.compile(r"experts$|^num_experts|heads$"), 1_000_000),
    (re.compile(r"^num_labels$"), 100_000),
    (re.compile(r"^(hidden|vocab|intermediate|moe_intermediate)_size$|^d_(model|ff|kv)$"), 2**40),
    (re.compile(r"^max_position_embeddings$|^max_seq_len$"), 2**40),
)

# Libraries name missing packages between backquotes or brackets.
_PIP_INSTALL = re.compile(
    r"pip install (?:-U |--upgrade )?([A-Za-z0-9][\w.-]*(?:\[[\w,-]+\])?(?:[<>=~!]=?[\w.]+)?)"
)
_MODEL_TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}")

# A checkpoint has one class. Looking up a list of a million names would take minutes.
_MOST_ARCHITECTURES = 8

# transformers writes numbers that JSON can't express as objects with this one key.
_FLOAT_KEY = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}

_IMPLEMENTATIONS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def load_config(checkpoint: Checkpoint, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the checkpoint's configuration.

    Raises:
        InputError: The configuration asks for code that was not allowed, or is malformed.
        UntraceableError: This version of transformers has no such architecture.
    """
    path = checkpoint.folder / "config.json"
    return make_config(
        read_json(path, missing=""),
        name=checkpoint.name,
        label=str(path),
        code=str(checkpoint.folder),
        trust_remote_code=trust_remote_code,
    )


@quiet_transformers()
def make_config(
    raw: Mapping[str, object],
    *,
    name: str,
    label: str,
    code: str | None,
    revision: str | None = None,
    trust_remote_code: bool,
    by_architecture: bool = False,
) -> PreTrainedConfig:
    """Return the configuration that a config.json describes.

    Args:
        raw: The object in config.json.
        name: The model as the user named it.
        label: The config.json, for error messages.
        code: The folder or Hub id with config.json and the Python code that it may ask for; None
            if there is none.
        revision: The commit of that Hub id.
        trust_remote_code: Run that code if config.json asks for it.
        by_architecture: If transformers does not have the `model_type`, take the class that
            `architectures` names, if transformers has that one. The caller must report it, because
            the repository's own code may differ.

    Raises:
        InputError: The configuration asks for code that was not allowed, is malformed, or describes
            no model.
        UntraceableError: This version of transformers has no such architecture.
    """
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers import __version__ as transformers_version

    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        if isinstance(raw.get("architecture"), str) and isinstance(raw.get("mapping"), Mapping):
            raise UntraceableError(
                f"'{label}' is a TensorRT-LLM configuration, which transformers can't build.",
                hint="Name the checkpoint that it was converted from.",
            )
        if isinstance(raw.get("pretrained_config"), Mapping):
            raise UntraceableError(
                f"'{label}' is that of a TensorRT-LLM engine, whose weights are compiled.",
                hint="Name the checkpoint that it was built from.",
            )
        raise InputError(
            f"'{label}' names no model_type.",
            hint="Use the config.json that came with the checkpoint.",
        )
    fields = _decode_floats(raw)
    is_name = by_architecture and _MODEL_TYPE.fullmatch(model_type) is not None
    if is_name and model_type not in CONFIG_MAPPING and not trust_remote_code:
        model_type = _find_named_type(raw) or model_type
        fields["model_type"] = model_type
    is_known = model_type in CONFIG_MAPPING
    if not is_known:
        if "auto_map" not in raw or code is None:
            raise UntraceableError(
                f"transformers {transformers_version} has no architecture "
                f"'{printable(model_type, max_length=_LONGEST_NAME)}'.",
                hint="A newer transformers may know it: pip install --upgrade transformers.",
            )
        if not trust_remote_code:
            raise InputError(
                f"{name} needs the Python code in its own repository "
                f"(model_type '{printable(model_type, max_length=_LONGEST_NAME)}').",
                hint="Read that code, then allow it to run with --trust-remote-code.",
            )
    _check_plausible(fields, label=label)
    try:
        # With `trust_remote_code` always given: without it, transformers asks on the terminal.
        config: PreTrainedConfig = (
            CONFIG_MAPPING[model_type].from_dict(_leave_out_implementations(fields))
            if is_known and not (trust_remote_code and "auto_map" in raw)
            else AutoConfig.from_pretrained(
                code or label, revision=revision, trust_remote_code=trust_remote_code
            )
        )
    except ImportError as error:
        raise missing_package(name, error) from error
    except Exception as error:
        raise unusable_config(label, model_type, error) from error
    check_top_k(config, label=label)
    return config


def _find_named_type(raw: Mapping[str, object]) -> str | None:
    """Return the model type of the one family whose classes `architectures` names, if it is one."""
    import transformers

    types = {
        getattr(getattr(named, "config_class", None), "model_type", None)
        for named in find_named_classes(raw.get("architectures"))
    }
    found_type = types.pop() if len(types) == 1 else None
    return found_type if found_type in transformers.CONFIG_MAPPING else None


def find_named_classes(architectures: object) -> list[type[PreTrainedModel] | None]:
    """Return transformers' class for each name in a configuration's `architectures`.

    None for what is not the name of a model. An implausibly long list has no classes.
    """
    import transformers

    if not isinstance(architectures, list) or len(architectures) > _MOST_ARCHITECTURES:
        return []
    found = [getattr(transformers, n, None) if isinstance(n, str) else None for n in architectures]
    return [
        each if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel) else None
        for each in found
    ]


def _decode_floats(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration with numbers in place of the objects that transformers writes."""
    return {name: _decode_float(value) for name, value in fields.items()}


def _decode_float(value: object) -> object:
    if isinstance(value, list):
        return [_decode_float(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    tag = value.get(_FLOAT_KEY)
    if len(value) == 1 and isinstance(tag, str) and tag in _FLOATS:
        return _FLOATS[tag]
    return _decode_floats(value)


def _leave_out_implementations(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a configuration without its choice of implementations.

    That choice belongs to whoever runs the model. It may name a library that is not installed, and
    as an `org/name` would make transformers run code from the Hub.
    """
    return {
        name: _leave_out_implementations(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in _IMPLEMENTATIONS
    }


def unusable_config(label: str, model_type: object, error: BaseException) -> InputError:
    """Return the error for a config.json that describes no model."""
    return InputError(
        f"'{label}' is not a usable {model_type} configuration.",
        hint="Use the config.json that came with the checkpoint.",
        facts=[f"seen: {first_line(error)}"],
    )


def missing_package(name: str, error: ImportError) -> InputError:
    """Return the error for a model that needs a package which is not installed.

    Args:
        name: The model as the user named it.
        error: The exception that transformers or the model's own code raised.
    """
    asked = _PIP_INSTALL.search(str(error))
    package = asked[1] if asked else error.name
    return InputError(
        f"{name} needs a package that is not installed here{f': {package}' if package else ''}.",
        hint=f"Install it: pip install {shlex.quote(package)}."
        if package
        else "Install the packages that it asks for.",
        facts=[f"seen: {first_line(error)}"],
    )


def _check_plausible(fields: Mapping[str, object], *, label: str) -> None:
    """Refuse implausible numbers of layers and experts before lists of that length are made.

    Raises:
        InputError: A number is negative or implausibly large.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_plausible(value, label=label)
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        most = next((limit for words, limit in _LIMITS if words.search(name)), None)
        if most is not None and not 0 <= value <= most:
            raise InputError(
                f"'{label}' describes no model: {name} is {printable_number(value)}.",
                hint="Use the config.json that came with the checkpoint.",
            )


@quiet_transformers()
def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Raises:
        InputError: There is none, or it can't be loaded.
    """
    from transformers import AutoTokenizer

    if not _holds_any(checkpoint.folder, TOKENIZER_FILES) and not trust_remote_code:
        raise InputError(
            f"'{checkpoint.folder}' holds no tokenizer.",
            hint="Put the model's tokenizer files (tokenizer.json, …) next to config.json.",
        )
    check_tokenizer_files(checkpoint.folder)
    try:
        with native_messages_dropped():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                checkpoint.folder, trust_remote_code=trust_remote_code
            )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # A panic in the tokenizers library is not an Exception.
    except BaseException as error:
        raise InputError(
            f"The tokenizer in '{checkpoint.folder}' can't be loaded.",
            hint="Put the model's own tokenizer files next to config.json.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    return tokenizer


def first_line(error: BaseException) -> str:
    """Return an exception's class and the first line of its text, for a `seen:` line."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    continued = f" {lines[1].strip()}" if lines[0].endswith(":") and lines[1:] else ""
    return f"{type(error).__name__}: {lines[0]}{continued}"


def _holds_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
