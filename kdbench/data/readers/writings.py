"""English texts for networks that write: their rows, and readers of the files as published.

The works of Shakespeare in one file (github.com/karpathy/char-rnn) and the word problems of GSM8K (Cobbe et al. 2021, arXiv
2110.14168). Rows of GSM8K from every source go through one function.
"""

import json
from pathlib import Path
from typing import Any

from kdbench.data.readers.published import content, damaged, lines
from kdbench.data.registry import Row, local_file

WINDOW = 128  # characters of a row of Shakespeare
SHARES = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}  # of the file, from where to where


def local_shakespeare(folder: Path, split: str) -> list[Row]:
    """Return consecutive windows of 128 characters; the file is cut in three at 90% and 95%."""
    text = content(local_file(folder, "input.txt"))
    first, last = (round(share * len(text)) for share in SHARES[split])
    return [{"text": text[at : at + WINDOW]} for at in range(first, last - WINDOW + 1, WINDOW)]


def problem_row(question: Any, answer: Any, where: str) -> Row:
    """Return a question and its worked answer, which ends with ``####`` and the number."""
    if not isinstance(question, str) or not isinstance(answer, str):
        raise damaged(where, "question and answer are no texts")
    if "####" not in answer:
        raise damaged(where, "no '####' before the number of the answer")
    return {"question": question.strip(), "answer": answer.strip()}


def problems(published: list[Row], split: str) -> list[Row]:
    """Return a split of GSM8K, of the published test or training rows: every tenth training row is for validation."""
    if split == "test":
        return published
    return published[9::10] if split == "validation" else [row for at, row in enumerate(published) if at % 10 != 9]


def local_gsm8k(folder: Path, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split (:func:`problems`)."""
    path = local_file(folder, "test.jsonl" if split == "test" else "train.jsonl")
    rows = []
    for number, line in lines(path):
        where = f"{path}, line {number}"
        try:
            told = json.loads(line)
        except json.JSONDecodeError as error:
            raise damaged(where, f"not valid JSON ({error.msg})") from error
        if not isinstance(told, dict):
            raise damaged(where, "no question and answer")
        rows.append(problem_row(told.get("question"), told.get("answer"), where))
    return problems(rows, split)
