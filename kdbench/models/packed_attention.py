"""Attention over packed tokens: every token sees its own sequence and nothing else, whichever way it is computed."""

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from kdbench.errors import UserError, nearest
from kdbench.models.packed import PackedBatch
from kdbench.models.packed_tiles import Layout, first_fit_rows, length_buckets, tiling, visibility

FLEX_BLOCK = 128


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    backend: str = "auto",
    bias_slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return attention inside each sequence: ``o_i = sum_j softmax_j(q_i . k_j / sqrt(d) - slope |i - j|) v_j``.

    The back ends agree on every input that they take. What one of them plans for a batch is planned once for all layers.

    - ``padded``: unpack to ``[B, S]``, one call with a mask of the keys;
    - ``repad``: as padded, but only to the longest sequence; no mask where all sequences are equally long;
    - ``bucket``: as repad, in up to four buckets of similar lengths;
    - ``loop``: one call a sequence, no mask;
    - ``docmask``: sequences laid into rows as long as the longest, one call with a mask of who shares a sequence;
    - ``njt``: torch's jagged nested tensors (no slopes);
    - ``flex``: compiled ``flex_attention`` over a single row (no dropout; on the CPU no backward pass);
    - ``varlen``: the flash kernel that reads packed tokens (CUDA, float16 or bfloat16; no slopes, no dropout);
    - ``auto``: ``varlen`` where it can run, else ``bucket``.

    Args:
        query: ``[T, heads, d]``.
        key: ``[T, heads, d]``.
        value: ``[T, heads, d]``.
        packed: where the sequences begin and end.
        backend: one of the above.
        bias_slopes: ``[heads]``, ALiBi's (:func:`alibi_slopes`): constants without a gradient. None: no bias.
        dropout: the probability with which an attention weight is dropped.

    Returns:
        ``[T, heads, d]``.

    Raises:
        UserError: there is no such back end, or it cannot do this here.
        ValueError: ``query`` has more or fewer tokens than the batch.

    Source: Zhai et al. 2023, arXiv 2210.03052 (``padded`` is its zero padding, ``varlen`` its fused attention); ALiBi: Press
    et al. 2022, arXiv 2108.12409, in both directions as in Portes et al. 2023, arXiv 2312.17482.
    """
    if len(query) != len(packed.place):
        raise ValueError(f"the batch has {len(packed.place)} tokens, and the query is {tuple(query.shape)}")
    if backend == "auto":
        backend = "bucket" if _varlen_lacks(query, bias_slopes, dropout) else "varlen"
    check_backend(backend)
    return BACKENDS[backend](query, key, value, packed, bias_slopes, dropout)


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    bias_slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return the attention of :func:`packed_attention` in the padded layout; what padding gets means nothing.

    Args:
        query: ``[B, S, heads, d]``.
        key: ``[B, S, heads, d]``.
        value: ``[B, S, heads, d]``.
        packed: which of the places are real.
        bias_slopes: ``[heads]``, or None.
        dropout: the probability with which an attention weight is dropped.

    Returns:
        ``[B, S, heads, d]``.
    """
    return _attend(query, key, value, packed.planned(_key_mask, bias_slopes, query.dtype), dropout)


def tiled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedBatch,
    bias_slopes: Tensor | None,
    dropout: float,
    layout: Layout,
) -> Tensor:
    """Return the attention of :func:`packed_attention` by tiles: gather the tokens, attend in each tile, gather back.

    Args:
        query: ``[T, heads, d]``.
        key: ``[T, heads, d]``.
        value: ``[T, heads, d]``.
        packed: where the sequences begin and end.
        bias_slopes: ``[heads]``, or None.
        dropout: the probability with which an attention weight is dropped.
        layout: which sequences lie together.

    Returns:
        ``[T, heads, d]``.
    """
    tiles, home = packed.planned(tiling, layout, bias_slopes, query.dtype)
    mixed = []
    for tile in tiles:
        slots = (each.index_select(0, tile.tokens).unflatten(0, (tile.rows, -1)) for each in (query, key, value))
        mixed.append(_attend(*slots, tile.mask, dropout).flatten(0, 1))
    return torch.cat(mixed).index_select(0, home)


def alibi_slopes(heads: int) -> Tensor:
    """Return ALiBi's slopes ``[heads]`` in float64 on the CPU.

    For a power of two ``slope_n = 2^(-8 n / heads)``, n = 1 .. heads; else, with P the largest power of two below, the slopes
    of P heads and then the 1st, 3rd, 5th .. of 2 P heads.

    Source: Press et al. 2022, arXiv 2108.12409, section 3, and its code.
    """
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * n / power) for n in range(1, power + 1)]
    slopes += [2 ** (-4 * n / power) for n in range(1, 2 * (heads - power), 2)]
    return torch.tensor(slopes, dtype=torch.float64, device="cpu")  # also where a network is born on the meta device


