"""The models that mergekit made a mixture's experts of, by the file that it leaves next to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import InputError

FILE = "mergekit_moe_config.yml"
_MAX_BYTES = 200_000
_MOST_EXPERTS = 10_000


@dataclass(frozen=True)
class ExpertSources:
    """The models that a mixture was made of.

    Attributes:
        base: The model of everything else than experts; None if not stated.
        experts: The model of each expert, in order.
        shared_experts: The model of each shared expert.
    """

    base: str | None
    experts: tuple[str, ...]
    shared_experts: tuple[str, ...]


def read_expert_sources(folder: Path) -> ExpertSources | None:
    """Return the models that a checkpoint was made of by mergekit; None if it was not.

    Raises:
        InputError: The file is too long, or does not list experts.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _broken(path, seen=error.strerror or str(error)) from error
    if len(content) > _MAX_BYTES:
        raise _broken(path, seen=f"more than {_MAX_BYTES:,} bytes")
    stated = _parse(content, path=path)
    if not isinstance(stated, Mapping) or not stated.get("experts"):
        raise _broken(path, seen="no list of experts")
    base = stated.get("base_model")
    return ExpertSources(
        base=base if isinstance(base, str) else None,
        experts=tuple(_list_sources(stated.get("experts"), path=path)),
        shared_experts=tuple(_list_sources(stated.get("shared_experts") or [], path=path)),
    )


def _parse(content: bytes, *, path: Path) -> object:
    """Return the value in a YAML file, which makes plain values only."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        parsed: object = yaml.load(content, Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _broken(path, seen=str(error).partition("\n")[0][:100] or "no YAML") from error
    return parsed


def _list_sources(experts: object, *, path: Path) -> Iterator[str]:
    if not isinstance(experts, list) or len(experts) > _MOST_EXPERTS:
        raise _broken(path, seen="experts that are not a list")
    for number, expert in enumerate(experts):
        source = expert.get("source_model") if isinstance(expert, Mapping) else None
        if not isinstance(source, str):
            raise _broken(path, seen=f"no source_model of expert {number}")
        yield source


def _broken(path: Path, *, seen: str) -> InputError:
    return InputError(
        f"'{path}' does not list the experts that mergekit made.",
        hint="Copy the file again, or remove it.",
        facts=[f"seen: {seen}"],
    )
