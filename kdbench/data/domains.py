"""Texts of several domains, each row drawn from a domain with the probability that a mixture gives it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import numpy as np

from kdbench.data.base import Item, Row, field
from kdbench.data.causal_language import CausalLanguageModeling, CausalOptions
from kdbench.data.noise import uniform
from kdbench.data.samplers import GroupedBatches
from kdbench.data.shares import checked_shares, read_mixture
from kdbench.errors import UserError, nearest
from kdbench.models.origins import FromRun


class DomainMixture(CausalLanguageModeling):
    """Texts for causal language models, whose training rows are drawn from their domains by the weights of a mixture.

    Args:
        dataset: see :class:`TextData`; its rows have a field that names their domain.
        weights: the probability of each domain, a domain that is not named having none; or the file of them that another run
            has left. They are normalised. By default rows come as often as the data have them.
        target: the domain whose texts are validation and test; by default all are.
        domain: the field of the row that names its domain.
        prompt_length: see :class:`~kdbench.data.causal_language.CausalLanguageModeling`.
        options: see :class:`~kdbench.data.causal_language.CausalLanguageModeling`.
    """

    def __init__(
        self,
        dataset: str,
        weights: dict[str, float] | FromRun | None = None,
        target: str | None = None,
        domain: str = "domain",
        prompt_length: int = 1,
        **options: Unpack[CausalOptions],
    ) -> None:
        super().__init__(dataset, prompt_length=prompt_length, **options)
        self.weights, self.target, self.domain = weights, target, domain

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return prompt, response and domain of every row, domain after domain."""
        of: dict[str, list[Row]] = {}
        for row in rows:
            of.setdefault(field(row, self.domain), []).append(row)
        encode = super().encode
        return [item | {"domain": name} for name in sorted(of) for item in encode(of[name])]

    def setup(self, stage: str) -> None:
        """Encode the rows; keep those of the target for validation and test."""
        super().setup(stage)
        if self.target is None:
            return
        for split in ("validation", "test"):
            if (items := self.items.get(split)) is not None:
                self.items[split] = [item for item in items if item["domain"] == self.target]
                if not self.items[split]:
                    known = sorted({item["domain"] for item in items})
                    raise UserError(
                        f"data.target: the split '{split}' of '{self.dataset}' has no domain '{self.target}', only "
                        f"{', '.join(known)}.{nearest(self.target, known)}"
                    )

    def sampler(self, split: str) -> Callable[..., GroupedBatches]:
        """Return what draws the training rows by the weights of their domains."""
        if split != "train" or self.weights is None:
            return super().sampler(split)
        told = read_mixture(self.weights.path()) if isinstance(self.weights, FromRun) else self.weights
        names = [item["domain"] for item in self.items[split]]
        domains = sorted(set(names))
        shares = checked_shares(told, domains, "data.weights")
        return partial(DomainBatches, domains=np.searchsorted(domains, names), shares=shares)


class DomainBatches(GroupedBatches):
    """:class:`GroupedBatches` whose training rows are drawn: at each place of an epoch first a domain, then its next row.

    The domain of a place has the probability of its share, whatever comes before. The rows of a domain come in a random order,
    and in another one when all have come: how often a row comes follows from the share and the size of its domain. All is a pure
    function of seed, epoch and place.

    Args:
        domains: the number of the domain of each row, ``[rows]``.
        shares: the share of each domain, ``[D]``, summing to 1; a domain with a share has a row.
        arguments: see :class:`GroupedBatches`.
    """

    def __init__(self, domains: np.ndarray, shares: np.ndarray, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.members = [np.flatnonzero(domains == number) for number in range(len(shares))]
        self.borders = shares.cumsum()[:-1]

    def order(self) -> np.ndarray:
        """Return the rows of the chosen epoch."""
        drawn = np.searchsorted(self.borders, uniform(self.seed, self.epoch, 2, np.arange(self.kept)), side="right")
        rows = np.empty(self.kept, dtype=np.int64)
        for number, members in enumerate(self.members):
            places = np.flatnonzero(drawn == number)
            passes = np.arange(-(-len(places) // max(1, len(members))))[:, None]
            chance = uniform(self.seed, self.epoch, 3, passes, members[None])
            rows[places] = members[np.argsort(chance)].ravel()[: len(places)]
        return rows
