"""Tokenizers made from a training text, and texts cut in words and pieces."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kdbench.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
_COMMA_BELOW = {"\u015f": "\u0219", "\u015e": "\u0218", "\u0163": "\u021b", "\u0162": "\u021a"}  # from the cedilla


def split_words(text: str) -> list[str]:
    """Cut a text as BERT does before it looks for pieces: at white space, and around every punctuation mark."""
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)]


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool,
    strip_accents: bool = False,
    min_frequency: int = 2,
    cls_last: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a BERT-like WordPiece tokenizer; the same texts give the same vocabulary, id by id.

    Romanian letters with a cedilla are read as letters with a comma below (part of the tokenizer, not of the data).

    Args:
        texts: the training texts.
        vocab_size: pieces at most, special tokens included.
        lowercase: read all letters as small ones.
        strip_accents: read letters without their accents.
        min_frequency: how often a pair of pieces occurs before it becomes one.
        cls_last: write ``[SEP] text [CLS]`` and pad on the left, so that ``[CLS]`` is at the end of every row; by default
            ``[CLS] text [SEP]`` and on the right.

    Raises:
        UserError: ``vocab_size`` has no room for the special tokens and the characters of the texts.

    Source: Devlin et al. 2019, arXiv 1810.04805; Schuster, Nakajima 2012 (WordPiece), trained as byte-pair merges.
    """
    texts = list(texts)
    normalizer = _normalizer(lowercase, strip_accents)
    characters = sorted(
        {each for text in texts for word in split_words(normalizer.normalize_str(text)) for each in word}
    )
    first = [*SPECIAL_TOKENS, *characters, *("##" + each for each in characters)]
    if len(first) > vocab_size:
        raise UserError(f"vocab_size is {vocab_size}: the characters of the texts alone need {len(first)}.")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    # Naming all characters in advance fixes their ids, by which the trainer breaks ties; left to itself it numbers
    # them in the order of a hash map, which differs from process to process.
    tokenizer.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=first, show_progress=False
        ),
    )
    model = models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")
    return _wrap(model, normalizer, decoders.WordPiece(), cls_last)


def train_word_level(texts: Iterable[str], lowercase: bool) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose pieces are all words of the texts, the most frequent first (ties in code-point order).

    Args:
        texts: the training texts.
        lowercase: read all letters as small ones.
    """
    normalizer = _normalizer(lowercase, strip_accents=False)
    counts = Counter(word for text in texts for word in split_words(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL_TOKENS, *words])}
    return _wrap(models.WordLevel(vocabulary, unk_token="[UNK]"), normalizer, None)


class TokenizerTraining(ABC):
    """How a tokenizer is made from texts."""

    @abstractmethod
    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer."""


class TrainWordPiece(TokenizerTraining):
    """Train WordPiece; arguments as of ``train_wordpiece``."""

    def __init__(
        self,
        vocab_size: int,
        lowercase: bool,
        strip_accents: bool = False,
        min_frequency: int = 2,
        cls_last: bool = False,
    ) -> None:
        self.vocab_size, self.lowercase = vocab_size, lowercase
        self.strip_accents, self.min_frequency, self.cls_last = strip_accents, min_frequency, cls_last

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer."""
        return train_wordpiece(
            texts, self.vocab_size, self.lowercase, self.strip_accents, self.min_frequency, self.cls_last
        )


class TrainWordLevel(TokenizerTraining):
    """Take every word as a piece; argument as of ``train_word_level``."""

    def __init__(self, lowercase: bool) -> None:
        self.lowercase = lowercase

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer."""
        return train_word_level(texts, self.lowercase)


def encode_words(
    tokenizer: PreTrainedTokenizerFast, rows_of_words: list[list[str]], max_length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encode rows that are cut in words, and tell the word of each piece.

    Args:
        tokenizer: a fast tokenizer with a classification and a separator token.
        rows_of_words: the words of each row.
        max_length: pieces at most, the two special tokens included; a row is cut between words.

    Returns:
        for each row the ids and the word indices, int64 ``[S]``; -1 at the special tokens. Two tokenizers give the
        same index to the same word.
    """
    if not rows_of_words:
        return []
    # Not longer than the model allows is what max_length is for: the tokenizer's own warning (verbose) says nothing.
    encoded = tokenizer(rows_of_words, is_split_into_words=True, add_special_tokens=False, verbose=False)
    room = max_length - 2
    rows = []
    for number, pieces in enumerate(encoded["input_ids"]):
        index = np.asarray(encoded.word_ids(number), dtype=np.int64)
        kept = len(pieces)
        if kept > room:
            kept = int(np.searchsorted(index, index[room]))  # the piece at ``room`` is cut, and its word with it
        ids = [tokenizer.cls_token_id, *pieces[:kept], tokenizer.sep_token_id]
        rows.append((np.asarray(ids, dtype=np.int64), np.concatenate([[-1], index[:kept], [-1]])))
    return rows


def _normalizer(lowercase: bool, strip_accents: bool) -> normalizers.Normalizer:
    comma_below = [normalizers.Replace(cedilla, comma) for cedilla, comma in _COMMA_BELOW.items()]
    bert = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    return normalizers.Sequence([*comma_below, bert])


def _wrap(
    model: models.Model,
    normalizer: normalizers.Normalizer,
    decoder: decoders.Decoder | None,
    cls_last: bool = False,
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    if decoder is not None:
        tokenizer.decoder = decoder
    first, last = ("[SEP]", "[CLS]") if cls_last else ("[CLS]", "[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A [SEP] $B:1 {last}:1",
        special_tokens=[("[CLS]", SPECIAL_TOKENS.index("[CLS]")), ("[SEP]", SPECIAL_TOKENS.index("[SEP]"))],
    )
    # Not BertTokenizer: that class builds its own normaliser when it is loaded, without the comma below.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side="left" if cls_last else "right",
    )
