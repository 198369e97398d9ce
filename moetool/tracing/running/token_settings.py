"""Token ids in a checkpoint's generation settings, checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.errors import InputError
from moetool.printable import printable

# Settings that may name several tokens, and settings whose tokens the model reads.
_LISTS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
_READ = ("forced_bos_token_id", "forced_eos_token_id", "pad_token_id")
# A decoder that does not read the prompt begins with one of these.
_STARTS = ("bos_token_id", "decoder_start_token_id")


def check_token_settings(
    settings: Mapping[str, object], *, vocabulary: int | None, reads_start: bool = True
) -> None:
    """Check that every setting names tokens, and that the model has those that it reads.

    Args:
        settings: By name, None where nothing is set.
        vocabulary: Number of token ids that the model has, from 0; None if unknown.
        reads_start: Whether generation begins with a token of the settings, as in an
            encoder-decoder.

    Raises:
        InputError: Names the first wrong setting.
    """
    read = (*_READ, *_STARTS) if reads_start else _READ
    for name, value in settings.items():
        if value is None:
            continue
        tokens = value if name in _LISTS and isinstance(value, list | tuple) else [value]
        for token in tokens:
            if not isinstance(token, int) or isinstance(token, bool) or abs(token) >= 2**31:
                raise _wrong(name, token, "is not the number of a token")
            if name in read and not 0 <= token < (2**31 if vocabulary is None else vocabulary):
                has = "" if vocabulary is None else f", which has {vocabulary:,}"
                raise _wrong(name, token, f"is not a token of the model{has}")


def _wrong(name: str, token: object, words: str) -> InputError:
    shown = printable(repr(token) if isinstance(token, str) else token)
    return InputError(
        f"The checkpoint's {name} {shown} {words}.",
        hint="Use the generation_config.json and config.json that came with the model.",
    )
