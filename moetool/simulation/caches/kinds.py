"""The caches that `generate` can use, and the formats of quantized ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# transformers' default: that number of tokens is quantized at once, with all tokens before them.
RESIDUAL_LENGTH = 128


class CacheKind(StrEnum):
    """transformers' caches for `generate`, by their names there.

    Attributes:
        DYNAMIC: Grows with each token.
        STATIC: Has its full length from the start.
        OFFLOADED: Dynamic, in the host's memory except for the layer that runs and the next one.
        OFFLOADED_STATIC: Static, and offloaded in the same way.
        QUANTIZED: Dynamic and quantized; the last tokens stay in full precision.
    """

    DYNAMIC = "dynamic"
    STATIC = "static"
    OFFLOADED = "offloaded"
    OFFLOADED_STATIC = "offloaded_static"
    QUANTIZED = "quantized"


class CacheDtype(StrEnum):
    """The formats of transformers' quantized cache.

    Attributes:
        FP8: float8_e4m3fn with one scale for each tensor, by transformers itself.
        INT8: 8 bits in groups of 64, by HQQ.
        INT4: 4 bits in groups of 64, by quanto.
        INT2: 2 bits in groups of 64, by quanto.
    """

    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"

    @property
    def num_bits(self) -> int:
        """The bits of a stored number."""
        return int(self.value.lstrip("fpint"))

    @property
    def backend(self) -> str:
        """The backend that transformers is given for it."""
        return _BACKENDS[self]

    @property
    def package(self) -> str | None:
        """The package on PyPI that the backend needs; None if transformers is enough."""
        return _PACKAGES[self.backend]


_BACKENDS = {
    CacheDtype.FP8: "fp8",
    CacheDtype.INT8: "hqq",
    CacheDtype.INT4: "quanto",
    CacheDtype.INT2: "quanto",
}
_PACKAGES = {"fp8": None, "hqq": "hqq", "quanto": "optimum-quanto"}


@dataclass(frozen=True)
class CachePlan:
    """The cache of a run.

    Attributes:
        kind: transformers' cache.
        dtype: The format of a quantized cache; None for others.
    """

    kind: CacheKind = CacheKind.DYNAMIC
    dtype: CacheDtype | None = None

    @property
    def is_static(self) -> bool:
        """Whether it has its full length from the start."""
        return self.kind in (CacheKind.STATIC, CacheKind.OFFLOADED_STATIC)

    @property
    def is_offloaded(self) -> bool:
        """Whether it is in the host's memory."""
        return self.kind in (CacheKind.OFFLOADED, CacheKind.OFFLOADED_STATIC)

    @property
    def is_filled_by_tokens(self) -> bool:
        """Whether the GPU holds as much of it as there are tokens."""
        return self.kind in (CacheKind.DYNAMIC, CacheKind.QUANTIZED)

    def count_residual(self, num_steps: int) -> int:
        """Return how many tokens are in full precision after some decoding steps."""
        return num_steps % RESIDUAL_LENGTH if self.has_residual else 0

    @property
    def has_residual(self) -> bool:
        """Whether the last tokens stay in full precision until there are `RESIDUAL_LENGTH`."""
        return self.dtype is not None and self.dtype is not CacheDtype.FP8

    @property
    def made_by_generate(self) -> str | None:
        """The `cache_implementation` with which it starts; None for `generate`'s default."""
        return "static" if self.is_static else None


DYNAMIC_CACHE = CachePlan()
