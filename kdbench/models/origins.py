"""Origins: where a network comes from (a config, the hub, a folder, another experiment), and the surgeries that follow."""

import abc
import contextlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdbench.errors import UserError, nearest
from kdbench.models.surgery import Facts, Surgery

LOSSES = "losses.safetensors"
"""Where a run leaves the networks inside its losses, beside its student."""
PREPROCESSOR = "preprocessor_config.json"
"""What images become before a network sees them, in the form of transformers."""


class Origin(abc.ABC):
    """Where a network comes from.

    Args:
        then: surgeries on it, in order.
    """

    def __init__(self, then: list[Surgery] | None = None) -> None:
        self.then = then or []

    def build(self, facts: Facts | None = None) -> nn.Module:
        """Return the network after its surgeries, in training mode and float32, on the CPU.

        Raises:
            UserError: the network cannot be had, or has fewer embeddings than the tokenizer of the data has pieces.
        """
        facts = facts or Facts()
        network = self.make(facts)
        for surgery in self.then:
            network = surgery(network, facts)
        if facts.tokenizer is not None:  # a network of images may not even answer
            embeddings = getattr(network.get_input_embeddings(), "num_embeddings", None)
            if embeddings is not None and embeddings < len(facts.tokenizer):
                raise UserError(
                    f"The network has {embeddings} token embeddings and the tokenizer of the data {len(facts.tokenizer)} "
                    "pieces: give the network's own tokenizer to the data, or a larger vocab_size to the network."
                )
        return network.train()  # from_pretrained leaves eval mode, and Lightning keeps what it finds

    @abc.abstractmethod
    def make(self, facts: Facts) -> PreTrainedModel:
        """Return the network as it comes, before the surgeries."""

    @abc.abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that comes with the network, or None."""

    def preprocessor(self) -> dict[str, Any] | None:
        """Return the preprocessor of images that comes with the network, or None."""
        return None

    def losses(self) -> Path | None:
        """Return the file of the loss networks that were trained with the network, where it comes from a run that has any."""
        return None

    def check(self) -> None:  # noqa: B027 - of a config or a hub id nothing can be seen in advance
        """Raise :class:`UserError` when it can be seen without building that the network cannot be had."""


class FromConfig(Origin):
    """A new network with random weights.

    Args:
        architecture: a class of transformers, such as ``BertForMaskedLM``.
        config: arguments of its config class, or ``num_labels``; ``vocab_size`` and ``pad_token_id`` come from the data's
            tokenizer, ``image_size`` and ``num_channels`` from its images, and the classes of a classifier from the data's
            labels, when they are not given.
        then: surgeries on it, in order.
    """

    def __init__(self, architecture: str, config: dict[str, Any], then: list[Surgery] | None = None) -> None:
        super().__init__(then)
        self.architecture, self.config = architecture, config

    def make(self, facts: Facts) -> PreTrainedModel:
        """Build the network."""
        from kdbench.models.architectures import architecture_class
        from kdbench.models.vision import ImageClassifier

        kind = architecture_class(self.architecture)
        if not issubclass(kind, PreTrainedModel) or kind.config_class is None:
            raise UserError(f"FromConfig builds one class, such as BertForMaskedLM; '{self.architecture}' is none.")
        names = [*inspect.signature(kind.config_class).parameters, *kind.config_class.attribute_map, "num_labels"]
        for key in self.config:
            if key not in names:
                raise UserError(f"{kind.config_class.__name__} has no '{key}'.{nearest(key, names)}")
        known = {}
        if facts.tokenizer is not None:
            known = {"vocab_size": len(facts.tokenizer), "pad_token_id": facts.tokenizer.pad_token_id}
            marks = {f"{mark}_token_id": getattr(facts.tokenizer, f"{mark}_token_id") for mark in ("bos", "eos")}
            known |= {key: value for key, value in marks.items() if value is not None}
        if facts.image is not None:
            channels, height, width = facts.image
            known |= {"num_channels": channels, "image_size": height if height == width else [height, width]}
        filled = {key: value for key, value in known.items() if key in names}
        classifies = "Classif" in self.architecture or issubclass(kind, ImageClassifier)
        if facts.labels and classifies and "num_labels" not in self.config:
            filled |= {"id2label": dict(enumerate(facts.labels))}
            filled |= {"label2id": {label: number for number, label in enumerate(facts.labels)}}
        try:
            return kind(kind.config_class(**filled | self.config))
        except (ValueError, TypeError) as error:
            raise UserError(f"No {self.architecture} can be built from this config: {_sentence(error)}") from error

    def tokenizer(self) -> None:
        """Return None: the data bring the tokenizer."""
        return


class FromHub(Origin):
    """A network of the Hugging Face hub (safetensors only, no remote code).

    Args:
        name: the id, such as ``dumitrescustefan/bert-base-romanian-cased-v1``.
        architecture: a class of transformers.
        revision: branch, tag or commit; where only pickled weights lie on the main branch, the hub's converted ones are often
            in a pull request: ``refs/pr/1``.
        then: surgeries on it, in order.
    """

    def __init__(
        self,
        name: str,
        architecture: str = "AutoModelForMaskedLM",
        revision: str | None = None,
        then: list[Surgery] | None = None,
    ) -> None:
        super().__init__(then)
        self.name, self.architecture, self.revision = name, architecture, revision

    def make(self, facts: Facts) -> PreTrainedModel:
        """Download the network, or take it from the hub's cache."""
        with fetched(self.name):
            return _load(self.name, self.architecture, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that lies beside the network, None for a network of images."""
        from transformers import AutoTokenizer

        from kdbench.models.architectures import sees_images

        if sees_images(self.architecture):
            return None
        with fetched(self.name), quiet():
            return AutoTokenizer.from_pretrained(self.name, revision=self.revision, trust_remote_code=False)

    def preprocessor(self) -> dict[str, Any] | None:
        """Return the preprocessor that lies beside a network of images, None where the hub has none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        from kdbench.models.architectures import sees_images

        if not sees_images(self.architecture):
            return None
        with fetched(self.name):
            try:
                file = hf_hub_download(self.name, PREPROCESSOR, revision=self.revision)
            except LocalEntryNotFoundError:  # nobody could be asked
                raise
            except EntryNotFoundError:
                return None
        return read_preprocessor(Path(file).parent)


@contextlib.contextmanager
def fetched(name: str) -> Iterator[None]:
    """Turn what can go wrong with a network of the hub into one :class:`UserError` that names it."""
    from httpx import HTTPError

    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"'{name}' cannot be loaded from the Hugging Face hub ({_sentence(error)}): check the id, the network "
            "connection, and that it has safetensors weights (perhaps under the revision refs/pr/N)."
        ) from error


