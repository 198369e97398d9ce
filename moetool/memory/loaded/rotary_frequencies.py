"""Frequencies of rotary embeddings, which constructors compute for each layer of some models."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers import modeling_rope_utils

from moetool.process.turns import in_turn
from moetool.simulation.meta.meta_kernels import MetaKernels


@contextmanager
def laying_out_frequencies_once() -> Iterator[None]:
    """Work out only once how the frequencies are laid out of models built on the meta device.

    They take a dozen operations. torch needs milliseconds for these on the meta device, where it runs
    them in Python, and DeepSeek-V4-Pro has 92 rotary embeddings. For parameters it is fast by itself.
    """
    functions: dict[str, Any] = modeling_rope_utils.ROPE_INIT_FUNCTIONS
    with in_turn():
        before, kernels = dict(functions), [MetaKernels()]
        functions.update({name: _run_in(kernels, each) for name, each in before.items()})
        try:
            yield
        finally:
            functions.update(before)
            # Some modules keep the function that they called.
            kernels.clear()


def _run_in(kernels: list[MetaKernels], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs another one in a mode, for as long as the mode is in the list.

    Only this thread is meant: the functions belong to the process.
    """
    thread = threading.get_ident()

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with kernels[0] if kernels and threading.get_ident() == thread else nullcontext():
            return function(*args, **kwargs)

    return run
