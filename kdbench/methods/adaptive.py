"""Adaptive generative distillation: the student writes text only as often as validation asks for it, and learns from it again."""

import math
from typing import Unpack

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from kdbench.data.causal_language import continued
from kdbench.data.noise import uniform
from kdbench.errors import UserError
from kdbench.losses.base import check_share
from kdbench.losses.divergences import SkewKL
from kdbench.methods.evaluation import results
from kdbench.methods.generative import GenerativeDistillation, GenerativeOptions, widened
from kdbench.methods.objective import Batch
from kdbench.methods.writing import STREAMS
from kdbench.models.generation import evaluating
from kdbench.models.origins import Origin


class AdaptiveDistillation(GenerativeDistillation):
    """A skewed divergence on text that is the student's own with a probability phi (DistiLLM: Ko et al. 2024, arXiv 2402.03898).

    At step s of S, with r uniform in (0, 1): where ``r < phi (1 - s / S)``, or ``r < phi`` and the buffer is not full, the student
    writes the responses, and the buffer keeps them; else where ``r < phi``, a random batch of the buffer is taken; else the data.
    phi rises after a validation whose cross-entropy is at least ``tolerance`` above that of its last rise, or at first of the
    student before training. phi, the buffer and the cross-entropy are in the checkpoint.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        divergence: of rows; by default the skewed reverse KL with 0.1 of the student in the mixture.
        start: phi at the beginning.
        rise: what is added to phi, up to 1.
        tolerance: see above, in nats.
        capacity: how many texts the buffer keeps, the newest.
        options: see :class:`GenerativeDistillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        divergence: nn.Module | None = None,
        start: float = 0.0,
        rise: float = 0.1,
        tolerance: float = 0.1,
        capacity: int = 1000,
        **options: Unpack[GenerativeOptions],
    ) -> None:
        check_share("start", start)
        check_share("rise", rise)
        if capacity < 1:
            raise ValueError(f"the buffer keeps a text or more, got capacity {capacity}")
        text = {"data": 0.5, "student": 0.5}  # who may write; how often, phi says
        super().__init__(student, teacher, text, divergence=divergence or SkewKL(direction="reverse"), **options)
        self.rise, self.tolerance, self.capacity = rise, tolerance, capacity
        self.register_buffer("phi", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("bar", torch.tensor(math.nan, dtype=torch.float64))
        """The cross-entropy that the next rise of phi is measured from."""

    def complete(self) -> None:
        """Make the buffer; raise :class:`UserError` where it cannot fill a batch."""
        super().complete()
        if self.capacity < self.data.batch_size:
            raise UserError(
                f"The buffer keeps {self.capacity} texts and a batch has {self.data.batch_size}: keep more."
            )
        self.register_buffer("replay_rows", torch.zeros(self.capacity, dtype=torch.int64))
        self.register_buffer("replay_tokens", torch.zeros(self.capacity, self.data.new_tokens, dtype=torch.int64))
        self.register_buffer("replay_lengths", torch.zeros(self.capacity, dtype=torch.int64))

    # ---- the text of a step ----

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with text of the data, of the student, or of the buffer."""
        drawn = float(uniform(self.data.seed, STREAMS.index("choice"), int(batch["id"][0]), self.current_epoch))
        phi = float(self.phi)
        if drawn >= phi:
            return self.rewritten(batch, torch.zeros_like(batch["id"]))
        done = self.global_step / int(self.trainer.estimated_stepping_batches)
        if drawn < phi * (1 - done) or self.written < self.capacity:
            first = int(self.written)
            batch = self.rewritten(batch, torch.ones_like(batch["id"]))
            self.remember(batch, first)
            return batch
        return self.replayed(batch)

    def remember(self, batch: Batch, first: int) -> None:
        """Keep the responses of a batch, the oldest ones making room; ``first`` is the number of its first text."""
        places = (first + torch.arange(len(batch["id"]), device=self.device)) % self.capacity
        self.replay_rows[places] = batch["id"]
        self.replay_tokens[places] = widened(batch["response"]["input_ids"], self.data.new_tokens)
        self.replay_lengths[places] = batch["response"]["attention_mask"].sum(1)

    def replayed(self, batch: Batch) -> Batch:
        """Return a batch of as many texts of the buffer, each at most once."""
        numbers = uniform(self.data.seed, STREAMS.index("replay"), np.arange(self.capacity), self.global_step)
        places = torch.from_numpy(np.argsort(numbers)[: len(batch["id"])]).to(self.device)
        rows, lengths = self.replay_rows[places], self.replay_lengths[places]
        items = self.data.items["train"]
        found = self.data.collate("train", [(items[row], 0) for row in rows.tolist()])
        prompt = self.transfer_batch_to_device(found, self.device, 0)["prompt"]
        longest = int(lengths.max())
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        response = {"input_ids": self.replay_tokens[places, :longest], "attention_mask": mask.long()}
        text = continued(prompt, response)
        by = {"by_data": torch.zeros_like(text["predicts"]), "by_student": text["predicts"]}
        return {**batch, "id": rows, **text, **by}

    # ---- how often ----

    def on_train_start(self) -> None:
        """Take the cross-entropy of the student before its first step, unless a checkpoint knows it."""
        super().on_train_start()
        if self.bar.isnan():
            self.bar.fill_(self._held_out())

    @torch.no_grad()
    def _held_out(self) -> Tensor:
        with evaluating(self.student):
            for batch in self.trainer.datamodule.val_dataloader():
                moved = self.transfer_batch_to_device(batch, self.device, 0)
                self._score("student", self.answer("student", moved), moved)
        return results(self.scores["student"])["cross_entropy"]

    def on_validation_epoch_end(self) -> None:
        """Also let phi rise where the student has become worse on the text of the data; a checkpoint is written only then."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.adapt(float(self.validated["val/cross_entropy@student"]))

    def adapt(self, cross_entropy: float) -> None:
        """Let phi rise for a cross-entropy that is ``tolerance`` above the last one that it rose for."""
        if cross_entropy >= float(self.bar) + self.tolerance:
            self.phi.copy_((self.phi + self.rise).clamp(max=1.0))
            self.bar.fill_(cross_entropy)

    def on_test_epoch_end(self) -> None:
        """Also log phi at the end."""
        super().on_test_epoch_end()
        self.log("test/phi@student", self.phi.float())
