"""Fields in which configurations state the number of experts and the number that a token runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moetool.errors import InputError
from moetool.printable import printable_number

TOP_K_FIELDS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
)
NUM_EXPERTS_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Identity experts are chosen from as well.
_NUM_IDENTITY_FIELD = "zero_expert_num"


def check_top_k(config: object, *, label: str) -> None:
    """Refuse a configuration whose tokens run no expert, or more experts than there are.

    Args:
        config: The configuration that transformers made, with its defaults filled in.
        label: The config.json, for error messages.

    Raises:
        InputError: Two fields contradict each other. The message names them.
    """
    for fields in _list_holders(config):
        counts = {
            name: number for name in NUM_EXPERTS_FIELDS if (number := _most(fields, name)) > 1
        }
        if not counts:
            continue
        name = max(counts, key=lambda each: counts[each])
        most = counts[name] + max(_most(fields, _NUM_IDENTITY_FIELD), 0)
        for field in TOP_K_FIELDS:
            for top_k in _read_numbers(fields.get(field)):
                # A list may have a 0 for each layer without experts.
                is_none = top_k < 0 or (top_k == 0 and not isinstance(fields[field], list | tuple))
                if is_none or top_k > most:
                    raise InputError(
                        f"'{label}' describes no model: {field} is {printable_number(top_k)}, and "
                        f"{name} is {printable_number(counts[name])}.",
                        hint="Use the config.json that came with the checkpoint.",
                    )


def _list_holders(config: object) -> Iterator[Mapping[str, object]]:
    """Yield the fields of a configuration and of the configurations inside it."""
    fields = config if isinstance(config, Mapping) else getattr(config, "__dict__", None)
    if not isinstance(fields, Mapping):
        return
    yield fields
    for value in fields.values():
        if hasattr(value, "to_dict"):
            yield from _list_holders(value)


def _most(fields: Mapping[str, object], name: str) -> int:
    return max(_read_numbers(fields.get(name)), default=0)


def _read_numbers(value: object) -> list[int]:
    values = value if isinstance(value, list | tuple) else (value,)
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool)]
