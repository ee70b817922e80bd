"""Generative distillation: a language model learns what its teacher says of text that data, teacher or student have written."""

import math
from collections.abc import Mapping
from typing import Literal, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, distributed, nn

from kdbench.data.causal_language import continued
from kdbench.data.noise import uniform
from kdbench.errors import nearest
from kdbench.losses.base import check_choice, check_share
from kdbench.losses.divergences import KLDivergence
from kdbench.losses.language import CrossEntropy, TokenCrossEntropy
from kdbench.methods.base import Distillation, LearningOptions
from kdbench.methods.objective import Batch, Term, Values
from kdbench.methods.writing import STREAMS, Writing
from kdbench.models.generation import Sampling
from kdbench.models.origins import Origin

Writer = Literal["data", "teacher", "student"]
Unit = Literal["batch", "row"]
Reduction = Literal["token", "sequence"]


class GenerativeOptions(LearningOptions, total=False):
    """The options of :class:`GenerativeDistillation` that also make sense where validation says who writes."""

    sampling: Sampling | None
    reduction: Reduction
    plain_weight: float
    objective: dict[str, Term] | None


class GenerativeDistillation(Writing, Distillation):
    """``r D(p, q) + (1 - r) CE(y)`` over the responses y of text that the data, the teacher or the student have written.

    - word-level KD (Kim and Rush 2016, arXiv 1606.07947): the defaults, with r of the soft term;
    - SeqKD (the same): ``text: {teacher: 1}``, ``ratio: 0``; the teacher's text is drawn, not searched for with a beam;
    - ImitKD (Lin et al. 2020, arXiv 2009.07253): ``text: {data: 0.5, student: 0.5}``, forward KL;
    - f-DISTILL (Wen et al. 2023, arXiv 2307.15190): ``text: {teacher: 0.5, student: 0.5}``, ``unit: row``, total variation; its
      Jensen-Shannon has a term on each half, by the masks ``by_teacher`` and ``by_student``;
    - GKD (Agarwal et al. 2024, arXiv 2306.13649): ``text: {data: 1 - lambda, student: lambda}``, JensenShannon(beta);
    - DistillSpec (Zhou et al. 2024, arXiv 2310.08461): any of these with ``reduction: sequence``.

    No gradient goes through the drawing. The student draws each row anew in every epoch, the teacher once, before the first
    step; a resumed fit draws what an unbroken one would have drawn.

    Args:
        student: the origin of the student.
        teacher: the origin of the teacher, named ``teacher`` in further terms.
        text: who writes the text that is learnt from, with shares that sum to 1; by default the ``data``.
        unit: what is written by one of them: each ``batch`` (GKD) or each ``row``.
        sampling: how text is drawn; by default from the network's own distribution.
        divergence: D, of rows; by default the forward KL.
        ratio: r; the rest is the cross-entropy of the text itself, which is none of the student's then.
        reduction: the mean over all tokens, or over the tokens of each sequence and then over sequences.
        plain_weight: of the cross-entropy of the row's own text, whoever writes what is learnt from.
        objective: further terms, over ``predicts`` or ``by_data``, ``by_teacher`` and ``by_student``, the positions that each
            has written; one named ``divergence``, ``text`` or ``plain`` replaces the term of that name.
        options: see :class:`Distillation`.
    """

    def __init__(
        self,
        student: Origin,
        teacher: Origin,
        text: dict[str, float] | None = None,
        unit: Unit = "batch",
        sampling: Sampling | None = None,
        divergence: nn.Module | None = None,
        ratio: float = 1.0,
        reduction: Reduction = "token",
        plain_weight: float = 0.0,
        objective: dict[str, Term] | None = None,
        **options: Unpack[LearningOptions],
    ) -> None:
        text = check_text(text or {"data": 1.0})
        check_choice("unit", unit, get_args(Unit))
        check_choice("reduction", reduction, get_args(Reduction))
        check_share("ratio", ratio)
        if ratio < 1 and text.get("student"):
            raise ValueError(f"the student's own text is no answer to learn by heart: ratio is 1 then, not {ratio}")
        weights = "per_sequence" if reduction == "sequence" else None
        over = {"mask": "predicts", "weights": weights}
        terms = {
            "divergence": Term(divergence or KLDivergence(), ratio, teacher="teacher.logits", **over),
            "text": Term(TokenCrossEntropy(), 1 - ratio, labels="labels", **over),
            "plain": Term(CrossEntropy(), plain_weight, student="plain.logits", labels="plain_labels"),
        }
        terms = {name: term for name, term in (terms | (objective or {})).items() if term.weight}
        super().__init__(student, terms, {"teacher": teacher}, **options)
        self.text, self.unit, self.drawn_by = text, unit, sampling
        self.kept: dict[str, Tensor] | None = None
        """The teacher's text of every training row, while the fit lasts."""
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        """How many texts the student has written to learn from."""

    @property
    def uncached(self) -> str | None:
        """Why what the teacher says of a batch cannot be kept: nobody has written its text before."""
        writers = " and ".join(name for name in self.text if name != "data")
        return f"the text that is learnt from is written by the {writers} during the fit" if writers else None

    # ---- the text of a step ----

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch with the text that is learnt from in the place of the rows' own."""
        return self.rewritten(batch, self.writers(batch["id"]))

    def writers(self, rows: Tensor) -> Tensor:
        """Return who writes the text of each row, as its place in ``text``, int64 ``[B]``."""
        numbers = rows.cpu().numpy()
        if self.unit == "batch":
            numbers = np.broadcast_to(numbers[0], len(numbers))
        drawn = uniform(self.data.seed, STREAMS.index("choice"), numbers, self.current_epoch)
        ends = np.cumsum(list(self.text.values()))[:-1]
        return torch.from_numpy(np.searchsorted(ends, drawn, side="right")).to(self.device)

    def rewritten(self, batch: Batch, writers: Tensor) -> Batch:
        """Return the batch with the text of its writers, and the positions that each of them has written."""
        batch = dict(batch)
        if list(self.text) != ["data"]:
            ids, mask = (
                widened(batch["response"][key], self.data.new_tokens) for key in ("input_ids", "attention_mask")
            )
            for place, name in enumerate(self.text):
                rows = (writers == place).nonzero().squeeze(-1)
                if name != "data" and len(rows):
                    prompt = {key: value[rows] for key, value in batch["prompt"].items()}
                    written = self.response(name, prompt, batch["id"][rows])
                    ids[rows], mask[rows] = written["input_ids"], written["attention_mask"]
            longest = int(mask.sum(1).max())
            response = {"input_ids": ids[:, :longest], "attention_mask": mask[:, :longest]}
            batch |= continued(batch["prompt"], response)
        by = {f"by_{name}": batch["predicts"] & (writers == place)[:, None] for place, name in enumerate(self.text)}
        return {**batch, **by}

    def response(self, name: str, prompt: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Return what the student, now, or the teacher, once and for all, writes to the prompts of some rows."""
        if name == "teacher" and self.kept is not None:
            return {key: value[rows] for key, value in self.kept.items()}
        draw = self.current_epoch if name == "student" else 0
        if name == "student":
            self.written += len(rows)
        return self.write(name, prompt, self.uniforms(name, rows, draw), self.drawn_by)

    def on_train_start(self) -> None:
        """Let the teacher write its texts: always the same ones, in the same batches, whatever the step that a fit goes on from."""
        if "teacher" in self.text:
            self.kept = self._texts_of_teacher()

    def _texts_of_teacher(self) -> dict[str, Tensor]:
        items, size = self.data.items["train"], self.data.eval_batch_size
        firsts = list(range(0, len(items), size))
        mine = {}
        for first in firsts[self.global_rank :: self.trainer.world_size]:
            batch = self.data.collate("train", [(item, 0) for item in items[first : first + size]])
            moved = self.transfer_batch_to_device(batch, self.device, 0)
            written = self.response("teacher", moved["prompt"], moved["id"])
            mine[first] = {key: value.cpu() for key, value in written.items()}
        ranks: list[dict[int, dict[str, Tensor]]] = [mine]
        if self.trainer.world_size > 1:
            ranks = [{}] * self.trainer.world_size
            distributed.all_gather_object(ranks, mine)
        whole = {first: texts for rank in ranks for first, texts in rank.items()}
        return {key: torch.cat([whole[first][key] for first in firsts]).to(self.device) for key in whole[0]}

    # ---- the step ----

    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return the taps of the teacher, logits over the tokens that both networks know."""
        return {name: self.shared(values) for name, values in super().teach(batch).items()}

    def learn(self, batch: Batch, teacher: Mapping[str, Values]) -> dict[str, Tensor]:
        """Return the taps of the student, logits over the tokens that both networks know."""
        return self.shared(super().learn(batch, teacher))

    def rehearse(self, batch: Batch) -> None:
        """Compute once what training computes at each step; the texts of the rehearsal do not count."""
        super().rehearse(batch)
        self.written.zero_()

    def on_test_epoch_end(self) -> None:
        """Also log how many texts the student has written to learn from: the cost of its own data."""
        super().on_test_epoch_end()
        self.log("test/written@student", float(self.written) * self.trainer.world_size)


def check_text(text: Mapping[str, float]) -> dict[str, float]:
    """Return who writes text, with shares above 0; raise ValueError for others than data, teacher and student."""
    for name in text:
        if name not in get_args(Writer):
            raise ValueError(
                f"text is written by data, teacher or student, not by '{name}'.{nearest(name, get_args(Writer))}"
            )
    if min(text.values()) < 0 or not math.isclose(sum(text.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"the shares of those who write the text sum to 1, got {dict(text)}")
    return {name: share for name, share in text.items() if share}


def widened(values: Tensor, width: int) -> Tensor:
    """Return a copy of ``[B, L]`` with zeros up to a width."""
    return nn.functional.pad(values, (0, width - values.shape[1]))
