"""Compare EPLB with its published implementations, and have engines load what is exported.

    python benchmarks/questions/placement_peers.py agreement FILE...
    python benchmarks/questions/placement_peers.py sglang FOLDER PLACEMENT.json --experts N --redundant R --gpus G
    python benchmarks/questions/placement_peers.py vllm-ascend eplb_utils.py PLACEMENT.json

`agreement` takes files with a `rebalance_experts`: eplb.py of github.com/deepseek-ai/EPLB,
srt/eplb/eplb_algorithms/deepseek.py of SGLang, or distributed/eplb/policy/default.py of vLLM. They
run as they are; what they import from their own packages is replaced by an empty module.

`sglang` gives an exported file to the loader in an unpacked sglang wheel (FOLDER holds `sglang/`),
which needs neither a GPU nor the rest of SGLang. `vllm-ascend` does the same with
vllm_ascend/eplb/core/eplb_utils.py of github.com/vllm-project/vllm-ascend.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.methods.eplb import place_by_load

_NUM_TRIALS = 400
_README = (
    (90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86),
    (20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27),
)
_PRINTED = (
    (5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1),
    (7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1),
)

# Loads, slots, groups, nodes and GPUs, to the expert of each slot.
Rebalance = Callable[[torch.Tensor, int, int, int, int], torch.Tensor]


def load_module(path: Path, *, package: str = "peer") -> ModuleType:
    """Return a file as a module of an otherwise empty package."""
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_peer(path: Path) -> Rebalance:
    """Return the function of a published implementation, whose arguments differ between them."""
    parent = ModuleType("peer")
    parent.__path__ = []
    abstract: Any = ModuleType("peer.abstract")
    abstract.AbstractEplbPolicy = object
    utils: Any = ModuleType("sglang.srt.utils")
    utils.get_bool_env_var = lambda *_: False
    sys.modules |= {"peer": parent, "peer.abstract": abstract, "sglang.srt.utils": utils}
    module = load_module(path)
    holder = getattr(module, "DefaultEplbPolicy", module)
    rebalance = holder.rebalance_experts
    needs_flag = "enable_hierarchical" in path.read_text(encoding="utf-8")

    def run(load: torch.Tensor, slots: int, groups: int, nodes: int, gpus: int) -> torch.Tensor:
        more = {"enable_hierarchical": groups % nodes == 0} if needs_flag else {}
        found: Any = rebalance(load, slots, groups, nodes, gpus, **more)
        placed: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return placed

    return run


def show_agreement(path: Path) -> None:
    """Print how many layers of random loads an implementation places exactly as moetool does."""
    rebalance = load_peer(path)
    printed = rebalance(torch.tensor(_README), 16, 4, 2, 8)
    print(f"{path.name}: README's example {'as' if same(printed, _PRINTED) else 'NOT as'} printed")
    for kind in ("distinct loads", "loads with ties"):
        rng = np.random.default_rng(0)
        num_same = num_alike = num_layers = 0
        for _ in range(_NUM_TRIALS):
            cluster, num_experts = draw_cluster(rng)
            load = draw_load(rng, num_experts, has_ties=kind == "loads with ties")
            found = rebalance(
                torch.tensor(load),
                cluster.count_slots(num_experts),
                cluster.num_groups,
                cluster.num_nodes,
                cluster.num_gpus,
            )
            for row, theirs in zip(load, found.tolist(), strict=True):
                mine = place_by_load(row.astype(np.float64), cluster).tolist()
                num_same += mine == theirs
                num_alike += find_loads(row, mine) == find_loads(row, theirs)
                num_layers += 1
        print(
            f"  {kind}: of {num_layers:,} layers, {num_same:,} have the same expert in every slot, "
            f"and {num_alike:,} the same load"
        )


def find_loads(load: np.ndarray, slots: list[int]) -> list[float]:
    """Return the load of each slot; experts of equal load are interchangeable."""
    count = np.bincount(slots, minlength=len(load))
    return (load / count)[slots].tolist()  # type: ignore[no-any-return]


def same(found: torch.Tensor, expected: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether slots are the expected ones."""
    return [tuple(row) for row in found.tolist()] == list(expected)


def draw_cluster(rng: np.random.Generator) -> tuple[Cluster, int]:
    """Return a cluster of a usual shape, and a number of experts that it shares evenly."""
    num_nodes = int(rng.choice([1, 2, 4]))
    num_gpus = num_nodes * int(rng.choice([2, 4, 8]))
    num_groups = int(rng.choice([1, 4, 8]))
    num_experts = int(rng.choice([64, 128, 256]))
    redundant = num_gpus * int(rng.choice([0, 1, 2]))
    return Cluster(num_gpus, num_nodes, redundant, num_groups), num_experts


