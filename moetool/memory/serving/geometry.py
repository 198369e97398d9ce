"""The sizes of a model that decide how large an engine's cache is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.anatomy.config_fields import find_hidden_size, find_num_heads, read_count
from moetool.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FULL, _SLIDING = "full_attention", "sliding_attention"
# Fields of models some of whose layers keep states, share caches, or differ in their heads.
_OTHER_CACHES = (
    "mamba_d_state",
    "mamba_d_conv",
    "ssm_state_size",
    "layers_block_type",
    "attn_layer_period",
    "linear_num_value_heads",
    "conv_L_cache",
    "index_head_dim",
    "num_kv_shared_layers",
    "global_head_dim",
    "compress_ratios",
)
_FUSED = ("qkv_proj", "Wqkv", "query_key_value")


@dataclass(frozen=True)
class CacheGeometry:
    """The cache of a token in each layer.

    Attributes:
        num_full: Layers that keep all tokens.
        num_sliding: Layers that keep those in a window.
        window: Tokens of the window; None without such layers.
        num_kv_heads: Heads of keys and of values; 1 with latent attention.
        head_dim: Numbers in each head; with latent attention, those of the latent and the rotary
            part of a token, which are stored once.
        is_latent: Whether attention is latent (MLA).
        sliding: For each layer, whether it keeps a window only; empty if no layer does.
    """

    num_full: int
    num_sliding: int
    window: int | None
    num_kv_heads: int
    head_dim: int
    is_latent: bool
    sliding: tuple[bool, ...] = ()

    @property
    def num_layers(self) -> int:
        """Layers that cache tokens."""
        return self.num_full + self.num_sliding

    def count_values(self, *, num_gpus: int = 1) -> int:
        """Return the numbers that one layer keeps for one token on each GPU.

        Heads are shared by the GPUs, or copied where there are fewer heads than GPUs. A latent is
        on every GPU.
        """
        if self.is_latent:
            return self.head_dim
        return 2 * max(self.num_kv_heads // num_gpus, 1) * self.head_dim


def read_geometry(skeleton: PreTrainedModel) -> CacheGeometry:
    """Return what each layer of a model caches.

    Raises:
        InputError: Some layers keep something else, or heads differ between layers.
    """
    config = skeleton.config.get_text_config()
    model_type = config.model_type
    found = [name for name in _OTHER_CACHES if getattr(config, name, None)]
    kinds = list(getattr(config, "layer_types", None) or [])
    found += sorted(set(kinds) - {_FULL, _SLIDING})
    if found or getattr(config, "is_encoder_decoder", False):
        named = found[0] if found else "an encoder"
        raise InputError(
            f"Layers of {model_type} cache more than their keys and values ({named}), and "
            "how engines lay that out is not known here.",
            hint="Read the cache's size in the engine's own log.",
        )
    if getattr(config, "is_heterogeneous", False):
        raise InputError(
            f"Sizes of {model_type} differ between layers, and how engines lay that out is not known "
            "here.",
            hint="Read the cache's size in the engine's own log.",
        )
    num_layers = read_count(config, "num_hidden_layers", "n_layer", "n_layers") or 0
    num_heads = find_num_heads(config) or 0
    window = read_count(config, "sliding_window")
    if not kinds:
        kinds = [_FULL if window is None else _SLIDING] * num_layers
    num_sliding = sum(kind == _SLIDING for kind in kinds) if window else 0
    latent, rotary = read_count(config, "kv_lora_rank"), read_count(config, "qk_rope_head_dim")
    if latent and rotary:
        return CacheGeometry(num_layers, 0, None, 1, latent + rotary, is_latent=True)
    num_kv_heads = read_count(config, "num_key_value_heads", "num_kv_heads") or num_heads
    head_dim = read_count(config, "head_dim")
    if head_dim is None and num_heads:
        head_dim = (find_hidden_size(config) or 0) // num_heads
    if (
        not head_dim
        or not num_kv_heads
        or not _agrees(
            skeleton, num_layers, num_kv_heads * head_dim, (num_heads + 2 * num_kv_heads) * head_dim
        )
    ):
        raise InputError(
            f"The heads of {model_type} are not those that its configuration states.",
            hint="Read the cache's size in the engine's own log.",
        )
    return CacheGeometry(
        num_layers - num_sliding,
        num_sliding,
        window if num_sliding else None,
        num_kv_heads,
        head_dim,
        is_latent=False,
        sliding=tuple(kind == _SLIDING for kind in kinds) if num_sliding else (),
    )


def _agrees(skeleton: PreTrainedModel, num_layers: int, keys: int, fused: int) -> bool:
    """Return whether every layer's projection has the stated number of rows."""
    rows = []
    for path, module in skeleton.named_modules():
        name = path.rpartition(".")[2]
        size = read_count(module, "out_features")
        if size and name == "k_proj":
            rows.append(size == keys)
        elif size and name in _FUSED:
            rows.append(size == fused)
    return len(rows) == num_layers and all(rows)
