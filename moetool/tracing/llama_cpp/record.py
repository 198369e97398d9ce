"""Decisions of a GGUF model for prompts, from the process that runs llama.cpp."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UntraceableError
from moetool.printable import printable
from moetool.tracing.llama_cpp.options import LlamaCppOptions

INSTALL = "pip install 'moetool[gguf]'"
# -P: files of the working directory are not modules.
_WORKER = (sys.executable, "-P", "-m", "moetool.tracing.llama_cpp.worker")
_COMPLAINT = re.compile(r"error|assert|fail|require|abort|out of memory", re.IGNORECASE)
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class LayerDecisions:
    """The decisions of one layer for the tokens of a prompt, in the order of choice.

    Attributes:
        layer: The model's own index.
        num_experts: Routed experts.
        experts: Chosen ids. # (num_tokens, top_k)
        weights: As the experts' outputs are multiplied. # (num_tokens, top_k)
        margins: By how much the last chosen expert's score was ahead of the next one's; None if
            they are not kept. # (num_tokens,)
    """

    layer: int
    num_experts: int
    experts: NDArray[np.int32]
    weights: NDArray[np.float32]
    margins: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt that went through the model, and its continuation.

    Attributes:
        tokens: Ids of the tokens that ran: the prompt's, and the new ones except the last.
        texts: The tokenizer's own piece of each; None without a tokenizer.
        num_prompt_tokens: How many of them are the prompt's.
        num_new_tokens: Tokens that continue it.
        is_cut: Whether the prompt was longer.
        layers: Of each recorded layer.
    """

    tokens: list[int]
    texts: list[str] | None
    num_prompt_tokens: int
    num_new_tokens: int
    is_cut: bool
    layers: tuple[LayerDecisions, ...]


def record_prompts(
    path: Path,
    prompts: Sequence[str | list[int]],
    options: LlamaCppOptions,
    *,
    routed_layers: Collection[int] | None = None,
    command: Sequence[str] = _WORKER,
) -> Iterator[RecordedPrompt]:
    """Yield the decisions for each prompt, in order.

    Args:
        path: The GGUF file, or its first part.
        prompts: Texts, or ids of tokens.
        options: How it is run.
        routed_layers: The layers with experts in the file; None if that isn't known.
        command: The process that runs llama.cpp.

    Raises:
        InputError: llama.cpp is not installed, or can't run the file or a prompt.
        UntraceableError: Layers are routed in a way that is not known, or llama.cpp crashed.
    """
    if command is _WORKER and find_spec("llama_cpp") is None:
        raise InputError(
            f"'{printable(path)}' is a GGUF file: tracing it needs llama-cpp-python, which is not "
            "installed.",
            hint=f"Run `{INSTALL}`, which builds it with a C++ compiler in minutes, or name the "
            "original checkpoint.",
        )
    job = {"path": os.fspath(path), "prompts": list(prompts), **asdict(options)}
    job["layers"] = None if options.layers is None else sorted(options.layers)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdin is not None
        assert process.stdout is not None
        answers = _Answers(process.stdout, path, said)
        try:
            # It may have ended without having read all, and have said why.
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(job).encode())
            opened = answers.read_line()
            if opened is None:
                raise _crash(process, said, path, doing="loading the model")
            _check_layers(path, opened, routed_layers)
            for number in range(1, len(prompts) + 1):
                found = answers.read_prompt(opened["layers"], with_margins=options.with_margins)
                if found is None:
                    raise _crash(process, said, path, doing=f"running prompt {number}")
                yield found
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


class _Answers:
    """Reads what the process writes, piece by piece."""

    def __init__(self, stream: IO[bytes], path: Path, said: IO[bytes]) -> None:
        self._stream, self._path, self._said = stream, path, said

    def read_line(self) -> dict[str, Any] | None:
        """Return the next line; None if the output breaks off.

        Raises:
            InputError: It says why the file can't be run.
            UntraceableError: It says why its decisions can't be seen.
        """
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            return None
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            kind = UntraceableError if found["is_untraceable"] else InputError
            raise kind(
                f"'{printable(self._path)}' can't be traced: {printable(found['error'])}.",
                hint=found["hint"],
                facts=_read_complaint(self._said),
            )
        return found

    def read_prompt(
        self, layers: Sequence[Sequence[int]], *, with_margins: bool
    ) -> RecordedPrompt | None:
        """Return the next prompt; None if the output breaks off."""
        head = self.read_line()
        if head is None:
            return None
        num_tokens = len(head["tokens"])
        found = []
        for layer, top_k, num_experts in layers:
            numbers = [num_tokens * top_k, num_tokens * top_k, num_tokens if with_margins else 0]
            content = self._stream.read(_NUMBER_BYTES * sum(numbers))
            if len(content) < _NUMBER_BYTES * sum(numbers):
                return None
            experts, weights, margins = np.split(
                np.frombuffer(content, dtype="<i4"), np.cumsum(numbers[:2])
            )
            found.append(
                LayerDecisions(
                    layer,
                    num_experts,
                    experts.reshape(-1, top_k),
                    weights.view("<f4").reshape(-1, top_k),
                    margins.view("<f4") if with_margins else None,
                )
            )
        return RecordedPrompt(**head, layers=tuple(found))


def _check_layers(
    path: Path, opened: dict[str, Any], routed_layers: Collection[int] | None
) -> None:
    """Check that llama.cpp routes in the layers in which the file has experts.

    Raises:
        UntraceableError: It doesn't.
    """
    seen = set(opened["routed"])
    if routed_layers is None or seen == set(routed_layers):
        return
    layer = min(seen ^ set(routed_layers))
    shown = "does not run" if layer in routed_layers else "runs"
    raise UntraceableError(
        f"'{printable(path)}' can't be traced: llama.cpp {shown} experts in layer {layer}, and the "
        f"file has {'some' if layer in routed_layers else 'none'} there.",
        hint="Trace the original checkpoint with transformers.",
    )


def _read_complaint(said: IO[bytes]) -> list[str]:
    """Return the last line with which llama.cpp complained, as a fact."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    complaints = [line.strip() for line in lines if _COMPLAINT.search(line)]
    return [f"seen: {printable(line)}" for line in complaints[-1:]]


def _crash(
    process: subprocess.Popen[bytes], said: IO[bytes], path: Path, *, doing: str
) -> UntraceableError:
    code = process.wait()
    how = f"with code {code}"
    if code < 0:
        with suppress(ValueError):
            how = f"by {signal.Signals(-code).name}"
    is_killed = sys.platform != "win32" and code == -signal.SIGKILL
    return UntraceableError(
        f"llama.cpp ended {how} while {doing} of '{printable(path)}'.",
        hint="Free memory, or give a smaller --ctx-size or --ubatch-size."
        if is_killed
        else "Try fewer --n-gpu-layers or a smaller --ubatch-size, or check the file.",
        facts=_read_complaint(said),
    )
