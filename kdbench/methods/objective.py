"""What a student has to match: named terms, each a loss, a weight, and where the loss's arguments come from."""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from kdbench.errors import nearest
from kdbench.losses.divergences import combine_logits
from kdbench.losses.language import IGNORED
from kdbench.losses.rows import select_rows
from kdbench.losses.top_k import TopK, lump_logits, tail_error_bound, tail_mass

Batch = Mapping[str, object]
Values = Mapping[str, Tensor | TopK]


@dataclass
class Ramp:
    """A number that moves in a line during a fit.

    Args:
        start: its value in the first epoch, or at the first step.
        end: its value in the last one.
        by: ``step``, or ``epoch``: ``start + (end - start) e / (E - 1)`` in epoch e = 0 .. E - 1.
        over: reach the end after so many, W, counted from 1, and stay there: ``start + (end - start) min((e + 1) / W, 1)``.
    """

    start: float
    end: float
    by: Literal["step", "epoch"] = "step"
    over: int | None = None

    def __post_init__(self) -> None:
        if self.over is not None and self.over < 1:
            raise ValueError(f"a ramp reaches its end after at least 1 {self.by}, not over {self.over}")

    def at(self, place: int, places: int) -> float:
        """Return the value at a place, the step or the epoch, counted from 0, of so many places."""
        share = place / max(1, places - 1) if self.over is None else (place + 1) / self.over
        return self.start + (self.end - self.start) * min(1.0, share)


@dataclass
class Term:
    """One term of an objective.

    Args:
        loss: a module ``loss(student, target)``; one that takes rows is given real tokens only, without padding, and one
            that takes a mask ``loss(students, teachers, mask)`` lists of whole values ``[B, S, ...]``. One that names
            ``fields`` of the batch is given them too, by their names: ``loss(student, teacher, labels=...)``. One that is
            ``student_only`` compares what the student itself says, ``loss(student)``: it has no teacher and no labels.
        weight: the factor of the term in the total.
        student: the student's tap ``[view.]tap``; a list when the loss takes several.
        teacher: a teacher's tap ``name.tap``. A list, where the student has one tap: those of several teachers. Where the
            student has a list: as many taps of one teacher, which the loss compares one by one.
        labels: the field of the batch that a supervised loss compares with.
        combine: how several teachers count. ``mean_probabilities`` and ``mean_logits`` make one teacher of those that
            share the student's rows and classes; ``mean_losses`` adds each one's loss. The means of losses and of
            probabilities differ by a constant and have the same gradient.
        teacher_weights: the weights of the teachers, summing to 1 after division by their sum; equal by default.
        mask: the field of the batch that says which rows count; default: the attention mask of the student's view.
        weights: the field of the batch that weighs the rows.
        ramps: numbers that move during the fit, by name: ``weight``, or a number of the loss, such as ``temperature``.
    """

    loss: nn.Module
    weight: float = 1.0
    student: str | list[str] = "logits"
    teacher: str | list[str] | None = None
    labels: str | None = None
    combine: Literal["mean_probabilities", "mean_logits", "mean_losses"] = "mean_losses"
    teacher_weights: list[float] | None = None
    mask: str | None = None
    weights: str | None = None
    ramps: dict[str, Ramp] | None = None

    def __post_init__(self) -> None:
        given = (self.teacher is not None) + (self.labels is not None)
        if self.student_only and given:
            raise ValueError(
                f"{type(self.loss).__name__} compares the student with itself: leave out 'teacher' and 'labels'"
            )
        if not self.student_only and given != 1:
            raise ValueError("a term compares the student with either 'teacher' or 'labels': give one of them")
        one_by_one = self.takes_lists and not getattr(self.loss, "all_pairs", False)
        if one_by_one and len(self.students) != len(self.teachers):
            raise ValueError(
                f"a term compares its student's taps with a teacher's one by one: {len(self.students)} taps "
                f"({', '.join(self.students)}) need as many of the teacher, not {len(self.teachers)}"
            )
        if self.takes_lists and len({name for name, _ in self.teachers}) > 1:
            raise ValueError("a term that compares lists of taps has one teacher: give each teacher a term of its own")
        for name in self.ramps or {}:
            if name != "weight" and not hasattr(self.loss, name):
                numbers = [key for key, value in vars(self.loss).items() if isinstance(value, float)]
                raise ValueError(
                    f"{type(self.loss).__name__} has no number '{name}' that could move.{nearest(name, [*numbers, 'weight'])}"
                )
        if self.teacher_weights is not None:
            if len(self.teacher_weights) != len(self.teachers):
                raise ValueError(f"{len(self.teachers)} teachers need as many weights, not {self.teacher_weights}")
            if min(self.teacher_weights) < 0 or sum(self.teacher_weights) <= 0:
                raise ValueError(
                    f"the teachers' weights must be >= 0 and sum to more than 0, got {self.teacher_weights}"
                )

    @property
    def students(self) -> list[str]:
        """The student's taps as a list."""
        return [self.student] if isinstance(self.student, str) else list(self.student)

    @property
    def student_only(self) -> bool:
        """Whether the loss reads nothing but the student."""
        return getattr(self.loss, "student_only", False)

    @property
    def takes_lists(self) -> bool:
        """Whether the loss is given lists of the student's and the teacher's values."""
        several = isinstance(self.student, list) or getattr(self.loss, "takes_mask", False)
        return self.teacher is not None and several

    @property
    def teachers(self) -> list[tuple[str, str]]:
        """``(teacher, tap)`` of each teacher's value that the term reads."""
        named = [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or [])
        return [(name, tap) for name, _, tap in (each.partition(".") for each in named)]