def check_backend(name: str) -> None:
    """Check the name of a back end.

    Raises:
        UserError: there is none of this name.
    """
    names = ["auto", *BACKENDS]
    if name not in names:
        raise UserError(
            f"There is no attention back end '{name}'.{nearest(name, names)} There are: {', '.join(names)}."
        )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention of ``[n, L, heads, d]``."""
    heads_first = (each.transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def _padded(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, slopes: Tensor | None, dropout: float
) -> Tensor:
    spread = (packed.unpack(each) for each in (query, key, value))
    return packed.pack(padded_attention(*spread, packed, slopes, dropout))


def _key_mask(packed: PackedBatch, slopes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    visible = packed.mask[:, None, None] if min(packed.lengths) < packed.padded_length else None
    return visibility(visible, packed.unpack(packed.position_ids), slopes, dtype)


def _loop(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, slopes: Tensor | None, dropout: float
) -> Tensor:
    bias = packed.planned(_longest_bias, slopes, query.dtype)
    mixed = []
    for q, k, v in zip(*(each.split(packed.lengths) for each in (query, key, value)), strict=True):
        mask = None if bias is None else bias[..., : len(q), : len(q)]
        mixed.append(_attend(q[None], k[None], v[None], mask, dropout)[0])
    return torch.cat(mixed)


def _longest_bias(packed: PackedBatch, slopes: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    position = torch.arange(packed.max_length, device=packed.place.device)
    return visibility(None, position[None], slopes, dtype)


def _njt(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, slopes: Tensor | None, dropout: float
) -> Tensor:
    if slopes is not None:
        raise _refused("njt", "knows no ALiBi")
    bounds = {"min_seqlen": min(packed.lengths), "max_seqlen": packed.max_length}
    nested = (
        torch.nested.nested_tensor_from_jagged(each.contiguous(), packed.cu_seqlens.long(), **bounds).transpose(1, 2)
        for each in (query, key, value)
    )
    return F.scaled_dot_product_attention(*nested, dropout_p=dropout).transpose(1, 2).values()


def _flex(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, slopes: Tensor | None, dropout: float
) -> Tensor:
    if dropout:
        raise _refused("flex", "knows no attention dropout")
    trained = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    if trained and query.device.type == "cpu":
        raise _refused("flex", "has no backward pass on the CPU")
    block_mask, position = packed.planned(_document_blocks)

    def with_bias(score: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[head] * (position[i] - position[j]).abs()

    free = len(position) - len(query)
    row = (F.pad(each, (0, 0, 0, 0, 0, free)).transpose(0, 1)[None] for each in (query, key, value))
    attend = _flex_attention(query.device.type, query.dtype)
    mixed = attend(*row, score_mod=None if slopes is None else with_bias, block_mask=block_mask)
    return mixed[0].transpose(0, 1)[: len(query)]


def _document_blocks(packed: PackedBatch) -> tuple[BlockMask, Tensor]:
    """Return who sees whom in a row of all tokens, filled up to whole blocks, and the position of each slot.

    The sequences lie in order, so two blocks meet where their ranges of sequences do. The free end is a sequence of its own.
    """
    free = -len(packed.place) % FLEX_BLOCK
    owner = torch.arange(packed.batch_size, device=packed.place.device)
    owner = F.pad(owner.repeat_interleave(packed.cu_seqlens.diff()), (0, free), value=packed.batch_size)
    blocks = owner.view(-1, FLEX_BLOCK)
    first, last = blocks[:, 0], blocks[:, -1]
    meet = ((first[:, None] <= last) & (first <= last[:, None])).int()[None, None]
    block_mask = BlockMask.from_kv_blocks(
        meet.sum(dim=-1, dtype=torch.int32),
        meet.argsort(dim=-1, descending=True, stable=True).int(),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=lambda _batch, _head, i, j: owner[i] == owner[j],
    )
    return block_mask, F.pad(packed.position_ids, (0, free))


@functools.cache
def _flex_attention(device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    if dtype == torch.float64:  # no kernel can be compiled for it; the plain form computes the same
        return flex_attention
    # On the CPU torch 2.13 cannot build a kernel for changing shapes: one is compiled for every number of blocks.
    return torch.compile(flex_attention, dynamic=False if device == "cpu" else None)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedBatch, slopes: Tensor | None, dropout: float
) -> Tensor:
    if lack := _varlen_lacks(query, slopes, dropout):
        raise _refused("varlen", lack)
    from torch.nn.attention.varlen import varlen_attn

    ends, longest = packed.cu_seqlens, packed.max_length
    return varlen_attn(query, key, value, ends, ends, longest, longest)


def _varlen_lacks(query: Tensor, slopes: Tensor | None, dropout: float) -> str | None:
    """Say why the flash kernel for packed tokens cannot run; None where it can."""
    if query.device.type != "cuda":
        return f"has no kernel on the device '{query.device.type}'"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 and bfloat16, not in {str(query.dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or later"
    if query.size(-1) % 8 or query.size(-1) > 256:
        return f"needs a head width that is a multiple of 8 and at most 256, not {query.size(-1)}"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return "needs a newer torch"
    if slopes is not None:
        return "knows no ALiBi"
    return "knows no attention dropout" if dropout else None


def _refused(backend: str, why: str) -> UserError:
    return UserError(f"The attention back end '{backend}' {why}: take 'auto', which chooses one that can.")


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "padded": _padded,
    "repad": functools.partial(tiled_attention, layout=functools.partial(length_buckets, most=1)),
    "bucket": functools.partial(tiled_attention, layout=functools.partial(length_buckets, most=4)),
    "loop": _loop,
    "docmask": functools.partial(tiled_attention, layout=first_fit_rows),
    "njt": _njt,
    "flex": _flex,
    "varlen": _varlen,
}
"""The back ends by name, without ``auto``: functions of query, key, value, packed, bias_slopes and dropout."""
