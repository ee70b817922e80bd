"""Comparing what networks have learnt: how alike their layers represent the same examples."""

from torch import nn

from kdbench.errors import nearest
from kdbench.methods.base import Distillation
from kdbench.methods.objective import Batch
from kdbench.methods.reader import Reader
from kdbench.metrics.pictures import HeatMap
from kdbench.metrics.similarity import FEWEST, MinibatchCKA
from kdbench.models.origins import Origin


class LayerSimilarity(Distillation):
    """Centred kernel alignment of a network's layers with those of others, on the test split; with ``fit: false``.

    The test tells ``cka_<i>_<j>@<name>``, layer i of the network with layer j of the other, counted from 1, and in the mean
    over ``i = j`` ``cka@<name>``; each pair of networks is also drawn. Hao et al. 2023, arXiv 2310.19444, compare teachers and
    students of different kinds so.

    Args:
        student: the origin of the network.
        others: the networks that it is compared with, by name.
        layers: the taps of ``student`` and of each other network, as many of each, such as its stages.
    """

    def __init__(self, student: Origin, others: dict[str, Origin], layers: dict[str, list[str]]) -> None:
        super().__init__(student, teachers=others)
        for name in layers:
            if name not in self.origins:
                raise ValueError(f"layers names '{name}', which is no network.{nearest(name, self.origins)}")
        counts = {name: len(layers.get(name, [])) for name in self.origins}
        if len(set(counts.values())) > 1 or not layers:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(f"layers lists the taps of every network, as many of each, got {told}")
        self.layers = layers

    def prepare_scores(self, compared: list[str]) -> None:
        """Also make what reads and compares the layers."""
        super().prepare_scores(compared)
        self._layer_readers = {
            name: Reader(self.network(name), taps, self._views(name)) for name, taps in self.layers.items()
        }
        count = len(self.layers["student"])
        self.alignments = nn.ModuleDict({name: MinibatchCKA(count, count) for name in self.teacher_names})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Also compare the layers; a last batch that is too small for an estimate is left out."""
        super().test_step(batch, batch_idx)
        if len(batch["id"]) < FEWEST:
            return
        layers = {name: list(reader(batch).values()) for name, reader in self._layer_readers.items()}
        for name, metric in self.alignments.items():
            metric.update(layers["student"], layers[name])

    def on_test_epoch_end(self) -> None:
        """Also tell and draw the alignments."""
        super().on_test_epoch_end()
        for name, metric in self.alignments.items():
            cells = metric.compute().float()
            metric.reset()
            self.log(f"test/cka@{name}", cells.diagonal().mean())
            places = range(1, len(cells) + 1)
            self.log_dict({f"test/cka_{i}_{j}@{name}": cells[i - 1, j - 1] for i in places for j in places})
            names = [str(place) for place in places]
            self.pictures[f"cka_{name}"] = HeatMap(
                f"Centred kernel alignment with {name}",
                f"layer of {name}",
                "layer of the network",
                names,
                names,
                [[round(value, 4) for value in row] for row in cells.tolist()],
            )
