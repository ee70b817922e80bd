"""The DataModule of masked language modelling."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch

from kdbench.data.alignment import aligned_positions
from kdbench.data.base import Item, Row
from kdbench.data.corruption import WordView, mask_tokens, mask_words, token_weights
from kdbench.data.text import TextData, TextOptions, as_view, pad, view_key
from kdbench.data.tokenizers import encode_words, split_words
from kdbench.errors import UserError


class MaskedLanguageModeling(TextData):
    """Raw text with masked tokens (Devlin et al. 2019); rare tokens are masked more often, as DistilBERT does.

    One view: positions are drawn without replacement with probability proportional to ``count(token)^-power``. Several
    views (teachers with vocabularies of their own): words are drawn, and every view shows the same masked words.

    Args:
        dataset: see :class:`TextData`.
        rate: the share of tokens that is predicted.
        power: of the token counts; 0 masks all tokens alike.
        draws: how many maskings a row has, taken in turn, the share counted by rows; they belong to the data, whatever the
            seed of the run, so that runs can share what a teacher says of them. None draws anew in each epoch, the share
            counted over the batch as DistilBERT's code does.
        min_length: shorter texts, in pieces, are dropped from training.
        options: see :class:`TextData`.
    """

    task = "masked_language"

    def __init__(
        self,
        dataset: str,
        rate: float = 0.15,
        power: float = 0.7,
        draws: int | None = None,
        min_length: int = 0,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        if not 0 < rate < 1:
            raise ValueError(f"rate is the share of masked tokens in (0, 1), got {rate}")
        if draws is not None and draws < 1:
            raise ValueError(f"a row has at least one draw, got {draws}")
        self.rate, self.power, self.draws, self.min_length = rate, power, draws, min_length
        self._shared: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces and the word of each piece, for every view."""
        words = [split_words(row["text"]) for row in rows]
        views = {view: encode_words(tok, words, self.max_length) for view, tok in self.tokenizers.items()}
        items = [{view: coded[place] for view, coded in views.items()} for place in range(len(rows))]
        for item in items:
            item["length"] = len(item["inputs"][0])
        return [item for item in items if item["length"] >= max(3, self.min_length)]

    def setup(self, stage: str) -> None:
        """Also count the training tokens: their counts decide how often each is masked."""
        super().setup(stage)
        tokenizer = self.tokenizers["inputs"]
        counts = np.bincount(
            np.concatenate([item["inputs"][0] for item in self.items["train"]]), minlength=len(tokenizer)
        )
        self.weights = token_weights(counts, tokenizer.all_special_ids, -self.power)
        special = set(tokenizer.all_special_ids)
        self.random_ids = np.array([each for each in range(len(tokenizer)) if each not in special])

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return ids, masks and masked labels of every view; the maskings of validation and test never change."""
        views = self.view_names(split)
        endless = split == "train" and self.draws is None
        noise = {
            "seed": self.seed if endless else 0,
            "rows": np.array([item["id"] for item, _ in chosen]),
            "draws": np.array([draw for _, draw in chosen]),
            "rate": self.rate,
            "per": "batch" if endless else "row",
        }
        ids = {view: pad([item[view][0] for item, _ in chosen], self.tokenizers[view].pad_token_id) for view in views}
        words = {view: pad([item[view][1] for item, _ in chosen], -1) for view in views}
        lengths = {view: np.array([len(item[view][0]) for item, _ in chosen]) for view in views}
        weights = np.where(words["inputs"] >= 0, self.weights[ids["inputs"]], 0.0)
        if len(views) == 1:
            real = np.arange(weights.shape[1])[None] < lengths["inputs"][:, None]
            mask_id = self.tokenizers["inputs"].mask_token_id
            masked = [mask_tokens(ids["inputs"], weights, real, mask_id=mask_id, random_ids=self.random_ids, **noise)]
        else:
            random = self._random_words(views)
            shown = [WordView(ids[v], words[v], self.tokenizers[v].mask_token_id, random[v]) for v in views]
            masked = mask_words(shown, weights, **noise)
        batch: dict[str, Any] = {"id": torch.from_numpy(noise["rows"]), "draw": torch.from_numpy(noise["draws"])}
        for view, (corrupted, labels) in zip(views, masked, strict=True):
            batch[view] = as_view(corrupted, lengths[view])
            batch[view_key("masked_labels", view)] = torch.from_numpy(labels)
        if len(views) > 1:
            ours = batch["word_index.inputs"] = torch.from_numpy(words["inputs"])
            for view in views[1:]:
                theirs = batch[f"word_index.{view}"] = torch.from_numpy(words[view])
                batch[f"aligned.{view}"] = aligned_positions(ours, theirs)
        return batch

    def _random_words(self, views: list[str]) -> dict[str, np.ndarray]:
        """Return, for each view, the ids of the words that are one piece in all vocabularies, in one order."""
        if tuple(views) in self._shared:
            return self._shared[tuple(views)]
        vocabularies = {view: self.tokenizers[view].get_vocab() for view in views}
        special = {token for view in views for token in self.tokenizers[view].all_special_tokens}
        shared = set.intersection(*(set(vocabulary) for vocabulary in vocabularies.values())) - special
        forms = sorted(form for form in shared if not form.startswith("##"))
        if not forms:
            raise UserError("The vocabularies of the student and its teachers share no whole word.")
        shared_ids = {view: np.array([known[form] for form in forms]) for view, known in vocabularies.items()}
        return self._shared.setdefault(tuple(views), shared_ids)
