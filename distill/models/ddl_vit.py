"""``ddl_vit``: a small ViT for training from scratch whose residual connections are Deep Delta Learning's.

timm's vision transformer with other residual connections, registered with timm: sizes, features, pooling and position
embeddings are timm's. RMSNorm, 4 × 4 patches of 32 × 32 pixels, mean pooling, 192 wide, 6 blocks of 3 heads. Every
argument of timm's VisionTransformer can be given, and ``values``, ``gate``, ``value`` of :class:`DeltaResidual`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import RmsNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from distill.models.ddl import DeltaResidual, compression, expansion


class DeltaBlock(Block):
    """timm's block with delta residuals instead of the additions after attention and MLP.

    Args:
        dim: d, width of attention and MLP.
        arguments: of timm's block.
        values: as in :class:`DeltaResidual`.
        gate: as there.
        value: as there.
        more: keyword arguments of timm's block.
    """

    def __init__(
        self, dim: int, *arguments: Any, values: int = 1, gate: str = "linear", value: str = "linear", **more: Any
    ):
        super().__init__(dim, *arguments, **more)
        self.read1, self.read2 = compression(dim, values), compression(dim, values)
        self.delta1, self.delta2 = (DeltaResidual(dim, values, gate, value) for _ in range(2))  # type: ignore[arg-type]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Update the states.

        Args:
            x: states [B, N, d · m].
            attn_mask: of the attention, as in timm's block.
            is_causal: whether the attention is causal.

        Returns:
            States [B, N, d · m].
        """
        compressed = self.read1(x)
        c = self.norm1(compressed)
        proposal = self.ls1(self.attn(c, attn_mask=attn_mask, is_causal=is_causal))
        x = x + self.drop_path1(self.delta1(x, compressed, c, proposal) - x)
        compressed = self.read2(x)
        c = self.norm2(compressed)
        return x + self.drop_path2(self.delta2(x, compressed, c, self.ls2(self.mlp(c))) - x)


class DeltaVit(VisionTransformer):
    """timm's VisionTransformer on states: expanded after the embedding, compressed before the final norm.

    Args:
        arguments: of timm's model.
        values: as in :class:`DeltaResidual`.
        gate: as there.
        value: as there.
        more: keyword arguments of timm's model.
    """

    def __init__(self, *arguments: Any, values: int = 1, gate: str = "linear", value: str = "linear", **more: Any):
        block = partial(DeltaBlock, values=values, gate=gate, value=value)
        super().__init__(*arguments, block_fn=block, **more)  # type: ignore[arg-type, misc]
        if values > 1:
            self.norm_pre = nn.Sequential(self.norm_pre, expansion(self.embed_dim, values))
            self.norm = nn.Sequential(compression(self.embed_dim, values), self.norm)  # type: ignore[assignment]
            for info in self.feature_info:
                info["num_chs"] = self.embed_dim * values


default_cfgs = generate_default_cfgs(
    {
        "ddl_vit.untrained": {
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "num_classes": 1000,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


@register_model
def ddl_vit(pretrained: bool = False, **arguments: Any) -> DeltaVit:
    """192 wide, 6 blocks, 3 heads, patches of 4 pixels; there are no pretrained weights."""
    own = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
        "norm_layer": RmsNorm,
    }
    feature_cfg = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(DeltaVit, "ddl_vit", pretrained, feature_cfg=feature_cfg, **{**own, **arguments})
