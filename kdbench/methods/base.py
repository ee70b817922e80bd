"""The base of every method family: a student, its teachers, and the objective that says what the student has to match."""

import logging
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypedDict

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.data.target_file import TargetFile
from kdbench.errors import UserError, nearest
from kdbench.methods.evaluation import Evaluation
from kdbench.methods.objective import Batch, Match, Objective, Term, Values, weighted_sum
from kdbench.methods.optimizers import Constant, LinearDecay, Schedule, fused, parameter_groups, train_only
from kdbench.methods.reader import FileReader, Reader, StoredReader
from kdbench.methods.tasks import TASKS
from kdbench.models.network_check import check_network
from kdbench.models.origins import Facts, FromFolder, FromTargets, Origin

log = logging.getLogger(__name__)

Optimizer = Callable[[Iterable], torch.optim.Optimizer]


class Store(Protocol):
    """Where what a teacher says may be kept."""

    def reader(
        self, module: "Distillation", name: str, taps: list[str], build: Callable[[], Reader]
    ) -> StoredReader | None:
        """Return what reads the taps of a teacher from the store, or None when they are to be computed at each step."""

    def answering(self, module: "Distillation", name: str, build: Callable[[], Reader]) -> StoredReader | None:
        """Return what reads from the store what a frozen network answers in a test, or None when that is not kept."""


class LearningOptions(TypedDict, total=False):
    """What every family takes besides its networks and terms, with the meanings and defaults of :class:`Distillation`."""

    references: dict[str, Origin | str] | None
    optimizer: Optimizer | None
    schedule: Schedule | None
    weight_decay: float
    train: list[str] | None


class TextLearningOptions(LearningOptions, total=False):
    """The same for families that can run on real tokens alone."""

    unpad: bool


