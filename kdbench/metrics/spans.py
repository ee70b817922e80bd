"""Entity-level F1 of BIO (IOB2) tags. For scores of single word tags see `ClassificationScore`."""

import torch
from torch import Tensor
from torchmetrics import Metric

from kdbench.metrics.scores import macro_f1


class SpanF1(Metric):
    """Entity-level F1: an entity counts as found when its first word, last word and type are all exact.

    P = correct / predicted, R = correct / gold, F1 = 2 correct / (predicted + gold)

    `tags`: the tag of each id: "O", "B-<type>" or "I-<type>"; raises ValueError on others and on repeated ones. An
    I- that follows O, another type or a sentence's beginning starts an entity (conlleval; seqeval's default mode).
    Scores with a zero divisor are 0, as in seqeval. Tjong Kim Sang and De Meulder 2003 (cs/0306050).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, tags: list[str]) -> None:
        super().__init__()
        for tag in tags:
            if tag != "O" and (tag[:2] not in ("B-", "I-") or len(tag) == 2):
                raise ValueError(f'Tags must be "O", "B-<type>" or "I-<type>", not {tag!r}.')
        if len(set(tags)) < len(tags):
            raise ValueError("Every tag may occur only once.")
        self.types = sorted({tag[2:] for tag in tags if tag != "O"})
        type_of = [self.types.index(tag[2:]) if tag != "O" else -1 for tag in tags]
        self.register_buffer("type_of_tag", torch.tensor(type_of, dtype=torch.int64), persistent=False)
        self.register_buffer("begins", torch.tensor([tag[0] == "B" for tag in tags]), persistent=False)
        self.add_state("counts", torch.zeros(3, len(self.types), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, sentence: Tensor) -> None:
        """Add whole sentences, one row a word in reading order.

        Tag ids `predictions` [N] and `labels` [N]; `sentence` [N]: the sentence of each word, never decreasing. A
        sentence may not be split over two calls. Raises ValueError on other shapes, ids or orders.
        """
        if predictions.ndim != 1 or not predictions.shape == labels.shape == sentence.shape:
            shapes = f"{[*predictions.shape]}, {[*labels.shape]} and {[*sentence.shape]}"
            raise ValueError(f"Expected three vectors of one length, not {shapes}.")
        both = torch.stack([predictions, labels])
        if ((both < 0) | (both >= len(self.begins))).any():
            raise ValueError(
                f"Tag ids must lie in 0..{len(self.begins) - 1}; leave out the padded and unlabelled rows."
            )
        if (sentence[1:] < sentence[:-1]).any():
            raise ValueError("The sentence numbers must not decrease within an update.")
        predicted, predicted_end = self.spans(predictions, sentence)
        gold, gold_end = self.spans(labels, sentence)
        correct = predicted.where((predicted == gold) & (predicted_end == gold_end), -1)
        self.counts += torch.stack([self.count(types) for types in (correct, predicted, gold)])

    def spans(self, tags: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Entities by their first word: its type [N] (-1 where none starts) and the index after its last word [N]."""
        types = self.type_of_tag[tags]
        first = torch.ones_like(types, dtype=torch.bool)
        first[1:] = (types[1:] != types[:-1]) | (sentence[1:] != sentence[:-1])
        starts = (types >= 0) & (first | self.begins[tags])
        positions = torch.arange(len(tags), device=tags.device)
        # An entity ends before the next word that starts another one or stands outside.
        breaks = torch.cat([positions[starts | (types < 0)], positions.new_tensor([len(tags)])])
        return types.where(starts, -1), breaks[torch.searchsorted(breaks, positions, right=True)]

    def count(self, types: Tensor) -> Tensor:
        """Count the entities of each type: types [N], -1 for none -> [types]."""
        return torch.bincount(types[types >= 0], minlength=len(self.types))

    def compute(self) -> dict[str, Tensor]:
        """`micro_f1`, `macro_f1` (over the types that occur), and micro-averaged `precision` and `recall`, 0 to 1."""
        correct, predicted, gold = self.counts.sum(1).double()
        return {
            "micro_f1": 2 * correct / (predicted + gold).clamp_min(1),
            "macro_f1": macro_f1(*self.counts).nan_to_num(0.0),
            "precision": correct / predicted.clamp_min(1),
            "recall": correct / gold.clamp_min(1),
        }
