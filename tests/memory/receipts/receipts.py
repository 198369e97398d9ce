"""An estimate with everything that a receipt holds."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.measured.measurement import BusBandwidth, Geometry, Machine, PhaseTimes
from moetool.memory.result import Estimate
from tests.report.memory.estimates import FIGURES, MEASURED, SPEED, make_estimate

VERSIONS = {"moetool": "0.2.0", "torch": "2.11.0", "transformers": "5.24.0", "python": "3.12.3"}
TIMES = PhaseTimes(0.0816, 0.00249, num_prefills=3, num_decode_steps=48)


def make_measured(model: str = "demo") -> Estimate:
    """Return an estimate on an H200, and what an H200 showed."""
    measured = replace(
        MEASURED,
        gpu="NVIDIA H200",
        figures=replace(FIGURES, peak_allocated_bytes=20 * 2**30),
        held_before_bytes=0,
        times=TIMES,
        bus=BusBandwidth(50e9, 10e9),
        machine=Machine(150 * 10**9, "580.95", "13.0", VERSIONS),
        geometry=Geometry("0" * 64, "mixtral", 4),
    )
    estimate = make_estimate(speed=SPEED, measured=measured)
    return replace(estimate, model=model, gpu="h200", is_gpu_named=True)
