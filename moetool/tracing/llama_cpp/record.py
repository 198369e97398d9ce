"""Decisions of a GGUF model for prompts, from the process that runs llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UntraceableError
from moetool.printable import printable

INSTALL = "pip install 'moetool[gguf]'"
_WORKER = (sys.executable, "-m", "moetool.tracing.llama_cpp.worker")


@dataclass(frozen=True)
class LlamaCppOptions:
    """Settings of llama.cpp for a run.

    Attributes:
        num_gpu_layers: `--n-gpu-layers`.
        num_threads: Of the CPU; 0 for llama.cpp's own choice.
        ubatch: Tokens of a micro-batch.
        cache_type: Of keys and values: `f16` or `f32`.
    """

    num_gpu_layers: int = 0
    num_threads: int = 0
    ubatch: int = 512
    cache_type: str = "f16"


@dataclass(frozen=True)
class LayerDecisions:
    """The decisions of one layer for the tokens of a prompt, by falling weight.

    Attributes:
        layer: The model's own index.
        num_experts: Routed experts.
        experts: Chosen ids. # (num_tokens, top_k)
        weights: As the experts' outputs are multiplied. # (num_tokens, top_k)
    """

    layer: int
    num_experts: int
    experts: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt that went through the model.

    Attributes:
        tokens: Ids by the file's tokenizer.
        layers: Of each routed layer.
    """

    tokens: list[int]
    layers: tuple[LayerDecisions, ...]


def record_prompts(
    path: Path,
    prompts: Sequence[str | list[int]],
    options: LlamaCppOptions,
    *,
    command: Sequence[str] = _WORKER,
) -> Iterator[RecordedPrompt]:
    """Yield the decisions for each prompt, in order.

    Args:
        path: The GGUF file, or its first part.
        prompts: Texts, or ids of tokens.
        options: How it is run.
        command: The process that runs llama.cpp.

    Raises:
        InputError: llama.cpp is not installed, or can't run the file or a prompt.
        UntraceableError: The model has no layers whose decisions are seen, or llama.cpp crashed.
    """
    if command is _WORKER and find_spec("llama_cpp") is None:
        raise InputError(
            f"'{printable(path)}' is a GGUF file: tracing it needs llama-cpp-python, which is not "
            "installed.",
            hint=f"Run `{INSTALL}`, which builds it with a C++ compiler in minutes, or name the "
            "original checkpoint.",
        )
    job = {"path": str(path), "prompts": list(prompts), **asdict(options)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with process.stdin as stdin:
                stdin.write(json.dumps(job).encode())
            for number in range(len(prompts)):
                found = _read_prompt(process.stdout, path)
                if found is None:
                    raise _crash(process, said, path, number=number)
                yield found
        except BrokenPipeError:
            raise _crash(process, said, path, number=0) from None
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _read_prompt(stream: IO[bytes], path: Path) -> RecordedPrompt | None:
    """Return the next prompt; None if the output breaks off."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    if "error" in head:
        raise InputError(
            f"'{printable(path)}' could not be traced: {printable(head['error'])}.",
            hint="Run `moetool inspect` on it, and see docs/models/gguf.md.",
        )
    tokens, layers = head["tokens"], []
    if not head["layers"]:
        raise UntraceableError(
            f"'{printable(path)}' shows no decisions: llama.cpp computed no router.",
            hint="Run `moetool inspect` on it: a dense model has no experts.",
        )
    for layer, top_k, num_experts in head["layers"]:
        count = len(tokens) * top_k
        content = stream.read(8 * count)
        if len(content) < 8 * count:
            return None
        experts = np.frombuffer(content, dtype="<i4", count=count).reshape(-1, top_k)
        weights = np.frombuffer(content, dtype="<f4", offset=4 * count).reshape(-1, top_k)
        # A bias that only chooses experts makes the order of choice another one.
        order = np.argsort(-weights, axis=1, kind="stable")
        layers.append(
            LayerDecisions(
                layer,
                num_experts,
                np.take_along_axis(experts, order, axis=1),
                np.take_along_axis(weights, order, axis=1),
            )
        )
    return RecordedPrompt(tokens, tuple(layers))


def _crash(
    process: subprocess.Popen[bytes], said: IO[bytes], path: Path, *, number: int
) -> UntraceableError:
    code = process.wait()
    said.seek(0)
    lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    facts = [f"seen: {printable(lines[-1])}"] if lines else []
    return UntraceableError(
        f"llama.cpp ended with code {code} at prompt {number + 1} of '{printable(path)}'.",
        hint="Try fewer GPU layers, or a smaller prompt.",
        facts=facts,
    )
