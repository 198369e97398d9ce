"""The catalogue's GPUs and amounts of memory, found by the names that users type."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.catalogue.gpus import Gpu, MemoryIs, find_gpu, read_gpus
from moetool.errors import UsageError

GPUS = list(read_gpus().values())
MIB, GIB, TIB = 2**20, 2**30, 2**40


@pytest.mark.parametrize(
    ("text", "gpu_id"),
    [
        ("h200", "h200"),
        ("NVIDIA H200", "h200"),
        (" H100_80gb ", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("RTX4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("geforce rtx 3090 ti", "rtx-3090-ti"),
        ("NVIDIA GeForce RTX 3060", "rtx-3060"),
        ("Tesla T4", "t4"),
        ("NVIDIA GB10", "dgx-spark"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Instinct-MI355X", "mi355x"),
    ],
)
def test_a_gpu_is_found_by_what_people_and_drivers_call_it(text: str, gpu_id: str) -> None:
    assert find_gpu(text) is read_gpus()[gpu_id]


@given(gpu=st.sampled_from(GPUS), data=st.data())
def test_case_and_separators_do_not_matter(gpu: Gpu, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([gpu.id, gpu.title, *gpu.aliases]))
    separators = st.sampled_from(["", " ", "-", "_", " - "])
    typed = "".join(
        data.draw(separators)
        if letter in " -_"
        else data.draw(st.sampled_from([letter.lower(), letter.upper()]))
        for letter in name
    )
    assert find_gpu(typed) is gpu


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nvidia",
        "h201",
        "24",
        "24 XB",
        "24KiB",
        "1e3GiB",
        "infGiB",
        "nanGB",
        ".5GB",
        "h200x8",
        "24GiBx2",
        "24GiB x2",
    ],
)
def test_an_unknown_gpu_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert f"'{text}'" in caught.value.message


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a100", "several GPUs begin with", "Choose a100-40gb, a100-80gb or a100-80gb-pcie."),
        ("Tesla V100", "several GPUs begin with", "Choose v100-16gb or v100-32gb."),
        ("24", "without a unit", "Write 24GiB."),
        (" 22.5 ", "without a unit", "Write 22.5GiB."),
        ("24G", "unknown unit", "Write 24GiB."),
        ("80 gigabytes", "unknown unit", "Write 80GiB."),
        ("8xh100", "one", "Give h100. `moetool memory-estimate "),
        ("8 × h100", "one", "Give h100. `moetool memory-estimate "),
        ("8*NVIDIA H100", "one", "Give h100. `moetool memory-estimate "),
        ("mi300x x 8", "one", "Give mi300x. `moetool memory-estimate "),
        ("rtx4090x2", "one", "Give rtx-4090. `moetool memory-estimate "),
        ("2x24GiB", "one", "Give 24GiB. `moetool memory-estimate "),
        ("24 GiB x2", "one", "Give 24 GiB. `moetool memory-estimate "),
        ("rtx-4060-ti", "no GPU called", "Choose rtx-4060-ti-16gb, or give a size"),
        ("h2000", "no GPU called", "Choose h200, "),
        ("rtx-4900", "no GPU called", "rtx-4090"),
        ("quantum", "no GPU called", "Give a size, such as 24GiB, or a name"),
    ],
)
def test_what_was_likely_meant_is_in_the_hint(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_only_a_few_names_are_offered() -> None:
    for text in ("rtx", "nvidia", "a", "h11", "x" * 100_000):
        with pytest.raises(UsageError) as caught:
            find_gpu(text)
        assert sum(gpu_id in caught.value.hint for gpu_id in read_gpus()) <= 6
        assert "`moetool gpus`" in caught.value.hint
        assert len(caught.value.hint) < 150


@pytest.mark.parametrize("text", ["a100", "v100", "rtx-4060-ti", "NVIDIA GeForce RTX 5060 Ti"])
def test_a_name_of_gpus_with_different_memories_is_not_guessed(text: str) -> None:
    with pytest.raises(UsageError):
        find_gpu(text)


@pytest.mark.parametrize(
    ("text", "memory_bytes", "gpu_id", "title"),
    [
        ("24GiB", 24 * GIB, "24GiB", "custom GPU of 24 GiB"),
        ("24 gb", 24 * 10**9, "24GB", "custom GPU of 24 GB"),
        ("24576mib", 24 * GIB, "24576MiB", "custom GPU of 24576 MiB"),
        ("141000 MB", 141 * 10**9, "141000MB", "custom GPU of 141000 MB"),
        ("1.5TiB", 3 * 2**39, "1.5TiB", "custom GPU of 1.5 TiB"),
        (" 0.5TB ", 5 * 10**11, "0.5TB", "custom GPU of 0.5 TB"),
        ("80000000000B", 80 * 10**9, "80000000000B", "custom GPU of 80000000000 B"),
        ("0.1GiB", 107374182, "0.1GiB", "custom GPU of 0.1 GiB"),
    ],
)
def test_a_size_is_a_gpu_of_which_nothing_else_is_known(
    text: str, memory_bytes: int, gpu_id: str, title: str
) -> None:
    gpu = find_gpu(text)
    assert (gpu.memory_bytes, gpu.id, gpu.title) == (memory_bytes, gpu_id, title)
    assert gpu.memory_is is MemoryIs.GIVEN
    known = {"id", "title", "aliases", "memory_bytes", "memory_is"}
    assert all(getattr(gpu, field.name) is None for field in fields(Gpu) if field.name not in known)
    assert gpu.aliases == ()


@given(
    thousandths=st.integers(min_value=0, max_value=10**9),
    unit=st.sampled_from(
        [
            ("B", 1),
            ("MB", 10**6),
            ("MiB", MIB),
            ("GB", 10**9),
            ("GiB", GIB),
            ("TB", 10**12),
            ("TiB", TIB),
        ]
    ),
)
def test_a_size_is_its_number_times_its_unit_rounded_down(
    thousandths: int, unit: tuple[str, int]
) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03}{unit[0]}"
    size = Fraction(thousandths, 1000) * unit[1]
    if 1 <= size < 100 * TIB:
        assert find_gpu(text).memory_bytes == size.numerator // size.denominator
    else:
        with pytest.raises(UsageError):
            find_gpu(text)


@pytest.mark.parametrize(
    "text", ["0GiB", "0.9B", "-24GiB", "100TiB", "102400GiB", f"{'9' * 5000}GiB"]
)
def test_a_size_no_gpu_has_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_gpu(text)
    assert f"'{text}'" in caught.value.message
    assert "100 TiB" in caught.value.hint


def test_a_size_just_below_the_largest_is_accepted() -> None:
    assert find_gpu(f"{100 * TIB - 1}B").memory_bytes == 100 * TIB - 1
    assert find_gpu("1B").memory_bytes == 1
