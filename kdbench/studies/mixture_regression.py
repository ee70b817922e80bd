"""A loss learnt from the mixtures of many small runs, and the mixture that a large run is then given.

Liu et al. 2024 (RegMix), arXiv 2407.01492.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kdbench.compression.mixture_regression import (
    Predict,
    Tried,
    agreement,
    choose_mixture,
    fit_linear,
    fit_trees,
    rank_correlation,
)
from kdbench.data import registry
from kdbench.data.registry import Row
from kdbench.data.shares import checked_shares
from kdbench.errors import UserError, nearest
from kdbench.metrics.pictures import HeatMap, Picture
from kdbench.studies.fleet import FromRuns
from kdbench.studies.study import Findings, Study

WEIGHTS = "data.weights"
FEWEST = 10  # proxies below which there is nothing to learn


class ProxyRegression(Study):
    """Learn the loss of a fleet of proxies from their mixtures, and choose the mixture of the large run.

    The last proxies are not learnt from: found are ``spearman_linear`` and ``spearman_trees``, the rank correlation between
    their losses and the predictions, and the squared errors ``mse_linear`` and ``mse_trees``; ``<regressor>_<domain>``, the
    mixture that each regressor chooses, and ``best_<domain>``, that of the proxy with the lowest loss of all that are learnt
    from; ``proxy_steps`` and ``proxy_seconds``, what the fleet cost. The files that it leaves hold a mixture each, for
    ``data.weights``: ``linear.json``, ``trees.json``, ``best.json``, and for comparison ``uniform.json`` and ``prior.json``.

    Args:
        proxies: the fleet, over ``data.weights``.
        prior: the share of each domain in the corpus; the mixtures that are weighed against each other are drawn around it.
        metric: of a proxy's record, the loss that is learnt; one of validation.
        unseen: how many proxies are not learnt from.
        smallest_leaf: the fewest mixtures in a leaf of a tree (paper: 20, of 512).

    Raises:
        UserError: the fleet goes over something else, is too small or lacks the metric, or a mixture or the prior is none.
    """

    def __init__(
        self,
        proxies: FromRuns,
        prior: dict[str, float],
        metric: str = "val/cross_entropy@student",
        unseen: int = 16,
        smallest_leaf: int = 20,
    ) -> None:
        self.proxies, self.prior, self.metric = proxies, prior, metric
        self.unseen, self.smallest_leaf = unseen, smallest_leaf

    def __call__(self, seed: int) -> Findings:
        """Read the records of the fleet, fit both regressors, choose."""
        domains = list(self.prior)
        prior = checked_shares(self.prior, domains, "prior")
        mixtures = np.stack([checked_shares(each, domains, WEIGHTS) for each in self.proxies.values(WEIGHTS)])
        losses = np.array(self.proxies.metric(self.metric))
        count = len(losses) - self.unseen
        if count < FEWEST or self.unseen < 2:
            raise UserError(
                f"{len(losses)} proxies, {self.unseen} of them unseen, are too few: learn from {FEWEST} or more, and rank 2."
            )
        seen, unseen = Tried(mixtures[:count], losses[:count]), Tried(mixtures[count:], losses[count:])
        regressors = _regressors(seen, seed, self.smallest_leaf)
        chosen = {name: choose_mixture(predict, prior) for name, predict in regressors.items()}
        chosen["best"] = seen.mixtures[seen.losses.argmin()]
        numbers = {f"proxy_{cost}": self.proxies.total(cost) for cost in ("steps", "seconds")}
        for name, predict in regressors.items():
            numbers[f"spearman_{name}"], numbers[f"mse_{name}"] = agreement(predict, unseen)
        for name, mixture in chosen.items():
            numbers |= {f"{name}_{domain}": share for domain, share in _named(domains, mixture).items()}
        left = chosen | {"uniform": np.full(len(domains), 1 / len(domains)), "prior": prior}
        files = {f"{name}.json": json.dumps(_named(domains, mixture)) + "\n" for name, mixture in left.items()}
        return Findings(numbers, {"unseen": _ranked(regressors, unseen)}, files)


class MixtureRegression(Study):
    """Learn the losses of published proxies from their mixtures, and rank by them what models of other sizes came to.

    Found are, for each regressor (``linear``, ``trees``), target and size of a model, ``spearman_<regressor>_<target>_<size>``,
    the rank correlation on mixtures that were not learnt from, and for the proxies' own size ``mse_<regressor>_<target>``, the
    squared error (the losses of another size are others, only their order is the same); ``rank_<target>_<size>_<size>``, the
    rank correlation between the losses of two sizes on the same mixtures; and of the first target alone
    ``<regressor>_<domain>``, the chosen mixture, ``share_<domain>``, the rank correlation between share and minus loss over the
    proxies, and ``spearman_<regressor>_<count>``, learnt from the first proxies alone.

    Args:
        dataset: rows with a ``size``, a ``mixture`` and ``losses``; the proxies are its training split.
        prior: the share of each domain in the corpus.
        targets: the domains whose losses are learnt.
        counts: numbers of proxies that are also learnt from, ascending.
        source: of the data set.

    Raises:
        UserError: the data cannot be read or have no loss of a target, or the prior is none of their domains.
    """

    def __init__(
        self,
        dataset: str,
        prior: dict[str, float],
        targets: list[str],
        counts: list[int] | None = None,
        source: str = "embedded",
    ) -> None:
        self.dataset, self.prior, self.source = dataset, prior, source
        self.targets, self.counts = targets, counts or []

    def __call__(self, seed: int) -> Findings:
        """Read the tables, fit and rank."""
        proxies = registry.load(self.dataset, self.source, "train")
        tests: dict[str, list[Row]] = {}
        for row in registry.load(self.dataset, self.source, "test"):
            tests.setdefault(row["size"], []).append(row)
        domains, own, main = list(proxies[0]["mixture"]), proxies[0]["size"], self.targets[0]
        prior = checked_shares(self.prior, domains, "prior")
        numbers: dict[str, float] = {}
        for target in self.targets:
            tried = {size: _tried(rows, target) for size, rows in tests.items()}
            for name, predict in _regressors(_tried(proxies, target), seed).items():
                for size, each in tried.items():
                    numbers[f"spearman_{name}_{target}_{size}"], error = agreement(predict, each)
                    if size == own:
                        numbers[f"mse_{name}_{target}"] = error
                if target == main:
                    chosen = _named(domains, choose_mixture(predict, prior))
                    numbers |= {f"{name}_{domain}": share for domain, share in chosen.items()}
            for (one, left), (other, right) in itertools.combinations(tried.items(), 2):
                if np.array_equal(left.mixtures, right.mixtures):
                    numbers[f"rank_{target}_{one}_{other}"] = rank_correlation(left.losses, right.losses)
        shares = [_of_shares(_tried(proxies, target)) for target in self.targets]
        numbers |= {f"share_{domain}": share for domain, share in zip(domains, shares[0], strict=True)}
        for count in self.counts:
            for name, predict in _regressors(_tried(proxies[:count], main), seed).items():
                numbers[f"spearman_{name}_{count}"], _ = agreement(predict, _tried(tests[own], main))
        title = "Rank correlation of share and minus loss"
        cells = np.transpose(shares).tolist()
        pictures = {"shares": HeatMap(title, "loss on", "share of", self.targets, domains, cells)}
        if self.counts:
            lines = {
                name: [numbers[f"spearman_{name}_{count}"] for count in (*self.counts, f"{main}_{own}")]
                for name in ("linear", "trees")
            }
            title, places = f"Unseen mixtures ranked by loss on {main}", [*self.counts, len(proxies)]
            pictures["counts"] = Picture(title, "proxies", "rank correlation", places, lines)
        return Findings(numbers, pictures)


def _of_shares(tried: Tried) -> list[float]:
    """Return the rank correlation of the share of each domain and minus the loss."""
    return [rank_correlation(share, -tried.losses) for share in tried.mixtures.T]


def _regressors(tried: Tried, seed: int, smallest_leaf: int = 20) -> dict[str, Predict]:
    return {"linear": fit_linear(tried), "trees": fit_trees(tried, seed, smallest_leaf)}


def _tried(rows: Sequence[Row], target: str) -> Tried:
    """Return mixtures and losses of rows; raise :class:`UserError` where they have no loss on the target."""
    known = rows[0]["losses"]
    if target not in known:
        raise UserError(f"There are no losses on '{target}', only on {', '.join(known)}.{nearest(target, known)}")
    mixtures = [list(row["mixture"].values()) for row in rows]
    return Tried(np.array(mixtures), np.array([row["losses"][target] for row in rows]))


def _named(domains: Iterable[str], mixture: np.ndarray) -> dict[str, float]:
    """Return the share of each domain, with the digits that it is told with."""
    return dict(zip(domains, mixture.round(6).tolist(), strict=True))


def _ranked(regressors: Mapping[str, Predict], unseen: Tried) -> Picture:
    """Return the measured and the predicted losses of mixtures, in the order of the measured ones."""
    order = unseen.losses.argsort()
    lines = {"measured": unseen.losses[order].tolist()}
    lines |= {name: predict(unseen.mixtures[order]).tolist() for name, predict in regressors.items()}
    places = list(range(1, 1 + len(order)))
    return Picture("Loss of proxies that were not learnt from", "place of the mixture", "nats a word", places, lines)
