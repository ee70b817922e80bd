"""The head of a masked language model on chosen positions alone: it is most of a small network's work."""

from typing import Any

from torch import Tensor, nn


class HeadRows:
    """Lets the head of an unchanged network see only some positions: ``logits`` come as rows ``[N, V]``.

    The encoder inside (``network.base_model``) runs as ever; its last hidden state is reduced to the chosen rows on its
    way to the head. Hooks that were there before, taps among them, still see the whole state.

    Args:
        network: one for which :func:`has_row_head` is true.
    """

    def __init__(self, network: nn.Module) -> None:
        self._rows: Tensor | None = None
        network.base_model.register_forward_hook(self._select)

    def __call__(self, rows: Tensor | None) -> "HeadRows":
        """Choose the positions, bool ``[B, S]``, for the calls inside a ``with``; None: all, as ever."""
        self._rows = rows
        return self

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End: the next call sees all positions again."""
        self._rows = None

    def _select(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._rows is None:
            return None
        output.last_hidden_state = output.last_hidden_state[self._rows]
        return output


def has_row_head(network: nn.Module) -> bool:
    """Tell whether the head of a network treats every position alike and alone: transformers' masked language models."""
    return type(network).__name__.endswith("ForMaskedLM") and getattr(network, "base_model", network) is not network
