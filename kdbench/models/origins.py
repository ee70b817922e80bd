"""Where networks come from: a config (random weights), a folder, the hub, another experiment's run."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedTokenizerBase

import kdbench.models.sentence  # noqa: F401 - registers SentenceEncoder with transformers' Auto classes
from kdbench.errors import UserError, nearest
from kdbench.models.surgery import Surgery


@dataclass
class Facts:
    """What the data know when a network is built: the vocabulary and the names of the classes."""

    tokenizer: PreTrainedTokenizerBase | None = None
    labels: list[str] | None = None


class Origin:
    """Where a network comes from.

    Args:
        then: surgeries, applied in order.
    """

    def __init__(self, then: list[Surgery] | None = None) -> None:
        self.then = then or []

    def build(self, facts: Facts | None = None) -> nn.Module:
        """Return the network, after the surgeries."""
        facts = facts or Facts()
        with quiet():
            network = self._make(facts)
            for surgery in self.then:
                network = surgery(network, facts)
        return network

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that comes with the network, None when it brings none."""
        return None

    def _make(self, facts: Facts) -> nn.Module:
        raise NotImplementedError


class FromConfig(Origin):
    """Random weights.

    Args:
        architecture: a class of transformers, such as ``BertForMaskedLM``.
        config: its config; the vocabulary's size and padding come from the data's tokenizer unless they are given.
        then: surgeries.
    """

    def __init__(self, architecture: str, config: dict[str, Any], then: list[Surgery] | None = None) -> None:
        super().__init__(then)
        self.architecture, self.config = architecture, config
        _class(architecture)

    def _make(self, facts: Facts) -> nn.Module:
        made = dict(self.config)
        if facts.tokenizer is not None:
            size = len(facts.tokenizer)
            if made.setdefault("vocab_size", size) < size:
                raise UserError(f"The network has {made['vocab_size']} embeddings, the vocabulary {size} pieces.")
            made.setdefault("pad_token_id", facts.tokenizer.pad_token_id)
        kind = _class(self.architecture)
        return kind(kind.config_class(**made))


class FromFolder(Origin):
    """A folder as ``save_pretrained`` leaves it; weights as safetensors, all of them, and no remote code.

    Args:
        folder: the folder, or a run's folder with a ``student/`` in it.
        architecture: a class of transformers; default: the one that the folder's config names.
        then: surgeries.
    """

    def __init__(self, folder: str, architecture: str | None = None, then: list[Surgery] | None = None) -> None:
        super().__init__(then)
        self.folder, self.architecture = folder, architecture

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the folder's tokenizer."""
        folder = self._checked()
        if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            return None
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def _checked(self) -> Path:
        folder = Path(self.folder)
        folder = folder / "student" if (folder / "student").is_dir() else folder
        if not folder.is_dir():
            raise UserError(f"There is no folder '{folder}' to load a network from.")
        if not (folder / "config.json").exists():
            raise UserError(f"'{folder}' holds no network: there is no config.json in it.")
        return folder

    def _make(self, facts: Facts) -> nn.Module:
        return _loaded(str(self._checked()), self.architecture, None)


class FromHub(Origin):
    """A network of the Hugging Face hub.

    Args:
        name: the id, such as ``dumitrescustefan/bert-base-romanian-cased-v1``.
        architecture: a class of transformers; default: the one that its config names.
        revision: a branch, tag or commit.
        then: surgeries.
    """

    def __init__(
        self,
        name: str,
        architecture: str | None = None,
        revision: str | None = None,
        then: list[Surgery] | None = None,
    ) -> None:
        super().__init__(then)
        self.name, self.architecture, self.revision = name, architecture, revision

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of the same id."""
        with _from_hub(self.name):
            return transformers.AutoTokenizer.from_pretrained(self.name, revision=self.revision)

    def _make(self, facts: Facts) -> nn.Module:
        with _from_hub(self.name):
            return _loaded(self.name, self.architecture, self.revision)


class FromRun(Origin):
    """What another experiment's run left; kdbench fits that experiment first when the run is missing.

    Args:
        experiment: the file of the experiment.
        file: what of the run: its student, or another named folder.
        run: the folder of the run, filled in when the chain is resolved.
        set: changes of that experiment, by dotted keys.
        architecture: as of :class:`FromFolder`.
        then: surgeries.
    """

    def __init__(
        self,
        experiment: str,
        file: str = "student",
        run: str | None = None,
        set: dict[str, Any] | None = None,
        architecture: str | None = None,
        then: list[Surgery] | None = None,
    ) -> None:
        super().__init__(then)
        if run is None:
            raise ValueError(
                f"the run of '{experiment}' is not known here: start with 'kdbench fit', which resolves the chain"
            )
        self.folder = FromFolder(str(Path(run) / file), architecture)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that the run left."""
        return self.folder.tokenizer()

    def _make(self, facts: Facts) -> nn.Module:
        return self.folder.build(facts)


def _class(name: str) -> Any:
    found = getattr(transformers, name, None)
    if found is None:
        raise ValueError(f"transformers has no class '{name}'.{nearest(name, dir(transformers))}")
    return found


def _loaded(where: str, architecture: str | None, revision: str | None) -> nn.Module:
    """Load a network; raise :class:`UserError` unless every weight is there and fits."""
    try:
        config = transformers.AutoConfig.from_pretrained(where, revision=revision or "main")
        name = architecture or (config.architectures or ["AutoModel"])[0]
        kind = transformers.AutoModel if name == "SentenceEncoder" else _class(name)
        network, told = kind.from_pretrained(
            where, config=config, revision=revision or "main", use_safetensors=True, output_loading_info=True
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"'{where}' cannot be loaded: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if Path(where).is_dir():
            raise UserError(f"'{where}' cannot be loaded: {str(error).splitlines()[0]}") from error
        raise
    # The encoder alone has no use for a head's weights; a pooler that pre-training lacked is fresh by design.
    missing = [name for name in told["missing_keys"] if "pooler" not in name]
    if missing or told["mismatched_keys"]:
        faults = [*missing, *(str(key) for key in told["mismatched_keys"])]
        raise UserError(
            f"'{where}' is another architecture than {type(network).__name__}: no fitting weights for {', '.join(faults[:3])}."
        )
    return network


@contextlib.contextmanager
def _from_hub(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"'{name}' cannot be fetched from the hub: check the id and the network, or use a local folder."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and advice while a network is made; nothing of it stays."""
    talker = logging.getLogger("transformers")
    level, bars = talker.level, transformers.utils.logging.is_progress_bar_enabled()
    talker.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        talker.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
