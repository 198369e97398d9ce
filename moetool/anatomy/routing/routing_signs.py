"""Signs of routed experts that no rule reads. A model without routed layers and signs is dense.

The modules of transformers and torch are known, so their names are enough. All other code may route
under any name, so its parameters, its siblings of equal shapes and the calls in its forward count as
well.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from moetool.anatomy.config_signs import find_config_signs
from moetool.anatomy.routing.forward_calls import find_routing_calls, find_run_code
from moetool.anatomy.routing.walk import walk_modules

# In the names of modules, parameters and attributes of any model.
EXPERT_WORD = re.compile(r"expert|(^|_)moe(_|$)|moe$", re.IGNORECASE)
_EXPERT_CLASS = re.compile(r"(Experts?|MoE|Moe|MOE|MoeBlock|MoEBlock|MoELayer|MoeLayer|Router)\d*$")
# In the names of code that is neither transformers' nor torch's.
_ROUTING_WORD = re.compile(
    r"expert|moe|router|routing|(^|_)routes?(_|$)|top_?k|mixture|dispatch|(^|_)(ffns|mlps)$",
    re.IGNORECASE,
)
_INDEXER = re.compile(r"(^|\.)\w*indexer(\.|$)")
# Modules that run one after the other, or next to the head, and are not alternatives.
STACK = re.compile(
    r"(^|_)(layers?|blocks?|h|stages?|encoders?|decoders?|trunk|body|transformer)(_|$|\d)|head|norm|embed"
)
_ATTENTION = re.compile(r"att(entio)?n|mixer|mamba|conv|rnn|ssm", re.IGNORECASE)
# Position tables and convolutions over images and sounds have three dimensions too.
_TABLE = re.compile(r"vision|visual|image|audio|speech|embed|pos")
_BIAS = re.compile(r"(^|\.)b(_|$)|bias")
_NUMBER = re.compile(r"\d+")
# This many matrices of the same shape with numbered names are more than a pair of projections.
MANY_MATRICES = 4

_KNOWN_PACKAGES = ("torch", "transformers")
# Low-rank updates of a module, by the name of each adapter.
_KNOWN_MODULES = ("peft.tuners.lora.",)


@dataclass(frozen=True)
class RoutingSign:
    """Something that suggests routed experts.

    Attributes:
        path: The module that it was seen in; empty for the model itself.
        seen: The sign in words.
    """

    path: str
    seen: str


def find_routing_signs(
    model: nn.Module, *, blocks: Collection[str] = (), experts: Collection[str] = ()
) -> tuple[RoutingSign, ...]:
    """Return the signs of routed experts in a model, outside the blocks whose routing is known.

    Args:
        model: Any model, also on the meta device.
        blocks: Module paths of the blocks whose routing is read.
        experts: Module paths of their experts. The modules that contain them may be named after them.
    """
    around = {holder for path in experts for holder in _list_holders(path)}
    # Wrappers may hold parts of a block under second paths, with hooks next to them.
    inside = {id(part) for path in blocks for _, part in walk_modules(model.get_submodule(path))}
    signs = [
        RoutingSign(path, seen)
        for path, shown, module in _walk(model, closed=blocks)
        if path not in around and path not in blocks and not (blocks and "shared" in shown)
        if id(module) not in inside
        if path.rpartition(".")[0] not in around or list(module.parameters())
        for seen in _find_in_module(shown, module)
    ]
    if not blocks:
        is_known_code = all(not is_foreign(module) for module in model.modules())
        signs += [
            RoutingSign("", f"the configuration: {words}")
            for words in find_config_signs(
                getattr(model, "config", None), only_undeclared=is_known_code
            )
        ]
    return tuple(dict.fromkeys(signs))


def describe_signs(signs: Iterable[RoutingSign], *, most: int = 3) -> list[str]:
    """Return a few signs in words, one of each kind."""
    kinds: dict[str, RoutingSign] = {}
    for sign in signs:
        kinds.setdefault(_NUMBER.sub("0", f"{sign.path} {sign.seen}"), sign)
    return [
        f"{sign.path}: {sign.seen}" if sign.path else sign.seen
        for sign in list(kinds.values())[:most]
    ]


def is_foreign(module: nn.Module) -> bool:
    """Return whether a module runs code that is neither transformers' nor torch's."""
    home = type(module).__module__
    if home.startswith(_KNOWN_MODULES):
        return False
    return home.partition(".")[0] not in _KNOWN_PACKAGES or home.startswith("torch.jit")


def _list_holders(path: str) -> list[str]:
    """Return the paths of the modules that contain a module; the model's own path is empty."""
    words = path.split(".") if path else []
    return [".".join(words[:depth]) for depth in range(len(words))]


def _walk(model: nn.Module, *, closed: Collection[str]) -> Iterator[tuple[str, str, nn.Module]]:
    """Yield the modules of a model and those hidden in them, the inside of closed ones left out.

    Yields:
        The path of a module that torch knows, the name to show for the module, and the module
        itself: that at the path, or one hidden in it.
    """
    waiting = deque((path, path, module) for path, module in walk_modules(model, closed=closed))
    seen: set[int] = set()
    while waiting:
        path, shown, module = waiting.popleft()
        yield path, shown, module
        for key, hidden in iter_hidden_modules(module):
            # Only asked for here: few modules hide others, and a model may have a hundred thousand.
            seen = seen or {id(known) for _, known in walk_modules(model)}
            for inner_path, inner in hidden.named_modules():
                if id(inner) not in seen:
                    seen.add(id(inner))
                    name = ".".join(filter(None, (shown, key, inner_path)))
                    waiting.append((path, name, inner))


