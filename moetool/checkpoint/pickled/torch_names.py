"""The functions and classes that torch names in its pickles, and the stand-ins for them.

A tensor becomes its dtype, its shape and its place in a storage. Nothing else of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from moetool.checkpoint.pickled.stand_ins import Instance, Named, PickleError

# Elements and bytes are counted in 64 bits, as in safetensors.
_MAX_SIZE = 2**63 - 1
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class StoredDtype:
    """A dtype by safetensors' name, and the bytes of an element."""

    name: str
    itemsize: int


_DTYPES = {
    "float64": StoredDtype("F64", 8),
    "double": StoredDtype("F64", 8),
    "float32": StoredDtype("F32", 4),
    "float": StoredDtype("F32", 4),
    "float16": StoredDtype("F16", 2),
    "half": StoredDtype("F16", 2),
    "bfloat16": StoredDtype("BF16", 2),
    "float8_e4m3fn": StoredDtype("F8_E4M3", 1),
    "float8_e4m3fnuz": StoredDtype("F8_E4M3FNUZ", 1),
    "float8_e5m2": StoredDtype("F8_E5M2", 1),
    "float8_e5m2fnuz": StoredDtype("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": StoredDtype("F8_E8M0", 1),
    "int64": StoredDtype("I64", 8),
    "int32": StoredDtype("I32", 4),
    "int16": StoredDtype("I16", 2),
    "int8": StoredDtype("I8", 1),
    "uint64": StoredDtype("U64", 8),
    "uint32": StoredDtype("U32", 4),
    "uint16": StoredDtype("U16", 2),
    "uint8": StoredDtype("U8", 1),
    "bool": StoredDtype("BOOL", 1),
    "complex64": StoredDtype("C64", 8),
    "complex128": StoredDtype("C128", 16),
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


@dataclass(frozen=True)
class PickledStorage:
    """The data of tensors.

    Attributes:
        key: Its name in the file.
        dtype: Of its elements; None if it is stored as bytes.
        num_elements: Bytes, if it is stored as bytes.
    """

    key: str
    dtype: StoredDtype | None
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """The bytes of the storage."""
        return self.num_elements * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class PickledTensor:
    """A tensor in a storage.

    Attributes:
        dtype: Of its elements.
        shape: Its sizes.
        strides: In elements, one for each size.
        offset: Of its first element, in elements.
        num_elements: The product of its sizes.
        storage: Holds its data.
    """

    dtype: StoredDtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    num_elements: int
    storage: PickledStorage

    @property
    def num_bytes(self) -> int:
        """The bytes of its elements."""
        return self.num_elements * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The end of its last element in the storage, in elements; its offset if it is empty."""
        if not self.num_elements:
            return self.offset
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return self.offset + last + 1


def load_storage(saved: object) -> PickledStorage:
    """Return the storage that a persistent id of torch describes.

    Raises:
        PickleError: It describes something else.
    """
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
        raise PickleError("it refers to data in another way than torch does")
    kind, key, _, num_elements = saved[1:5]
    if not isinstance(kind, Named) or not isinstance(key, str) or not _is_size(num_elements):
        raise PickleError("it describes the data of a tensor in another way than torch does")
    if len(saved) == 6 and saved[5] is not None:
        raise PickleError("it has a storage that is a view of another one, as torch wrote in 2016")
    name = kind.name.rpartition(".")[2]
    dtype = _DTYPES[_STORAGES[name]] if name in _STORAGES else None
    return PickledStorage(key, dtype, num_elements)


def read_shape(value: object) -> tuple[tuple[int, ...], int]:
    """Return the sizes of a tensor, and their product.

    Raises:
        PickleError: They are not sizes, or their product is larger than any tensor's.
    """
    if not _are_sizes(value):
        raise PickleError("it has a tensor with a shape that is not a tuple of sizes")
    num_elements = 1
    for size in value:
        num_elements *= size
        if num_elements > _MAX_SIZE:
            raise PickleError("it has a tensor with more elements than 64 bits can count")
    return tuple(value), num_elements


def find_dtype(value: object) -> StoredDtype:
    """Return the dtype that a pickle names.

    Raises:
        PickleError: It names none.
    """
    name = value.name if isinstance(value, Named) else ""
    if not name.startswith("torch.") or name.removeprefix("torch.") not in _DTYPES:
        raise PickleError("it has a tensor without a dtype")
    return _DTYPES[name.removeprefix("torch.")]


def _rebuild_by_storage(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> PickledTensor:
    """Return a tensor of its storage's dtype, as `torch._utils._rebuild_tensor_v2` does."""
    if not isinstance(storage, PickledStorage) or storage.dtype is None:
        raise PickleError("it has a tensor without data")
    return _place(storage.dtype, storage, offset, shape, strides)


def _rebuild_by_dtype(
    storage: object, offset: object, shape: object, strides: object, *further: object
) -> PickledTensor:
    """Return a tensor of a given dtype, as `torch._utils._rebuild_tensor_v3` does.

    The dtype comes after whether the tensor needs gradients, and its hooks.
    """
    if not isinstance(storage, PickledStorage):
        raise PickleError("it has a tensor without data")
    return _place(find_dtype(further[2]), storage, offset, shape, strides)


def _place(
    dtype: StoredDtype, storage: PickledStorage, offset: object, shape: object, strides: object
) -> PickledTensor:
    """Return a tensor, checked against the storage that it lies in."""
    sizes, num_elements = read_shape(shape)
    if not _is_size(offset) or not _are_sizes(strides) or len(strides) != len(sizes):
        raise PickleError("it has a tensor with a place that is not a place")
    tensor = PickledTensor(dtype, sizes, tuple(strides), offset, num_elements, storage)
    if tensor.end * dtype.itemsize > storage.num_bytes:
        raise PickleError("it has a tensor that is larger than its data")
    return tensor


def _take_first(first: object, *_: object) -> object:
    """Return the tensor that a parameter is made of, as `torch._utils._rebuild_parameter` does."""
    return first


def _rebuild_subclass(function: object, kind: object, arguments: object, *_: object) -> object:
    """Return the plain tensor inside one with attributes, as `_rebuild_from_type_v2` does."""
    is_plain = isinstance(kind, Named) and kind.name in (
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
    )
    if not is_plain or not isinstance(function, Named) or function.make is None:
        raise PickleError("it has a tensor of a class that is not torch's own")
    return function.make(*arguments) if isinstance(arguments, tuple) else None


def _stand_in(name: str) -> Named:
    return Named(name, lambda *arguments: Instance(name, arguments))


def _as_tuple(values: object = ()) -> tuple[object, ...]:
    if not isinstance(values, list | tuple | set | frozenset):
        raise PickleError("it has a size that is not a list of numbers")
    return tuple(values)


def _take_member(owner: object, name: object) -> Instance:
    """Return the stand-in for a member of an enumeration, as Python 3.11.0 to 3.11.3 pickle it."""
    if not isinstance(owner, Named) or not isinstance(name, str) or not name.isupper():
        raise PickleError("it takes an attribute of something that is not an enumeration")
    return Instance(owner.name, (name,))


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_by_storage,
    "torch._utils._rebuild_tensor_v2": _rebuild_by_storage,
    "torch._utils._rebuild_tensor_v3": _rebuild_by_dtype,
    "torch._utils._rebuild_parameter": _take_first,
    "torch._utils._rebuild_parameter_with_state": _take_first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.Size": _as_tuple,
    "collections.OrderedDict": lambda *_: {},
    "collections.defaultdict": lambda *_: {},
    **{f"{module}.getattr": _take_member for module in ("builtins", "__builtin__")},
    **{
        f"{module}.set": lambda values=(): list(_as_tuple(values))
        for module in ("builtins", "__builtin__")
    },
}
# Settings of a training run, which lie next to the weights. Their values are not looked at.
_STAND_INS = (
    "argparse.Namespace",
    "torch.device",
    "torch.serialization._get_layout",
    "_io.BytesIO",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "megatron.core.enums.ModelType",
    "megatron.enums.ModelType",
    "megatron.model.enums.ModelType",
    "megatron.core.transformer.enums.AttnBackend",
)
_CONSTANTS = (
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    *(f"torch.{name}" for name in _DTYPES),
    *(f"{module}.{name}" for name in _STORAGES for module in ("torch", "torch.cuda")),
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("int", "list", "dict")
    ),
)

TORCH_NAMES: Mapping[str, Named] = {
    **{name: Named(name, make) for name, make in _FUNCTIONS.items()},
    **{name: _stand_in(name) for name in _STAND_INS},
    **{name: Named(name) for name in _CONSTANTS},
}


def stand_ins(*names: str) -> dict[str, Named]:
    """Return stand-ins for further classes, by their names with their modules."""
    return {name: _stand_in(name) for name in names}


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _are_sizes(value: object) -> TypeGuard[tuple[int, ...] | list[int]]:
    return (
        isinstance(value, tuple | list)
        and len(value) <= _MOST_DIMENSIONS
        and all(map(_is_size, value))
    )