def draw_load(rng: np.random.Generator, num_experts: int, *, has_ties: bool) -> np.ndarray:
    """Return loads of four layers: counts of a skewed router, distinct unless ties are asked for."""
    if has_ties:
        return rng.poisson(rng.gamma(1, 20, size=(4, num_experts))).astype(np.int64)
    rows = [rng.choice(100_000, size=num_experts, replace=False) + 1 for _ in range(4)]
    return np.array(rows, dtype=np.int64)


def load_by_sglang(
    folder: Path, placement: Path, *, experts: int, redundant: int, gpus: int
) -> None:
    """Give a file to SGLang's own loader and print the experts of each GPU of the last layer."""
    rows = json.loads(placement.read_text(encoding="utf-8"))["physical_to_logical_map"]
    moe = SimpleNamespace(
        init_expert_location=str(placement),
        ep_num_redundant_experts=redundant,
        moe_a2a_backend="none",
        ep_dispatch_algorithm="dynamic",
        ep_join_mode=None,
    )
    parallel = SimpleNamespace(ep_size=gpus, nnodes=1, elastic_ep_initial_size=None)
    context: Any = ModuleType("sglang.srt.runtime_context")
    context.get_device = lambda: SimpleNamespace(device="cpu")
    context.get_exec = lambda: SimpleNamespace(moe=moe)
    context.get_parallel = lambda: parallel
    context.get_resources = lambda: SimpleNamespace()
    sys.modules["sglang.srt.runtime_context"] = context
    module: Any = load_module(folder / "sglang/srt/eplb/expert_location.py", package="sglang_eplb")
    described = module.ModelConfigForExpertLocation(
        num_layers=len(rows), num_logical_experts=experts
    )
    module.ModelConfigForExpertLocation.from_model_config = staticmethod(lambda _: described)
    loaded = module.compute_initial_expert_location_metadata(None, None)
    assert loaded.physical_to_logical_map.tolist() == rows
    assert loaded.num_layers == len(rows)
    assert (loaded.logical_to_all_physical_map_num_valid >= 1).all()
    assert loaded.logical_to_all_physical_map_num_valid.sum(dim=1).tolist() == [
        experts + redundant
    ] * len(rows)
    size = loaded.num_local_physical_experts
    last = loaded.physical_to_logical_map[-1].tolist()
    print(f"loaded {loaded.num_layers} layers, {loaded.num_physical_experts} slots each")
    for gpu in range(gpus):
        print(f"  last layer, GPU {gpu}: {last[gpu * size : (gpu + 1) * size]}")


def load_by_vllm_ascend(path: Path, placement: Path) -> None:
    """Give a file to vllm-ascend's own reader and print what it finds."""
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        package: Any = ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    fused: Any = ModuleType("vllm.model_executor.layers.fused_moe")
    fused.__path__ = []
    manager: Any = ModuleType("vllm.model_executor.layers.fused_moe.expert_map_manager")
    manager.determine_expert_map = None
    logger: Any = ModuleType("vllm.logger")
    logger.logger = logging.getLogger("vllm")
    sys.modules |= {module.__name__: module for module in (fused, manager, logger)}
    module: Any = load_module(path, package="ascend")
    layers = json.loads(placement.read_text(encoding="utf-8"))["layer_list"]
    for layer in layers:
        loaded, number = module.expert_file_to_tensor(str(placement), layer["layer_id"])
        assert loaded.tolist() == [device["device_expert"] for device in layer["device_list"]]
        assert number == loaded.numel()
    print(f"loaded {len(layers)} layers; the last one has {tuple(loaded.shape)} devices and slots")


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    agreement = parts.add_parser("agreement")
    agreement.add_argument("files", nargs="+", type=Path)
    sglang = parts.add_parser("sglang")
    sglang.add_argument("folder", type=Path)
    sglang.add_argument("placement", type=Path)
    for name in ("experts", "redundant", "gpus"):
        sglang.add_argument(f"--{name}", type=int, required=True)
    ascend = parts.add_parser("vllm-ascend")
    ascend.add_argument("file", type=Path)
    ascend.add_argument("placement", type=Path)
    asked = parser.parse_args()
    if asked.part == "vllm-ascend":
        load_by_vllm_ascend(asked.file, asked.placement)
        return
    if asked.part == "agreement":
        for path in asked.files:
            show_agreement(path)
        return
    load_by_sglang(
        asked.folder,
        asked.placement,
        experts=asked.experts,
        redundant=asked.redundant,
        gpus=asked.gpus,
    )


if __name__ == "__main__":
    main()
