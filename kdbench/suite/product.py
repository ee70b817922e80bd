"""What a finished run is good for: its student exported, its speed measured."""

from pathlib import Path

import torch
import yaml

from kdbench.callbacks.export import model_card, save_network
from kdbench.errors import UserError
from kdbench.metrics.speed import compare_speed, parameters, ratio
from kdbench.models.origins import FromFolder
from kdbench.suite import report, runs


def export(folder: Path, to: Path | None = None) -> Path:
    """Write the student of a run to ``to`` (default: ``<run>/export``) with tokenizer and model card; return the folder."""
    origin = FromFolder(folder=str(folder / runs.STUDENT))
    network = origin.build()
    target = to or folder / "export"
    save_network(target, network, origin.tokenizer(), model_card(runs.read_record(folder), network))
    return target


def show_speed(folder: Path, batch: int = 32, length: int = 64, repeats: int = 30) -> None:
    """Print size and latency of a run's student against its teachers: the encoders, as ``AutoModel`` loads them.

    All are run in turns in one process on the same random ids, so that a machine's drift meets them alike.
    """
    if min(batch, length, repeats) < 1:
        raise UserError("--batch, --length and --repeats are at least 1.")
    folders = {"student": folder / runs.STUDENT, **_teachers(folder)}
    networks = {name: FromFolder(folder=str(path), architecture="AutoModel").build() for name, path in folders.items()}
    pieces = min(network.config.vocab_size for network in networks.values())
    longest = min(getattr(network.config, "max_position_embeddings", length) for network in networks.values())
    if length > longest:
        raise UserError(f"--length {length} is beyond the networks' {longest} positions.")
    ids = torch.randint(5, pieces, (batch, length), generator=torch.Generator().manual_seed(0))
    views = {name: {"input_ids": ids, "attention_mask": torch.ones_like(ids)} for name in networks}
    speeds = compare_speed(networks, views, repeats=repeats)
    out = report.console()
    out.print(f"encoders, batch {batch} x {length}, {torch.get_num_threads()} threads, {repeats} rounds in turns")
    for name, speed in speeds.items():
        size = parameters(networks[name])
        faster = "" if name == "student" else f"  student is {ratio(speeds, 'student', name):.2f}x as fast"
        out.print(
            f"  {name:<12} {size['parameters'] / 1e6:8.3f} M parameters {size['megabytes']:8.2f} MB "
            f"{1000 * speed.median:8.2f} ms ({1000 * speed.low:.2f} to {1000 * speed.high:.2f}){faster}",
            highlight=False,
        )


def _teachers(folder: Path) -> dict[str, Path]:
    model = yaml.safe_load((folder / runs.CONFIG).read_text(encoding="utf-8"))["model"]["init_args"]
    teachers = dict(model.get("teachers") or {}) | ({"teacher": model["teacher"]} if "teacher" in model else {})
    found = {}
    for name, node in teachers.items():
        given = node["init_args"]
        if "run" in given:
            found[name] = Path(given["run"]) / given.get("file", "student")
        elif "folder" in given:  # a hub id or a file of targets is no folder
            found[name] = FromFolder(folder=given["folder"]).path()
    found = {name: path for name, path in found.items() if path.is_dir()}
    if not found:
        raise UserError(f"The run '{folder}' has no teacher in a folder of this machine to be compared with.")
    return found
