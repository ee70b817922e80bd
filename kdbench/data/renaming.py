"""Code in which the words that come back have other names."""

import re
import string
from collections import Counter

import numpy as np

from kdbench.data.noise import uniform

WORD = re.compile(r"[^\W\d]\w{2,}")  # of three letters or more
OFTEN = 3  # places, at least


def rename_words(code: str, seed: int, row: int, draw: int) -> str:
    """Return the code with each word of three places or more replaced, at all of them, by random letters, as many as it had.

    The letters are a pure function of seed, row and draw. Gurioli et al. 2025, arXiv 2503.03008, replace frequent words of the
    code with a probability of 0.3; which words are frequent is our choice.
    """
    counts = Counter(WORD.findall(code))
    often = [word for word, places in counts.items() if places >= OFTEN]
    letters = np.array(list(string.ascii_lowercase))
    names = {
        word: "".join(letters[(26 * uniform(seed, row, draw, number, np.arange(len(word)))).astype(int)])
        for number, word in enumerate(often)
    }
    return WORD.sub(lambda found: names.get(found[0], found[0]), code)
