"""DataModules of text: masked language modelling, classification, tagging, similarity.

A batch is a plain dict: ``id`` (row number in its split), ``draw`` (which random version of the row), labels, and one
view a tokenizer: ``inputs`` is the student's, a network with another vocabulary has a view of its own name.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kdbench.data import registry
from kdbench.data.alignment import aligned_positions, same_vocabulary
from kdbench.data.corruption import IGNORED, WordView, mask_tokens, mask_words, token_weights
from kdbench.data.samplers import GroupedBatches, ResumableLoader
from kdbench.data.tokenizers import TokenizerTraining, encode_words, split_words
from kdbench.errors import UserError, nearest

Row = dict[str, Any]
Item = dict[str, Any]
SPLITS_OF = {
    "fit": ("train", "validation"),
    "validate": ("train", "validation"),
    "test": ("train", "test"),
    "predict": ("train", "test"),
}
"""The splits that a stage of Lightning needs; the training rows always, for the vocabulary and its counts."""


class TextData(pl.LightningDataModule):
    """What all text data share: rows of a registered data set, one view a tokenizer, length-grouped batches.

    Args:
        dataset: a name of the registry (``kdbench list data``).
        source: ``embedded``, ``local`` (a folder named by ``KDBENCH_DATA``) or ``hub``.
        batch_size: rows in a training batch, on each device.
        max_length: the longest text in pieces, special ones included; longer ones are cut.
        tokenizer: how a vocabulary is trained from the training texts, for networks that bring none.
        group_by_length: batches of similar length, drawn anew each epoch; without it, plain shuffled batches.
        eval_batch_size: rows in a batch of validation and test.
        num_workers: processes that make batches; 0 makes them in the training process.
    """

    task: ClassVar[str]

    def __init__(
        self,
        dataset: str,
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool = True,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"a batch has at least one row, got batch_size {batch_size} and {eval_batch_size}")
        if max_length < 4:
            raise ValueError(f"max_length leaves no room for a text: {max_length}")
        self.dataset, self.source = dataset, source
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.draws: int | None = None
        self.labels: list[str] | None = None
        self.views: dict[str, str] = {}
        self.tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self.items: dict[str, list[Item]] = {}

    # ---- what a task says ----

    def texts(self, row: Row) -> list[str]:
        """Return the texts of a row, for training a vocabulary."""
        raise NotImplementedError

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str] | None:
        """Return the names of the classes, or None where there are none."""
        return None

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return every row as pieces of each view, with its labels."""
        raise NotImplementedError

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch of some rows, each with its draw."""
        raise NotImplementedError

    # ---- Lightning's hooks ----

    def setup(self, stage: str) -> None:
        """Read the rows, settle the tokenizers of all networks, encode every split that is needed."""
        if not self.views:
            content = registry.fingerprint(self.dataset, self.source)
            self.rows = {split: _rows(self.dataset, self.source, split, content) for split in registry.SPLITS}
            self.labels = self.read_labels(self.rows)
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self._settle_tokenizers()
        for split in SPLITS_OF[stage]:
            if split not in self.items:
                self.items[split] = [item | {"id": place} for place, item in enumerate(self.encode(self.rows[split]))]
                if not self.items[split]:
                    raise UserError(f"The split '{split}' of '{self.dataset}' has no row left to use.")

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches: a pure function of seed and epoch, resumable in mid-epoch."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """Return the validation batches."""
        return self._loader("validation", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> ResumableLoader:
        """Return the test batches."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> ResumableLoader:
        """Return the test batches."""
        return self.test_dataloader()

    def example(self) -> dict[str, Any]:
        """Return one small batch with every view."""
        return self.collate("test", [(item, 0) for item in self.items["train"][:2]])

    def speed_batch(self) -> dict[str, Any]:
        """Return one full batch of training rows with every view, to measure speed on."""
        return self.collate("test", [(item, 0) for item in self.items["train"][: self.batch_size]])

    # ---- parts ----

    def view_names(self, split: str) -> list[str]:
        """Return the views of a split: in training those of the student and its teachers, else those of all networks."""
        if split != "train":
            return list(self.tokenizers)
        learnt = ("student", *self.trainer.lightning_module.teacher_names)
        return list(dict.fromkeys(self.views[name] for name in learnt))

    def _settle_tokenizers(self) -> None:
        brought = self.trainer.lightning_module.tokenizers()
        student = brought.pop("student")
        if student is None:
            if self.tokenizer is None:
                raise UserError(
                    "The student brings no vocabulary: give 'data.tokenizer', for example "
                    "{class_path: TrainWordPiece, init_args: {vocab_size: 2000, lowercase: false}}."
                )
            student = self.tokenizer.train(text for row in self.rows["train"] for text in self.texts(row))
        self.tokenizers, self.views = {"inputs": student}, {"student": "inputs"}
        for name, tokenizer in brought.items():
            own = tokenizer is not None and not same_vocabulary(student, tokenizer)
            self.views[name] = name if own else "inputs"
            if own:
                self.tokenizers[name] = tokenizer

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> ResumableLoader:
        items = self.items[split]
        sampler = GroupedBatches(
            rows=len(items),
            batch_size=batch_size,
            lengths=[item["length"] for item in items] if self.group_by_length else None,
            seed=self.seed,
            shuffle=shuffle,
            draws=self.draws if shuffle else 1,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return ResumableLoader(
            Rows(items), batch_sampler=sampler, collate_fn=Collate(self, split), num_workers=self.num_workers
        )


class Rows(torch.utils.data.Dataset):
    """Encoded rows, each asked for together with its draw."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, asked: tuple[int, int]) -> tuple[Item, int]:
        row, draw = asked
        return self.items[row], draw


class Collate:
    """The collation of one split, as worker processes need it."""

    def __init__(self, data: TextData, split: str) -> None:
        self.data, self.split = data, split

    def __call__(self, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the batch."""
        return self.data.collate(self.split, chosen)


class MaskedLanguageModeling(TextData):
    """Raw text with masked tokens (Devlin et al. 2019); rare tokens are masked more often, as DistilBERT does.

    One view: positions are drawn without replacement with probability proportional to ``count(token)^-power``. Several
    views (teachers with vocabularies of their own): words are drawn, and every view shows the same masked words.

    Args:
        dataset: see :class:`TextData`.
        source: see :class:`TextData`.
        batch_size: see :class:`TextData`.
        max_length: see :class:`TextData`.
        tokenizer: see :class:`TextData`.
        rate: the share of tokens that is predicted.
        power: of the token counts; 0 masks all tokens alike.
        draws: how many maskings a row has, taken in turn, the share counted by rows; None draws anew in each epoch, the
            share counted over the batch as DistilBERT's code does.
        min_length: shorter texts, in pieces, are dropped from training.
        group_by_length: see :class:`TextData`.
        eval_batch_size: see :class:`TextData`.
        num_workers: see :class:`TextData`.
    """

    task = "masked_language"

    def __init__(
        self,
        dataset: str,
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        rate: float = 0.15,
        power: float = 0.7,
        draws: int | None = None,
        min_length: int = 0,
        group_by_length: bool = True,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            dataset, source, batch_size, max_length, tokenizer, group_by_length, eval_batch_size, num_workers
        )
        if not 0 < rate < 1:
            raise ValueError(f"rate is the share of masked tokens in (0, 1), got {rate}")
        if draws is not None and draws < 1:
            raise ValueError(f"a row has at least one draw, got {draws}")
        self.rate, self.power, self.draws, self.min_length = rate, power, draws, min_length
        self._shared: dict[tuple[str, ...], dict[str, np.ndarray]] = {}

    def texts(self, row: Row) -> list[str]:
        """Return the text."""
        return [row["text"]]

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
        training = split == "train"
        noise = {
            "seed": self.seed if training else 0,
            "rows": np.array([item["id"] for item, _ in chosen]),
            "draws": np.array([draw for _, draw in chosen]),
            "rate": self.rate,
            "per": "batch" if training and self.draws is None else "row",
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
            batch[_key("masked_labels", view)] = torch.from_numpy(labels)
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


class LabelledText(TextData):
    """Texts with labels, for fine-tuning; a view is just ids and mask."""

    def as_batch(self, split: str, chosen: Sequence[tuple[Item, int]], roles: Sequence[str]) -> dict[str, Any]:
        """Return id, draw and, for every role and view, the padded ids."""
        batch: dict[str, Any] = {
            "id": torch.tensor([item["id"] for item, _ in chosen]),
            "draw": torch.tensor([draw for _, draw in chosen]),
        }
        for view in self.view_names(split):
            for role in roles:
                coded = [item[_key(role, view)] for item, _ in chosen]
                lengths = np.array([len(each) for each in coded])
                name = view if role == "inputs" else _key(role, view)
                batch[name] = as_view(pad(coded, self.tokenizers[view].pad_token_id), lengths)
        return batch


class TextClassification(LabelledText):
    """One class a text, or a pair of texts joined by the tokenizer.

    Args:
        dataset: see :class:`TextData`.
        label: the field of the row that holds the class.
        text: the field of the text, or two fields that are joined as a pair.
        classes: names of classes and the values of the field that belong to each; default: every value is a class.
        source: see :class:`TextData`.
        batch_size: see :class:`TextData`.
        max_length: see :class:`TextData`.
        tokenizer: see :class:`TextData`.
        group_by_length: see :class:`TextData`.
        eval_batch_size: see :class:`TextData`.
        num_workers: see :class:`TextData`.
    """

    task = "classification"

    def __init__(
        self,
        dataset: str,
        label: str,
        text: str | list[str] = "text",
        classes: dict[str, list[str | int]] | None = None,
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool = True,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            dataset, source, batch_size, max_length, tokenizer, group_by_length, eval_batch_size, num_workers
        )
        self.label, self.classes = label, classes
        self.fields = [text] if isinstance(text, str) else list(text)
        if len(self.fields) not in (1, 2):
            raise ValueError(f"a text is one field or a pair of two, got {self.fields}")

    def texts(self, row: Row) -> list[str]:
        """Return the text, or both texts of the pair."""
        return [field(row, name) for name in self.fields]

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return the classes as named, or every value of the field in order."""
        values = sorted({field(row, self.label) for split in rows.values() for row in split})
        if self.classes is None:
            self.number = {value: place for place, value in enumerate(values)}
            return [str(value) for value in values]
        self.number = {value: place for place, own in enumerate(self.classes.values()) for value in own}
        for value in values:
            if value not in self.number:
                raise UserError(
                    f"'{self.dataset}' has the label {value!r}, which no class of {list(self.classes)} holds."
                )
        return list(self.classes)

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of every view and the number of the class."""
        columns = [[field(row, name) for row in rows] for name in self.fields]
        items: list[Item] = [{"label": self.number[field(row, self.label)]} for row in rows]
        for view, tokenizer in self.tokenizers.items():
            coded = tokenizer(*columns, truncation=True, max_length=self.max_length)["input_ids"]
            for item, ids in zip(items, coded, strict=True):
                item[_key("inputs", view)] = np.asarray(ids)
        return [item | {"length": len(item["inputs"])} for item in items]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views and the classes ``[B]``."""
        batch = self.as_batch(split, chosen, ["inputs"])
        return batch | {"labels": torch.tensor([item["label"] for item, _ in chosen])}


class TokenTagging(LabelledText):
    """One class a word, learnt and read at its first piece.

    Args:
        dataset: see :class:`TextData`.
        label: the field of the row that holds the words' classes.
        source: see :class:`TextData`.
        batch_size: see :class:`TextData`.
        max_length: see :class:`TextData`; words beyond it in any view are not scored.
        tokenizer: see :class:`TextData`.
        group_by_length: see :class:`TextData`.
        eval_batch_size: see :class:`TextData`.
        num_workers: see :class:`TextData`.
    """

    task = "tagging"

    def __init__(
        self,
        dataset: str,
        label: str,
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool = True,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            dataset, source, batch_size, max_length, tokenizer, group_by_length, eval_batch_size, num_workers
        )
        self.label = label

    def texts(self, row: Row) -> list[str]:
        """Return the words as one text."""
        return [" ".join(row["words"])]

    def read_labels(self, rows: dict[str, list[Row]]) -> list[str]:
        """Return the tag set of all splits: a tag that training lacks is still a class, and every miss counts."""
        return sorted({tag for split in rows.values() for row in split for tag in field(row, self.label)})

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces, the first piece of each word and the words' classes; words cut in any view are left out."""
        number = {tag: place for place, tag in enumerate(self.labels)}
        words = [row["words"] for row in rows]
        views = {view: encode_words(tok, words, self.max_length) for view, tok in self.tokenizers.items()}
        items = []
        for place, row in enumerate(rows):
            labels = np.array([number[tag] for tag in field(row, self.label)])
            item: Item = {}
            kept = np.ones(len(labels), dtype=bool)
            for view, coded in views.items():
                ids, word_index = coded[place]
                first = np.full(len(labels), -1)
                seen, at = np.unique(word_index, return_index=True)
                first[seen[seen >= 0]] = at[seen >= 0]
                kept &= first >= 0
                item[_key("inputs", view)], item[_key("first", view)] = ids, first
            item["labels"] = np.where(kept, labels, IGNORED)
            items.append(item | {"length": len(item["inputs"])})
        return [item for item in items if (item["labels"] != IGNORED).any()]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the views, the classes of words ``[B, W]`` and, for training, of the student's pieces ``[B, S]``."""
        batch = self.as_batch(split, chosen, ["inputs"])
        words = pad([item["labels"] for item, _ in chosen], IGNORED)
        for view in self.view_names(split):
            first = pad([item[_key("first", view)] for item, _ in chosen], 0)
            batch[_key("first_piece", view)] = torch.from_numpy(np.maximum(first, 0))
        pieces = np.full(tuple(batch["inputs"]["input_ids"].shape), IGNORED)
        rows, places = np.nonzero(words != IGNORED)
        pieces[rows, batch["first_piece"].numpy()[rows, places]] = words[rows, places]
        return batch | {"word_labels": torch.from_numpy(words), "labels": torch.from_numpy(pieces)}


class TextSimilarity(LabelledText):
    """Two texts, each encoded alone, and a score of their similarity.

    Args:
        dataset: see :class:`TextData`.
        first: the field of the first text.
        second: the field of the second text.
        score: the field of the score, from 0 to 5.
        source: see :class:`TextData`.
        batch_size: see :class:`TextData`.
        max_length: see :class:`TextData`.
        tokenizer: see :class:`TextData`.
        group_by_length: see :class:`TextData`.
        eval_batch_size: see :class:`TextData`.
        num_workers: see :class:`TextData`.
    """

    task = "similarity"

    def __init__(
        self,
        dataset: str,
        first: str = "first",
        second: str = "second",
        score: str = "score",
        source: str = "embedded",
        batch_size: int = 32,
        max_length: int = 128,
        tokenizer: TokenizerTraining | None = None,
        group_by_length: bool = True,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            dataset, source, batch_size, max_length, tokenizer, group_by_length, eval_batch_size, num_workers
        )
        self.fields = {"first": first, "second": second}
        self.score = score

    def texts(self, row: Row) -> list[str]:
        """Return both texts."""
        return [field(row, name) for name in self.fields.values()]

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return the pieces of both texts in every view, and the score."""
        items: list[Item] = [{"score": float(field(row, self.score))} for row in rows]
        for view, tokenizer in self.tokenizers.items():
            for role, name in self.fields.items():
                texts = [field(row, name) for row in rows]
                coded = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
                for item, ids in zip(items, coded, strict=True):
                    item[_key(role, view)] = np.asarray(ids)
        return [item | {"length": max(len(item["first"]), len(item["second"]))} for item in items]

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return both texts' views and the scores ``[B]``."""
        batch = self.as_batch(split, chosen, ["first", "second"])
        return batch | {"labels": torch.tensor([item["score"] for item, _ in chosen])}


@functools.lru_cache(maxsize=24)
def _rows(dataset: str, source: str, split: str, content: str) -> list[Row]:
    """Return the rows of a split, read once in a process that fits many runs; ``content`` is their fingerprint."""
    return registry.load(dataset, source, split)


def pad(arrays: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Return arrays of different lengths as one ``[B, S]`` int64 array, filled up with ``value`` on the right."""
    padded = np.full((len(arrays), max(len(each) for each in arrays)), value, dtype=np.int64)
    for row, each in zip(padded, arrays, strict=True):
        row[: len(each)] = each
    return padded


def as_view(ids: np.ndarray, lengths: np.ndarray) -> dict[str, Tensor]:
    """Return a network's view: the padded ids and the mask of the real ones."""
    mask = np.arange(ids.shape[1])[None] < lengths[:, None]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def field(row: Row, name: str) -> Any:
    """Return a field of a row; raise :class:`UserError` when the data set has none of that name."""
    try:
        return row[name]
    except KeyError:
        raise UserError(f"The rows have no field '{name}', only {sorted(row)}.{nearest(name, row)}") from None


def _key(name: str, view: str) -> str:
    """Return the name of a batch field that belongs to a view; the student's own carries no suffix."""
    return name if view == "inputs" else f"{name}.{view}"
