"""The user's mistakes, told in one sentence."""

import difflib
import errno
import os
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend; the command line prints the sentence and exits with 2, without a traceback."""


def refused_by_disk(error: BaseException | None) -> str | None:
    """Return why a disk took no more bytes, None for another fault; libraries hide the system's error behind their own."""
    while error is not None:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return os.strerror(number)
        if "No space left" in str(error):  # safetensors and tokenizers keep the words alone
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the most similar of ``names``, or an empty string when none is near."""
    by_lower = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean '{by_lower[found[0]]}'?" if found else ""
