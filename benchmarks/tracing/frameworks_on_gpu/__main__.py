"""Record layers of frameworks on a GPU, and compare the records with what the weights compute.

    python -m benchmarks.tracing.frameworks_on_gpu FOLDER [WORD ...]

For each layer, the recorded ids and weights have to be those that its router returned, and those
that a fit finds in float64: of the layer's output for each token, by what every expert makes of that
token. Errors that are planted in the record have to be noticed. `FOLDER/frameworks.json` holds what
was seen; words choose layers whose names contain one of them.

Frameworks that are not installed are left out. Extensions that are not built are replaced by plain
torch, which `replaced.py` describes. Without a GPU, with `TRITON_INTERPRET=1`, Triton's programs run in
its interpreter, which gets products in bfloat16 wrong; Megatron-Core does not run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.tracing.frameworks_on_gpu.cases import CASES, DEVICE, SHAPE, Make
from benchmarks.tracing.frameworks_on_gpu.layers import HIDDEN_SIZE, NUM_EXPERTS, GpuLayer
from benchmarks.tracing.frameworks_on_gpu.replaced import (
    choose_first_settings,
    replace_missing_extensions,
)
from moetool import RoutingRecorder
from moetool.errors import MoetoolError
from tests.tracing.oracle import UndeterminedError, find_difference, fit_weights


@dataclass(frozen=True)
class Seen:
    """Facts about one recorded layer.

    Attributes:
        package: Name of its package.
        layer: The layer in words.
        dtype: Of its weights.
        traced: `exactly`, `refused`, `not run` or `wrong`.
        rule: How it was read.
        reason: Why it was refused, not run or wrong.
        difference: The largest difference of weights from the fit.
        planted: The same with planted errors.
        num_empty: Choices that no expert carried out.
        factor: By which the layer multiplies the sum of its experts, as it was measured.
        router: The path of the router, as it was found.
        layer_s: Seconds of a call.
        recorded_s: Seconds of the first recorded call, and of another one.
    """

    package: str
    layer: str
    dtype: str
    traced: str
    rule: str = ""
    reason: str = ""
    difference: float | None = None
    planted: dict[str, float] | None = None
    num_empty: int = 0
    factor: float | None = None
    router: str | None = None
    layer_s: float = 0.0
    recorded_s: tuple[float, float] = (0.0, 0.0)


def main() -> int:
    """Run all layers, write what was seen, and fail if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("words", metavar="WORD", nargs="*", help="a part of a layer's name")
    options = parser.parse_args()
    folder, words = options.folder, options.words
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    replaced = replace_missing_extensions()
    if DEVICE == "cpu":
        choose_first_settings()
    found: list[Seen] = []
    for package, name, make, dtype, tolerance in CASES:
        if words and not any(word in f"{package} {name}" for word in words):
            continue
        seen = Seen(package, name, str(dtype), **look(make, dtype, tolerance))
        found.append(seen)
        print(f"{package} {name}: {seen.traced} {seen.reason or seen.difference}", flush=True)
        write(folder / "frameworks.json", found, replaced)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return any(seen.traced == "wrong" for seen in found)


