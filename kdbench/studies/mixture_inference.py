"""What the merges of a tokenizer tell of its training text, where the truth is known."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kdbench.compression.mixture import Pair, PairHistory, Shares, byte_shares, mixture_shares, pair_history
from kdbench.data import registry
from kdbench.data.byte_pairs import BytePairs, train_byte_pairs
from kdbench.errors import UserError, nearest
from kdbench.metrics.pictures import Picture
from kdbench.studies.study import Findings, Study


class MixtureInference(Study):
    """Train a tokenizer on a known mixture of categories, and find the mixture from its merges (arXiv 2407.16607).

    The seed draws the mixture, uniform on the simplex: sorted distinct integers below 10,000 and the gaps between them. The
    tokenizer is trained on every second text of a category, the attacker counts pairs in the others. Found are, as the decimal
    logarithm of ``mse = 1/n sum_i (found_i - true_i)^2`` of byte shares, ``attack``, and beside it ``uniform``, ``random`` (another
    draw), ``efficiency`` (shares in proportion to a category's bytes a token) and ``classification`` (each token belongs to
    the categories by its frequency in their texts); ``attack_<merges>`` with the first merges alone, ``attack_<percent>_percent``
    of the attacker's text; ``slack`` of the program, and the ``true_`` and ``found_`` share of each category.

    Args:
        categories: the data set of each, with the field of the text where it is not ``text``: ``code/stdlib_functions:code``.
        merges: of the tokenizer.
        kilobytes: of text that the tokenizer is trained on.
        attacker_kilobytes: of each category.
        first: the numbers of first merges that are also tried.
        percents: of the attacker's text that are also tried, with all merges.
        settled: see :func:`~kdbench.compression.mixture.mixture_shares`; for tens of thousands of merges, 1e-3.
        source: of the data sets.

    Raises:
        UserError: fewer than two categories, numbers below 1, or a category without enough text.
    """

    def __init__(
        self,
        categories: dict[str, str],
        merges: int = 600,
        kilobytes: int = 300,
        attacker_kilobytes: int = 200,
        first: list[int] | None = None,
        percents: list[int] | None = None,
        settled: float | None = None,
        source: str = "embedded",
    ) -> None:
        check_categories(categories, source)
        self.first, self.percents = first or [], percents or []
        if min(merges, kilobytes, attacker_kilobytes, *self.first, *self.percents) < 1:
            raise UserError("The numbers of merges, of kilobytes and of percents are at least 1.")
        if max([0, *self.first]) > merges or max([0, *self.percents]) > 100:
            raise UserError(f"There are {merges} merges and 100 percent of the text to try, not more.")
        self.categories, self.merges, self.settled, self.source = categories, merges, settled, source
        self.kilobytes, self.attacker_kilobytes = kilobytes, attacker_kilobytes

    def __call__(self, seed: int) -> Findings:
        """Train the tokenizer of the seed's mixture, and find it."""
        generator = np.random.Generator(np.random.PCG64([seed, 0]))
        true, other = (simplex(len(self.categories), generator) for _ in range(2))
        texts = {name: texts_of(name, place, self.source) for name, place in self.categories.items()}
        mixed = [
            text
            for share, name in zip(true, texts, strict=True)
            for text in _bytes_of(texts[name][::2], 1000 * self.kilobytes * share, name)
        ]
        tokenizer = train_byte_pairs(mixed, self.merges)
        attacker = [list(_bytes_of(rows[1::2], 1000 * self.attacker_kilobytes, name)) for name, rows in texts.items()]
        found, solved = attack(tokenizer, attacker, tokenizer.merges, self.settled)
        guesses = {
            "attack": found,
            "uniform": np.full(len(true), 1 / len(true)),
            "random": other,
            "efficiency": efficiency(tokenizer, attacker),
            "classification": classification(tokenizer, attacker),
        }
        guesses |= {
            f"attack_{count}": attack(tokenizer, attacker, tokenizer.merges[:count], self.settled)[0]
            for count in self.first
        }
        for percent in self.percents:
            part = [texts[: max(1, len(texts) * percent // 100)] for texts in attacker]
            guesses[f"attack_{percent}_percent"] = attack(tokenizer, part, tokenizer.merges, self.settled)[0]
        numbers = {name: log_error(guess, true) for name, guess in guesses.items()} | {"slack": solved.slack}
        for name, share, guess in zip(self.categories, true, found, strict=True):
            numbers |= {f"true_{name}": float(share), f"found_{name}": float(guess)}
        return Findings(numbers, self._pictures(numbers))

    def _pictures(self, numbers: Mapping[str, float]) -> dict[str, Picture]:
        if not self.first:
            return {}
        places = sorted({*self.first, self.merges})
        heights = [numbers.get(f"attack_{place}", numbers["attack"]) for place in places]
        lines = {"attack": heights} | {
            name: [numbers[name]] * len(places) for name in ("uniform", "efficiency", "classification")
        }
        title = "What the first merges tell of a mixture"
        return {"merges": Picture(title, "merges", "log10 of the mean squared error", places, lines)}


class TokenizerMixture(Study):
    """Find the mixture behind a tokenizer whose training text nobody tells, from its ``tokenizer.json``.

    Found are the share of each category among the bytes, ``found_<category>``, what no mixture explains, ``slack`` (in shares
    of all pairs), how many ``merges`` were used, and how many of them occur in ``no_category``.

    Args:
        tokenizer: the file, or its folder; any byte-pair tokenizer of transformers.
        categories: see :class:`MixtureInference`; what the training text has beside them is not seen.
        merges: use the first so many; by default all.
        kilobytes: of each category.
        settled: see :class:`MixtureInference`.
        source: of the data sets.

    Raises:
        UserError: the tokenizer has no merges, or a category has not enough text.
    """

    def __init__(
        self,
        tokenizer: str,
        categories: dict[str, str],
        merges: int | None = None,
        kilobytes: int = 200,
        settled: float | None = 1e-3,
        source: str = "embedded",
    ) -> None:
        check_categories(categories, source)
        self.tokenizer, self.categories, self.source = tokenizer, categories, source
        self.merges, self.kilobytes, self.settled = merges, kilobytes, settled

    def __call__(self, seed: int) -> Findings:
        """Count pairs and solve the program; the seed does not matter."""
        tokenizer = BytePairs(self.tokenizer)
        texts = {name: texts_of(name, place, self.source) for name, place in self.categories.items()}
        attacker = [list(_bytes_of(rows, 1000 * self.kilobytes, name)) for name, rows in texts.items()]
        merges = tokenizer.merges[: self.merges]
        found, solved = attack(tokenizer, attacker, merges, self.settled)
        numbers = {f"found_{name}": float(share) for name, share in zip(texts, found, strict=True)}
        told = {"slack": solved.slack, "merges": len(merges), "no_category": len(solved.missing)}
        return Findings(numbers | told)


def check_categories(categories: Mapping[str, str], source: str) -> None:
    """Raise :class:`UserError` unless there are two categories or more, and the data sets of all have that source."""
    if len(categories) < 2:
        raise UserError("A mixture has two categories or more.")
    for place in categories.values():
        registry.check_source(place.partition(":")[0], source)


def texts_of(name: str, place: str, source: str) -> list[str]:
    """Return the distinct texts of a category, of all splits of its data set."""
    dataset, _, field = place.partition(":")
    rows = [row for split in registry.SPLITS for row in registry.load(dataset, source, split)]
    if (field := field or "text") not in rows[0]:
        raise UserError(
            f"The rows of '{dataset}' have no field '{field}', which '{name}' names.{nearest(field, rows[0])}"
        )
    return list(dict.fromkeys(row[field] for row in rows))


def simplex(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return shares ``[size]`` of a mixture: the gaps between 0, sorted distinct integers below 10,000, and 10,000."""
    cuts = np.sort(generator.choice(np.arange(1, 10_000), size - 1, replace=False))
    return np.diff([0, *cuts, 10_000]) / 10_000


def attack(
    tokenizer: BytePairs, texts: Sequence[Sequence[str]], merges: Sequence[Pair], settled: float | None = None
) -> tuple[np.ndarray, Shares]:
    """Return the byte shares of the categories that explain the merges best, and the solution that they come from."""
    histories: list[PairHistory] = [pair_history(tokenizer.words(each), merges) for each in texts]
    shares = mixture_shares(histories, merges, settled=settled)
    sizes = [_size(each) / history.total for each, history in zip(texts, histories, strict=True)]
    return byte_shares(shares.pairs, sizes), shares


def efficiency(tokenizer: BytePairs, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return shares in proportion to bytes a token: a tokenizer writes short what it has seen much of."""
    rates = np.array(
        [_size(each) / sum(len(code) for code in tokenizer.tokenizer.encode_batch(each)) for each in texts]
    )
    return rates / rates.sum()


def classification(tokenizer: BytePairs, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean over tokens of their categories, a token belonging to each by its frequency as a string in its words."""
    tokens = {first + second for first, second in tokenizer.merges}
    longest = max(map(len, tokens))
    rates = []
    for each in texts:
        counts: Counter[str] = Counter()
        for word, times in tokenizer.words(each).items():
            whole = "".join(word)
            for start in range(len(whole)):
                for end in range(start + 2, min(len(whole), start + longest) + 1):
                    if whole[start:end] in tokens:
                        counts[whole[start:end]] += times
        rates.append({token: count / _size(each) for token, count in counts.items()})
    shares = np.array([[rate.get(token, 0.0) for rate in rates] for token in sorted(tokens)])
    shares = shares[shares.sum(1) > 0]
    return (shares / shares.sum(1, keepdims=True)).mean(0)


def log_error(found: np.ndarray, true: np.ndarray) -> float:
    """Return ``log10`` of the mean squared error, at least -16: nothing beyond double precision is known."""
    return math.log10(max(1e-16, float(np.square(found - true).mean())))


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _bytes_of(texts: Sequence[str], size: float, name: str) -> Iterator[str]:
    """Yield texts until they have so many bytes."""
    left = size
    for text in texts:
        if left <= 0:
            return
        yield text
        left -= len(text.encode())
    if left > 0.01 * size:
        raise UserError(
            f"The category '{name}' has {(size - left) / 1000:.0f} kB of text for this, and {size / 1000:.0f} are asked for: take "
            "fewer kilobytes."
        )
