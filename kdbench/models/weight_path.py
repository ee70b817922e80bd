"""The weights of one network at several points of a fit, in a folder: the path that it has gone."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from kdbench.errors import UserError
from kdbench.files import whole_file


class WeightPath:
    """Weights by their place on the path, from 0: the files ``0000.safetensors``, ``0001.safetensors`` ... of a folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __len__(self) -> int:
        """How many places there are, without a gap from 0."""
        places = 0
        while self._file(places).is_file():
            places += 1
        return places

    def save(self, place: int, network: nn.Module) -> None:
        """Write the weights of a network, whole or not at all."""
        weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        with whole_file(self._file(place)) as file:
            file.write(save(weights))

    def load(self, place: int, network: nn.Module) -> None:
        """Give a network the weights of a place, each of its own and no other.

        Raises:
            UserError: there is no such file, or it holds the weights of another architecture.
        """
        file = self._file(place)
        try:
            network.load_state_dict(load_file(file), strict=True)
        except FileNotFoundError:
            raise UserError(f"The path of weights has no file '{file}': fit the experiment that leaves it.") from None
        except (RuntimeError, SafetensorError) as error:
            first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
            raise UserError(
                f"The weights in '{file}' are of another architecture than the network ({first.rstrip('.')}): record the path "
                "from the same teacher."
            ) from error

    def _file(self, place: int) -> Path:
        return self.folder / f"{place:04}.safetensors"
