"""Encoders, which `generate` calls by themselves before it calls the whole model."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.replaced import replacing_forward


@contextmanager
def encoding_inside_model(skeleton: PreTrainedModel, known: KnownValues) -> Iterator[None]:
    """Let an encoder's routers choose experts as the decoder's do."""
    encoder: Any = skeleton.get_encoder() if skeleton.config.is_encoder_decoder else None
    # A model that has none returns itself, whatever its configuration says.
    if encoder is None or encoder is skeleton:
        yield
        return
    forward = encoder.forward

    @functools.wraps(forward)
    def encode(*args: Any, **kwargs: Any) -> Any:
        with known.inside_model():
            return forward(*args, **kwargs)

    with replacing_forward(encoder, encode):
        yield
