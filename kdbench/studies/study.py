"""Studies: numbers and pictures that follow from a computation alone, where no network is trained."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.metrics.pictures import Shown


@dataclass(frozen=True)
class Findings:
    """What a study found: its numbers, its pictures and the texts of the files that it leaves to other runs, each by name."""

    numbers: Mapping[str, float]
    pictures: Mapping[str, Shown] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Study(abc.ABC):
    """A computation with arguments of its own and a seed; the same arguments and seed find the same."""

    @abc.abstractmethod
    def __call__(self, seed: int) -> Findings:
        """Compute and return what was found."""
