"""Answers of the NVIDIA driver's own tool, which needs neither torch nor a CUDA context."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

# Returns what the driver's tool prints for some arguments. Raises OSError if there is no such tool,
# and SubprocessError if it fails.
Ask = Callable[[Sequence[str]], str]

_TIMEOUT_S = 60


def ask_driver(arguments: Sequence[str]) -> str:
    """Return what nvidia-smi prints.

    Raises:
        OSError: There is no such program.
        SubprocessError: It failed, or took too long.
    """
    return subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
    ).stdout


def query_gpus(properties: Sequence[str], *options: str, ask: Ask = ask_driver) -> list[list[str]]:
    """Return properties of each GPU, in the order of their slots.

    Raises:
        OSError: There is no such program.
        SubprocessError: It failed, or took too long.
    """
    query = [f"--query-gpu={','.join(properties)}", "--format=csv,noheader,nounits", *options]
    lines = ask(query).splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]


def find_first_visible() -> str:
    """Return the first GPU that CUDA programs see: its number, or an id such as `GPU-5f1…`.

    Empty if the environment hides all of them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return "0"
    first = visible.split(",")[0].strip()
    return "" if first.startswith("-") else first


def is_numbered_by_slot() -> bool:
    """Return whether CUDA numbers GPUs as the driver's tool does: by their slot, not their speed."""
    return os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
