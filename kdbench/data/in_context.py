"""The DataModule of in-context classification: several texts in one input, of one group or not, some tokens hidden."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch

from kdbench.data.base import Item, Row, field, numbered
from kdbench.data.corruption import IGNORED, mask_tokens
from kdbench.data.noise import uniform
from kdbench.data.text import TextData, TextOptions, as_view, pad
from kdbench.errors import UserError
from kdbench.losses.base import check_share

_MIXED, _CUT, _GROUP, _OWN, _OTHER = range(5)  # what a random number is drawn for


class InContextClassification(TextData):
    """Whether all texts of an input are of one group, such as functions of one repository, and which tokens are hidden.

    An input is ``[SEP] text [SEP] text ... [CLS]``: a row and others of its group, drawn at random. With a probability of
    1/2 those behind a cut, drawn between any two, are of another group instead. All texts are cut to one length, and their
    number does not depend on the label, so that neither gives it away. A group of one row makes no input. Which others
    there are is drawn anew in each epoch of training; validation and test never change. Gurioli et al. 2025, arXiv 2503.03008.

    Args:
        dataset: see :class:`TextData`.
        text: the field of the text.
        group: the field of the group.
        parts: how many texts an input has, fewer where its group is smaller.
        rate: the share of tokens that are hidden; 0: none.
        options: see :class:`TextData`; of ``max_length`` each text of an input has an equal share.
    """

    task = "classification"
    draws = None

    def __init__(
        self,
        dataset: str,
        text: str = "code",
        group: str = "package",
        parts: int = 4,
        rate: float = 0.15,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        if parts < 2 or self.max_length < 2 * parts + 1:
            raise ValueError(f"an input of {self.max_length} pieces cannot hold {parts} texts; it has 2 or more")
        self.fields = [text]
        self.group, self.parts, self.rate = group, parts, check_share("rate", rate)

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return the two classes."""
        return ["several", "one"]

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return, for each text that has another in its group, the texts of all groups and its own place among them.

        Raises:
            UserError: there are not two groups large enough to take texts from, or a network has another vocabulary.
        """
        if len(self.tokenizers) > 1:
            raise UserError("InContextClassification has one vocabulary: give all networks the student's tokenizer.")
        room = (self.max_length - 1) // self.parts - 1
        texts = [field(row, self.fields[0]) for row in rows]
        coded = self.tokenizers["inputs"](texts, add_special_tokens=False, truncation=True, max_length=room)[
            "input_ids"
        ]
        groups: dict[Any, list[np.ndarray]] = {}
        for row, ids in zip(rows, coded, strict=True):
            groups.setdefault(field(row, self.group), []).append(np.asarray(ids, dtype=np.int64))
        kept = [texts for texts in groups.values() if len(texts) > 1]
        if sum(len(texts) >= self.parts - 1 for texts in kept) < 2:
            raise UserError(f"No two groups of '{self.dataset}' have {self.parts - 1} texts: lower data.parts.")
        return [
            {"groups": kept, "group": number, "place": place, "length": min(self.parts, len(texts)) * (room + 1) + 1}
            for number, texts in enumerate(kept)
            for place in range(len(texts))
        ]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return ids, mask and, where tokens are hidden, at which; the classes ``[B]`` and the hidden tokens ``[B, S]``."""
        seed = self.seed if split == "train" else 0
        drawn = [self._texts(seed, item, draw) for item, draw in chosen]
        tokenizer = self.tokenizers["inputs"]
        left = tokenizer.padding_side == "left"
        ends = [tokenizer.sep_token_id], [tokenizer.cls_token_id]
        coded = [np.concatenate([part for ids in texts for part in (ends[0], ids)] + [ends[1]]) for texts, _ in drawn]
        batch: dict[str, Any] = numbered(chosen) | {"labels": torch.tensor([int(one) for _, one in drawn])}
        ids, lengths = pad(coded, tokenizer.pad_token_id, left), np.array([len(each) for each in coded])
        view = as_view(ids, lengths, left)
        if self.rate:
            special = np.isin(ids, tokenizer.all_special_ids)
            hidden, labels = mask_tokens(
                ids,
                (~special).astype(float),
                view["attention_mask"].numpy(),
                seed=seed,
                rows=batch["id"].numpy(),
                draws=batch["draw"].numpy(),
                mask_id=tokenizer.mask_token_id,
                random_ids=np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids),
                rate=self.rate,
                per="row",
            )
            batch["masked_labels"] = torch.from_numpy(labels)
            view = as_view(hidden, lengths, left) | {"masked": batch["masked_labels"] != IGNORED}
        return batch | {"inputs": view}

    def _texts(self, seed: int, item: Item, draw: int) -> tuple[list[np.ndarray], bool]:
        """Return the texts of an input, and whether they are of one group."""

        def random(*what: int | np.ndarray) -> np.ndarray:
            return uniform(seed, item["id"], draw, *what)

        groups, own = item["groups"], item["groups"][item["group"]]
        keys = random(_OWN, np.arange(len(own)))
        keys[item["place"]] = 0.0  # the row itself comes first
        texts = [own[place] for place in np.argsort(keys)[: self.parts]]
        if random(_MIXED) < 0.5:
            return texts, True
        cut = 1 + int(random(_CUT) * (len(texts) - 1))
        sizes = np.array([len(each) for each in groups])
        sizes[item["group"]] = 0
        sizes[sizes < len(texts) - cut] = 0
        total = sizes.cumsum()  # a group is drawn as often as one of its rows would be
        other = groups[int(np.searchsorted(total, random(_GROUP) * total[-1], side="right"))]
        places = np.argsort(random(_OTHER, np.arange(len(other))))[: len(texts) - cut]
        return texts[:cut] + [other[place] for place in places], False
