"""A process that renders a checkpoint's chat template, and nothing else.

A template is a program: it may never end, or fill the memory. Python can't stop a thread, so
templates run here, where the system limits the memory and the parent process limits the time. It
reads lines of JSON, the first with the template and each other one with a conversation, and answers
each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# On top of the memory that the process takes before it renders anything.
_MEMORY_BYTES = 1 << 30
# Ends a process that outlives its parent, which is far less patient.
_CPU_S = 600
# Longer than any prompt can be.
_LONGEST_RESULT = 20_000_000


def main() -> None:
    """Answer every line of stdin with one on stdout: the rendered text, or an error."""
    # Only this module writes to stdout; anything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    render: Callable[..., str] | None = None
    for line in sys.stdin.buffer:
        answer: dict[str, Any]
        try:
            request = json.loads(line)
            if render is None:
                render = _make_renderer(**request)
                _limit_resources()
                answer = {}
            else:
                answer = {"text": render(**request)}
        except BaseException as error:  # noqa: BLE001  anything a template raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:1_000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _make_renderer(template: str, special_tokens: dict[str, Any]) -> Callable[..., str]:
    """Return a function that renders a conversation as transformers does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        # Despite its declared type it returns a list of texts and the spans of answers in them.
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
        result = str(rendered[0][0])
        if len(result) > _LONGEST_RESULT:
            raise MemoryError(f"it renders more than {_LONGEST_RESULT:,} characters")
        return result

    return render


def _limit_resources() -> None:
    """Have the system end this process if it takes too much, as far as the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + _CPU_S)
    _lower_limit(resource.RLIMIT_CORE, 0)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            num_pages = int(file.read().split()[0])
    except OSError:
        # macOS does not limit address space, so a thread watches the memory.
        unit = 1 if sys.platform == "darwin" else 1024
        most = used.ru_maxrss * unit + _MEMORY_BYTES
        threading.Thread(target=_watch_memory, args=(most, unit), daemon=True).start()
    else:
        _lower_limit(resource.RLIMIT_AS, num_pages * resource.getpagesize() + _MEMORY_BYTES)


def _lower_limit(kind: int, limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (most, hard))


def _watch_memory(most: int, unit: int) -> None:
    import resource

    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit < most:
        time.sleep(0.02)
    os._exit(1)


if __name__ == "__main__":
    main()
