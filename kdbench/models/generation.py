"""Text drawn from causal language models: batches with a key-value cache, from given random numbers."""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from kdbench.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from logits.

    Args:
        temperature: divides the logits; 0 takes the most probable token, the first of equals.
        top_k: keep so many most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens whose probability reaches this share.

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"Sampling has a temperature of at least 0, a top_k of at least 0 and a top_p in (0, 1]: not {self.temperature}, "
                f"{self.top_k} and {self.top_p}."
            )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution ``[..., V]`` that is drawn from, in float32 at least."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        found = logits.softmax(-1)
        if self.top_p < 1:
            ordered, order = found.sort(-1, descending=True)
            kept = ordered.cumsum(-1) - ordered < self.top_p  # what comes before is not enough yet
            found = found * torch.zeros_like(kept).scatter(-1, order, kept)
            found = found / found.sum(-1, keepdim=True)
        return found


class Drawn(NamedTuple):
    """Text that a network has gone on with."""

    tokens: Tensor
    """The tokens after the prompt, int64 ``[B, L]``; after an end of the text comes padding."""
    mask: Tensor
    """Which of them count, the end of the text among them, bool ``[B, L]``."""
    log_probabilities: Tensor
    """Of each token under the distribution that it was drawn from, ``[B, L]``; 0 where nothing counts."""


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the tokens ``[...]`` at which the cumulative probability ``[..., V]`` exceeds numbers ``[...]`` of [0, 1)."""
    cumulative = probabilities.double().cumsum(-1)
    scaled = uniforms.double()[..., None] * cumulative[..., -1:]  # so that rounding never leaves the last token behind
    return torch.searchsorted(cumulative, scaled, right=True).squeeze(-1).clamp(max=probabilities.shape[-1] - 1)


@torch.no_grad()
def generate(
    network: nn.Module,
    prompt: Tensor,
    mask: Tensor,
    uniforms: Tensor,
    sampling: Sampling | None = None,
    end: int | None = None,
    padding: int = 0,
    mixed: tuple[nn.Module, float] | None = None,
    vocabulary: int | None = None,
) -> Drawn:
    """Return what a causal language model writes after prompts.

    The network is in eval mode while it writes, and as it was afterwards. The same random numbers give the same text,
    whatever else is in the batch.

    Args:
        network: one of transformers' causal language models.
        prompt: int64 ``[B, S]``, padded on the left.
        mask: which tokens of the prompt are real, ``[B, S]``.
        uniforms: a number of [0, 1) for each token that is drawn, ``[B, L]``; L is how many are drawn at most.
        sampling: how they are drawn; by default from the network's own distribution.
        end: the token that ends a text.
        padding: the token after it.
        mixed: another network p and its share a: each token is drawn from ``a p + (1 - a) q``, q being the network's law.
        vocabulary: draw from the first so many tokens alone, where a head is wider than its tokenizer.

    Raises:
        UserError: a prompt is empty, or padded on the right.
    """
    if not bool(mask[:, -1].all()):
        raise UserError("A prompt that is gone on with ends in a real token: pad prompts on the left.")
    sampling = sampling or Sampling()
    rows, length = uniforms.shape
    tokens = prompt.new_full((rows, length), padding)
    logs = torch.zeros(rows, length, device=prompt.device)
    open_ = torch.ones(rows, dtype=torch.bool, device=prompt.device)
    counted = torch.zeros(rows, length, dtype=torch.bool, device=prompt.device)
    mask = mask.long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    voices = [(network, 1.0)] if mixed is None else [(network, 1 - mixed[1]), mixed]
    step, caches = prompt, [new_cache(voice) for voice, _ in voices]
    with contextlib.ExitStack() as modes:
        for voice, _ in voices:
            modes.enter_context(evaluating(voice))
        for at in range(length):
            found = 0.0
            for (voice, share), cache in zip(voices, caches, strict=True):
                said = voice(input_ids=step, attention_mask=mask, position_ids=places, **cache)
                found = found + share * sampling.probabilities(said.logits[:, -1, :vocabulary])
            chosen = draw(found, uniforms[:, at])
            tokens[:, at] = torch.where(open_, chosen, padding)
            logs[:, at] = torch.where(open_, found.gather(-1, chosen[:, None]).squeeze(-1).log(), 0.0)
            counted[:, at] = open_
            if end is not None:
                open_ = open_ & (chosen != end)
                if not bool(open_.any()):
                    break
            step = tokens[:, at : at + 1]
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            places = places[:, -1:] + 1
    return Drawn(tokens, counted, logs)


def new_cache(network: nn.Module) -> dict[str, Cache]:
    """Return an empty key-value cache as the keyword argument that the network's forward takes it by.

    transformers renamed ``past_key_values`` to ``cache`` in its version 5; both are met.
    """
    parameters = inspect.signature(network.forward).parameters
    return {"cache" if "cache" in parameters else "past_key_values": DynamicCache(config=network.config)}


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode inside, and back as it was."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