def _find_in_module(path: str, module: nn.Module) -> Iterator[str]:
    foreign = is_foreign(module)
    words = _ROUTING_WORD if foreign else EXPERT_WORD
    name = path.rpartition(".")[2]
    if _INDEXER.search(path):
        return
    if words.search(name) and not name.isdecimal():
        yield f"a module named '{name}' ({type(module).__name__})"
    elif _EXPERT_CLASS.search(type(module).__name__) or (
        foreign and _ROUTING_WORD.search(type(module).__name__)
    ):
        yield f"a {type(module).__name__}"
    for key in _list_own_names(module):
        if words.search(key):
            yield f"'{key}' of {type(module).__name__}"
    yield from _find_in_code(module, foreign=foreign)
    if foreign:
        if not (_TABLE.search(path) or _is_attention(module)):
            yield from _find_stacks(module)
        yield from _find_siblings(module)


def _list_own_names(module: nn.Module) -> Iterator[str]:
    """Yield the names of a module's own parameters, buffers, numbers and collections."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and tensor.numel():
            yield name
    for name, value in vars(module).items():
        is_many = isinstance(value, int) and value > 1
        if is_many or (isinstance(value, dict | list | tuple) and value):
            yield name


def _find_in_code(module: nn.Module, *, foreign: bool) -> Iterator[str]:
    run = find_run_code(module)
    if run is None:
        if foreign:
            yield f"a {type(module).__name__}, whose code can't be read"
        return
    if foreign or not run.is_of_class:
        is_whole_model = any(isinstance(inner, nn.Embedding) for inner in module.modules())
        calls = find_routing_calls(run, is_whole_model=is_whole_model)
        if calls:
            yield f"the forward of {run.name} calls {', '.join(calls)}"


def iter_hidden_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a module keeps where torch does not look for children, by name.

    Adapters are kept there, and the owner of a forward that replaces the module's own.
    """
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        items: Iterable[tuple[object, object]] = ()
        if key == "forward":
            items = (("", getattr(value, "__self__", None)),)
        elif isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list | tuple | set):
            items = enumerate(value)
        for name, item in items:
            if isinstance(item, nn.Module):
                yield f"{key}.{name}".rstrip("."), item


def _is_attention(module: nn.Module) -> bool:
    """Return whether a module stacks the matrices of attention heads, and none scores the heads."""
    if not _ATTENTION.search(type(module).__name__):
        return False
    stacks = {parameter.shape[0] for parameter in module.parameters() if parameter.dim() >= 3}
    return not any(
        parameter.dim() == 2 and stacks & {*parameter.shape} and not _BIAS.search(name)
        for name, parameter in module.named_parameters()
    )


def _find_stacks(module: nn.Module) -> Iterator[str]:
    """Yield the parameters that may be one matrix for each of several experts."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 3 and min(parameter.shape) > 1:
            shape = " x ".join(map(str, parameter.shape))
            yield f"a parameter '{name}' of {shape} in {type(module).__name__}"


def _find_siblings(module: nn.Module) -> Iterator[str]:
    """Yield children that may be experts: several of the same class and shapes."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) and not STACK.search(name):
            members = list(child.children())
            if len(members) > 1 and are_alike(members) and may_be_expert(members[0]):
                yield f"{len(members)} modules of the same shapes in '{name}'"
    numbered: dict[str, list[nn.Module]] = defaultdict(list)
    for name, child in module.named_children():
        if _NUMBER.search(name) and not name.isdecimal():
            numbered[_NUMBER.sub("…", name)].append(child)
    for name, members in numbered.items():
        if len(members) < 2 or STACK.search(name) or not are_alike(members):
            continue
        is_mlp = count_matrices(members[0]) > 1
        if may_be_expert(members[0]) and (is_mlp or len(members) >= MANY_MATRICES):
            yield f"{len(members)} modules of the same shapes, named '{name}'"


def are_alike(modules: list[nn.Module]) -> bool:
    """Return whether modules are of one class and have parameters of the same shapes."""
    shapes = [
        (type(module), [parameter.shape for parameter in module.parameters()]) for module in modules
    ]
    return all(shape == shapes[0] for shape in shapes)


def may_be_expert(module: nn.Module) -> bool:
    """Return whether a module multiplies by matrices and is not attention or a table."""
    if isinstance(module, nn.Embedding) or not count_matrices(module):
        return False
    return not any(
        _ATTENTION.search(name) or _ATTENTION.search(type(inner).__name__)
        for path, inner in module.named_modules()
        for name in [path.rpartition(".")[2]]
    )


def count_matrices(module: nn.Module) -> int:
    """Return the number of a module's parameters that are matrices."""
    return sum(parameter.dim() > 1 for parameter in module.parameters())