class FromFolder(Origin):
    """A network in a folder, as ``save_pretrained`` writes it (safetensors only, no remote code).

    Args:
        folder: the folder, or the folder of a run, whose student is meant then.
        architecture: a class of transformers; by default the one that the folder was saved from. A base class, or
            ``AutoModel``, leaves a saved head behind, and a pooler that was not saved is left out.
        then: surgeries on it, in order.
    """

    def __init__(self, folder: str, architecture: str | None = None, then: list[Surgery] | None = None) -> None:
        super().__init__(then)
        student = Path(folder) / "student"
        self.folder, self.architecture = student if student.is_dir() else Path(folder), architecture

    def path(self) -> Path:
        """Return the folder."""
        return self.folder

    def check(self) -> None:
        """Raise :class:`UserError` when the folder holds no network."""
        _check_folder(self.folder)

    def make(self, facts: Facts) -> PreTrainedModel:
        """Open the folder."""
        return _open(self.folder, self.architecture)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the folder's tokenizer, None where there is none."""
        return _open_tokenizer(self.folder)

    def preprocessor(self) -> dict[str, Any] | None:
        """Return the folder's preprocessor of images, None where there is none."""
        return read_preprocessor(self.folder)


class FromRun(Origin):
    """What another experiment left: its student, or another folder or file of its run.

    Args:
        experiment: the experiment file.
        file: the folder, or the file, inside the run.
        run: the folder of the run; kdbench fills it in when it resolves the chain.
        set: changes of that experiment, by dotted keys; the chain applies them.
        then: surgeries on it, in order.
    """

    def __init__(
        self,
        experiment: str,
        file: str = "student",
        run: str | None = None,
        set: dict[str, Any] | None = None,
        then: list[Surgery] | None = None,
    ) -> None:
        super().__init__(then)
        self.experiment, self.file, self.run = experiment, file, run

    def make(self, facts: Facts) -> PreTrainedModel:
        """Open the folder that the run left."""
        return _open(self.path(), None)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that the run left beside the network."""
        return _open_tokenizer(self.path())

    def preprocessor(self) -> dict[str, Any] | None:
        """Return the preprocessor of images that the run left beside the network, None where there is none."""
        return read_preprocessor(self.path())

    def check(self) -> None:
        """Raise :class:`UserError` when the run left no network."""
        _check_folder(self.path())

    def losses(self) -> Path | None:
        """Return the run's file of loss networks, None where its losses had none or something else than its student is meant."""
        file = self.path().parent / LOSSES
        return file if self.file == "student" and file.is_file() else None

    def path(self) -> Path:
        """Return the folder that the run left."""
        if self.run is None:
            raise UserError(
                f"kdbench resolves the chain; start '{self.experiment}' through the command kdbench, or set 'run' to the "
                "folder of its run."
            )
        return Path(self.run) / self.file


