"""Size and speed of networks, measured side by side."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Speed:
    """Seconds of one forward pass: `median` and quartiles `low` and `high` over all rounds.

    `examples_per_second`: at the median. `rounds`: the seconds of each round, aligned over the networks compared.
    """

    median: float
    low: float
    high: float
    examples_per_second: float
    rounds: tuple[float, ...]


def parameters(network: nn.Module) -> dict[str, float]:
    """Size of a network; shared weights count once.

    `parameters`: all; `without_embeddings`: without the tables of every nn.Embedding and nn.EmbeddingBag (words,
    positions, segments; an output layer tied to one is such a table); `megabytes`: parameters and buffers at their
    present dtype, in units of 2^20 bytes (the unit of the papers' size tables: BERT-base's 110M in fp32 are 418 MB).
    """
    tables = [module for module in network.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    embedded = {id(table.weight): table.weight.numel() for table in tables}
    total = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in [*network.parameters(), *network.buffers()])
    return {
        "parameters": total,
        "without_embeddings": total - sum(embedded.values()),
        "megabytes": stored / 2**20,
    }


def compare_speed(
    networks: dict[str, nn.Module],
    inputs: dict[str, dict[str, Tensor]],
    repeats: int = 30,
    warmup: int = 5,
    seconds: float | None = None,
) -> dict[str, Speed]:
    """Latency and throughput of networks that take turns, so that a drift of the machine hits all alike.

    `inputs`: the keyword arguments of each network, batch first. After `warmup` rounds, at least `repeats` rounds are
    timed, and more until `seconds` have passed where that is given. Each round runs every network once, in evaluation
    and inference mode, beginning with another one each time; accelerators are waited for. The modes of all modules are
    restored. Raises ValueError when names or counts do not fit.
    """
    if not networks or networks.keys() != inputs.keys():
        raise ValueError(f"Inputs are needed for exactly the networks {sorted(networks)}, not {sorted(inputs)}.")
    if not all(inputs.values()):
        raise ValueError("Every network needs at least one input: the first one tells the number of examples.")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"At least one round must be timed and none can be negative: {repeats=}, {warmup=}.")
    names = list(networks)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    with _evaluating(networks), torch.inference_mode():
        for _ in range(warmup):
            for name in names:
                _seconds(networks[name], inputs[name])
        begin, done = time.perf_counter(), 0
        while done < repeats or (seconds is not None and time.perf_counter() - begin < seconds):
            turn = done % len(names)
            for name in names[turn:] + names[:turn]:
                rounds[name].append(_seconds(networks[name], inputs[name]))
            done += 1
    return {name: _summary(rounds[name], len(next(iter(inputs[name].values())))) for name in names}


def ratio(speeds: dict[str, Speed], student: str, teacher: str) -> float:
    """How many times faster the student is: the median over rounds of teacher's seconds / student's seconds.

    Raises ValueError when the two do not come from one comparison.
    """
    pairs = zip(speeds[student].rounds, speeds[teacher].rounds, strict=True)
    return torch.tensor([slow / fast for fast, slow in pairs], dtype=torch.float64).quantile(0.5).item()


def _seconds(network: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Seconds of one forward pass, the work of the accelerator included."""
    tensors = [*network.parameters(), *network.buffers(), *inputs.values()]
    devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}
    for device in devices:
        torch.accelerator.synchronize(device)
    begin = time.perf_counter()
    network(**inputs)
    for device in devices:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begin


@contextmanager
def _evaluating(networks: dict[str, nn.Module]) -> Iterator[None]:
    """Switch to evaluation mode; afterwards every module is as it was, also frozen ones within a training network."""
    before = {module: module.training for network in networks.values() for module in network.modules()}
    try:
        for network in networks.values():
            network.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _summary(seconds: list[float], examples: int) -> Speed:
    """Median and quartiles of the rounds."""
    low, median, high = (
        torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    )
    return Speed(median, low, high, examples / median, tuple(seconds))
