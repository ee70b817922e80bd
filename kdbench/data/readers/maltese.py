"""Maltese text: the sentences of the treebank UD_Maltese-MUDT (Čéplö 2018), file by file as published."""

from pathlib import Path

from kdbench.data.readers.english import PART, clean
from kdbench.data.readers.published import damaged, lines
from kdbench.data.registry import Row, local_file

TEXT = "# text = "


def local_text(folder: Path, split: str) -> list[Row]:
    """Return the sentences of the published split."""
    path = local_file(folder, f"mt_mudt-ud-{PART[split]}.conllu")
    rows = [
        {"text": clean(line.removeprefix(TEXT), f"{path}, line {number}")}
        for number, line in lines(path)
        if line.startswith(TEXT)
    ]
    if not rows:
        raise damaged(path, "no line gives the text of a sentence")
    return rows
