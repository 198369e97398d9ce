from __future__ import annotations

from moetool.catalogue.gpus import Gpu, find_gpu
from moetool.memory.fitting.fits import list_fits
from moetool.memory.result import Fit
from moetool.quantized.kinds import Quantization

GIB = 2**30
SMALL, LARGE = find_gpu("24GiB"), find_gpu("80GiB")


def test_what_fits_says_how_much_is_left() -> None:
    fits = list_fits({Quantization.NONE: 30 * GIB}, [LARGE])
    assert fits == (
        Fit(
            gpu="80gib",
            memory_bytes=80 * GIB,
            quantization=Quantization.NONE,
            num_gpus=1,
            fits=True,
            headroom_bytes=50 * GIB,
        ),
    )


def test_what_does_not_fit_says_by_how_much_and_on_how_many() -> None:
    asked = []

    def count_gpus(quantization: Quantization, gpu: Gpu) -> int:
        asked.append((quantization, gpu))
        return 3

    fits = list_fits(
        {Quantization.NONE: 60 * GIB, Quantization.NF4: 20 * GIB}, [SMALL], count_gpus=count_gpus
    )
    assert [(fit.fits, fit.headroom_bytes, fit.num_gpus) for fit in fits] == [
        (False, -36 * GIB, 3),
        (True, 4 * GIB, 1),
    ]
    assert asked == [(Quantization.NONE, SMALL)]


def test_what_runs_through_in_less_than_it_would_take_fits() -> None:
    asked = []

    def find_total_within(quantization: Quantization, gpu: Gpu) -> int | None:
        asked.append((quantization, gpu))
        return 23 * GIB if quantization is Quantization.INT8 else None

    totals: dict[Quantization, int | None] = {
        Quantization.NONE: 30 * GIB, Quantization.INT8: 25 * GIB, Quantization.NF4: 20 * GIB
    }  # fmt: skip
    fits = list_fits(totals, [SMALL], find_total_within=find_total_within)
    assert [(fit.fits, fit.headroom_bytes, fit.num_gpus) for fit in fits] == [
        (False, -6 * GIB, None),
        (True, GIB, 1),
        (True, 4 * GIB, 1),
    ]
    assert asked == [(Quantization.NONE, SMALL), (Quantization.INT8, SMALL)]


def test_the_last_byte_fits() -> None:
    exactly = list_fits({Quantization.NONE: 24 * GIB}, [SMALL])
    over = list_fits({Quantization.NONE: 24 * GIB + 1}, [SMALL])
    assert [(fit.fits, fit.headroom_bytes) for fit in (*exactly, *over)] == [(True, 0), (False, -1)]


def test_how_many_gpus_is_unknown_unless_it_is_asked() -> None:
    (fit,) = list_fits({Quantization.NONE: 25 * GIB}, [SMALL])
    assert fit.num_gpus is None
    (fit,) = list_fits({Quantization.NONE: 25 * GIB}, [SMALL], count_gpus=lambda *_: None)
    assert fit.num_gpus is None


def test_what_is_unknown_is_told_as_such() -> None:
    (fit,) = list_fits({Quantization.INT8: None}, [SMALL], count_gpus=lambda *_: 2)
    assert (fit.fits, fit.headroom_bytes, fit.num_gpus) == (None, None, None)
    assert (fit.gpu, fit.memory_bytes, fit.quantization) == ("24gib", 24 * GIB, Quantization.INT8)


def test_gpus_go_by_memory_then_id_and_quantizations_as_given() -> None:
    totals = {Quantization.NF4: GIB, Quantization.NONE: GIB}
    h100, a100 = find_gpu("h100"), find_gpu("80GiB")
    fits = list_fits(totals, [find_gpu("h200"), LARGE, SMALL, h100, a100])
    order = [(fit.memory_bytes, fit.gpu) for fit in fits]
    assert order == sorted(order)
    assert [fit.quantization for fit in fits[:4]] == [*totals, *totals]
    assert len(fits) == 10
