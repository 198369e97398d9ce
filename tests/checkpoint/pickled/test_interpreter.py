"""Plain pickles read as Python reads them, and hostile ones end in an error, with nothing run."""

from __future__ import annotations

import builtins
import collections
import enum
import os
import pickle
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.pickled.interpreter import read_pickle
from moetool.checkpoint.pickled.stand_ins import ForbiddenNameError, Instance, PickleError
from moetool.checkpoint.pickled.torch_names import TORCH_NAMES, stand_ins

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner, inner)
        | st.dictionaries(scalars, inner, max_size=3)
        | st.frozensets(scalars, max_size=3)
    ),
    max_leaves=8,
)


class Level(enum.Enum):
    """Is pickled as by Python 3.11.0 to 3.11.3."""

    LOW = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (type(self), self.name)


class Taken:
    """Takes an attribute of a class when it is read."""

    def __init__(self, owner: object, name: str) -> None:
        self.taken = (owner, name)

    def __reduce__(self) -> Any:
        return getattr, self.taken


def read(content: bytes) -> Any:
    return read_pickle(content, names=TORCH_NAMES)[0]


@pytest.mark.parametrize("protocol", range(6))
def test_members_of_enumerations_are_stand_ins(protocol: int) -> None:
    name = f"{__name__}.Level"
    content = pickle.dumps(Level.LOW, protocol=protocol)

    found, _ = read_pickle(content, names={**TORCH_NAMES, **stand_ins(name)})

    assert (found.kind, found.arguments) == (name, ("LOW",))


@pytest.mark.parametrize(("owner", "name"), [(dict, "fromkeys"), (5, "REAL"), ([], "append")])
def test_other_attributes_are_not_taken(owner: object, name: str) -> None:
    with pytest.raises(PickleError, match="not an enumeration"):
        read(pickle.dumps(Taken(owner, name)))


@settings(max_examples=60)
@given(values)
def test_plain_values_read_as_python_reads_them(value: Any) -> None:
    content = pickle.dumps(value)

    found, end = read_pickle(content + b"rest", names=TORCH_NAMES)

    assert found == pickle.loads(content) == value
    assert end == len(content)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -1, 2**40, -(2**40), 2**3000, 1.5, True, False, None], "b": ("x", "ü\n\\", ())},
        collections.OrderedDict(a=1),
        [[], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    ],
)
def test_every_protocol_is_read(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol=protocol)) == value


def test_a_list_in_itself_is_read_without_end_and_without_harm() -> None:
    value: list[Any] = []
    value.append(value)

    found = read(pickle.dumps(value))

    assert found[0] is found


class Runs:
    """Runs a command wherever Python unpickles it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "builtins.__import__", "os.mkdir"])
def test_a_pickle_that_would_run_something_runs_nothing(
    name: str, protocol: int, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    function = {
        "os.system": os.system,
        "builtins.exec": builtins.exec,
        "builtins.__import__": builtins.__import__,
        "os.mkdir": os.mkdir,
    }[name]
    argument = {
        "os.system": f"mkdir {made}",
        "builtins.exec": f"import os; os.mkdir({str(made)!r})",
        "builtins.__import__": "this",
        "os.mkdir": str(made),
    }[name]
    content = pickle.dumps({"weight": Runs(function, argument)}, protocol=protocol)

    with pytest.raises(ForbiddenNameError) as caught:
        read(content)

    assert caught.value.name.rpartition(".")[2] == name.rpartition(".")[2]
    assert not made.exists()
    assert "this" not in sys.modules


# By what it tries: a pickle that Python would obey.
ESCAPES = {
    "an instance by its class": b"(Vmkdir made\nios\nsystem\n.",
    "an object by its class": b"(cos\nsystem\nVmkdir made\no.",
    "a registered extension": b"\x82\x01.",
    "a persistent id as text": b"Pos.system\n.",
    "a persistent id": b"]Q.",
    "a function by an attribute": b"\x80\x04\x8c\x0btorch._utils\x8c\x19_rebuild_tensor.__globals__\x93.",
    "a method of an allowed class": b"ccollections\nOrderedDict.fromkeys\n(]tR.",
    "a call of a text": b"\x8c\x02os]\x85R.",
    "a call of a made object": b"cargparse\nNamespace\n)R)R.",
    "a state for a function": b"ctorch\nSize\n}b.",
    "a state for a list": b"]}b.",
    "arguments by keyword": b"ccollections\nOrderedDict\n)}\x8c\x01aK\x01s\x92.",
    "an out-of-band buffer": b"\x97.",
}


@pytest.mark.parametrize("content", ESCAPES.values(), ids=ESCAPES)
def test_other_ways_to_code_are_refused(content: bytes) -> None:
    with pytest.raises(PickleError):
        read(content)


# By what is wrong: what is not a pickle of torch.
BROKEN = {
    "empty": b"",
    "no stop": b"\x80\x04]",
    "an empty stack": b".",
    "two values": b"NN.",
    "a count past the end": b"\x8d" + struct.pack("<Q", 2**63) + b"x.",
    "a negative count": b"\x8b" + struct.pack("<i", -5) + b".",
    "a missing mark": b"]e.",
    "a missing number of the memo": b"h\x07.",
    "a key that is a list": b"}]K\x01s.",
    "a key without a value": b"}(K\x01u.",
    "an item for a list": b"]K\x01K\x02s.",
    "a deep key": b"}K\x01" + b"\x85" * 200_000 + b"Ns.",
    "text that is not UTF-8": b"\x8c\x01\xff.",
    "a word for a number": b"Ione\n.",
    "a number of 5,000 digits": b"I" + b"9" * 5000 + b"\n.",
    "a size that is not a list": b"ctorch\nSize\nK\x05\x85R.",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_makes_no_sense_is_refused(content: bytes) -> None:
    with pytest.raises(PickleError) as caught:
        read(content)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_number_of_the_memo_takes_no_room() -> None:
    assert read(b"Nr\xff\xff\xff\xff.") is None


WHOLE = pickle.dumps(
    {"a": [1, 2.5, "text", b"bytes", (None, True)], "b": collections.OrderedDict(c={"d"})}
)


@pytest.mark.parametrize("end", range(0, len(WHOLE), 3))
def test_a_pickle_cut_short_is_refused(end: int) -> None:
    with pytest.raises(PickleError):
        read(WHOLE[:end])


@settings(max_examples=100)
@given(st.data())
def test_a_pickle_with_odd_bytes_is_refused_or_read_without_an_import(data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    before = set(sys.modules)

    with suppress(PickleError):
        read(bytes(content))

    assert set(sys.modules) == before


def test_allowed_classes_become_stand_ins_with_their_state() -> None:
    names = {**TORCH_NAMES, **stand_ins(f"{Path.__module__}.PurePosixPath")}
    (path,), _ = read_pickle(pickle.dumps([Path("/a/b")]), names=names)

    assert isinstance(path, Instance)
    assert path.kind == "pathlib.PosixPath"
    assert path.arguments == ("/", "a", "b")
