"""What padding costs on this machine: a training step of the packed encoder in every layout, as a ratio to padded batches.

Forward and backward pass of the encoder (4 layers, width 256, 4 heads, feed-forward 1024, float32), without head and
optimiser; lengths are clip(round(exp(N(ln(max / 4), 0.7))), 8, max). A figure is the best of some repeats of each batch,
summed over the batches. Every layout is compared with the padded one on the first batch: loss and the gradient of the first
Wqkv. (Source of the table: Zhai et al. 2023, arXiv 2210.03052, on a CPU.)

    python -m tests.benchmarks.attention --widths 128 256 512 --repeats 5 --threads 2
"""

import argparse
import functools
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from kdbench.models.packed_attention import BACKENDS, tiled_attention
from kdbench.models.packed_encoder import PackedEncoder, PackedEncoderConfig
from kdbench.models.packed_tiles import first_fit_rows, length_buckets

BATCH_SIZES = {128: 32, 256: 16, 512: 8}
VOCABULARY = 8192
PADDED = "padded to fixed maximum"
Batch = tuple[Tensor, Tensor]


def one_row(packed):
    return first_fit_rows(packed, len(packed.place))


# Layouts that only this table wants.
BACKENDS["2 buckets"] = functools.partial(tiled_attention, layout=functools.partial(length_buckets, most=2))
BACKENDS["8 buckets"] = functools.partial(tiled_attention, layout=functools.partial(length_buckets, most=8))
BACKENDS["one row"] = functools.partial(tiled_attention, layout=one_row)


def to_fixed_maximum(batches: list[Batch]) -> list[Batch]:
    return batches


def to_batch_maximum(batches: list[Batch]) -> list[Batch]:
    return [(ids[:, :longest], mask[:, :longest]) for ids, mask in batches for longest in [mask.sum(1).max()]]


def sorted_by_length(batches: list[Batch]) -> list[Batch]:
    ids, mask = (torch.cat(each) for each in zip(*batches, strict=True))
    order = mask.sum(1).argsort()
    chosen = order.chunk(len(batches))
    return to_batch_maximum([(ids[rows], mask[rows]) for rows in chosen])


ARMS = {
    PADDED: (to_fixed_maximum, "padded"),
    "padded to batch maximum": (to_batch_maximum, "padded"),
    "sorted by length over the batches, padded to batch maximum": (sorted_by_length, "padded"),
    "packed, attention re-padded": (to_fixed_maximum, "repad"),
    "packed, loop over sequences": (to_fixed_maximum, "loop"),
    "packed, 2 length buckets": (to_fixed_maximum, "2 buckets"),
    "packed, 4 length buckets": (to_fixed_maximum, "bucket"),
    "packed, 8 length buckets": (to_fixed_maximum, "8 buckets"),
    "rows filled first-fit-decreasing, document mask": (to_fixed_maximum, "docmask"),
    "all tokens in one row, block-diagonal mask": (to_fixed_maximum, "one row"),
    "jagged nested tensors": (to_fixed_maximum, "njt"),
}


def draw(width: int, count: int, generator: torch.Generator) -> Iterator[Batch]:
    """Draw batches of random tokens whose lengths are log-normal."""
    for _ in range(count):
        noise = torch.randn(BATCH_SIZES[width], generator=generator)
        lengths = (torch.tensor(0.25 * width).log() + 0.7 * noise).exp().round().clamp(8, width)
        mask = torch.arange(width) < lengths[:, None]
        yield torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask, mask.long()


def encoder(width: int, backend: str) -> PackedEncoder:
    """Build the same encoder whatever the back end."""
    torch.manual_seed(0)
    config = PackedEncoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=width,
        hidden_dropout_prob=0.0,
        attention_backend=backend,
    )
    return PackedEncoder(config).train()


def step(network: PackedEncoder, batch: Batch) -> float:
    """One forward and backward pass; return the loss."""
    network.zero_grad()
    states = network(*batch).last_hidden_state
    # A mean of absolute values: that of squares would be constant behind a layer norm.
    loss = states.abs().sum() / batch[1].sum()
    loss.backward()
    return loss.item()


def difference(one: tuple[PackedEncoder, Batch], other: tuple[PackedEncoder, Batch]) -> float:
    """Return the relative difference of the losses or of the gradients of the first Wqkv, whichever is larger."""
    losses = [step(*each) for each in (one, other)]
    gradients = [network.layers[0].attention.Wqkv.weight.grad for network, _ in (one, other)]
    of_gradients = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    return max(abs(losses[0] / losses[1] - 1), of_gradients.item())


def measure(
    width: int, repeats: int, count: int, seed: int
) -> tuple[str, dict[str, tuple[float, float, float | None]]]:
    """Time all arms, by turns; return a title, and of each arm the wall and CPU seconds and the difference to padded."""
    batches = list(draw(width, count, torch.Generator().manual_seed(seed)))
    fill = torch.cat([mask for _, mask in batches]).float().mean()
    networks = {arm: encoder(width, backend) for arm, (_, backend) in ARMS.items()}
    prepared = {arm: arrange(batches) for arm, (arrange, _) in ARMS.items()}
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for _ in range(repeats + 1):  # the first one warms up, and counts if it is the best
        for arm, network in networks.items():
            for number, batch in enumerate(prepared[arm]):
                wall, cpu = time.perf_counter(), time.process_time()
                step(network, batch)
                took = (time.perf_counter() - wall, time.process_time() - cpu)
                best[arm, number] = tuple(map(min, took, best.get((arm, number), took)))
    results = {}
    for arm, network in networks.items():
        wall, cpu = (sum(best[arm, number][clock] for number in range(count)) for clock in (0, 1))
        comparable = ARMS[arm][0] is not sorted_by_length  # other batches
        padded = (networks[PADDED], batches[0])
        apart = difference((network, prepared[arm][0]), padded) if comparable else None
        results[arm] = (wall, cpu, apart)
    milliseconds = 1e3 * results[PADDED][0] / count
    return f"max {width}, batch {BATCH_SIZES[width]}, fill {fill:.2f}, padded {milliseconds:.0f} ms", results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", choices=BATCH_SIZES, default=list(BATCH_SIZES))
    parser.add_argument("--repeats", type=int, default=5, help="of each batch, of which the best counts")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = [measure(width, options.repeats, options.batches, options.seed) for width in options.widths]
    print(f"torch {torch.__version__}, {options.threads} threads; wall seconds / CPU seconds as ratios to padded;")
    print("apart: the largest relative difference to padded.\n")
    print("| Training step |", *(f"{title} | apart |" for title, _ in measured))
    print("|---|" + "---|---|" * len(measured))
    for arm in ARMS:
        cells = []
        for _, results in measured:
            wall, cpu, apart = results[arm]
            cells.append(f"{wall / results[PADDED][0]:.2f} / {cpu / results[PADDED][1]:.2f}")
            cells.append("other batches" if apart is None else f"{apart:.0e}")
        print(f"| {arm} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
