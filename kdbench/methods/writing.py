"""What the families share whose networks write text: drawing it, and comparing networks on text that one of them has written."""

import abc
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.causal_language import View, continued
from kdbench.data.noise import uniform
from kdbench.errors import UserError
from kdbench.methods.evaluation import Evaluation
from kdbench.methods.objective import Batch
from kdbench.methods.tasks import Language
from kdbench.metrics.decoding import TokenDistances
from kdbench.models.generation import Sampling, generate

STREAMS = ("choice", "student", "teacher", "replay", "rollouts", "test_teacher", "test_student", "law")
"""The purposes of random numbers, so that no two see the same ones."""


class Writing(Evaluation, abc.ABC):
    """A student and its ``teacher``, causal language models, compared on fresh texts of the teacher and of the student.

    The test draws a text from each of the two for every prompt, always from the same random numbers, and logs
    :class:`~kdbench.metrics.decoding.TokenDistances` of the student from its teacher over them: ``acceptance@teacher`` and the
    others over texts of the teacher, ``own_acceptance@teacher`` and so on over the student's own. Validation logs them over the
    texts of the data.

    A family that is a :class:`~kdbench.methods.base.Distillation` inherits this first.
    """

    pieces: int | None = None
    """How many tokens both networks know; None where their heads are equally wide."""
    judged_by = Sampling()
    """How the fresh texts of the test are drawn, and the laws that are compared; by default the networks' own."""

    def check_data(self) -> None:
        """Raise :class:`UserError` unless the data are prompts with responses."""
        super().check_data()
        if not isinstance(self.task, Language):
            raise UserError(f"{type(self).__name__} writes text: it needs CausalLanguageModeling.")

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make the distances; look how wide the heads are."""
        super().prepare_scores(compared)
        sizes = {self.network(name).config.vocab_size for name in ("student", "teacher")}
        self.pieces = min(sizes) if len(sizes) > 1 else None
        self.distances = nn.ModuleDict({writer: TokenDistances() for writer in ("data", "teacher", "student")})

    # ---- drawing ----

    def uniforms(self, stream: str, rows: Tensor, draw: int, seed: int | None = None) -> Tensor:
        """Return the random numbers ``[B, L]`` of the texts of some rows: of seed, stream, row, draw and place, nothing else."""
        seed = self.data.seed if seed is None else seed
        places = np.arange(self.data.new_tokens)
        found = uniform(seed, STREAMS.index(stream), rows.cpu().numpy()[:, None], draw, places)
        return torch.from_numpy(found).to(self.device)

    def write(
        self,
        name: str,
        prompt: View,
        uniforms: Tensor,
        sampling: Sampling | None = None,
        mixed: tuple[nn.Module, float] | None = None,
    ) -> dict[str, Tensor]:
        """Return the response ``[B, L]`` that a network writes to each prompt, without gradient."""
        drawn = generate(
            self.network(name),
            prompt["input_ids"],
            prompt["attention_mask"],
            uniforms,
            sampling,
            self.data.end_token,
            self.data.padding,
            mixed,
            self.pieces,
        )
        return {"input_ids": drawn.tokens, "attention_mask": drawn.mask.long()}

    # ---- comparing ----

    def answer(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """Return the logits of a network over the vocabulary that both networks have."""
        return self.shared(super().answer(name, batch))

    def shared(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the taps of a network, logits cut to the tokens that both networks know."""
        if self.pieces is None:
            return dict(values)
        return {tap: value[..., : self.pieces] if tap.endswith("logits") else value for tap, value in values.items()}

    def compare(self, writer: str, text: Batch) -> None:
        """Add a text to the distances."""
        said = (self.answer(name, text)["logits"][text["predicts"]] for name in ("student", "teacher"))
        if self.judged_by != Sampling():
            said = (self.judged_by.probabilities(logits).log() for logits in said)
        self.distances[writer].update(*said)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score the student; compare it with its teacher on the texts of the data."""
        super().validation_step(batch, batch_idx)
        self.compare("data", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score every network on the texts of the data; compare the student with its teacher on fresh texts of both."""
        super().test_step(batch, batch_idx)
        for writer in ("teacher", "student"):
            self.compare(writer, continued(batch["prompt"], self.fresh(writer, batch)))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the tokens that the student writes to each prompt, and the ids of the rows."""
        return {"id": batch["id"], "predictions": self.fresh("student", batch)["input_ids"]}

    def fresh(self, writer: str, batch: Batch) -> dict[str, Tensor]:
        """Return the responses that a network writes in the test, whatever the seed of the run."""
        uniforms = self.uniforms(f"test_{writer}", batch["id"], 0, seed=0)
        return self.write(writer, batch["prompt"], uniforms, self.judged_by)

    def on_validation_epoch_end(self) -> None:
        """Also log the distances."""
        super().on_validation_epoch_end()
        self._log_distances("val", {"data": ""})

    def on_test_epoch_end(self) -> None:
        """Also log the distances."""
        super().on_test_epoch_end()
        self._log_distances("test", {"teacher": "", "student": "own_"})

    def _log_distances(self, split: str, prefixes: Mapping[str, str]) -> None:
        for writer, prefix in prefixes.items():
            found = self.distances[writer].compute()
            self.distances[writer].reset()
            entropies = {"student": found.pop("entropy"), "teacher": found.pop("target_entropy")}
            self.log_dict({f"{split}/{prefix}{name}@teacher": value.float() for name, value in found.items()})
            self.log_dict({f"{split}/{prefix}entropy@{name}": value.float() for name, value in entropies.items()})
