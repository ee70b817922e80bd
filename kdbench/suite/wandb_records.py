"""Records that other machines logged to Weights & Biases, gathered into ``results.json`` of the papers that they belong to.

They never become run folders: a record without its weights would pass there for a finished run.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdbench.errors import UserError
from kdbench.suite import claim_file, entries, reproduce, results
from kdbench.suite.experiment import Config


def gather(home: Path, chosen: Sequence[str], project: str, api: Any = None) -> Iterator[str]:
    """Write the results of every paper that the project has runs of; yield a sentence for each.

    A run's record is taken from its folder, else from the project, else from the results as they stand.

    Args:
        home: the folder of all leaderboards.
        chosen: names of papers or parts, default all.
        project: ``entity/project``.
        api: what answers for W&B, by default W&B itself.

    Raises:
        UserError: the project cannot be read.
    """
    found = records(project, api)
    yield f"{project}: {len(found)} finished runs with a record"
    for paper in entries.papers(home):
        if chosen and not any(paper == name or paper.startswith(f"{name}/") for name in chosen):
            continue
        folder = home / paper
        file = claim_file.load(folder / "claim.yaml")
        try:
            cells = list(reproduce.plan(file))
        except UserError as error:  # its data are not on this machine, so that its runs cannot be told by their ids
            yield f"{paper}: left as it is, because its runs cannot be planned here: {error}"
            continue
        wanted = {results.name_of(stage) for cell in cells for stage in cell.stage.walk()}
        if not wanted & found.keys():
            continue
        old = results.read(folder) if (folder / results.FILE).exists() else None
        gathered = results.gather(file, cells, {**(old.records if old else {}), **found})
        if old:
            gathered = dataclasses.replace(gathered, items=_either(gathered.items, old.items))
        results.write(folder, gathered, gathered.verdicts(file))
        yield f"{paper}: {len(wanted & found.keys())} of its {len(wanted)} runs are in {project}"


def records(project: str, api: Any = None) -> dict[str, Config]:
    """Return the records of a project's finished runs by ``<experiment>/<id>``, of several with one name the latest.

    Raises:
        UserError: the project is not named as ``entity/project``, cannot be reached, or holds a damaged record.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise UserError(f"'--wandb' takes entity/project here, not '{project}'.")
    import wandb

    from kdbench.callbacks.wandb import RECORD

    found: dict[str, Config] = {}
    try:
        for run in (api or wandb.Api()).runs(project, filters={"state": "finished"}):
            text = run.summary.get(RECORD) if run.state == "finished" else None
            if text is None:
                continue
            record = _read(run.name, text)
            name = f"{record['experiment']}/{record['id']}"
            if name not in found or record["finished"] > found[name]["finished"]:
                found[name] = record
    except (wandb.Error, ValueError, OSError) as error:  # the last of them from requests
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"Weights & Biases cannot be read ({why}): check '{project}', WANDB_API_KEY and the network."
        ) from error
    return found


def _either(new: Any, old: Any) -> Any:
    """Return nested tables, those that are empty filled from the old ones: rows of items are not on W&B."""
    if not isinstance(new, dict):
        return new
    return {key: _either(new[key], old.get(key, {})) for key in new} if new else old


def _read(name: str, text: str) -> Config:
    try:
        record = json.loads(text, parse_constant=lambda _: None)  # NaN is null in a record
        missing = {"experiment", "id", "finished", "metrics", "steps", "seconds", "parents"} - record.keys()
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"The record of the W&B run '{name}' is damaged ({error}): remove the run there.") from error
    if missing:
        raise UserError(f"The record of the W&B run '{name}' has no '{min(missing)}': remove the run there.")
    return record