class FromTargets(Origin):
    """A teacher that is a file of what it said, and no network: it can be learnt from, not compared with.

    Args:
        file: a safetensors file with the targets of every training row (:class:`~kdbench.data.target_file.TargetFile`).
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = Path(file)

    def make(self, facts: Facts) -> PreTrainedModel:
        """Raise :class:`UserError`: there is no network."""
        raise UserError(f"'{self.file}' holds targets and no network: only a term's 'teacher' may read it.")

    def tokenizer(self) -> None:
        """Return None: the targets belong to the student's own pieces."""
        return

    def check(self) -> None:
        """Raise :class:`UserError` when there is no such file."""
        if not self.file.is_file():
            raise UserError(f"There is no file of targets '{self.file}': correct the path.")


def read_preprocessor(folder: Path) -> dict[str, Any] | None:
    """Return the preprocessor of images that lies in a folder, None where there is none."""
    file = folder / PREPROCESSOR
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise UserError(f"'{file}' is no JSON ({_sentence(error)}): replace it with the published file.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers inside, and leave its settings as they were."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}': fit the experiment that leaves it, or correct the path.")
    if not (folder / "config.json").is_file():
        raise UserError(f"The folder '{folder}' has no config.json, so it holds no network that save_pretrained wrote.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"The folder '{folder}' has no weights in *.safetensors; kdbench opens no pickled ones.")


def _open(folder: Path, architecture: str | None) -> PreTrainedModel:
    _check_folder(folder)
    try:
        return _load(str(folder), architecture, None)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The network in '{folder}' cannot be opened: {_sentence(error)}") from error


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"The tokenizer in '{folder}' cannot be opened: {_sentence(error)}") from error


def _load(place: str, architecture: str | None, revision: str | None) -> PreTrainedModel:
    """Load a network with every one of its weights; none may be random, left over inside the encoder or of another shape."""
    from transformers import AutoConfig

    from kdbench.models.architectures import architecture_class

    with quiet():
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        if architecture is None and not config.architectures:
            raise UserError(f"The config of '{place}' names no architecture: say which one with 'architecture'.")
        name = architecture or config.architectures[0]
        kind = architecture_class(name)
        wanted = getattr(getattr(kind, "config_class", None), "model_type", config.model_type)
        if wanted != config.model_type:
            raise UserError(f"'{place}' holds a network of the type '{config.model_type}', not a {name}.")
        network, report = kind.from_pretrained(
            place,
            config=config,
            revision=revision,
            dtype=torch.float32,  # whatever precision it was saved in: the trainer's precision decides
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused below
            output_loading_info=True,
        )
    missing = set(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        network.pooler, missing = None, set()  # saved under a head that has no use for it
    inside = {child for child, _ in network.base_model.named_children()} - {"pooler"}
    stem = f"{network.base_model_prefix}."
    unexpected = {
        key
        for key in report["unexpected_keys"]  # heads may be left behind, and old files hold a buffer of positions
        if key.removeprefix(stem).partition(".")[0] in inside and not key.endswith("position_ids")
    }
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    for what, keys in (("lacks", missing), ("has besides", unexpected), ("has in another shape", mismatched)):
        if keys:
            told = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise UserError(
                f"'{place}' does not hold a whole {type(network).__name__}: it {what} {told}; load it as it was saved and "
                "add a head with AddHead."
            )
    return network


def _sentence(error: Exception) -> str:
    """Return the first line of a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
