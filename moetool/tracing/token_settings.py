"""A checkpoint's own settings of tokens for generation, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.errors import InputError
from moetool.printable import printable

# What may be several tokens, and what the model reads and must therefore have.
_LISTS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_READ = (
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "pad_token_id",
)


def check_token_settings(settings: Mapping[str, object], *, vocabulary: int | None) -> None:
    """Check that every setting is a token or tokens, and that the model has those that it reads.

    Args:
        settings: By name, None where nothing is set.
        vocabulary: So many token ids, from 0, the model has; None if that is not known.

    Raises:
        InputError: Naming the first that is neither.
    """
    for name, value in settings.items():
        if value is None:
            continue
        tokens = value if name in _LISTS and isinstance(value, list | tuple) else [value]
        for token in tokens:
            if not isinstance(token, int) or isinstance(token, bool) or abs(token) >= 2**31:
                raise _wrong(name, token, "is not the number of a token")
            if name in _READ and not 0 <= token < (2**31 if vocabulary is None else vocabulary):
                has = "" if vocabulary is None else f", which has {vocabulary:,}"
                raise _wrong(name, token, f"is not a token of the model{has}")


def _wrong(name: str, token: object, words: str) -> InputError:
    shown = printable(repr(token) if isinstance(token, str) else token)
    return InputError(
        f"The checkpoint's {name} {shown} {words}.",
        hint="Use the generation_config.json and config.json that came with the model.",
    )
