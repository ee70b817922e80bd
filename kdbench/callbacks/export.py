"""The product of a run: the student as a folder that plain transformers loads."""

import contextlib
import json
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
from kdbench.models.deltas import LORA, loras, merged, save_lora
from kdbench.models.origins import LOSSES, PREPROCESSOR, quiet


class StudentExport(pl.Callback):
    """Saves the student with its tokenizer or preprocessor after training, and beside it the networks inside the losses, if any.

    A LoRA is saved beside the student too, and is folded into the weights of the student itself.

    Args:
        folder: where the student lies then, as ``AutoModel.from_pretrained`` takes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder on the first rank."""
        if trainer.is_global_zero:
            data = trainer.datamodule
            student = pl_module.network("student")
            if loras(student):
                save_lora(student, self.folder.parent / LORA)
                student = merged(student)
            view = data.views["student"]
            save_network(self.folder, student, data.tokenizers[view], preprocessor=data.preprocessor(view))
            if networks := pl_module.objective.state_dict():
                with whole_file(self.folder.parent / LOSSES) as file:
                    file.write(save({name: value.contiguous() for name, value in networks.items()}))


def save_network(
    folder: Path,
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    card: str | None = None,
    preprocessor: dict[str, Any] | None = None,
) -> None:
    """Write weights (safetensors), config, tokenizer or preprocessor, and model card to ``folder``, whole or not at all.

    Raises:
        UserError: the disk takes no more bytes.
    """
    try:
        with _replaced(folder) as temporary, quiet():
            network.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            if preprocessor is not None:
                (temporary / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
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
    told = getattr(network.config, "quantization_config", None)
    source, module = record["data"]["source"], type(network if told is None else told).__module__
    ours = f"`import {module}` lets transformers load it.\n\n" if module.startswith("kdbench.") else ""
    rounded = told is not None and told.weights is not None
    ours += "Its quantisation is simulated: it is neither smaller nor faster.\n\n" if rounded else ""
    warning = "These figures rest on embedded data.\n\n" if source == "embedded" else ""
    return f"""---
library_name: transformers
tags: [knowledge-distillation, kdbench]
---
# {record["experiment"]}

`{type(network).__name__}`, run {record["id"]} of the experiment `{record["experiment"]}`, seed {record["seed"]}.

{ours}Data: {record["data"]["dataset"]} ({source}). {warning}
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
