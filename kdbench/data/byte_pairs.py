"""Byte-pair tokenizers as lists of merges: training them, reading them from files, cutting texts as they do."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from kdbench.errors import UserError

Pair = tuple[str, str]
SPACE = "\u2581"  # what SentencePiece writes for a space


class BytePairs:
    """The merges of a byte-pair tokenizer, and the words that it cuts a text into before it merges.

    Args:
        tokenizer: of the tokenizers library, or the ``tokenizer.json`` of any transformers tokenizer.

    Raises:
        UserError: the file cannot be read, or it is no byte-pair tokenizer with merges.
    """

    def __init__(self, tokenizer: Tokenizer | str | Path) -> None:
        if isinstance(tokenizer, (str, Path)):
            tokenizer = _read(Path(tokenizer))
        self.tokenizer = tokenizer
        model = json.loads(tokenizer.to_str())["model"]
        if model.get("type") != "BPE" or not model.get("merges"):
            raise UserError(
                f"A mixture is told by merges, and this tokenizer ({model.get('type')}) has none: name one of the kind BPE."
            )
        self.suffix = model.get("end_of_word_suffix") or ""
        if model.get("continuing_subword_prefix"):
            raise UserError("Tokenizers that mark the pieces inside a word, as WordPiece does, have no plain merges.")
        parts = (each.split(" ") if isinstance(each, str) else each for each in model["merges"])
        self.merges: list[Pair] = [(first, second) for first, second in parts]

    def words(self, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
        """Return how often each word occurs in some texts, as the symbols that its first merge meets."""
        pieces: Counter[str] = Counter()
        for text in texts:
            if self.tokenizer.normalizer is not None:
                text = self.tokenizer.normalizer.normalize_str(text)
            pieces.update(self._pieces(text))
        return Counter({(*piece[:-1], piece[-1] + self.suffix): count for piece, count in pieces.items() if piece})

    def _pieces(self, text: str) -> Iterable[str]:
        if self.tokenizer.pre_tokenizer is not None:
            return (piece for piece, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text))
        return re.findall(
            f"{SPACE}*[^{SPACE}]+|{SPACE}+", text
        )  # SentencePiece merges nothing over the start of a word


def train_byte_pairs(texts: Iterable[str], merges: int) -> BytePairs:
    """Return a byte-level tokenizer with so many merges, digits apart, words cut as GPT-2's.

    Raises:
        UserError: the texts have not as many pairs to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = BytePairs(tokenizer)
    if len(found.merges) < merges:
        raise UserError(f"These texts give {len(found.merges)} merges, not {merges}: take more text or fewer merges.")
    return found


def _read(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no tokenizer file {file}: name a tokenizer.json or its folder.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises the bare class
        raise UserError(f"{file} is no tokenizer that can be read: {error}.") from error
