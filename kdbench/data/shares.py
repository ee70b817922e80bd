"""Mixtures of domains as people write them: a share for each domain, by its name."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdbench.errors import UserError, nearest

ROUNDED = 0.01
"""By how much the shares of a mixture may miss 1: they are told with a few digits."""


def checked_shares(mixture: Mapping[str, float], domains: Sequence[str], where: str) -> np.ndarray:
    """Return the shares of a mixture ``[D]`` in the order of the domains, normalised; a domain that is not named has none.

    Raises:
        UserError: there is no such domain, a share is negative, or they do not sum to 1 within 0.01.
    """
    for name, share in mixture.items():
        if name not in domains:
            raise UserError(f"{where}: there is no domain '{name}', only {', '.join(domains)}.{nearest(name, domains)}")
        if not 0 <= share < math.inf:
            raise UserError(f"{where}: the share of '{name}' is {share}: a share is 0 or more.")
    total = math.fsum(mixture.values())
    if abs(total - 1) > ROUNDED:
        raise UserError(f"{where}: the shares sum to {total:.4g}: those of a mixture sum to 1.")
    return np.array([mixture.get(name, 0.0) / total for name in domains])


def read_mixture(file: Path) -> dict[str, float]:
    """Return the mixture that a run has left in a file; raise :class:`UserError` where there is none."""
    try:
        mixture = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        left = sorted(path.name for path in file.parent.glob("*.json"))
        raise UserError(f"The run '{file.parent}' left no file '{file.name}'.{nearest(file.name, left)}") from None
    except ValueError as error:
        raise UserError(f"'{file}' is no JSON ({error}): name a file that holds a mixture.") from None
    if not isinstance(mixture, dict) or not all(isinstance(share, float | int) for share in mixture.values()):
        raise UserError(f"'{file}' holds no mixture: a mixture is a share for each domain.")
    return mixture
