"""Masked language modelling: which tokens or words are hidden, and what stands in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdbench.data.noise import uniform

IGNORED = -100
_UNTOUCHED, _MASK, _KEEP, _RANDOM = -1, 0, 1, 2


def token_weights(counts: np.ndarray, special_ids: Sequence[int], power: float = -0.7) -> np.ndarray:
    """Return how readily each token is masked: ``w_v = max(count_v, 1)^power``, and 0 for special tokens.

    Args:
        counts: how often each token occurs in the training text, ``[V]``.
        special_ids: ids that are never masked (padding, unknown, classification, separator, mask).
        power: -0.7 masks rare tokens more often (XLM, DistilBERT); 0 masks all alike (BERT).

    Returns:
        float64 ``[V]``.

    Source: Sanh et al. 2019, arXiv 1910.01108 (code: ``mlm_smoothing``); Avram et al. 2022, arXiv 2112.12650.
    """
    weights = np.maximum(np.asarray(counts, dtype=np.float64), 1.0) ** power
    weights[np.asarray(special_ids, dtype=np.int64)] = 0.0
    return weights


def mask_tokens(
    ids: np.ndarray,
    weights: np.ndarray,
    attention_mask: np.ndarray,
    *,
    seed: int,
    rows: np.ndarray,
    draws: np.ndarray,
    mask_id: int,
    random_ids: np.ndarray,
    rate: float = 0.15,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    per: Literal["batch", "row"] = "batch",
) -> tuple[np.ndarray, np.ndarray]:
    """Hide tokens for masked language modelling; return the corrupted ids and the labels.

    ``ceil(rate * N)`` positions are drawn without replacement with probability proportional to their weight: those
    with the smallest ``-log(u) / w``, u uniform (which is the same as drawing one by one). N is the number of tokens
    that are not padding, special tokens included as in DistilBERT's code: of the batch (``per="batch"``), or of each
    row (``per="row"``; then the result for a row is a pure function of seed, row and draw). No more positions are
    drawn than have a weight. Each drawn position then becomes the mask token, stays, or becomes a random token.

    Args:
        ids: token ids, ``[B, S]``.
        weights: weight of each position, 0 at special tokens and padding, ``[B, S]`` (``token_weights(...)[ids]``).
        attention_mask: 1 at tokens, 0 at padding, ``[B, S]``.
        seed: names the whole noise.
        rows: number of each row in its split, ``[B]``.
        draws: which random version of each row, ``[B]``.
        mask_id: id of the mask token.
        random_ids: the ids that a random token is drawn from, ``[R]``.
        rate: share of the tokens that is drawn.
        shares: probabilities of (mask, keep, random).
        per: whether the number of positions is fixed in the batch or in each row.

    Returns:
        corrupted ids ``[B, S]`` and labels ``[B, S]``, -100 where nothing is to be predicted.

    Source: Sanh et al. 2019, arXiv 1910.01108 (code: ``prepare_batch_mlm``); top-k keys: Efraimidis, Spirakis 2006.
    """
    budget = _budget(np.asarray(attention_mask).sum(1), rate, per)
    actions, pick = _choose(weights, budget, seed, rows, draws, shares)
    return _corrupt(ids, actions, pick, mask_id, random_ids)


@dataclass(frozen=True)
class WordView:
    """The same batch of words in one tokenizer's pieces.

    ``ids`` ``[B, S]``; ``word_index`` ``[B, S]``: the word of each piece, -1 at special tokens and padding;
    ``mask_id``; ``random_ids`` ``[R]``: entry j is the same surface form in every view.
    """

    ids: np.ndarray
    word_index: np.ndarray
    mask_id: int
    random_ids: np.ndarray


def mask_words(
    views: Sequence[WordView],
    weights: np.ndarray,
    *,
    seed: int,
    rows: np.ndarray,
    draws: np.ndarray,
    rate: float = 0.15,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    per: Literal["batch", "row"] = "batch",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hide the same words in several views of one batch; return corrupted ids and labels of each view.

    As ``mask_tokens``, with words in the place of tokens: ``ceil(rate * N)`` of the N words that every view holds (a
    view may have cut its text earlier). The weight of a word is the mean weight of its pieces in the first view, so
    that a word is not drawn more often for being cut in more pieces. All pieces of a word meet the same fate in all
    views; a random word is one surface form drawn per word, and every piece becomes its id. Labels are the ids of all
    pieces of the drawn words.

    Args:
        views: the batch in each tokenizer's pieces; ``S`` may differ.
        weights: weight of each position of the first view, ``[B, S]``.
        seed: names the whole noise.
        rows: number of each row in its split, ``[B]``.
        draws: which random version of each row, ``[B]``.
        rate: share of the words that is drawn.
        shares: probabilities of (mask, keep, random).
        per: whether the number of words is fixed in the batch or in each row.

    Returns:
        for each view corrupted ids ``[B, S]`` and labels ``[B, S]``, -100 where nothing is to be predicted.

    Raises:
        ValueError: the views' ``random_ids`` differ in length.
    """
    if len({len(view.random_ids) for view in views}) > 1:
        raise ValueError("random_ids must list the same surface forms in every view: their lengths differ")
    words = max(int(view.word_index.max(initial=-1)) for view in views) + 1
    held = np.all([_per_word(view.word_index, np.ones(view.ids.shape), words) > 0 for view in views], axis=0)
    pieces = np.maximum(_per_word(views[0].word_index, np.ones(views[0].ids.shape), words), 1)
    word_weights = np.where(held, _per_word(views[0].word_index, weights, words) / pieces, 0.0)
    actions, pick = _choose(word_weights, _budget(held.sum(1), rate, per), seed, rows, draws, shares)
    return [
        _corrupt(
            view.ids,
            _at_pieces(actions, view.word_index, _UNTOUCHED),
            _at_pieces(pick, view.word_index, 0.0),
            view.mask_id,
            view.random_ids,
        )
        for view in views
    ]


