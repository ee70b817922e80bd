"""The DataModule of causal language models: a prompt, and the text that goes on with it."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from kdbench.data.base import Item, Row, field, numbered
from kdbench.data.corruption import IGNORED
from kdbench.data.text import TextData, TextOptions, as_view, filled, pad
from kdbench.errors import UserError

View = Mapping[str, Tensor]


class CausalOptions(TextOptions, total=False):
    """What every DataModule of prompts and responses takes, with the meanings and defaults of :class:`CausalLanguageModeling`."""

    text: str
    prompt: str | None
    end: bool


class CausalLanguageModeling(TextData):
    r"""Prompts and responses for networks that write from left to right; the tokens of the response are predicted.

    In a batch prompts are padded on the left and responses on the right, so that all responses begin in one column and another
    response can be put in the place of the row's own (:func:`continued`). All networks of an experiment share one vocabulary.

    Args:
        dataset: see :class:`TextData`.
        text: the field of the response; without ``prompt`` its first ``prompt_length`` tokens are the prompt.
        prompt: a template of the prompt over the fields of the row, ``"Question: {question}\nAnswer: "``.
        prompt_length: the longest prompt in tokens; of a longer one the end is kept.
        end: put the tokenizer's end of a text behind each response that was not cut; a drawn text stops there.
        options: see :class:`TextData`; ``max_length`` is that of prompt and response together: ``max_length - prompt_length``
            tokens of a response are learnt, or drawn, at most.
    """

    task = "language"
    draws = 1

    def __init__(
        self,
        dataset: str,
        text: str = "text",
        prompt: str | None = None,
        prompt_length: int = 32,
        end: bool = True,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(dataset, **options)
        if not 1 <= prompt_length < self.max_length:
            raise ValueError(
                f"a prompt has at least 1 token and leaves room for a response in max_length {self.max_length}, got prompt_length "
                f"{prompt_length}"
            )
        self.text, self.prompt, self.prompt_length, self.end = text, prompt, prompt_length, end

    @property
    def new_tokens(self) -> int:
        """The most tokens of a response."""
        return self.max_length - self.prompt_length

    @property
    def end_token(self) -> int | None:
        """The token that ends a response, None where responses have no end of their own."""
        return self.tokenizers["inputs"].eos_token_id if self.end else None

    @property
    def padding(self) -> int:
        """The token that fills up a batch; which tokens count, the masks tell."""
        tokenizer = self.tokenizers["inputs"]
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def texts(self, row: Row) -> list[str]:
        """Return prompt and response of a row, for training a vocabulary."""
        return [*([filled(self.prompt, row)] if self.prompt is not None else []), field(row, self.text)]

    def settle_views(self) -> None:
        """Take or train the tokenizer; refuse networks of several vocabularies and a tokenizer without an end."""
        super().settle_views()
        for name, view in self.views.items():
            if view != "inputs":
                raise UserError(
                    f"'{name}' has another vocabulary than the student: what one of them writes, the other cannot read; take "
                    "networks with one tokenizer."
                )
        if self.tokenizers["inputs"].eos_token_id is None:
            raise UserError("The tokenizer has no token for the end of a text: take one of a causal language model.")

    def encode(self, rows: list[Row]) -> list[Item]:
        """Return prompt and response of every row that has a response.

        Raises:
            UserError: a prompt is empty.
        """
        tokenizer = self.tokenizers["inputs"]
        responses = self._coded([field(row, self.text) for row in rows])
        if self.prompt is None:
            prompts = [ids[: self.prompt_length] for ids in responses]
            responses = [ids[self.prompt_length :] for ids in responses]
        else:
            found = tokenizer([filled(self.prompt, row) for row in rows], verbose=False)["input_ids"]
            prompts = [ids[-self.prompt_length :] for ids in found]
        items = []
        for place, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not prompt:
                raise UserError(
                    f"The prompt of row {place} of '{self.dataset}' is empty: a text is gone on with from one token at least."
                )
            whole = [*response, *([self.end_token] if self.end else [])][: self.new_tokens]
            if whole:
                item = {"prompt": np.asarray(prompt), "response": np.asarray(whole)}
                items.append(item | {"length": len(prompt) + len(whole)})
        return items

    def collate(self, split: str, chosen: Sequence[tuple[Item, int]]) -> dict[str, Any]:
        """Return the fields of :func:`continued`, and ``plain``, the rows' own texts whatever is learnt from later."""
        views = {}
        for role, left in (("prompt", True), ("response", False)):
            coded = [item[role] for item, _ in chosen]
            views[role] = as_view(pad(coded, self.padding, left), np.array([len(ids) for ids in coded]), left)
        batch = continued(views["prompt"], views["response"])
        return {**numbered(chosen), **batch, "plain": batch["inputs"], "plain_labels": batch["labels"]}

    def _coded(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizers["inputs"](texts, add_special_tokens=False, verbose=False)["input_ids"]


def continued(prompt: View, response: View) -> dict[str, Any]:
    """Return the fields of a batch whose prompts are gone on with by responses.

    The one place where labels are shifted: what stands at a position is what the network says there of the next token.

    Args:
        prompt: ``input_ids`` and ``attention_mask`` ``[B, P]``, padded on the left.
        response: the same ``[B, L]``, padded on the right.

    Returns:
        ``prompt`` and ``response`` themselves, and over ``S = P + L`` columns: ``inputs`` (ids, mask, positions), ``labels``
        (the next token where it is one of the response, else -100), ``predicts`` (where it is, bool) and ``per_sequence``, the
        weight ``1 / |y|`` of each such position.
    """
    answered = torch.cat([torch.zeros_like(prompt["attention_mask"]), response["attention_mask"]], 1).bool()
    ids, mask = (torch.cat([prompt[key], response[key]], 1) for key in ("input_ids", "attention_mask"))
    labels = ids.masked_fill(~answered, IGNORED).roll(-1, 1)  # the first column, of the prompt, comes last
    predicts = labels != IGNORED
    return {
        "prompt": prompt,
        "response": response,
        "inputs": {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)},
        "labels": labels,
        "predicts": predicts,
        "per_sequence": predicts / predicts.sum(1, keepdim=True).clamp(min=1),
    }
