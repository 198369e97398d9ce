"""Keep the messages and progress bars of libraries out of moetool's calls and processes."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

# The least severe messages that remain. Before transformers raises an error, it may log a whole
# configuration as one; accelerate logs that a model is offloaded, for every offloaded model.
_LEVELS = {"transformers": logging.CRITICAL, "accelerate": logging.ERROR}
_NO_DOWNLOAD_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"

_lock = threading.Lock()
_num_inside = 0
_restore: list[Callable[[], object]] = []
# Follows the bar of weights that transformers would show, in the thread that loads them.
_follower: ContextVar[Callable[[int, int], None] | None] = ContextVar("follower", default=None)
# What transformers writes before that bar.
_WEIGHTS = "Loading weights"


def silence_process() -> None:
    """Silence the libraries of a process that is moetool's own, which reports what matters itself.

    Call it before any of them is imported. What the environment sets already stays. With
    `MOETOOL_DEBUG=1`, warnings and the messages of errors remain.
    """
    is_debugged = bool(os.environ.get("MOETOOL_DEBUG"))
    level = logging.ERROR if is_debugged else _LEVELS["transformers"]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", logging.getLevelName(level).lower())
    # Stated, it keeps the tokenizers library from a message when a process that used threads forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # It logs every request that it retries.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault(_NO_DOWNLOAD_BARS, "1")
    if not is_debugged:
        warnings.simplefilter("ignore")
        logging.getLogger("accelerate").setLevel(_LEVELS["accelerate"])


def hide_download_bars() -> None:
    """Keep the Hub's library from showing progress bars. Call it before that is imported."""
    os.environ[_NO_DOWNLOAD_BARS] = "1"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers and accelerate for a block, or for a function as its decorator.

    The settings belong to the process: until the last thread has left its block, other threads are
    silenced too. Then the settings are again those from before the first block. With
    `MOETOOL_DEBUG=1`, nothing is silenced.
    """
    if os.environ.get("MOETOOL_DEBUG"):
        yield
        return
    with ExitStack() as stack:
        _enter(stack)
        yield


@contextmanager
def following_weights(advance: Callable[[int, int], None]) -> Iterator[None]:
    """Have transformers call a function while it loads weights under `quiet_transformers`.

    Args:
        advance: Takes the number of parameters that are loaded, and of all.
    """
    token = _follower.set(advance)
    try:
        yield
    finally:
        _follower.reset(token)


def _enter(stack: ExitStack) -> None:
    global _num_inside
    # Imported first, because transformers sets its level when it is imported.
    from transformers.utils import logging as transformers_logging

    with _lock:
        # First, so that settings come back even if a later one fails.
        stack.callback(_leave)
        _num_inside += 1
        if _num_inside > 1:
            return
        transformers_logging.get_verbosity()
        for name, level in _LEVELS.items():
            logger = logging.getLogger(name)
            before = logger.level
            logger.setLevel(level)
            _restore.append(partial(logger.setLevel, before))
        set_hook: Any = transformers_logging.set_tqdm_hook
        own_hook = set_hook(_hide_bar)
        _restore.append(partial(set_hook, own_hook))


def _leave() -> None:
    global _num_inside
    with _lock:
        _num_inside -= 1
        while not _num_inside and _restore:
            _restore.pop()()


def _hide_bar(
    make_bar: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    advance = _follower.get()
    if advance is not None and options.get("desc") == _WEIGHTS and arguments:
        arguments = (_counted(arguments[0], advance), *arguments[1:])
    return make_bar(*arguments, **{**options, "disable": True})


def _counted(items: Collection[Any], advance: Callable[[int, int], None]) -> Iterator[Any]:
    for number, item in enumerate(items):
        advance(number, len(items))
        yield item
    advance(len(items), len(items))
