"""Text augmentation: changed copies of training rows; the teacher labels them.

Draw 0 of a row is the row itself, draws 1 to ``copies`` are its copies. A copy is a pure function of the seed, the number
of the row, the draw and what was prepared from the training texts, never of the batch that it is in. An edit may change
the class, so that the gold label of a row holds for its draw 0 alone. Back-translation needs two translators and is not here.

Source: He et al. 2021, arXiv 2109.11105 (Distiller).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import models
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from kdbench.data.noise import uniform
from kdbench.data.tokenizers import encode_words, split_words
from kdbench.errors import UserError
from kdbench.models.origins import Facts, Origin

_FATE, _NEW, _PARTNER, _LEFT = range(4)  # what a random number is drawn for
_REPLACE, _INSERT, _SWAP, _DELETE = range(4)


class Augmentation(ABC):
    """How changed copies of training texts are made.

    Args:
        copies: of each text, at least 1.
        seed: names all that is drawn.
    """

    def __init__(self, copies: int = 1, seed: int = 0) -> None:
        if copies < 1:
            raise ValueError(f"an augmentation makes at least one copy of a text, got copies {copies}")
        self.copies, self.seed = copies, seed

    @abstractmethod
    def prepare(self, texts: Sequence[Sequence[str]], device: torch.device | str = "cpu") -> None:
        """Learn what is needed from the words of all training texts, in the order of their numbers; once, before training."""

    def __call__(self, words: Sequence[str], row: int, draw: int) -> list[str]:
        """Return a draw of a text of the training split.

        Args:
            words: of the text.
            row: its number among the texts that were prepared (a row with two texts has two numbers).
            draw: 0 is the text itself, 1 to ``copies`` its copies.

        Raises:
            ValueError: there is no such draw.
        """
        if not 0 <= draw <= self.copies:
            raise ValueError(f"a text has the draws 0 to {self.copies}, not {draw}")
        return self.changed(words, row, draw) if draw else list(words)

    @abstractmethod
    def changed(self, words: Sequence[str], row: int, draw: int) -> list[str]:
        """Return the copy ``draw`` of a text, at least 1."""


class RandomEdits(Augmentation):
    """Words are replaced, inserted, swapped and deleted at random, as Wei and Zou 2019 (arXiv 1901.11196) do.

    Each word has one fate: with the probability ``replace`` another word stands in its place, with ``insert`` another
    word follows it, with ``swap`` it changes places with a word drawn evenly from the rest of the text, with ``delete``
    it goes; otherwise it stays. A text of which nothing would be left keeps one of its words, drawn evenly.

    Wei and Zou take synonyms from WordNet. Here, without a thesaurus, new words are drawn from the unigram distribution of
    the training texts, whatever they mean, so that the shares are smaller than theirs; a word may be replaced by itself.

    Args:
        copies: see :class:`Augmentation`.
        replace: the share of words that are replaced.
        insert: the share of words after which one is inserted.
        swap: the share of words that are moved to another place, whose word comes to theirs.
        delete: the share of words that are deleted.
        seed: see :class:`Augmentation`.
    """

    def __init__(
        self,
        copies: int = 1,
        replace: float = 0.05,
        insert: float = 0.05,
        swap: float = 0.05,
        delete: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(copies, seed)
        shares = (replace, insert, swap, delete)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"the shares of edits are at least 0 and sum to at most 1, got {shares}")
        self._ends = np.cumsum(shares)  # of the fates in (0, 1)

    def prepare(self, texts: Sequence[Sequence[str]], device: torch.device | str = "cpu") -> None:
        """Count the words, in code-point order."""
        counts = Counter(word for words in texts for word in words)
        self._words = sorted(counts)
        self._counted = np.cumsum([counts[word] for word in self._words])

    def changed(self, words: Sequence[str], row: int, draw: int) -> list[str]:
        """Return the edited copy."""
        if not words:
            return []
        places = np.arange(len(words))
        fates = np.searchsorted(self._ends, uniform(self.seed, row, draw, places, _FATE), side="right").tolist()
        drawn = uniform(self.seed, row, draw, places, _NEW) * self._counted[-1]
        new = [self._words[each] for each in np.searchsorted(self._counted, drawn, side="right")]
        parts = [
            {_REPLACE: [other], _INSERT: [word, other], _DELETE: []}.get(fate, [word])
            for fate, word, other in zip(fates, words, new, strict=True)
        ]
        partners = (uniform(self.seed, row, draw, places, _PARTNER) * (len(words) - 1)).astype(int)
        partners += partners >= places  # any place but its own
        for place in np.flatnonzero(np.array(fates) == _SWAP) if len(words) > 1 else ():
            parts[place], parts[partners[place]] = parts[partners[place]], parts[place]
        left = [word for part in parts for word in part]
        return left or [words[int(uniform(self.seed, row, draw, _LEFT) * len(words))]]


class MaskedLanguageReplacement(Augmentation):
    """Words are replaced by what a masked language model expects in their place; :func:`replace_by_model` says how.

    All copies are made once, before training, by the model as it is left by another run, a folder or the hub.

    Args:
        model: the masked language model; it brings a tokenizer of words or word pieces.
        copies: see :class:`Augmentation`.
        probability: of each word to be replaced.
        candidates: how many most probable words a new one is drawn from.
        seed: see :class:`Augmentation`.
        batch_size: masked texts that the model sees at once.
        max_length: pieces of a text that it sees at most; words beyond stay.
    """

    def __init__(
        self,
        model: Origin,
        copies: int = 1,
        probability: float = 0.4,
        candidates: int = 15,
        seed: int = 0,
        batch_size: int = 64,
        max_length: int = 128,
    ) -> None:
        super().__init__(copies, seed)
        _check_replacement(probability, candidates)
        self.model, self.probability, self.candidates = model, probability, candidates
        self.batch_size, self.max_length = batch_size, max_length

    def prepare(self, texts: Sequence[Sequence[str]], device: torch.device | str = "cpu") -> None:
        """Make all copies with the model on a device.

        Raises:
            UserError: the model cannot be had, brings no tokenizer, or is no masked language model.
        """
        self.model.check()
        tokenizer = self.model.tokenizer()
        if tokenizer is None:
            raise UserError(
                "The model of MaskedLanguageReplacement brings no tokenizer: give it FromRun, FromFolder or FromHub."
            )
        with torch.random.fork_rng(devices=[]):  # building draws random numbers, which belong to the student
            network = self.model.build(Facts(tokenizer=tokenizer)).to(device)
        rows, draws = np.meshgrid(np.arange(len(texts)), np.arange(1, self.copies + 1))
        made = replace_by_model(
            network,
            tokenizer,
            [" ".join(words) for words in texts] * self.copies,
            rows.ravel(),
            self.seed,
            draws=draws.ravel(),
            probability=self.probability,
            candidates=self.candidates,
            batch_size=self.batch_size,
            max_length=self.max_length,
        )
        self._made = [made[draw * len(texts) : (draw + 1) * len(texts)] for draw in range(self.copies)]

    def changed(self, words: Sequence[str], row: int, draw: int) -> list[str]:
        """Return the copy that was made of the text with this number."""
        return split_words(self._made[draw - 1][row])


def replace_by_model(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    ids: Sequence[int] | np.ndarray,
    seed: int,
    draws: Sequence[int] | np.ndarray | None = None,
    probability: float = 0.4,
    candidates: int = 15,
    batch_size: int = 64,
    max_length: int = 128,
) -> list[str]:
    """Replace words of texts by what a masked language model expects in their place.

    Each word of letters alone is chosen with a probability, for itself. A chosen word is hidden behind one mask token,
    the rest of the original text in view, and the new word is drawn evenly from the ``candidates`` words that are most
    probable there; the old one may be among them. Only pieces that are words of letters are candidates. Jiao et al. hide
    words of one piece alone and take the neighbours in GloVe for the others; here all are hidden alike. The choices are a
    pure function of (seed, id, draw, place of the word), the candidates one of the text, up to the rounding of the network.

    Args:
        network: called with ``input_ids`` and ``attention_mask`` ``[B, S]``; its ``logits`` are ``[B, S, V]``. It runs in
            eval mode on its own device, without gradient.
        tokenizer: the network's, of words or word pieces, with a mask token.
        texts: N texts.
        ids: the number of each, ``[N]``.
        seed: names all choices.
        draws: which copy of each, ``[N]``; default: 1.
        probability: of each word to be replaced.
        candidates: how many words the new one is drawn from.
        batch_size: masked texts that the network sees at once.
        max_length: pieces of a text that it sees at most; words beyond stay.

    Returns:
        N texts, their words joined by one space.

    Raises:
        ValueError: the probability, the number of candidates or the lengths of the arguments do not fit.
        UserError: the tokenizer is of another kind, or the network is no masked language model of its vocabulary.

    Source: Jiao et al. 2020, arXiv 1909.10351, Algorithm 1 (probability 0.4, 15 candidates, 20 copies).
    """
    _check_replacement(probability, candidates)
    draws = np.ones(len(texts), dtype=np.int64) if draws is None else draws
    words = [split_words(text) for text in texts]
    hidden: dict[tuple[tuple[str, ...], int], list[tuple[int, float]]] = {}
    for number, (own, row, draw) in enumerate(zip(words, ids, draws, strict=True)):
        places = np.arange(len(own))
        chosen = uniform(seed, int(row), int(draw), places, _FATE) < probability
        picks = uniform(seed, int(row), int(draw), places, _NEW)
        for place in np.flatnonzero(chosen).tolist():
            if own[place].isalpha():  # copies of a text share what the network says of a place
                hidden.setdefault((tuple(own), place), []).append((number, float(picks[place])))
    found = _most_probable(network, tokenizer, list(hidden), candidates, batch_size, max_length)
    for ((_, place), wanted), pool in zip(hidden.items(), found, strict=True):
        for number, pick in wanted if pool else ():
            words[number][place] = pool[int(pick * len(pool))]
    return [" ".join(own) for own in words]


def _check_replacement(probability: float, candidates: int) -> None:
    if not 0 <= probability <= 1 or candidates < 1:
        raise ValueError(
            f"a word has a probability in [0, 1] and at least 1 candidate, got {probability}, {candidates}"
        )


def _most_probable(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    hidden: Sequence[tuple[tuple[str, ...], int]],
    candidates: int,
    batch_size: int,
    max_length: int,
) -> list[list[str]]:
    """Return the most probable words for a hidden place of each text, by their ids; none where the text is cut before it."""
    if not hidden:
        return []
    kinds = (models.WordPiece, models.WordLevel)
    kind = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if not isinstance(kind, kinds) or tokenizer.mask_token_id is None:
        raise UserError("Words can only be replaced with a vocabulary of words or word pieces that has a mask token.")
    known = np.array(sorted(number for piece, number in tokenizer.get_vocab().items() if piece.isalpha()))
    if not len(known):
        raise UserError("The vocabulary has no word of letters to put in the place of another.")
    texts = list(dict.fromkeys(words for words, _ in hidden))
    coded = dict(zip(texts, encode_words(tokenizer, [list(each) for each in texts], max_length), strict=True))
    masked: dict[int, tuple[np.ndarray, int]] = {}
    for number, (words, place) in enumerate(hidden):
        ids, word_index = coded[words]
        at = np.flatnonzero(word_index == place)
        if len(at):
            masked[number] = (np.concatenate([ids[: at[0]], [tokenizer.mask_token_id], ids[at[-1] + 1 :]]), int(at[0]))
    order = sorted(masked, key=lambda number: len(masked[number][0]))
    found: list[list[str]] = [[] for _ in hidden]
    training = network.training
    network.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            logits = _at_places(network, [masked[number] for number in batch], tokenizer.pad_token_id)
            if logits.shape[-1] < len(tokenizer):
                raise UserError(
                    f"The network has {logits.shape[-1]} classes and its vocabulary {len(tokenizer)} pieces: words are "
                    "replaced by a masked language model."
                )
            best = logits[:, known].topk(min(candidates, len(known))).indices.sort().values
            for number, row in zip(batch, known[best.numpy()].tolist(), strict=True):
                found[number] = tokenizer.convert_ids_to_tokens(row)
    finally:
        network.train(training)
    return found


@torch.inference_mode()
def _at_places(network: nn.Module, masked: Sequence[tuple[np.ndarray, int]], padding: int) -> Tensor:
    """Return the logits at one place of each text ``[B, V]``, float32 on the CPU."""
    device = next(network.parameters()).device
    rows = [torch.from_numpy(ids) for ids, _ in masked]
    ids = pad_sequence(rows, batch_first=True, padding_value=padding)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = network(input_ids=ids.to(device), attention_mask=real.to(device)).logits
    if logits.dim() != 3:
        raise UserError(f"The network's logits are of the shape {tuple(logits.shape)}: it is no masked language model.")
    return logits[torch.arange(len(rows)), torch.tensor([place for _, place in masked])].float().cpu()
