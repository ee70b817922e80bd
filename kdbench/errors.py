"""The user's mistakes, told in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the command line prints the sentence and exits with 2, without a traceback."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the most similar of ``names``, or an empty string when none is near."""
    by_lower = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[found[0]]}'?" if found else ""
