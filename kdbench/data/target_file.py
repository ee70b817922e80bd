"""Targets that come as a file, named by row and draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdbench.data.targets import Row
from kdbench.errors import UserError, nearest
from kdbench.files import whole_file


def write_targets(
    path: Path, rows: Sequence[int], taps: Mapping[str, Sequence[Tensor]], draws: Sequence[int] | None = None
) -> None:
    """Write a file of targets, as :class:`TargetFile` reads it.

    Args:
        path: a safetensors file.
        rows: the number of each row in its split.
        taps: the value of each row by tap: ``[n, ...]`` of its n tokens, or of the whole row where all have one shape
            ``[...]`` (a vector of logits, say).
        draws: which version of the row each value belongs to; None: to all of them.
    """
    tensors = {"rows": torch.tensor(list(rows))}
    if draws is not None:
        tensors["draws"] = torch.tensor(list(draws))
    for tap, values in taps.items():
        if len({value.shape for value in values}) > 1:
            tensors[tap] = torch.cat(list(values))
            tensors[f"{tap}.ends"] = torch.tensor([len(value) for value in values]).cumsum(0)
        else:
            tensors[tap] = torch.stack(list(values))
    with whole_file(path) as file:
        file.write(save(tensors))


class TargetFile:
    """Targets that come as a file, named by row and draw: soft labels that others published, or that another run made.

    Tensors: ``rows`` ``[n]`` and, where versions of a row differ, ``draws`` ``[n]``; for each tap one value a row
    ``[n, ...]``, or those of all tokens ``[N, ...]`` with ``<tap>.ends`` ``[n]``, where each row ends.

    Raises:
        UserError: the file cannot be read, or has not this form.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            rows = self.tensors.pop("rows").tolist()
            draws = self.tensors.pop("draws").tolist() if "draws" in self.tensors else [None] * len(rows)
        except (SafetensorError, OSError, KeyError) as error:
            raise UserError(
                f"'{path}' is no file of targets ({type(error).__name__}): it needs 'rows' and a tensor a tap, in safetensors."
            ) from error
        self.path, self.places = path, {name: place for place, name in enumerate(zip(rows, draws, strict=True))}
        self.versions = draws[0] is not None if draws else False

    def read(self, tap: str, rows: Sequence[int], draws: Sequence[int]) -> list[Row]:
        """Return the values of some rows; raise :class:`UserError` for a tap or a row that the file does not have."""
        taps = [name for name in self.tensors if not name.endswith(".ends")]
        if tap not in taps:
            raise UserError(f"'{self.path}' has no targets '{tap}'.{nearest(tap, taps)} It has: {', '.join(taps)}.")
        values, ends = self.tensors[tap], self.tensors.get(f"{tap}.ends")
        found = []
        for row, draw in zip(rows, draws, strict=True):
            place = self.places.get((row, draw if self.versions else None))
            if place is None:
                version = f", version {draw}" if self.versions else ""
                raise UserError(f"'{self.path}' has no target for row {row}{version}: it belongs to other data.")
            if ends is None:
                found.append({"values": values[place : place + 1]})
            else:
                begin = int(ends[place - 1]) if place else 0
                found.append({"values": values[begin : int(ends[place])]})
        return found