def write(path: Path, found: Sequence[Seen], replaced: Sequence[str]) -> None:
    """Write what was seen so far, with the versions of everything."""
    packages = dict.fromkeys(seen.package for seen in found)
    result = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "versions": {"torch": torch.__version__}
        | {package: find_version(package) for package in ("triton", *packages)},
        "replaced": replaced,
        "layers": [asdict(seen) for seen in found],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def find_version(package: str) -> str | None:
    """Return the version of a package; None if it was not installed as one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def look(make: Make, dtype: torch.dtype, tolerance: float) -> dict[str, Any]:
    """Record a layer, and return fields of what was seen."""
    torch.manual_seed(0)
    try:
        layer = make()
        block = layer.block.eval().requires_grad_(False)
        for parameter in block.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape))
        hidden = torch.randn(*SHAPE, HIDDEN_SIZE).to(DEVICE, dtype)
        run(block, hidden)
        plain, layer_s = run(block, hidden)
    except Exception as error:  # noqa: BLE001 - whatever a package raises is the result
        traceback.print_exc()
        return {"traced": "not run", "reason": f"{type(error).__name__}: {error}"}
    kept: list[Any] = []
    state = [parameter.clone() for parameter in block.parameters()]
    try:
        with torch.no_grad(), RoutingRecorder(block) as recorder:
            router = block.get_submodule(layer.router)
            handle = router.register_forward_hook(
                lambda _module, _args, output: kept.append(output)
            )
            runs = [run(block, hidden) for _ in range(2)]
            handle.remove()
    except MoetoolError as error:
        return {"traced": "refused", "reason": "; ".join([error.message, *error.facts])}
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        return {"traced": "wrong", "reason": f"{type(error).__name__}: {error}"}
    recorded = [call.layers[0] for call in recorder.calls]
    ids, weights = (
        torch.from_numpy(values) for values in (recorded[0].experts, recorded[0].weights)
    )
    fields: dict[str, Any] = {
        "rule": str(recorded[0].layer.rule),
        "num_empty": int((ids < 0).sum()),
        "factor": recorder.find_output_factor(recorder.layers[0]),
        "router": recorder.find_router(recorder.layers[0]),
        "layer_s": layer_s,
        "recorded_s": tuple(seconds for _, seconds in runs),
    }
    output = kept[0] if isinstance(kept[0], tuple) else (kept[0],)
    reasons = list(find_faults(layer, fields, ids, weights, layer.read_decision(output)))
    if not all(torch.equal(plain, output) for output, _ in runs):
        reasons.append("the recorder changed the output")
    if not all(map(torch.equal, state, block.parameters())):
        reasons.append("the recorder changed the weights")
    if not (recorded[0].experts == recorded[1].experts).all():
        reasons.append("another call of the same tokens has another record")
    try:
        fields |= compare(layer, hidden, plain, ids, weights)
    except UndeterminedError as error:
        reasons.append(f"the fit can't tell: {error}")
    else:
        if fields["difference"] > tolerance:
            reasons.append("the fit finds other weights")
        reasons += [
            f"{name} was not noticed"
            for name, difference in fields["planted"].items()
            if difference <= tolerance
        ]
    return fields | {"traced": "wrong" if reasons else "exactly", "reason": "; ".join(reasons)}


def run(block: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return what a layer makes of hidden states, and how many seconds it took."""
    start = time.perf_counter()
    with torch.no_grad():
        output = block(hidden.clone())
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    rows = output[0] if isinstance(output, tuple) else output
    return rows, time.perf_counter() - start


def find_faults(
    layer: GpuLayer,
    fields: dict[str, Any],
    ids: torch.Tensor,
    weights: torch.Tensor,
    chosen: tuple[torch.Tensor, torch.Tensor],
) -> list[str]:
    """Return how a record differs from what the router returned.

    Args:
        fields: What was seen.
        ids: Recorded. # (num_tokens, top_k)
        weights: Recorded. # (num_tokens, top_k)
        chosen: The router's own, each # (..., top_k)
    """
    faults = []
    tables = []
    for found, values in ((ids, weights), chosen):
        found, values = (v.detach().cpu().reshape(len(ids), -1) for v in (found, values))
        table = torch.full((len(ids), NUM_EXPERTS + 1), torch.nan)
        table.scatter_(1, found.long() % (NUM_EXPERTS + 1), values.float())
        tables.append(table[:, :NUM_EXPERTS])
    recorded, routed = tables
    is_dropped = recorded.isnan() & ~routed.isnan()
    if bool((routed.isnan() & ~recorded.isnan()).any()):
        faults.append("an expert is recorded that the router did not choose")
    if layer.has_drops != bool(is_dropped.any()):
        faults.append(f"{int(is_dropped.sum())} choices are recorded as dropped")
    both = ~(recorded.isnan() | routed.isnan())
    off = (layer.factor * routed - recorded)[both].abs().max()
    alike = torch.equal(recorded[both], routed[both])
    if not alike and off > torch.finfo(torch.float32).eps:
        faults.append(f"weights differ from the router's by {float(off):.1e}")
    if fields["router"] is not None and not f"{fields['router']}.".startswith(f"{layer.router}."):
        faults.append(f"{fields['router']} is taken for the router")
    return faults


def compare(
    layer: GpuLayer,
    hidden: torch.Tensor,
    output: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> dict[str, Any]:
    """Return the difference of a record from the fit, and those of planted errors."""
    rows = hidden.flatten(0, -2).double()
    total = output.flatten(0, -2).double()
    if layer.rest is not None:
        total = total - layer.rest(rows)
    by_expert = torch.stack([layer.run_expert(e, rows) for e in range(NUM_EXPERTS)])
    fit = fit_weights(total.cpu() / layer.factor, by_expert.cpu())
    is_kept = ids >= 0
    others = torch.where(is_kept, (ids + 1) % NUM_EXPERTS, ids)
    more = weights.clone()
    more[:, 0] *= 1.2
    planted = {
        "another expert": find_difference(fit, others, weights),
        "another token's decision": find_difference(fit, ids.roll(1, 0), weights.roll(1, 0)),
        "another weight": find_difference(fit, ids, more),
    }
    if layer.has_drops:
        none = is_kept.clone()
        none[0] = False
        planted["a token taken for dropped"] = find_difference(
            fit, ids.masked_fill(~none, -1), weights.masked_fill(~none, 0)
        )
    return {"difference": find_difference(fit, ids, weights), "planted": planted}


if __name__ == "__main__":
    raise SystemExit(main())
