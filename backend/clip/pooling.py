"""A vision transformer without the work that nothing comes of."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn


class _BlockOfOneToken(nn.Module):
    """A transformer's last block, for its first token alone.

    The others are attended to, but what becomes of them is not looked at: that saves a
    twelfth of a transformer of twelve blocks, and the vector is the same.
    """

    def __init__(self, block: ResidualAttentionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        """Return the first token [N, 1, D] of tokens [N, L, D]."""
        block = self.block
        normed = block.ln_1(tokens)
        attended, _weights = block.attn(normed[:, :1], normed, normed, need_weights=False)
        token = tokens[:, :1] + block.ls_1(attended)
        result: Tensor = token + block.ls_2(block.mlp(block.ln_2(token)))
        return result


def encode_pooled_only(visual: nn.Module) -> None:
    """Change an image tower so that it leaves out what its pooling drops.

    Towers that pool all tokens, and those of other kinds, stay as they are.
    """
    if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok":
        return
    blocks: Any = visual.transformer.resblocks
    last = blocks[-1]
    if (
        visual.attn_pool is None
        and not visual.output_tokens
        and type(last) is ResidualAttentionBlock
        and isinstance(last.attn, nn.MultiheadAttention)
        and last.attn.batch_first
        and len(blocks) > 1
    ):
        blocks[-1] = _BlockOfOneToken(last)