class Match(Protocol):
    """Brings a student's and a teacher's values to the same rows (and the same classes)."""

    def __call__(
        self, student: Tensor, teacher: Tensor, tap: str, temperature: float, batch: Batch, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return rows ``[N, ...]`` of both; ``mask`` ``[B, S]`` tells which positions of the student count."""


def same_rows(
    student: Tensor, teacher: Tensor | TopK, tap: str, temperature: float, batch: Batch, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Match value by value: both networks saw the same tokens (or the whole example is one row).

    Of a teacher whose k largest logits are known, the student's other classes are taken together as the teacher's are.
    """
    if mask is not None:
        student = select_rows(student, mask)
        teacher = (
            TopK(*(select_rows(part, mask) for part in teacher))
            if isinstance(teacher, TopK)
            else select_rows(teacher, mask)
        )
    if isinstance(teacher, TopK):
        return lump_logits(student, teacher.classes, temperature), teacher.logits
    return student, teacher


class Objective(nn.Module):
    """The weighted sum of named terms. Networks inside a loss (projectors, critics) are trained with the student.

    Args:
        terms: the terms by name.
        matches: per teacher how its values meet the student's; default: row by row.
    """

    def __init__(self, terms: Mapping[str, Term], matches: Mapping[str, Match] | None = None) -> None:
        super().__init__()
        if terms and not any(term.weight for term in terms.values()):
            raise ValueError("the weights of the objective's terms sum to nothing: there is nothing to learn")
        if taken := [name for name in terms if not name.isidentifier() or hasattr(nn.ModuleDict, name)]:
            raise ValueError(f"a term cannot be named '{taken[0]}': take another word of letters, digits and _")
        self.terms = dict(terms)
        self.losses = nn.ModuleDict({name: term.loss for name, term in terms.items()})
        self.matches = dict(matches or {})

    def student_taps(self) -> list[str]:
        """Return every tap of the student that a term reads."""
        return list(dict.fromkeys(tap for term in self.terms.values() for tap in term.students))

    def teacher_taps(self) -> dict[str, list[str]]:
        """Return the taps that the terms read of each teacher."""
        taps: dict[str, list[str]] = {}
        for term in self.terms.values():
            for name, tap in term.teachers:
                if tap not in taps.setdefault(name, []):
                    taps[name].append(tap)
        return taps

    def labelled_only(self, tap: str) -> str | None:
        """Return the field of the labels when all that the terms read of a student's tap is its labelled positions."""
        readers = [term for term in self.terms.values() if tap in term.students]
        fields = {term.labels if getattr(term.loss, "labelled_only", False) else None for term in readers}
        return fields.pop() if len(fields) == 1 else None

    def short_logits(self) -> dict[str, float]:
        """Return the teachers whose logits may be kept in short, with the one temperature at which all terms read them."""
        found: dict[str, set[float | None]] = {}
        for term in self.terms.values():
            for name, tap in term.teachers:
                if tap == "logits":
                    # A loss that compares rows needs the same classes in all of them, one that moves other temperatures,
                    # and a field may name a class.
                    whole = term.ramps or getattr(term.loss, "compares_rows", False) or getattr(term.loss, "fields", ())
                    alone = len(term.teachers) == 1 and name not in self.matches and not whole
                    known = getattr(term.loss, "temperature", None) if alone else None
                    found.setdefault(name, set()).add(known)
        return {
            name: temperatures.pop()
            for name, temperatures in found.items()
            if len(temperatures) == 1 and None not in temperatures
        }

    @property
    def compares_rows(self) -> bool:
        """Whether a loss compares the rows of a batch with one another, so that which rows meet in it matters."""
        return any(getattr(loss, "compares_rows", False) for loss in self.losses.values())

    @property
    def moves(self) -> bool:
        """Whether a number moves during the fit."""
        return any(term.ramps for term in self.terms.values())

    def move(self, places: Mapping[str, tuple[int, int]]) -> None:
        """Set every number that moves; ``places`` tell which ``step`` and ``epoch`` it is, from 0, and of how many."""
        for term in self.terms.values():
            for name, ramp in (term.ramps or {}).items():
                setattr(term if name == "weight" else term.loss, name, ramp.at(*places[ramp.by]))

    def forward(self, student: Values, teacher: Mapping[str, Values], batch: Batch) -> dict[str, Tensor]:
        """Return the raw value of every term."""
        return {name: self._value(term, student, teacher, batch) for name, term in self.terms.items()}

    @torch.no_grad()
    def tails(self, student: Values, teacher: Mapping[str, Values], batch: Batch) -> dict[str, Tensor]:
        """Return, for each term with a teacher whose logits are kept in short, what is not known of it.

        ``<term>_tail_mass``: the mean probability of the classes that were not kept. ``<term>_tail_bound``: by how much the
        mean forward KL may be too small, at most (:func:`~kdbench.losses.top_k.tail_error_bound`), before the weight.
        """
        found = {}
        for name, term in self.terms.items():
            kept = teacher[term.teachers[0][0]][term.teachers[0][1]] if len(term.teachers) == 1 else None
            if not isinstance(kept, TopK):
                continue
            ours, temperature = student[term.students[0]], term.loss.temperature
            if (mask := self._mask(term, ours, batch)) is not None:
                ours, kept = select_rows(ours, mask), TopK(*(select_rows(part, mask) for part in kept))
            factor = temperature**2 if getattr(term.loss, "square_temperature", False) else 1.0
            found[f"{name}_tail_mass"] = tail_mass(kept, temperature).mean()
            found[f"{name}_tail_bound"] = factor * tail_error_bound(ours, kept, temperature).mean()
        return found

    def _value(self, term: Term, student: Values, teacher: Mapping[str, Values], batch: Batch) -> Tensor:
        values = [student[tap] for tap in term.students]
        if term.takes_lists:
            return self._lists(term, values, teacher, batch)
        value = values[0] if len(values) == 1 else values
        if term.student_only:
            return term.loss(value, **self._fields(term, batch))
        if term.labels is not None:
            labels = labels_of(value, field(batch, term.labels))
            if term.mask is not None:
                counted = field(batch, term.mask).bool()
                value, labels = select_rows(value, counted), select_rows(labels, counted)
            if term.weights is None:
                return term.loss(value, labels, **self._fields(term, batch))
            weights = field(batch, term.weights)
            weights = weights if term.mask is None else select_rows(weights, counted)
            return term.loss(value, labels, weights, **self._fields(term, batch))
        mask = self._mask(term, value, batch)
        temperature = getattr(term.loss, "temperature", 1.0)
        shares = term.teacher_weights or [1.0] * len(term.teachers)
        shares = [share / sum(shares) for share in shares]
        apart: list[tuple[float, Tensor]] = []
        together: list[tuple[float, Tensor]] = []
        student_rows = value
        for share, (name, tap) in zip(shares, term.teachers, strict=True):
            match = self.matches.get(name, same_rows)
            ours, theirs = match(value, teacher[name][tap], tap, temperature, batch, mask)
            if match is same_rows and term.combine != "mean_losses":
                student_rows = ours
                together.append((share, theirs))
            else:
                loss = self._loss(term, ours, theirs, batch, mask if match is same_rows else None)
                apart.append((share, loss))
        if together:
            share = sum(each for each, _ in together)
            mixed = _combined(together, term.combine, temperature)
            apart.append((share, self._loss(term, student_rows, mixed, batch, mask)))
        return weighted_sum(apart)

    @staticmethod
    def _fields(term: Term, batch: Batch) -> dict[str, Tensor]:
        return {name: field(batch, name) for name in getattr(term.loss, "fields", ())}

    def _lists(self, term: Term, values: list[Tensor], teacher: Mapping[str, Values], batch: Batch) -> Tensor:
        name = term.teachers[0][0]
        if name in self.matches:
            raise ValueError(f"the taps of the teacher '{name}', whose vocabulary differs, cannot be compared in lists")
        theirs = [teacher[name][tap] for _, tap in term.teachers]
        if not getattr(term.loss, "takes_mask", False):
            return term.loss(values, theirs, **self._fields(term, batch))
        view = batch[view_of(term.students[0], batch)]
        return term.loss(values, theirs, (field(batch, term.mask) if term.mask else view["attention_mask"]).bool())

    def _loss(self, term: Term, student: Tensor, teacher: Tensor, batch: Batch, mask: Tensor | None) -> Tensor:
        fields = self._fields(term, batch)
        if term.weights is None:
            return term.loss(student, teacher, **fields)
        weights = field(batch, term.weights)
        return term.loss(student, teacher, select_rows(weights, mask) if mask is not None else weights, **fields)

    @staticmethod
    def _mask(term: Term, value: Tensor, batch: Batch) -> Tensor | None:
        if term.mask is not None:
            return field(batch, term.mask).bool()
        if not getattr(term.loss, "takes_rows", False) or not isinstance(value, Tensor) or value.dim() < 3:
            return None
        return batch[view_of(term.students[0], batch)]["attention_mask"].bool()


def weighted_sum(values: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Return ``sum of w v``; what is weighed by 1, or alone, costs autograd nothing."""
    return functools.reduce(operator.add, (value if weight == 1 else weight * value for weight, value in values))


def field(batch: Batch, name: str) -> Tensor:
    """Return a field of the batch; raise ValueError with the nearest name when there is none."""
    if name not in batch:
        raise ValueError(f"the batch has no field '{name}', only {', '.join(sorted(batch))}.{nearest(name, batch)}")
    return batch[name]


def labels_of(value: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Return the labels of a value; of one that holds labelled positions alone ``[N, ...]``, the labels ``[N]`` of these."""
    if labels.is_floating_point():  # a score or a distribution for each row
        return labels
    few = isinstance(value, Tensor) and value.dim() == labels.dim()
    return labels[labels != IGNORED] if few and labels.dim() == 2 else labels


def view_of(tap: str, batch: Batch) -> str:
    """Return the view that a student's tap ``[view.]tap`` is read from; without one, ``inputs``."""
    view, _, rest = tap.partition(".")
    return view if rest and isinstance(batch.get(view), Mapping) else "inputs"


def _combined(teachers: Sequence[tuple[float, Tensor]], combine: str, temperature: float) -> Tensor:
    if len(teachers) == 1:
        return teachers[0][1]
    shares = torch.tensor([share for share, _ in teachers])
    return combine_logits([rows for _, rows in teachers], combine, temperature, (shares / shares.sum()).tolist())
