"""The mixtures of a fleet of proxies (RegMix, arXiv 2407.01492)."""

from kdbench.compression.mixture_draws import draw_mixtures
from kdbench.data.shares import checked_shares
from kdbench.studies.fleet import Draws


class TemperedMixtures(Draws):
    """Mixtures to try, drawn around the tempered prior (:func:`~kdbench.compression.mixture_draws.draw_mixtures`).

    Args:
        prior: the share of each domain in the corpus.
        count: how many mixtures.
        most_epochs: how often a run on one of them may go through a domain, had it as many tokens as the corpus.
    """

    def __init__(self, prior: dict[str, float], count: int, most_epochs: float = 15.0) -> None:
        self.prior, self.count, self.most_epochs = prior, count, most_epochs

    def values(self, seed: int) -> list[dict[str, float]]:
        """Return the shares of each mixture."""
        prior = checked_shares(self.prior, list(self.prior), "prior")
        drawn = draw_mixtures(prior, self.count, seed, self.most_epochs)
        return [dict(zip(self.prior, mixture, strict=True)) for mixture in drawn.round(4).tolist()]
