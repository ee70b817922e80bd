"""Tokenizers for networks that write from left to right: a text has no frame, and one token stands for its end."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdbench.data.tokenizers import TokenizerTraining
from kdbench.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<unk>", "<end>")  # ids 0 to 2


class TrainWords(TokenizerTraining):
    """Take every word between white space as a token, the most frequent first (ties in code-point order)."""

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer."""
        counts = Counter(word for text in texts for word in text.split())
        return _listed(sorted(counts, key=lambda word: (-counts[word], word)), pre_tokenizers.WhitespaceSplit(), None)


class TrainCharacters(TokenizerTraining):
    """Take every character as a token, in code-point order; white space counts."""

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer."""
        characters = sorted({character for text in texts for character in text})
        return _listed(characters, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse())


class TrainBytePairs(TokenizerTraining):
    """Merge bytes into pieces as GPT-2's tokenizer does; nothing is unknown to it.

    Args:
        vocab_size: tokens at most, the 256 bytes and 3 special ones included.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def train(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer; raise :class:`UserError` where ``vocab_size`` has no room for the bytes."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        if self.vocab_size < len(alphabet) + len(SPECIAL_TOKENS):
            raise UserError(f"vocab_size is {self.vocab_size}: the bytes alone need {len(alphabet) + 3}.")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=alphabet,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return _wrap(tokenizer)


def _listed(
    tokens: list[str], cut: pre_tokenizers.PreTokenizer, decoder: decoders.Decoder | None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows its tokens by heart."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = cut
    if decoder is not None:
        tokenizer.decoder = decoder
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    padding, unknown, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=padding, unk_token=unknown, bos_token=end, eos_token=end
    )
