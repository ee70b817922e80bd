"""How near a draft is to its target, token by token, and what speculative decoding makes of it."""

import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn.functional import log_softmax
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class TokenDistances(Metric):
    """Distances of two networks' next-token laws, q of the student and p of its target, over the positions of a text.

    Each is the mean over all tokens: for texts that the target has written, ``acceptance = sum_v min(p_v, q_v)`` is then the
    acceptance rate of speculative decoding, ``E[sum_t beta_t] / E[|y|]`` (Zhou et al. 2024, arXiv 2310.08461). Over the
    student's own texts these are other numbers.
    """

    full_state_update = False
    is_differentiable = False
    names = ("kl", "reverse_kl", "total_variation", "acceptance", "entropy", "target_entropy")

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, student: Tensor, target: Tensor) -> None:
        """Add positions, logits ``[N, V]`` of both; raises ValueError on other shapes."""
        if student.ndim != 2 or student.shape != target.shape:
            raise ValueError(f"Expected two logits [N, V], not {[*student.shape]} and {[*target.shape]}.")
        log_q, log_p = (
            log_softmax(each.to(torch.promote_types(each.dtype, torch.float32)), -1) for each in (student, target)
        )
        q, p = log_q.exp(), log_p.exp()
        gap = log_p - log_q
        rows = [
            (p * gap.masked_fill(p == 0, 0.0)).sum(-1),
            (q * -gap.masked_fill(q == 0, 0.0)).sum(-1),
            (p - q).abs().sum(-1) / 2,
            torch.minimum(p, q).sum(-1),
            torch.special.entr(q).sum(-1),
            torch.special.entr(p).sum(-1),
        ]
        self.sums = self.sums + torch.stack([each.double().sum() for each in rows])
        self.count += len(student)

    def compute(self) -> dict[str, Tensor]:
        """Return ``KL(p || q)``, ``KL(q || p)``, the total variation, the acceptance and both entropies, in nats."""
        return dict(zip(self.names, self.sums / self.count, strict=True))


class DecodingScore(Metric):
    """What speculative decoding of many texts comes to.

    ``block_efficiency``: tokens for each call of the target, counted. ``taken_share``: how many of the drafted tokens are kept
    (all behind a refusal are lost, so it is no acceptance rate). ``mismatches``: tokens that differ from greedy decoding of the
    target alone. ``law_pvalue``: of the hypothesis that the tokens follow the target's law (:func:`law_places`); where they do,
    it is uniform between 0 and 1.
    """

    full_state_update = False
    is_differentiable = False
    names = ("tokens", "calls", "drafted", "taken", "mismatches")
    places: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("places", [], dist_reduce_fx="cat")

    def update(self, tokens: int, calls: int, drafted: int, taken: int, places: Tensor, mismatches: int) -> None:
        """Add a text: its counts, and what :func:`law_places` says of its tokens ``[L]``."""
        self.counts += torch.tensor([tokens, calls, drafted, taken, mismatches], device=self.counts.device)
        self.places.append(places)

    def compute(self) -> dict[str, Tensor]:
        """Return the four numbers."""
        told = dict(zip(self.names, self.counts.tolist(), strict=True))
        found = {
            "block_efficiency": told["tokens"] / told["calls"],
            "taken_share": told["taken"] / max(1, told["drafted"]),
            "mismatches": told["mismatches"],
            "law_pvalue": kstest(dim_zero_cat(self.places).cpu().numpy(), "uniform").pvalue,
        }
        return {name: torch.tensor(float(value), dtype=torch.float64) for name, value in found.items()}


def law_places(target: Tensor, draft: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """Return numbers ``[L]`` that are independent and uniform in (0, 1) if, and only if, the tokens follow the target's law p.

    ``sum of p over the tokens before y + v p(y)``, v uniform: the probability integral transform, with the tokens in the order of
    q / p. A token that the draft q likes too well is early in it, so that the draft's law showing through moves the numbers to 0.

    Args:
        target: p at each position, given the tokens before it, ``[L, V]``.
        draft: q, the same.
        tokens: y, int64 ``[L]``.
        uniforms: v ``[L]``.

    Source: Rosenblatt 1952, "Remarks on a multivariate transformation".
    """
    order = (draft / target.clamp(min=torch.finfo(target.dtype).tiny)).argsort(-1, descending=True)
    ordered = target.gather(-1, order)
    at = (order == tokens[:, None]).long().argmax(-1, keepdim=True)
    own = ordered.gather(-1, at)
    before = ordered.cumsum(-1).gather(-1, at) - own
    return (before + uniforms[:, None] * own).squeeze(-1)
