"""The English texts for networks that write from the hub, as the same rows as the local files give."""

from kdbench.data.cards import Hub
from kdbench.data.readers.fetched import fetch, load
from kdbench.data.readers.writings import problem_row, problems
from kdbench.data.registry import Row

PREAMBLE = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."


def hub_gsm8k(hub: Hub, split: str) -> list[Row]:
    """Return the published test split, or a part of the training split (:func:`~kdbench.data.readers.writings.problems`)."""
    published = "test" if split == "test" else "train"
    return problems([problem_row(row["question"], row["answer"], where) for where, row in fetch(hub, published)], split)


def hub_dolly(hub: Hub, split: str) -> list[Row]:
    """Return ``{"prompt", "response"}`` of Dolly as MiniLLM splits and words it.

    Of ``raw.jsonl`` the first 1,000 rows are for validation; ``valid.jsonl`` is the test split.
    """
    file = "valid.jsonl" if split == "test" else "raw.jsonl"
    table = load(hub.id, hub.id, "train", data_files={"train": file}, revision=hub.revision)
    rows = [
        {"prompt": instruction(row["instruction"], row["input"]), "response": _first(row["output"])} for row in table
    ]
    return rows if split == "test" else rows[:1000] if split == "validation" else rows[1000:]


def instruction(task: str, context: str = "") -> str:
    """Return the words around an instruction, as Alpaca and MiniLLM have them."""
    if not context:
        return f"{PREAMBLE}. {REQUEST}\n\n### Instruction:\n{task}\n\n### Response:\n"
    return (
        f"{PREAMBLE}, paired with an input that provides further context. {REQUEST}\n\n"
        f"### Instruction:\n{task}\n\n### Input:\n{context}\n\n### Response:\n"
    )


def _first(output: str | list[str]) -> str:
    """Return a response, of several references the first."""
    return output if isinstance(output, str) else output[0]
