"""The catalogue's GPUs and their figures."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import FrozenInstanceError

import pytest

from moetool.catalogue.gpus import (
    Gpu,
    MemoryIs,
    find_gpu,
    list_gpus,
    parse_memory,
    read_gpus,
    read_tpus,
)
from moetool.errors import UsageError

GPUS = list(read_gpus().values())
NVIDIA = [gpu for gpu in GPUS if gpu.vendor == "NVIDIA"]
MIB, GIB, TIB = 2**20, 2**30, 2**40

# What every table of GPUs has, typed from the vendors' documents: MiB, TB/s, dense TFLOPS.
FACTS = {
    "h200": (143771, 4.8, 989.5),
    "h100": (81559, 3.35, 989.5),
    "h100-pcie": (81559, 2.0, 756.5),
    "b200": (183359, 7.7, 2250),
    "a100-40gb": (40960, 1.555, 312),
    "a100-80gb": (81920, 2.039, 312),
    "l4": (23034, 0.3, 121),
    "l40s": (46068, 0.864, 362.05),
    "rtx-3090": (24576, 0.936, 71),
    "rtx-4090": (24564, 1.008, 165.2),
    "rtx-5090": (32607, 1.792, 209.5),
    "rtx-a6000": (49140, 0.768, 154.8),
    "rtx-pro-6000": (97887, 1.792, 503.8),
    "mi300x": (196592, 5.3, 1307.4),
}

# Graphics cards: bits of the memory bus, gigabits a second on each of its wires.
MEMORY_BUSES = {
    "a10": (384, 12.5),
    "a10g": (384, 12.5),
    "a40": (384, 14.5),
    "dgx-spark": (256, 8.533),
    "l4": (192, 12.5),
    "l40": (384, 18),
    "l40s": (384, 18),
    "rtx-3060": (192, 15),
    "rtx-3090": (384, 19.5),
    "rtx-3090-ti": (384, 21),
    "rtx-4000-ada": (160, 18),
    "rtx-4060-ti-16gb": (128, 18),
    "rtx-4070-ti-super": (256, 21),
    "rtx-4080": (256, 22.4),
    "rtx-4080-super": (256, 23),
    "rtx-4090": (384, 21),
    "rtx-5000-ada": (256, 18),
    "rtx-5060-ti-16gb": (128, 28),
    "rtx-5070": (192, 28),
    "rtx-5070-ti": (256, 28),
    "rtx-5080": (256, 30),
    "rtx-5090": (512, 28),
    "rtx-6000-ada": (384, 20),
    "rtx-a4000": (256, 14),
    "rtx-a5000": (384, 16),
    "rtx-a6000": (384, 16),
    "rtx-pro-6000": (512, 28),
    "t4": (256, 10),
}

# Multiprocessors, FLOPs of each in a clock (16 bits, dense, fp32 sums), boost clock in GHz.
MULTIPROCESSORS = {
    "a100-40gb": (108, 2048, 1.41),
    "a100-80gb": (108, 2048, 1.41),
    "a100-80gb-pcie": (108, 2048, 1.41),
    "a10": (72, 1024, 1.695),
    "a30": (56, 2048, 1.44),
    "a40": (84, 1024, 1.74),
    "h100": (132, 4096, 1.83),
    "h100-pcie": (114, 4096, 1.62),
    "h200": (132, 4096, 1.83),
    "l40s": (142, 1024, 2.49),
    "mi300x": (304, 2048, 2.1),
    "mi325x": (304, 2048, 2.1),
    "mi350x": (256, 4096, 2.2),
    "mi355x": (256, 4096, 2.4),
    "rtx-3060": (28, 512, 1.777),
    "rtx-3090": (82, 512, 1.695),
    "rtx-3090-ti": (84, 512, 1.86),
    "rtx-4060-ti-16gb": (34, 512, 2.535),
    "rtx-4070-ti-super": (66, 512, 2.61),
    "rtx-4080": (76, 512, 2.505),
    "rtx-4080-super": (80, 512, 2.55),
    "rtx-4090": (128, 512, 2.52),
    "rtx-5000-ada": (100, 1024, 2.55),
    "rtx-5060-ti-16gb": (36, 512, 2.572),
    "rtx-5070": (48, 512, 2.512),
    "rtx-5070-ti": (70, 512, 2.452),
    "rtx-5080": (84, 512, 2.617),
    "rtx-5090": (170, 512, 2.407),
    "rtx-6000-ada": (142, 1024, 2.505),
    "rtx-a4000": (48, 1024, 1.56),
    "rtx-a5000": (64, 1024, 1.695),
    "rtx-a6000": (84, 1024, 1.8),
    "rtx-pro-6000": (188, 1024, 2.617),
    "t4": (40, 1024, 1.59),
    "v100-16gb": (80, 1024, 1.53),
    "v100-32gb": (80, 1024, 1.53),
}

CAPABILITIES: dict[str, set[str | None]] = {
    "volta": {"7.0"},
    "turing": {"7.5"},
    "ampere": {"8.0", "8.6"},
    "ada": {"8.9"},
    "hopper": {"9.0"},
    "blackwell": {"10.0", "10.3", "12.0", "12.1"},
    "cdna3": {None},
    "cdna4": {None},
}
PCIE_BYTES_PER_S: dict[str, set[float | None]] = {
    "volta": {16e9},
    "turing": {16e9},
    "ampere": {32e9},
    "ada": {16e9, 32e9},
    "hopper": {64e9, 450e9},
    "blackwell": {32e9, 64e9, 128e9, None},
    "cdna3": {64e9},
    "cdna4": {64e9},
}


def by_id(gpu: Gpu) -> str:
    return gpu.id


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter not in " -_")


def test_ids_are_in_lower_case_and_in_order() -> None:
    ids = list(read_gpus())
    assert ids == sorted(ids) == [gpu.id for gpu in GPUS]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", gpu_id) for gpu_id in ids)
    assert len(ids) > 40


def test_no_two_gpus_share_a_name() -> None:
    names = [{plain(name) for name in (gpu.id, gpu.title, *gpu.aliases)} for gpu in GPUS]
    shared = [
        name for name, uses in Counter(name for own in names for name in own).items() if uses > 1
    ]
    assert not shared
    assert all(find_gpu(name) is gpu for gpu, own in zip(GPUS, names, strict=True) for name in own)


@pytest.mark.parametrize("gpu", GPUS, ids=by_id)
def test_every_gpu_names_its_vendor_and_its_source(gpu: Gpu) -> None:
    assert gpu.vendor in {"NVIDIA", "AMD"}
    assert gpu.title.startswith(f"{gpu.vendor} ")
    assert gpu.source is not None
    assert re.fullmatch(r"\S.*, https://\S+\.\S+", gpu.source)
    assert gpu.notes is None or gpu.notes.endswith(".")


@pytest.mark.parametrize("gpu", GPUS, ids=by_id)
def test_figures_are_of_a_sane_size(gpu: Gpu) -> None:
    assert 11 * GIB < gpu.memory_bytes < 300 * GIB
    assert gpu.bandwidth_bytes_per_s is not None
    assert 250e9 < gpu.bandwidth_bytes_per_s <= 8e12
    # To read all of its memory takes every GPU a few hundredths of a second, the largest half one.
    assert 0.01 < gpu.memory_bytes / gpu.bandwidth_bytes_per_s < 0.5
    for peak in (gpu.bf16_flops_per_s, gpu.fp16_flops_per_s):
        assert peak is None or 25e12 < peak < 2600e12


@pytest.mark.parametrize("gpu", GPUS, ids=by_id)
def test_peaks_are_there_for_the_formats_the_architecture_has(gpu: Gpu) -> None:
    if gpu.id in {"rtx-4000-ada", "dgx-spark"}:
        assert gpu.bf16_flops_per_s is gpu.fp16_flops_per_s is gpu.fp8_flops_per_s is None
        assert gpu.notes is not None
        return
    assert gpu.fp16_flops_per_s is not None
    has_bf16 = gpu.architecture not in {"volta", "turing"}
    assert gpu.bf16_flops_per_s == (gpu.fp16_flops_per_s if has_bf16 else None)
    if gpu.architecture in {"volta", "turing", "ampere"}:
        assert gpu.fp8_flops_per_s is None
    else:
        assert gpu.fp8_flops_per_s == pytest.approx(2 * gpu.fp16_flops_per_s, rel=0.015)


@pytest.mark.parametrize("gpu", GPUS, ids=by_id)
def test_capability_and_link_are_those_of_the_architecture(gpu: Gpu) -> None:
    assert gpu.architecture is not None
    assert gpu.compute_capability in CAPABILITIES[gpu.architecture]
    assert gpu.pcie_bytes_per_s in PCIE_BYTES_PER_S[gpu.architecture]
    if gpu.pcie_bytes_per_s in {450e9, 128e9, None}:
        assert gpu.notes is not None


@pytest.mark.parametrize("gpu_id", FACTS)
def test_figures_are_those_everyone_knows(gpu_id: str) -> None:
    mib, terabytes_per_s, teraflops = FACTS[gpu_id]
    gpu = read_gpus()[gpu_id]
    assert gpu.memory_bytes == mib * MIB
    assert gpu.memory_is is MemoryIs.REPORTED
    assert gpu.bandwidth_bytes_per_s == pytest.approx(terabytes_per_s * 1e12, rel=1e-12)
    assert gpu.bf16_flops_per_s == pytest.approx(teraflops * 1e12, rel=1e-12)


@pytest.mark.parametrize("gpu_id", MEMORY_BUSES)
def test_bandwidth_is_the_width_of_the_bus_times_its_rate(gpu_id: str) -> None:
    bits, gigabits_per_s = MEMORY_BUSES[gpu_id]
    expected = bits / 8 * gigabits_per_s * 1e9
    assert read_gpus()[gpu_id].bandwidth_bytes_per_s == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("gpu_id", MULTIPROCESSORS)
def test_peak_is_what_the_multiprocessors_do_at_boost_clock(gpu_id: str) -> None:
    count, flops_per_clock, gigahertz = MULTIPROCESSORS[gpu_id]
    expected = count * flops_per_clock * gigahertz * 1e9
    assert read_gpus()[gpu_id].fp16_flops_per_s == pytest.approx(expected, rel=5e-3)


def test_what_is_only_advertised_is_said_to_be() -> None:
    nominal = {gpu.id: gpu.memory_bytes for gpu in GPUS if gpu.memory_is is MemoryIs.NOMINAL}
    assert nominal == {"dgx-spark": 128 * 10**9, "mi325x": 256 * 10**9}
    assert all(gpu.memory_is is not MemoryIs.GIVEN for gpu in GPUS)


def test_gpus_are_listed_by_memory() -> None:
    sizes = [gpu.memory_bytes for gpu in list_gpus()]
    assert sizes == sorted(sizes)
    assert len(sizes) == len(GPUS) + len(read_tpus())
    assert {gpu.vendor for gpu in list_gpus(vendor="amd")} == {"AMD"}
    assert len(list_gpus(vendor="AMD")) + len(list_gpus(vendor="NVIDIA")) == len(GPUS)
    with pytest.raises(UsageError, match="'intel'") as caught:
        list_gpus(vendor="intel")
    assert caught.value.hint == "Choose AMD, Google or NVIDIA."


def test_a_card_has_the_memory_that_it_is_sold_with() -> None:
    large = {gpu.id for gpu in list_gpus(min_memory_bytes=parse_memory("24GiB"))}
    assert {"rtx-4090", "rtx-3090", "h200"} <= large
    assert not {"l4", "a10", "rtx-4080"} & large
    assert list_gpus(min_memory_bytes=parse_memory("90 TiB")) == []
    assert parse_memory("80 GB") == 80 * 10**9
    for text in ("80", "h100", "0GiB"):
        with pytest.raises(UsageError, match=f"'{text}'"):
            parse_memory(text)


def test_the_table_is_read_once_and_nobody_can_change_it() -> None:
    assert read_gpus() is read_gpus()
    with pytest.raises(TypeError):
        read_gpus()["h200"] = GPUS[0]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        GPUS[0].memory_bytes = 1  # type: ignore[misc]
