"""Romanian text as the Romanian models were trained on it."""

_COMMA_BELOW = str.maketrans("\u015f\u0163\u015e\u0162", "\u0219\u021b\u0218\u021a")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b"))  # byte-order marks and zero-width spaces inside published files


def comma_below(text: str) -> str:
    """Return the text with comma-below s and t (U+0219, U+021B and capitals) in place of the cedilla ones.

    The vocabulary of the cased Romanian BERT has only the comma-below letters: a cedilla turns a word into ``[UNK]``
    (Avram et al. 2022, arXiv 2112.12650).
    """
    return text.translate(_COMMA_BELOW)


def clean(text: str) -> str:
    """Return the text with comma-below letters, without invisible marks, every run of whitespace as one space."""
    return " ".join(comma_below(text).translate(_INVISIBLE).split())


def duplicate_key(text: str) -> str:
    """Return what two texts share when they differ at most in whitespace and in cedilla against comma below."""
    return "".join(clean(text).split())
