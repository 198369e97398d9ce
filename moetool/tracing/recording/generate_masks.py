"""The token masks behind the attention masks that `generate` makes for static caches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import nn

from moetool.tracing.recording.call_tokens import find_input
from moetool.tracing.recording.token_masks import is_token_mask

_METHOD = "prepare_inputs_for_generation"
_MASKS = ("attention_mask", "decoder_attention_mask")


class GenerateMasks:
    """Remembers the token mask from which `generate` prepares each step.

    For a static cache `generate` turns it into a mask of attention before it calls the model, and
    the call itself no longer shows which columns are pads.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._is_installed = False
        # A replacement of the model's own method that was there before: another recorder's or a user's.
        self._previous: Any = None
        # The masks prepared last, each with the one it was made from: None if all columns are tokens.
        self._masks: list[tuple[Any, Any]] = []

    def install(self) -> None:
        """Replace the method that prepares each step."""
        prepare = getattr(self._model, _METHOD, None)
        if prepare is None:
            return

        @wraps(prepare)  # `generate` checks its arguments against the signature.
        def listen(*args: Any, **kwargs: Any) -> Any:
            inputs = prepare(*args, **kwargs)
            # A mask under another name would look like no mask, that is, like no pads.
            is_named = _MASKS[0] in kwargs
            self._masks = [(inputs.get(name), kwargs.get(name)) for name in _MASKS if is_named]
            return inputs

        self._previous = self._model.__dict__.get(_METHOD)
        self._model.__dict__[_METHOD] = listen
        self._is_installed = True

    def remove(self) -> None:
        """Put the method back."""
        if self._is_installed:
            if self._previous is None:
                del self._model.__dict__[_METHOD]
            else:
                self._model.__dict__[_METHOD] = self._previous
            self._is_installed = False
        self._masks = []

    def restore(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's arguments with the mask of its tokens, if that is known.

        A mask that `generate` did not prepare, such as the caller's own, is left alone.
        """
        received = find_input(inputs, "attention_mask")
        for prepared, given in self._masks:
            if prepared is received and (given is None or is_token_mask(given)):
                return {**inputs, "attention_mask": given, "decoder_attention_mask": None}
        return dict(inputs)