class Distillation(Evaluation):
    """A student that learns an objective from teachers (or from labels alone).

    Args:
        student: the origin of the network that is trained and exported.
        objective: named terms; their weighted sum is the loss. By default the task's own loss on the labels.
        teachers: frozen networks by name, read by the terms as ``name.tap``. They stay in eval mode, without gradient,
            outside checkpoint, optimiser and DDP.
        references: frozen networks (or folders of runs) that only the test compares the student with: loyalty.
        optimizer: by default AdamW with a learning rate of 5e-4.
        schedule: of the learning rate; by default a linear warm-up over 5% of the steps and a linear decay to 0.
        weight_decay: of weights; biases and norms have none.
        unpad: run student and teachers on real tokens alone (BERT and its kin with a head for each token). The outputs are
            the same; it pays where the texts of a batch differ in length: on a GPU, or without batches of like length.
        train: patterns (``classifier.*``) of the student's parameters that are trained, the rest is frozen; default: all.
    """

    def __init__(
        self,
        student: Origin,
        objective: dict[str, Term] | None = None,
        teachers: dict[str, Origin] | None = None,
        references: dict[str, Origin | str] | None = None,
        optimizer: Optimizer | None = None,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        unpad: bool = False,
        train: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.unpad, self.trained = unpad, train
        references = {name: _origin(each) for name, each in (references or {}).items()}
        self.origins: dict[str, Origin] = {"student": student, **(teachers or {}), **references}
        self.teacher_names = list(teachers or {})
        self.reference_names = list(references)
        names = ["student", *self.teacher_names, *self.reference_names]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two networks are named '{twice[0]}'")
        if objective is not None and not objective:
            raise ValueError("the objective has no term: there is nothing to learn")
        self.objective = Objective(objective) if objective is not None else None
        for name, _ in self._teachers_read():
            if name not in self.teacher_names:
                raise ValueError(
                    f"a term reads the teacher '{name}', and there is none.{nearest(name, self.teacher_names)}"
                )
        self.optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0))
        self.schedule = schedule or LinearDecay()
        self.weight_decay = weight_decay
        self.student: nn.Module | None = None
        self._frozen: dict[str, nn.Module] = {}  # a plain dict: no child modules, so no checkpoint, optimiser or DDP
        self.store: Store | None = None
        """Set before ``setup``, by who keeps what frozen networks say."""
        self._unchecked: list[tuple[int, list[int], dict[str, Tensor]]] = []
        self._warned = False

    # ---- the step reads like the equation ----

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the objective's terms for one batch."""
        if self.objective.moves:
            self.objective.move(self._places())
        batch = self.prepare(batch)
        teacher = self.teach(batch)
        student = self.learn(batch, teacher)
        terms = self.objective(student, teacher, batch)
        logs = self._logs_now()
        if logs:
            self.log_dict(
                {f"train/{name}": value for name, value in self.objective.tails(student, teacher, batch).items()}
            )
        return self._total(terms, batch, logs)

    def prepare(self, batch: Batch) -> Batch:
        """Return the batch that the networks see; families that draw, mix or add noise do so here."""
        return batch

    @torch.no_grad()
    def teach(self, batch: Batch) -> dict[str, Values]:
        """Return the taps of every teacher that the objective reads: from the store, or from a forward without gradient."""
        return {
            name: reader(batch) if isinstance(reader, Reader) else reader(batch, batch[f"known.{name}"])
            for name, reader in self.teacher_readers.items()
        }

    def learn(self, batch: Batch, teacher: Mapping[str, Values]) -> dict[str, Tensor]:
        """Return the taps of the student that the objective reads."""
        return self._student_reader(batch)

    def _places(self) -> dict[str, tuple[int, int]]:
        """Return step and epoch, counted from 0, and of how many."""
        steps = int(self.trainer.estimated_stepping_batches)
        batches = steps * self.trainer.accumulate_grad_batches
        epochs = math.ceil(batches / self.trainer.num_training_batches)
        return {"step": (self.global_step, steps), "epoch": (self.current_epoch, epochs)}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Look up what is stored for a batch, while it is still on the CPU."""
        if self.trainer.training:
            return self._looked_up(batch, self.teacher_readers)
        return self._looked_up(batch, self.answered) if self.trainer.testing else batch

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device; on a CPU it is there already, and walking through it would cost time at every step."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Let the data make on the device what they make there; a loader without its data module asks the network alone."""
        return self.data.finish(batch)

    def _looked_up(self, batch: Batch, readers: Mapping[str, Reader | StoredReader | FileReader]) -> Batch:
        stored = {name: each for name, each in readers.items() if not isinstance(each, Reader)}
        if not stored:
            return batch
        named = self.data.named(batch)
        return {**batch, **{f"known.{name}": reader.look_up(named) for name, reader in stored.items()}}

    # ---- building ----

    def tokenizers(self) -> dict[str, Any]:
        """Return the tokenizer that each network brings along, None where it has none yet."""
        return {name: origin.tokenizer() for name, origin in self.origins.items()}

    def preprocessors(self) -> dict[str, dict[str, Any] | None]:
        """Return the preprocessor of images that each network brings along, None where it has none."""
        return {name: origin.preprocessor() for name, origin in self.origins.items()}

    @property
    def compares_rows(self) -> bool:
        """Whether a loss compares the rows of a batch with one another, so that batches of like length would change it."""
        return self.objective is not None and self.objective.compares_rows

    @property
    def uncached(self) -> str | None:
        """Why what a teacher says of a batch cannot be kept; None: it can."""
        changes = type(self).prepare is not Distillation.prepare
        return "the step changes its batches, so what was looked up before would belong to others" if changes else None

    def matches(self) -> dict[str, Match]:
        """Return how each teacher's values meet the student's where they are not simply the same rows."""
        for name, tap in self._teachers_read():
            view = self.data.views[name]
            if view != self.data.views["student"] and self.data.tokenizers[view] is not None:
                raise UserError(
                    f"The teacher '{name}' has another vocabulary than the student, so '{name}.{tap}' cannot be compared "
                    f"position by position: use EnsembleDistillation with 'align: {{{name}: shared_words}}'."
                )
        return {}

    def check_data(self) -> None:
        """Raise :class:`UserError` where the data are not of the kind that the family needs; by default any are."""

    def complete(self) -> None:
        """Make what a family has besides student and teachers, when the student is built; by default nothing."""

    def setup(self, stage: str) -> None:
        """Build the networks from what the data know, then try every tap and term on one small batch."""
        if self.student is not None:
            return
        for origin in self.origins.values():
            origin.check()
        self.data = self.trainer.datamodule
        self.task = TASKS[self.data.task](self.data.labels)
        self.check_data()
        if self.objective is None:
            self.objective = Objective(self.task.objective())
        self.student = self._build("student")
        if self.trained is not None:
            train_only(self.student, self.trained)
        self.complete()
        if self.compares_rows and self.data.batch_size < 2:
            raise UserError("A loss compares the rows of a batch with one another: data.batch_size is at least 2 then.")
        self.objective.matches = self.matches()
        taps, labelled = self.objective.student_taps(), self.objective.labelled_only("logits")
        self._student_reader = Reader(self.student, taps, self._views("student"), labelled, self.unpad)
        self.teacher_readers = {
            name: self._teacher_reader(name, taps) for name, taps in self.objective.teacher_taps().items()
        }
        self.prepare_scores([name for name, origin in self.origins.items() if not isinstance(origin, FromTargets)])
        self._rehearse()
        self._continue_losses()

    def network(self, name: str) -> nn.Module:
        """Return a network; a frozen one is built when it is asked for first, for what the store knows needs no teacher."""
        if name == "student":
            return self.student
        if name not in self._frozen:
            # With random numbers of its own, so that the student's are the same whether and whenever it is built.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{name} {self.data.seed}".encode()))
                network = self._build(name)
            self._frozen[name] = network.eval().requires_grad_(False).to(self.device)
        return self._frozen[name]

    def networks(self) -> dict[str, nn.Module]:
        """Return the student and every frozen network by name."""
        return {name: self.network(name) for name in self.compared_names}

    def _teacher_reader(self, name: str, taps: list[str]) -> Reader | StoredReader | FileReader:
        origin = self.origins[name]
        if isinstance(origin, FromTargets):
            return FileReader(TargetFile(origin.file), taps, self._views(name))

        def build() -> Reader:
            return Reader(self.network(name), taps, self._views(name), unpad=self.unpad)

        stored = self.store.reader(self, name, taps, build) if self.store is not None else None
        return stored or build()

    def check_optimizers(self) -> None:
        """Raise ValueError for a number that an optimiser refuses, before anything is read or built."""
        self.optimizer([nn.Parameter(torch.zeros(1))])

    def configure_optimizers(self) -> dict[str, Any]:
        """Return the optimiser over the student and the networks inside the losses, and the schedule by steps."""
        optimizer = fused(self.optimizer(parameter_groups(self, self.weight_decay)))
        if isinstance(self.schedule, Constant):
            return {"optimizer": optimizer}
        factor = self.schedule.factor(int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distillation":
        """Take the frozen networks along to another device; nothing else about them is the trainer's."""
        for network in self._frozen.values():
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _build(self, name: str) -> nn.Module:
        tokenizer = self.data.tokenizers.get(self.data.views[name])
        example = self.data.example()
        views = [example[view] for view in self._views(name).values()]
        facts = Facts.seen(views[0], tokenizer, self.data.labels)
        network = self.origins[name].build(facts)
        check_network(network, views, facts)
        return network

    def _views(self, name: str) -> dict[str, str]:
        return self.task.views(self.data.views[name])

    def _teachers_read(self) -> list[tuple[str, str]]:
        taps_of = self.objective.teacher_taps() if self.objective is not None else {}
        return [(name, tap) for name, taps in taps_of.items() for tap in taps]

    @torch.no_grad()
    def _rehearse(self) -> None:
        """Run one small batch through everything: a wrong tap, key or class count is found before training starts."""
        training = self.student.training
        self.student.eval()
        try:
            with torch.random.fork_rng(devices=[]):  # what is drawn here is not missing from what training draws
                self.rehearse(self.prepare(self._looked_up(self.data.example(), self.teacher_readers)))
        except ValueError as error:
            raise UserError(f"The objective does not fit the data or the networks: {error}") from error
        self.student.train(training)

    def rehearse(self, batch: Batch) -> None:
        """Compute once what training computes at each step; ValueError tells that something does not fit."""
        teacher = self.teach(batch)
        self.objective(self.learn(batch, teacher), teacher, batch)

    def _continue_losses(self) -> None:
        """Let the networks inside the losses go on from the run that left the student, where that run had the same."""
        file = self.origins["student"].losses()
        if file is None:
            return
        own, left = self.objective.state_dict(), load_file(file)
        same = {name: value for name, value in left.items() if name in own and own[name].shape == value.shape}
        self.objective.load_state_dict(same, strict=False)
        if same:
            log.info("The losses go on with %d tensors that the student's run left.", len(same))

    # ---- watching the terms ----

    def weight_of(self, term: str) -> float:
        """Return the factor of a term in the loss."""
        return self.objective.terms[term].weight

    def _total(self, raw: dict[str, Tensor], batch: Batch, logs: bool) -> Tensor:
        total = weighted_sum((self.weight_of(name), value) for name, value in raw.items())
        self._unchecked.append((self.global_step, batch["id"], {name: value.detach() for name, value in raw.items()}))
        if logs or self.device.type == "cpu":  # elsewhere reading a value would make the device wait at every step
            self.check_finite()
        if logs:
            values = {f"train/{name}": value for name, value in raw.items()}
            weighted = {name: self.weight_of(name) * value.detach() for name, value in raw.items()}
            values |= {f"train/{name}_weighted": value for name, value in weighted.items()}
            self.log_dict(values, batch_size=len(batch["id"]))
            self.log("train/loss", total, prog_bar=True, batch_size=len(batch["id"]))
            self._warn_of_small_terms({name: abs(float(value)) for name, value in weighted.items()})
        return total

    def _logs_now(self) -> bool:
        every = self.trainer.log_every_n_steps
        return bool(every) and (self.global_step + 1) % every == 0

    def check_finite(self) -> None:
        """Raise :class:`UserError` with term, step and example ids when a term of a step since the last check is not finite."""
        steps, self._unchecked = self._unchecked, []
        for step, ids, raw in steps:
            for name, value in raw.items():
                if not math.isfinite(value.item()):
                    raise UserError(
                        f"The term '{name}' became {float(value)} at step {step} (example ids {torch.as_tensor(ids).tolist()}): "
                        "the run stops; look at these rows, or lower the learning rate or the term's weight."
                    )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never save weights that a non-finite step may have touched."""
        self.check_finite()
        for name, value in self.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise UserError(
                    f"The weight '{name}' is no longer finite at step {self.global_step}, though every term was: a gradient "
                    "overflowed; lower the learning rate, or clip with 'trainer.gradient_clip_val'."
                )

    def _warn_of_small_terms(self, weighted: dict[str, float]) -> None:
        total = sum(weighted.values())
        small = [name for name, value in weighted.items() if self.weight_of(name) and value < 0.01 * total]
        if small and not self._warned:
            self._warned = True
            log.warning(
                "The term '%s' carries %.2f%% of the loss at step %d: its weight may not mean what you think.",
                small[0],
                100 * weighted[small[0]] / total,
                self.global_step,
            )


def _origin(value: Origin | str) -> Origin:
    return FromFolder(folder=value) if isinstance(value, str) else value
