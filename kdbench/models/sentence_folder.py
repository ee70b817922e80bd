"""A single exit as a folder for others: the layout of sentence-transformers around a plain encoder."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from kdbench.errors import UserError
from kdbench.models.multi_exit import MultiExitEncoder

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")  # of sentence_transformers.models, since its version 2
POOLING = {"mean": "mean_tokens", "last": "lasttoken"}
IDENTITY = f"{nn.Identity.__module__}.{nn.Identity.__name__}"


class SentenceFolder:
    """Saves the last exit of a network: ``normalise(P(pool(h)))``.

    The folder itself holds the encoder as ``AutoModel`` of transformers opens it; pooling, projection and normalisation lie
    in folders inside it, so that ``SentenceTransformer(folder).encode(texts)`` gives the embeddings.

    Args:
        network: the network; of its exits only the last one is saved.

    Raises:
        UserError: the exits have no projections of their own.
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, MultiExitEncoder):
            raise UserError(f"The exits of a {type(network).__name__} give no embeddings: fine-tune it first.")
        self.network = network

    def save_pretrained(self, folder: Path) -> None:
        """Write the folder; the tokenizer is the caller's to add."""
        config = self.network.config
        projection = self.network.projections[str(config.exits[-1])]
        self.network.encoder.save_pretrained(folder)
        paths = [f"{place}_{name}" if place else "" for place, name in enumerate(MODULES)]
        kinds = [f"sentence_transformers.models.{name}" for name in MODULES]
        _write(
            folder / "modules.json",
            [
                {"idx": place, "name": str(place), "path": path, "type": kind}
                for place, (path, kind) in enumerate(zip(paths, kinds, strict=True))
            ],
        )
        _, pooling, dense, normalisation = (folder / path for path in paths)
        for each in (pooling, dense, normalisation):
            each.mkdir()
        width = {"word_embedding_dimension": config.hidden_size}
        _write(
            pooling / "config.json",
            width | {f"pooling_mode_{POOLING[each]}": each == config.pooling for each in POOLING},
        )
        shape = {"in_features": config.hidden_size, "out_features": config.dim, "bias": True}
        _write(dense / "config.json", shape | {"activation_function": IDENTITY})
        save_file(
            {f"linear.{name}": value for name, value in projection.state_dict().items()}, dense / "model.safetensors"
        )


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
