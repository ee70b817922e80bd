"""The papers of the leaderboards: what each claims and, from the records in ``results.json`` alone, what came of it."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdbench.errors import UserError
from kdbench.suite import claim_file, experiment, results
from kdbench.suite.claims import ClaimFile
from kdbench.suite.results import Results
from kdbench.suite.statistics import Answer, Verdict

SCALES = {"embedded": "embedded", "local": "local", "hub": "paper", "run": "run"}
"""What is said of the size of a comparison, by the source of its data."""
NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Entry:
    """A paper or one of its parts: what it claims, and what its runs gave when there are any."""

    paper: str
    file: ClaimFile
    families: tuple[str, ...]
    results: Results | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Answer, int]:
        """How many claims have each answer."""
        told = Counter(verdict.answer for verdict in self.verdicts.values())
        return {answer: told[answer] for answer in Answer}

    @property
    def scale(self) -> str:
        """What kind of data the figures rest on; of a paper that was not run, what they will rest on."""
        return SCALES[self.results.source if self.results else self.file.source]

    @property
    def runs(self) -> list[str]:
        """The names of all runs, sorted."""
        return sorted(self.results.records) if self.results else []


def papers(home: Path) -> list[str]:
    """Return the folders with a claim file, a paper before its parts.

    Raises:
        UserError: there is none.
    """
    found = sorted((file.parent.relative_to(home) for file in home.rglob("claim.yaml")), key=lambda path: path.parts)
    if not found:
        raise UserError(
            f"There is no claim.yaml in '{home}': run this in a folder that holds leaderboards/, or name one."
        )
    return [path.as_posix() for path in found]


def read(home: Path, paper: str) -> Entry:
    """Return a paper as its claim file and its results tell it.

    Raises:
        UserError: the claim file has faults, the results are damaged, or they are of another claim file.
    """
    folder = home / paper
    file = claim_file.load(folder / "claim.yaml")
    entry = Entry(paper, file, families(file, claim_file.root(folder / "claim.yaml")))
    if not (folder / results.FILE).exists():
        return entry
    found = results.read(folder)
    known = {("arm", arm) for arm in file.arms} | {("task", task) for task in (*file.tasks, results.OWN)}
    told = {part for _, arm, task, *_ in found.cells for part in (("arm", arm), ("task", task))}
    if foreign := sorted(told - known):
        kind, name = foreign[0]
        raise UserError(
            f"'{folder / results.FILE}' is of another claim file (it has the {kind} '{name}'): "
            f"'kdbench reproduce {paper}' makes it anew."
        )
    try:
        return dataclasses.replace(entry, results=found, verdicts=found.verdicts(file))
    except UserError as error:
        raise UserError(f"{folder / results.FILE}: {error}") from error


def families(file: ClaimFile, root: Path) -> tuple[str, ...]:
    """Return the method families of the arms that are judged, each the name of a file in ``kdbench/methods``."""
    judged = {each.arm for claim in file.claims.values() for each in claim.references}
    found = set()
    for name in judged:
        arm = file.arms[name]
        asked = experiment.read(experiment.find(root, arm.experiment), overrides=list(arm.set.items()))
        model = asked.config.get("model") or {}
        family = str(model.get("class_path", "")).rpartition(".")[0].rpartition(".")[2]
        found.add("study" if "study" in asked.config else family or "none")
    return tuple(sorted(found))
