"""Token ids without a special meaning, which simulated prompts are made of."""

from __future__ import annotations

from transformers import PreTrainedConfig


def find_ordinary_token(config: PreTrainedConfig) -> int:
    """Return a token id without a special meaning in a configuration."""
    special = find_special_tokens(config)
    return next(number for number in range(5, 2**20) if number not in special)


def find_special_tokens(config: PreTrainedConfig) -> set[int]:
    """Return the special token ids of a configuration, and other integers of similar names."""
    special: set[int] = set()
    for holder in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        for name, value in vars(holder).items() if holder is not None else ():
            if "token" in name or name.endswith("_id"):
                values = value if isinstance(value, list | tuple) else [value]
                special.update(number for number in values if isinstance(number, int))
    return special
