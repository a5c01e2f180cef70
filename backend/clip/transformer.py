"""A vision transformer without the work that nothing comes of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

Layer = Callable[[Tensor, Tensor | None], nn.Module]


class _Block(nn.Module):
    """A transformer's block, for all tokens or for the first alone.

    Where only the first is pooled, the last block need not tell what becomes of the others: that
    saves a twelfth of a transformer of twelve blocks, and the vector is the same.
    """

    def __init__(self, block: ResidualAttentionBlock, layer: Layer, *, first_only: bool) -> None:
        super().__init__()
        attention, mlp = block.attn, block.mlp
        width = attention.embed_dim
        self.first_only = first_only
        self.heads = attention.num_heads
        self.ln_1, self.ls_1 = block.ln_1, block.ls_1
        self.ln_2, self.ls_2 = block.ln_2, block.ls_2
        # Apart, for queries are wanted of fewer tokens than keys and values.
        (query, pair), (query_bias, pair_bias) = (
            rows.split([width, 2 * width])
            for rows in (attention.in_proj_weight, attention.in_proj_bias)
        )
        self.query, self.pair = layer(query, query_bias), layer(pair, pair_bias)
        self.out = layer(attention.out_proj.weight, attention.out_proj.bias)
        self.mlp = nn.Sequential(
            layer(mlp.c_fc.weight, mlp.c_fc.bias),
            mlp.gelu,
            layer(mlp.c_proj.weight, mlp.c_proj.bias),
        )

    def forward(self, tokens: Tensor, **_: Any) -> Tensor:
        """Return tokens [N, L, D], or the first [N, 1, D], of tokens [N, L, D]."""
        normed = self.ln_1(tokens)
        asking = slice(1) if self.first_only else slice(None)
        tokens = tokens[:, asking] + self.ls_1(self._attend(normed[:, asking], normed))
        result: Tensor = tokens + self.ls_2(self.mlp(self.ln_2(tokens)))
        return result

    def _attend(self, asking: Tensor, asked: Tensor) -> Tensor:
        count, length, width = asking.shape
        size = width // self.heads
        pair = self.pair(asked).view(count, -1, 2, self.heads, size).permute(2, 0, 3, 1, 4)
        query = self.query(asking).view(count, length, self.heads, size).transpose(1, 2)
        query = query.reshape(-1, length, size)
        key, value = pair.reshape(2, len(query), -1, size)
        # Faster than torch's fused attention in bfloat16 on a CPU, by a third with 50 tokens.
        scores = torch.baddbmm(
            query.new_zeros(1), query, key.transpose(1, 2), beta=0, alpha=size**-0.5
        )
        heads = torch.bmm(scores.softmax(-1), value).view(count, self.heads, length, size)
        attended: Tensor = self.out(heads.transpose(1, 2).reshape(count, length, width))
        return attended


class _Patches(nn.Module):
    """A vision transformer's first convolution: a linear layer of patches side by side."""

    def __init__(self, convolution: nn.Conv2d, layer: Layer) -> None:
        super().__init__()
        self.side = convolution.kernel_size
        self.project = layer(convolution.weight.flatten(1), convolution.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return [N, D, H / h, W / w] of pixels [N, 3, H, W] and patches of h by w."""
        (height, width), (count, channels) = self.side, pixels.shape[:2]
        split = pixels.reshape(count, channels, -1, height, pixels.shape[3] // width, width)
        rows, columns = split.shape[2], split.shape[4]
        patches = split.permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, -1)
        projected: Tensor = self.project(patches)
        return projected.transpose(1, 2).view(count, -1, rows, columns)


class _Linear(nn.Module):
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows, self.weight, self.bias)


class _PackedLinear(nn.Module):
    """Has its weights laid out for the CPU once, which is done for each batch otherwise."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.weight, self.bias, "none", [], ""
        )
        return result


def leave_out_work(visual: nn.Module, *, packed: bool) -> None:
    """Change an image tower so that it leaves out what nothing comes of; vectors stay the same.

    That is what its pooling drops, and, where weights are to be `packed` (see
    `hardware.packs_weights`), to lay them out for each batch. Towers of other kinds than
    open_clip's own transformer stay as they are.
    """
    if not isinstance(visual, VisionTransformer):
        return
    blocks: Any = visual.transformer.resblocks
    if not all(map(_is_plain, blocks)):
        return
    layer = _PackedLinear if packed else _Linear
    pools_first = visual.pool_type == "tok" and visual.attn_pool is None
    first_only = pools_first and not visual.output_tokens and len(blocks) > 1
    last = len(blocks) - 1
    for number, block in enumerate(blocks):
        if packed or (first_only and number == last):
            blocks[number] = _Block(block, layer, first_only=first_only and number == last)
    # Elsewhere what the last whole patches leave of a picture is not looked at.
    whole = all(
        side % patch == 0 for side, patch in zip(visual.image_size, visual.patch_size, strict=True)
    )
    if packed and whole:
        visual.conv1 = _Patches(visual.conv1, layer)


def _is_plain(block: nn.Module) -> bool:
    if type(block) is not ResidualAttentionBlock:
        return False
    attention: Any = block.attn
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
