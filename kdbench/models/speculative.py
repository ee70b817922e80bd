"""Speculative decoding: a small draft network proposes a block of tokens, the target takes or refuses them in one call.

What comes out follows the target's distribution exactly, whatever the draft is. Leviathan et al. 2023, arXiv 2211.17192; Chen
et al. 2023, arXiv 2302.01318.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kdbench.errors import UserError, nearest
from kdbench.models.generation import Sampling, draw, evaluating, new_cache

Rule = Literal["linear", "square", "exponential"]


@dataclass(frozen=True)
class Lenience:
    """What the target's probability p is taken for: more than it is, so that more is accepted and the law is no longer its own.

    ``linear``: ``p / e``, ``square``: ``p / e^2``, ``exponential``: ``p^e``. At e = 1 each is p, and nothing is lost. Zhou et al.
    2024, arXiv 2310.08461; the residual ``max(0, f(p) - q)`` after a refusal is that of Leviathan et al. for ``linear``, and
    carried over to the others here.

    Args:
        e: in (0, 1].
        rule: see above.

    Raises:
        UserError: e is out of its range, or the rule is unknown.
    """

    e: float = 1.0
    rule: Rule = "linear"

    def __post_init__(self) -> None:
        if not 0 < self.e <= 1:
            raise UserError(f"A lenience lies in (0, 1], 1 being exact, got {self.e}.")
        if self.rule not in get_args(Rule):
            raise UserError(f"There is no lenience '{self.rule}'.{nearest(self.rule, get_args(Rule))}")

    def __call__(self, target: Tensor) -> Tensor:
        """Return ``f(p)``."""
        if self.rule == "exponential":
            return target**self.e
        return target / (self.e if self.rule == "linear" else self.e**2)


EXACT = Lenience()


def acceptance(target: Tensor, draft: Tensor) -> Tensor:
    """Return ``beta = sum_v min(p_v, q_v) = 1 - TVD(p, q)`` of distributions ``[..., V]``: how often a drafted token is taken."""
    return torch.minimum(target, draft).sum(-1)


def accepted(target: Tensor, draft: Tensor, tokens: Tensor, uniforms: Tensor, lenience: Lenience = EXACT) -> int:
    """Return how many of the drafted tokens are taken: token i where ``u_i < f(p_i) / q_i``, up to the first refusal.

    Args:
        target: p ``[g, V]`` or longer; only the first g rows count.
        draft: the distributions q ``[g, V]`` that the tokens were drawn from.
        tokens: int64 ``[g]``.
        uniforms: ``[g]``, of [0, 1).
        lenience: f.
    """
    places = torch.arange(len(tokens), device=tokens.device)
    taken = uniforms * draft[places, tokens] < lenience(target[places, tokens])
    return int(taken.long().cumprod(0).sum())


def residual(target: Tensor, draft: Tensor, lenience: Lenience = EXACT) -> Tensor:
    """Return ``norm(max(0, f(p) - q))`` ``[..., V]``, what a token is drawn from after a refusal.

    It is nothing but 0 where ``f(p) <= q`` everywhere, and then nothing is refused.
    """
    left = (lenience(target) - draft).clamp(min=0)
    total = left.sum(-1, keepdim=True)
    return left / total.masked_fill(total == 0, 1.0)


def output_law(target: Tensor, draft: Tensor, lenience: Lenience = EXACT) -> Tensor:
    """Return the distribution ``[..., V]`` of one token that comes out: ``min(q, f(p)) + P(refused) residual``."""
    taken = torch.minimum(draft, lenience(target))
    return taken + (1 - taken.sum(-1, keepdim=True)) * residual(target, draft, lenience)


def block_efficiency(alpha: float, block: int) -> float:
    """Return the tokens for each call of the target, ``(1 - alpha^(g+1)) / (1 - alpha)``, if acceptances were independent."""
    return block + 1.0 if alpha == 1 else (1 - alpha ** (block + 1)) / (1 - alpha)


def speed_up(alpha: float, block: int, cost: float) -> float:
    """Return the expected speed against the target alone, :func:`block_efficiency` over ``c g + 1``.

    ``cost`` c is the time of a step of the draft in steps of the target.
    """
    return block_efficiency(alpha, block) / (cost * block + 1)


class Decoded(NamedTuple):
    """A text that was decoded speculatively."""

    tokens: Tensor
    """The tokens after the prompt, int64 ``[L]``."""
    calls: int
    """How often the target ran after the prompt's first token was known."""
    drafted: int
    """How many tokens the draft proposed."""
    taken: int
    """How many of these were taken."""


