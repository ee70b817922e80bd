"""The product of a run: the student as a folder that plain transformers loads."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedTokenizerBase

from kdbench.errors import UserError, refused_by_disk
from kdbench.files import whole_file
from kdbench.models.origins import LOSSES, quiet


class StudentExport(pl.Callback):
    """Saves the student and its tokenizer when training has ended, and beside it the networks inside the losses, if any.

    Args:
        folder: where the student lies then, as ``AutoModel.from_pretrained`` takes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder on the first rank."""
        if trainer.is_global_zero:
            data = trainer.datamodule
            save_network(self.folder, pl_module.student, data.tokenizers[data.views["student"]])
            if networks := pl_module.objective.state_dict():
                with whole_file(self.folder.parent / LOSSES) as file:
                    file.write(save({name: value.contiguous() for name, value in networks.items()}))


def save_network(
    folder: Path, network: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None, card: str | None = None
) -> None:
    """Write weights (safetensors), config, tokenizer and model card to ``folder``, whole or not at all.

    Raises:
        UserError: the disk takes no more bytes.
    """
    try:
        with _replaced(folder) as temporary, quiet():
            network.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            if card is not None:
                (temporary / "README.md").write_text(card, encoding="utf-8")
    except Exception as error:
        if why := refused_by_disk(error):
            raise UserError(f"'{folder}' cannot be written ({why}): make room and give the same command.") from error
        raise


def model_card(record: dict[str, Any], network: nn.Module) -> str:
    """Return a model card: what the network is, where it came from, what was measured."""
    kept = {name: value for name, value in record["metrics"].items() if not name.startswith(("train/", "val/"))}
    metrics = "\n".join(f"| {name.removeprefix('test/')} | {value} |" for name, value in kept.items())
    made_from = "\n".join(f"- {place}: {run}" for place, run in record["parents"].items()) or "- nothing"
    source = record["data"]["source"]
    warning = "These figures rest on embedded (generated) data.\n\n" if source == "embedded" else ""
    return f"""---
library_name: transformers
tags: [knowledge-distillation, kdbench]
---
# {record["experiment"]}

`{type(network).__name__}`, run {record["id"]} of the experiment `{record["experiment"]}`, seed {record["seed"]}.

Data: {record["data"]["dataset"]} ({source}). {warning}
Made from:
{made_from}

| metric | value |
|---|---|
{metrics}

Versions: {", ".join(f"{name} {number}" for name, number in record["versions"].items())}
"""


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Give a temporary neighbour to write into; afterwards it stands in the place of ``folder``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
