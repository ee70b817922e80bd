"""MiniLLM: the reverse divergence of whole texts, by policy gradient (Gu et al. 2024, arXiv 2306.08543)."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from kdbench.data.causal_language import continued
from kdbench.errors import UserError
from kdbench.losses.base import check_share
from kdbench.losses.divergences import kl_divergence
from kdbench.losses.language import masked_token_cross_entropy
from kdbench.losses.policy import (
    Returns,
    clipped_policy_loss,
    importance_weights,
    normalised_returns,
    token_rewards,
    whitened,
)
from kdbench.methods.base import Distillation, LearningOptions
from kdbench.methods.objective import Batch, Objective
from kdbench.methods.writing import Writing
from kdbench.models.generation import evaluating
from kdbench.models.origins import Origin


class MiniLLM(Writing, Distillation):
    """``L_policy + L_single + l ((1 - r) CE(y) + r KL(p || q))``: a student that writes what its teacher finds likely.

    Every ``epochs`` steps the responses to the batch's prompts are drawn from ``a p + (1 - a) q``, token by token. A token is
    rewarded by ``log p - log q``; the advantage is the length-normalised return, whitened; L_policy is the clipped policy loss
    with the importance weights of the mixture (:mod:`kdbench.losses.policy`), L_single the exact reverse KL of the next token at
    the places that were visited. The last term is taken on the batch's own text.

    These texts are learnt from as one batch for ``epochs`` steps; they are in the checkpoint. The public code collects 256 and
    cuts each pass over them into smaller batches.

    Args:
        student: the origin of the student, which has learnt the data already.
        teacher: the origin of the teacher.
        teacher_share: a.
        epochs: steps between two collections of text.
        reward_scale: what rewards are divided by.
        reward_limit: where they are cut, after that.
        returns: the form of the returns, see :func:`~kdbench.losses.policy.normalised_returns`.
        gamma: of the returns.
        clip: of the policy loss.
        single_weight: of L_single.
        plain_weight: l.
        ratio: r.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        teacher_share: float = 0.2,
        epochs: int = 4,
        reward_scale: float = 0.5,
        reward_limit: float = 100.0,
        returns: Returns = "code",
        gamma: float = 1.0,
        clip: float = 0.2,
        single_weight: float = 1.0,
        plain_weight: float = 1.0,
        ratio: float = 0.5,
        **options: Unpack[LearningOptions],
    ) -> None:
        for name, share in (("teacher_share", teacher_share), ("ratio", ratio), ("gamma", gamma)):
            check_share(name, share)
        if epochs < 1 or not reward_scale > 0 or not 0 < clip < 1:
            raise ValueError(
                f"epochs is at least 1, reward_scale above 0 and clip in (0, 1), got {epochs}, {reward_scale} and {clip}"
            )
        super().__init__(student, None, {"teacher": teacher}, **options)
        self.objective = Objective({})  # the terms are none of rows alone
        self.teacher_share, self.epochs, self.returns, self.gamma, self.clip = (
            teacher_share,
            epochs,
            returns,
            gamma,
            clip,
        )
        self.reward_scale, self.reward_limit = reward_scale, reward_limit
        self.weights = {
            "policy": 1.0,
            "single_step": single_weight,
            "text": plain_weight * (1 - ratio),
            "soft": plain_weight * ratio,
        }
        self.rollouts: dict[str, Any] | None = None
        """The texts that are learnt from now, with what was known of them when they were drawn."""

    def setup(self, stage: str) -> None:
        """Build the networks; refuse steps of several batches, which would each collect texts anew."""
        if self.trainer.accumulate_grad_batches > 1:
            raise UserError(
                "MiniLLM learns from a collection for 'epochs' steps: leave out trainer.accumulate_grad_batches."
            )
        super().setup(stage)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the terms; collect texts before, where it is time."""
        if self.rollouts is None or self.global_step % self.epochs == 0:
            self.rollouts = self.roll_out(batch)
        return self._total(self.terms(batch, self.rollouts), batch, self._logs_now())

    def weight_of(self, term: str) -> float:
        """Return the factor of a term in the loss."""
        return self.weights[term]

    def rehearse(self, batch: Batch) -> None:
        """Collect texts and compute the terms once."""
        self.terms(batch, self.roll_out(batch))

    @torch.no_grad()
    def roll_out(self, batch: Batch) -> dict[str, Any]:
        """Return texts that are drawn from the mixture of student and teacher, and what each of their tokens is worth."""
        prompt, teacher = batch["prompt"], self.network("teacher")
        uniforms = self.uniforms("rollouts", batch["id"], self.current_epoch)
        response = self.write("student", prompt, uniforms, mixed=(teacher, self.teacher_share))
        text = continued(prompt, response)
        with evaluating(self.student):
            student = self._token_logs(self._logits("student", text), text)
        theirs = self._token_logs(self._logits("teacher", text), text)
        mask = response["attention_mask"]
        rewards = token_rewards(theirs, student, self.reward_scale, self.reward_limit)
        return text | {
            "before": student,
            "weights": importance_weights(student, theirs, self.teacher_share),
            "advantages": whitened(normalised_returns(rewards, mask, self.gamma, self.returns)),
        }

    def terms(self, batch: Batch, text: dict[str, Any]) -> dict[str, Tensor]:
        """Return the raw terms: two on the texts that were collected, two on the text of the data."""
        logits, mask = self._logits("student", text), text["response"]["attention_mask"]
        policy = clipped_policy_loss(
            self._token_logs(logits, text), text["before"], text["weights"], text["advantages"], mask, self.clip
        )
        with torch.no_grad():
            said = {name: self._logits("teacher", each) for name, each in (("drawn", text), ("data", batch))}
        plain, kept = self._logits("student", batch), batch["predicts"]
        visited = text["predicts"]
        return {
            "policy": policy,
            "single_step": kl_divergence(logits[visited], said["drawn"][visited], direction="reverse"),
            "text": masked_token_cross_entropy(plain, batch["labels"]),
            "soft": kl_divergence(plain[kept], said["data"][kept]),
        }

    def _logits(self, name: str, text: Batch) -> Tensor:
        return self.shared({"logits": self.network(name)(**text["inputs"]).logits})["logits"]

    @staticmethod
    def _token_logs(logits: Tensor, text: Batch) -> Tensor:
        """Return the log probability of every token of the responses ``[B, L]``."""
        first = text["prompt"]["input_ids"].shape[1]
        logs = log_softmax(logits[:, first - 1 : -1].float(), -1)
        return logs.gather(-1, text["response"]["input_ids"][..., None]).squeeze(-1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the texts that are learnt from now."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollouts"] = self.rollouts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the texts that were learnt from; a checkpoint of weights alone has none."""
        self.rollouts = checkpoint.get("rollouts")
