"""Time and memory of the inference of a mixture by the number of merges: ``python -m tests.benchmarks.mixture --merges 30000``.

A tokenizer is trained on equal shares of four real categories, and the shares are found again from its first merges: seconds of
counting pairs and of the linear program, its rows, the most memory that the process has held, and the error.
"""

import argparse
import resource
import time

import numpy as np

from kdbench.compression.mixture import byte_shares, mixture_shares, pair_history
from kdbench.data.byte_pairs import train_byte_pairs
from kdbench.studies.mixture_inference import log_error, texts_of

CATEGORIES = {
    "problems": "en/gsm8k:answer",
    "shakespeare": "en/tinyshakespeare",
    "romanian": "ro/text",
    "hindi": "hi/stsb:first",
}


def peak() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def first(texts: list[str], kilobytes: int) -> list[str]:
    """Return the first texts up to so many kB."""
    ends = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(ends, 1000 * kilobytes)) + 1]


def main() -> None:
    """Print a row for each number of merges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merges", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument(
        "--settled", type=float, help="end where no share has moved by more than this while the rows doubled"
    )
    parser.add_argument("--kilobytes", type=int, default=500, help="of each category, for tokenizer and attacker each")
    told = parser.parse_args()
    texts = {name: texts_of(name, place, "local") for name, place in CATEGORIES.items()}
    mine = {name: first(each[::2], told.kilobytes) for name, each in texts.items()}
    theirs = [first(each[1::2], told.kilobytes) for each in texts.values()]
    sizes = np.array([sum(len(text.encode()) for text in each) for each in mine.values()])
    began = time.perf_counter()
    tokenizer = train_byte_pairs([text for each in mine.values() for text in each], max(told.merges))
    print(f"{max(told.merges)} merges learnt in {time.perf_counter() - began:.0f} s; {peak():.2f} GB")
    words = [tokenizer.words(each) for each in theirs]
    print(f"distinct words: {', '.join(f'{name} {len(each)}' for name, each in zip(texts, words, strict=True))}")
    print(
        "| merges | entries | counting, s | rows | program, s | peak, GB | log10 MSE |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for merges in sorted(told.merges):
        began = time.perf_counter()
        histories = [pair_history(each, tokenizer.merges[:merges]) for each in words]
        counted = time.perf_counter()
        found = mixture_shares(histories, tokenizer.merges[:merges], settled=told.settled)
        solved = time.perf_counter()
        rates = [
            sum(len(text.encode()) for text in each) / history.total
            for each, history in zip(theirs, histories, strict=True)
        ]
        error = log_error(byte_shares(found.pairs, rates), sizes / sizes.sum())
        entries = sum(len(history.pair) for history in histories)
        numbers = [f"{counted - began:.1f}", found.rows, f"{solved - counted:.1f}", f"{peak():.2f}", f"{error:.2f}"]
        print(f"| {' | '.join(map(str, [merges, entries, *numbers]))} |", flush=True)


if __name__ == "__main__":
    main()
