"""Studies: numbers and pictures that follow from a computation alone, where no network is trained."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Picture:
    """Lines over one axis.

    Attributes:
        title: what is shown, in a few words.
        x_title: what the axis counts.
        y_title: what the lines show, with its unit.
        x: the places, ascending.
        lines: the height at each place, by the name of the line.
    """

    title: str
    x_title: str
    y_title: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Findings:
    """What a study found: its numbers by name, and its pictures by name."""

    numbers: Mapping[str, float]
    pictures: Mapping[str, Picture] = field(default_factory=dict)


class Study(abc.ABC):
    """A computation with arguments of its own and a seed; the same arguments and seed find the same."""

    @abc.abstractmethod
    def __call__(self, seed: int) -> Findings:
        """Compute and return what was found."""