@torch.no_grad()
def speculate(
    target: nn.Module,
    draft: nn.Module,
    prompt: Tensor,
    length: int,
    block: int = 4,
    sampling: Sampling | None = None,
    lenience: Lenience = EXACT,
    generator: torch.Generator | None = None,
    end: int | None = None,
) -> Decoded:
    """Return what the target writes after a prompt, with a draft that runs ahead.

    Args:
        target: a causal language model of transformers.
        draft: another with the same vocabulary.
        prompt: int64 ``[S]``, at least one token.
        length: how many tokens at most.
        block: g, how many tokens are drafted for each call of the target.
        sampling: how tokens are drawn, of both networks; by default from their own distributions.
        lenience: by default exact.
        generator: of the random numbers.
        end: the token that ends a text.

    Raises:
        UserError: the vocabularies differ, the block is empty or the prompt is.
    """
    check_pair(target, draft)
    if block < 1 or len(prompt) < 1:
        raise UserError(
            f"Speculative decoding needs a block and a prompt of at least 1 token, got {block} and {len(prompt)}."
        )
    sampling = sampling or Sampling()
    text, calls, drafted, taken = prompt.tolist(), 0, 0, 0
    last = len(text) + length
    runs = _Run(target), _Run(draft)
    with evaluating(target), evaluating(draft):
        while len(text) < last:
            proposed, laws = list(text), []
            for _ in range(min(block, last - len(text) - 1)):
                laws.append(sampling.probabilities(runs[1](proposed)[-1]))
                proposed.append(int(draw(laws[-1], _uniform(generator, laws[-1]))))
            ahead = len(proposed) - len(text)
            law = sampling.probabilities(runs[0](proposed)[-(ahead + 1) :])
            tokens = torch.tensor(proposed[len(text) :], dtype=torch.long, device=law.device)
            if ahead:
                uniforms = torch.rand(ahead, generator=generator, device=law.device)
                count = accepted(law, torch.stack(laws), tokens, uniforms, lenience)
            else:
                count = 0
            after = law[-1] if count == ahead else residual(law[count], laws[count], lenience)
            text += [*proposed[len(text) : len(text) + count], int(draw(after, _uniform(generator, after)))]
            calls, drafted, taken = calls + 1, drafted + ahead, taken + count
            if end is not None and end in text[last - length :]:
                text = text[: text.index(end, last - length) + 1]
                break
            for run in runs:
                run.keep(len(text) - 1)
    return Decoded(torch.tensor(text[last - length :], dtype=torch.long), calls, drafted, taken)


def check_pair(target: nn.Module, draft: nn.Module) -> None:
    """Raise :class:`UserError` unless target and draft have one vocabulary."""
    sizes = [network.config.vocab_size for network in (target, draft)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"The draft has another vocabulary ({sizes[1]} tokens) than its target ({sizes[0]}): speculative decoding needs the "
            "same tokenizer in both."
        )


class _Run:
    """A network that reads a growing text, with a cache of what it has read."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.cache, self.read = network, new_cache(network), 0

    def __call__(self, text: list[int]) -> Tensor:
        """Return the logits ``[S, V]`` at the tokens that were not read yet."""
        device = next(self.network.parameters()).device
        new = torch.tensor([text[self.read :]], device=device)
        self.read = len(text)
        whole = torch.ones(1, self.read, dtype=torch.long, device=device)
        return self.network(input_ids=new, attention_mask=whole, **self.cache).logits[0]

    def keep(self, tokens: int) -> None:
        """Forget what was read after so many tokens."""
        if self.read > tokens:
            for cache in self.cache.values():
                cache.crop(tokens - self.read)  # a negative number: so many are removed
            self.read = tokens


def _uniform(generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.rand((), generator=generator, device=like.device)
