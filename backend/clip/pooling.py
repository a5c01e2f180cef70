"""A vision transformer without the work that nothing comes of."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional


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
        block, attention = self.block, self.block.attn
        heads, width = attention.num_heads, tokens.shape[2]
        normed = block.ln_1(tokens)
        # Not `attention` itself: for queries that are not its keys it takes a slow path.
        weights, biases = (
            rows.split([width, 2 * width])
            for rows in (attention.in_proj_weight, attention.in_proj_bias)
        )
        query = functional.linear(normed[:, :1], weights[0], biases[0])
        pair = functional.linear(normed, weights[1], biases[1])
        count, length, _size = normed.shape
        query = query.view(count, 1, heads, -1).transpose(1, 2)
        key, value = pair.view(count, length, 2, heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        token = tokens[:, :1] + block.ls_1(attention.out_proj(attended.flatten(1)[:, None]))
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
        and last.attn.in_proj_weight is not None
        and last.attn.in_proj_bias is not None
        and last.attn.bias_k is None
        and not last.attn.add_zero_attn
        and len(blocks) > 1
    ):
        blocks[-1] = _BlockOfOneToken(last)