def _budget(counted: np.ndarray, rate: float, per: Literal["batch", "row"]) -> np.ndarray:
    """How many are drawn: one number ``[1]`` for the batch, or one for each row ``[B]``."""
    return np.ceil(rate * (counted.sum(keepdims=True) if per == "batch" else counted))


def _choose(
    weights: np.ndarray,
    budget: np.ndarray,
    seed: int,
    rows: np.ndarray,
    draws: np.ndarray,
    shares: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw places by weight: the fate of each place ``[B, N]``, and a uniform number ``[B, N]`` to pick a token."""
    place = np.arange(weights.shape[1])
    key_noise, fate, pick = (
        uniform(seed, np.asarray(rows)[:, None], np.asarray(draws)[:, None], place, purpose) for purpose in range(3)
    )
    keys = np.full(weights.shape, np.inf)
    np.divide(-np.log(key_noise), weights, out=keys, where=np.asarray(weights) > 0)
    pools = keys.reshape(len(budget), -1)  # one pool for the batch, or one for each row
    rank = pools.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    chosen = ((rank < budget[:, None]) & np.isfinite(pools)).reshape(keys.shape)
    fates = np.where(fate < shares[0], _MASK, np.where(fate < shares[0] + shares[1], _KEEP, _RANDOM))
    return np.where(chosen, fates, _UNTOUCHED), pick


def _corrupt(
    ids: np.ndarray, actions: np.ndarray, pick: np.ndarray, mask_id: int, random_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    random = np.asarray(random_ids)[(pick * len(random_ids)).astype(np.int64)]
    corrupted = np.where(actions == _MASK, mask_id, np.where(actions == _RANDOM, random, ids)).astype(ids.dtype)
    return corrupted, np.where(actions == _UNTOUCHED, IGNORED, ids)


def _per_word(word_index: np.ndarray, values: np.ndarray, words: int) -> np.ndarray:
    """Sum ``values`` ``[B, S]`` over the pieces of each word: ``[B, words]``."""
    total = np.zeros((len(word_index), words))
    row, position = np.nonzero(word_index >= 0)
    np.add.at(total, (row, word_index[row, position]), values[row, position])
    return total


def _at_pieces(of_words: np.ndarray, word_index: np.ndarray, elsewhere: float) -> np.ndarray:
    """Spread values of words ``[B, words]`` over their pieces ``[B, S]``."""
    padded = np.pad(of_words, ((0, 0), (0, 1)), constant_values=elsewhere)  # index -1 finds the last column
    return np.take_along_axis(padded, word_index, axis=1)
