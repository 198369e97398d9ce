"""This machine's GPU, from what drivers printed on real machines, and from torch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

import pytest
import torch

from moetool.catalogue.gpus import Gpu, MemoryIs, read_gpus
from moetool.errors import UsageError
from moetool.memory.machine.driver import ask_driver
from moetool.memory.machine.local_gpu import ReportedGpu, find_local_gpu, take_gpu

MIB = 2**20

H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0, Disabled\n"
RTX_4090 = "NVIDIA GeForce RTX 4090, 24564, 8.9, [N/A]\n"
RTX_4060_TI_8GB = "NVIDIA GeForce RTX 4060 Ti, 8188, 8.9, [N/A]\n"
RTX_4060_TI_16GB = "NVIDIA GeForce RTX 4060 Ti, 16380, 8.9, [N/A]\n"
A10_WITHOUT_ECC = "NVIDIA A10, 24564, 8.6, [N/A]\n"
SPARK = "NVIDIA GB10, [N/A], 12.1, [N/A]\n"
SLICED = "NVIDIA A100-SXM4-80GB, 81920, 8.0, Enabled\n"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def driver(*lines: str) -> Callable[[Sequence[str]], str]:
    """Return a driver's tool that prints a line for each GPU, as asked."""

    def ask(arguments: Sequence[str]) -> str:
        shown = list(lines)
        for argument in arguments:
            if argument.startswith("--id="):
                shown = [lines[int(argument.removeprefix("--id="))]]
        if "--query-gpu=name" in arguments:
            shown = [f"{line.split(', ')[0]}\n" for line in shown]
        return "".join(shown)

    return ask


def no_driver(_: Sequence[str]) -> str:
    raise FileNotFoundError("nvidia-smi")


def find(*lines: str, sees: ReportedGpu | None = None) -> Gpu:
    return find_local_gpu(ask=driver(*lines) if lines else no_driver, ask_torch=lambda: sees)


@pytest.mark.parametrize(
    ("line", "gpu_id"),
    [
        (H100, "h100"),
        (RTX_4090, "rtx-4090"),
        (RTX_4060_TI_16GB, "rtx-4060-ti-16gb"),
        (SPARK, "dgx-spark"),
        ("NVIDIA A100-SXM4-40GB, 40960, 8.0, Disabled\n", "a100-40gb"),
        ("Tesla T4, 15360, 7.5, [N/A]\n", "t4"),
    ],
)
def test_a_known_gpu_is_recognized_by_the_name_that_its_driver_reports(
    line: str, gpu_id: str
) -> None:
    assert find(line) is read_gpus()[gpu_id]


def test_the_memory_is_the_one_that_the_gpu_has_here() -> None:
    gpu = find(A10_WITHOUT_ECC)
    assert (gpu.id, gpu.memory_bytes) == ("a10", 24564 * MIB)
    assert gpu.bandwidth_bytes_per_s == read_gpus()["a10"].bandwidth_bytes_per_s


def test_a_variant_with_other_memory_is_a_gpu_of_which_only_the_size_is_known() -> None:
    gpu = find(RTX_4060_TI_8GB)
    assert gpu.id == "nvidia-geforce-rtx-4060-ti"
    assert gpu.title == "NVIDIA GeForce RTX 4060 Ti"
    assert gpu.memory_bytes == 8188 * MIB
    assert gpu.memory_is is MemoryIs.REPORTED
    assert gpu.compute_capability == "8.9"
    assert gpu.bandwidth_bytes_per_s is None


def test_of_several_gpus_the_first_that_programs_see_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find(H100, H100).id == "h100"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert find(RTX_4090, H100).id == "rtx-4090"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert find(RTX_4090, H100).id == "h100"


SEEN = ReportedGpu("NVIDIA H100 80GB HBM3", 81079 * MIB, "9.0", is_whole_memory=False)


@pytest.mark.parametrize(
    ("lines", "visible"),
    [
        ((), None),
        ((RTX_4090, H100), None),
        ((SLICED,), None),
        ((RTX_4090,), ""),
        ((RTX_4090,), "-1"),
        ((RTX_4090,), "MIG-5f1"),
        (("Unable to determine the device handle for GPU0: Unknown Error\n",), None),
    ],
    ids=["no tool", "different ones", "sliced", "hidden", "hidden by number", "a slice", "broken"],
)
def test_torch_is_asked_where_the_driver_can_not_tell(
    lines: tuple[str, ...], visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find(*lines, sees=SEEN) is read_gpus()["h100"]


def test_a_slice_of_a_gpu_has_the_memory_of_the_slice() -> None:
    sliced = ReportedGpu(
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 9728 * MIB, "8.0", is_whole_memory=False
    )
    gpu = find(SLICED, sees=sliced)
    assert (gpu.id, gpu.memory_bytes) == ("nvidia-a100-sxm4-80gb-mig-1g-10gb", 9728 * MIB)


def test_without_a_gpu_here_is_refused() -> None:
    with pytest.raises(UsageError, match="no GPU") as caught:
        find()
    assert "24GiB" in caught.value.hint
    with pytest.raises(UsageError, match="memory of this machine's NVIDIA Thor is unknown"):
        find("NVIDIA Thor, [N/A], 11.0, [N/A]\n")


def test_a_driver_that_hangs_is_no_answer() -> None:
    def hang(_: Sequence[str]) -> str:
        raise subprocess.TimeoutExpired("nvidia-smi", 60)

    assert find_local_gpu(ask=hang, ask_torch=lambda: SEEN).id == "h100"


def test_the_installed_tool_and_torch_are_asked_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FileNotFoundError):
        ask_driver(["--help"])
    for text in ("here", " HERE "):
        with pytest.raises(UsageError, match="no GPU"):
            take_gpu(text)
    assert take_gpu("h200") is read_gpus()["h200"]
