"""Prompts rendered by a checkpoint's chat template, which is a program and may misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from moetool.errors import InputError
from moetool.printable import printable
from moetool.tracing.prompts.messages import as_conversation
from moetool.tracing.prompts.prompts import Prompt, is_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates take milliseconds. The process must first import its packages from a disk.
_RENDERING_S = 10.0
_STARTING_S = 300.0

_HINT = "Use the chat template that came with the model, or leave out --chat."


class ChatTemplate:
    """A tokenizer's chat template, rendered in a separate process; a context manager.

    The process may take ten seconds per prompt and, where the system can limit it, a gibibyte of
    memory; see `chat_template_process`.

    Args:
        tokenizer: A tokenizer with a chat template.

    Raises:
        InputError: The template can't be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            template = tokenizer.get_chat_template()
            special_tokens = json.loads(json.dumps(tokenizer.special_tokens_map))
        except Exception as error:
            raise InputError(
                "This model's chat template can't be used.",
                hint=_HINT,
                facts=[f"seen: {printable(f'{type(error).__name__}: {error}')}"],
            ) from error
        self._setup = {"template": template, "special_tokens": special_tokens}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process is not None
        process.kill()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()
        process.wait()

    def render(self, prompt: Prompt) -> str:
        """Return a prompt as a user's message or a conversation, and the beginning of the answer.

        Raises:
            InputError: The template fails, takes too long, or writes too much.
        """
        where = f"{prompt.origin}: the chat template"
        answer, is_late = self._ask(as_conversation(prompt), limit_s=_RENDERING_S)
        if is_late:
            raise InputError(
                f"{where} did not finish within {_RENDERING_S:g} s on prompt "
                f"'{printable(prompt.prompt_id)}'.",
                hint=_HINT,
            )
        text = answer.get("text")
        if not isinstance(text, str):
            seen = answer.get("error", "its process ended, perhaps because it ran out of memory")
            raise InputError(
                f"{where} fails on prompt '{printable(prompt.prompt_id)}'.",
                hint=_HINT,
                facts=[f"seen: {printable(seen)}"],
            )
        if not is_unicode(text):
            raise InputError(
                f"{where} writes half a surrogate pair on prompt '{printable(prompt.prompt_id)}'.",
                hint=_HINT,
            )
        return text

    def _start(self) -> None:
        # Imports the same packages as this process, and nothing from the current folder.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        quiet = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        command = [sys.executable, "-P", "-m", "moetool.tracing.prompts.chat_template_process"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **quiet, "PYTHONPATH": path},
                # An interrupt reaches only this process, which then ends the other one in order.
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(
                f"Can't start a process for the chat template: {error.strerror or error}.",
                hint="Leave out --chat.",
            ) from error
        try:
            answer, is_late = self._ask(self._setup, limit_s=_STARTING_S)
            if answer or is_late:
                raise InputError(
                    "This model's chat template can't be used.",
                    hint=_HINT,
                    facts=[f"seen: {printable(answer.get('error', 'its process ended'))}"],
                )
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _ask(self, request: dict[str, Any], *, limit_s: float) -> tuple[dict[str, Any], bool]:
        """Return the answer to a request, and whether it came too late."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            # A process that ends in the middle of its answer leaves half a line.
            line = line if line.endswith(b"\n") else b""
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        return answer, is_late.is_set() and not line
