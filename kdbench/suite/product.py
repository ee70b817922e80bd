"""What a finished run is good for: its student exported, its speed measured."""

from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from kdbench.callbacks.export import model_card, save_network
from kdbench.data.image_views import Normalise
from kdbench.errors import UserError
from kdbench.metrics.speed import compare_speed, parameters, ratio
from kdbench.models.multi_exit import KeepExits, exits_alone
from kdbench.models.origins import PREPROCESSOR, FromFolder, read_preprocessor
from kdbench.models.sentence_folder import SentenceFolder
from kdbench.models.surgery import Facts
from kdbench.suite import report, runs

Views = dict[str, dict[str, Tensor]]


def export(folder: Path, to: Path | None = None, exit: int | None = None) -> Path:
    """Write the student of a run to ``to`` (default: ``<run>/export``), whole, with a model card; return the folder.

    One ``exit`` of a network with exits is written as a plain encoder, with its projection as sentence-transformers has it.
    """
    origin = FromFolder(folder=str(folder / runs.STUDENT))
    network = origin.build()
    target = to or folder / ("export" if exit is None else f"export_exit_{exit}")
    card = model_card(runs.read_record(folder), network)
    if exit is not None:
        network = SentenceFolder(KeepExits([exit])(network, Facts()))
    save_network(target, network, origin.tokenizer(), card, origin.preprocessor())
    return target


def show_speed(folder: Path, batch: int = 32, length: int | None = None, repeats: int = 30) -> None:
    """Print size and latency of a run's student against its teachers: the encoders, as ``AutoModel`` loads them.

    Of a network with exits each is measured alone, as far as it goes. All are run in turns in one process, on the same random
    ids (64 a text) or on random images of their own sizes, so that a machine's drift meets them alike.
    """
    if min(batch, repeats, 1 if length is None else length) < 1:
        raise UserError("--batch, --length and --repeats are at least 1.")
    folders = {"student": folder / runs.STUDENT, **_teachers(folder)}
    networks = {name: FromFolder(folder=str(path), architecture="AutoModel").build() for name, path in folders.items()}
    networks |= exits_alone(networks["student"])
    if len(networks) == 1:
        raise UserError(f"The run '{folder}' has no teacher in a folder of this machine to be compared with.")
    if networks["student"].main_input_name == "pixel_values":
        if length is not None:
            raise UserError(
                "--length is the number of pieces of a text, and this run's networks take images: leave it out."
            )
        views, shape = _random_images(folders, batch)
    else:
        views, shape = _random_texts(networks, batch, length or 64)
    speeds = compare_speed(networks, views, repeats=repeats)
    out = report.console()
    out.print(f"encoders, batch {batch} x {shape}, {torch.get_num_threads()} threads, {repeats} rounds in turns")
    for name, speed in speeds.items():
        size = parameters(networks[name])
        faster = "" if name == "student" else f"  student is {ratio(speeds, 'student', name):.2f}x as fast"
        out.print(
            f"  {name:<12} {size['parameters'] / 1e6:8.3f} M parameters {size['megabytes']:8.2f} MB "
            f"{1000 * speed.median:8.2f} ms ({1000 * speed.low:.2f} to {1000 * speed.high:.2f}){faster}",
            highlight=False,
        )


def _random_texts(networks: dict[str, PreTrainedModel], batch: int, length: int) -> tuple[Views, str]:
    """Return the view of each network, and how long the texts are."""
    pieces = min(network.config.vocab_size for network in networks.values())
    longest = min(getattr(network.config, "max_position_embeddings", length) for network in networks.values())
    if length > longest:
        raise UserError(f"--length {length} is beyond the networks' {longest} positions.")
    ids = torch.randint(5, pieces, (batch, length), generator=torch.Generator().manual_seed(0))
    return {name: {"input_ids": ids, "attention_mask": torch.ones_like(ids)} for name in networks}, str(length)


def _random_images(folders: dict[str, Path], batch: int) -> tuple[Views, str]:
    """Return the view of each network, and the shape of the student's; a network whose folder does not tell sees these too."""
    told = {name: read_preprocessor(folder) for name, folder in folders.items()}
    if told["student"] is None:
        raise UserError(
            f"'{folders['student']}' has no {PREPROCESSOR} that would tell the size of its images: fit it anew."
        )
    views = {}
    for name, own in told.items():
        takes = Normalise.brought(name, own or told["student"])
        images = torch.randn(batch, len(takes.mean), takes.size, takes.size, generator=torch.Generator().manual_seed(0))
        views[name] = {"pixel_values": images}
    return views, "x".join(map(str, views["student"]["pixel_values"].shape[1:]))


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
    return {name: path for name, path in found.items() if path.is_dir()}
