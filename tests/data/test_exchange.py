"""Two gloo processes deal their streams anew; none is left waiting when a stream ends or fails."""

import json
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing

from kdbench.data.balance import deal
from kdbench.data.exchange import Exchange, layout_of, pack, unpack
from kdbench.errors import UserError


def sample(generator, length, top=30000):
    return {
        "input_ids": generator.integers(0, top, length),
        "labels": generator.integers(-100, 100, length, dtype=np.int32),
        "next_sentence": generator.integers(0, 2, 1, dtype=np.uint8),
        "positions": generator.integers(0, length, length // 4),
    }


def stream(rank, sizes, top=30000):
    generator = np.random.default_rng(rank)
    return [[sample(generator, length, top) for length in generator.integers(1, 300, size)] for size in sizes]


def breaking(batches, error):
    yield from batches
    raise error


class Unopenable:
    def __iter__(self):
        raise OSError("no such file")


def other_fields(batches):
    return [[{"input_ids": each["input_ids"]} for each in batch] for batch in batches]


STREAMS = {
    "equal": [stream(0, [4] * 5), stream(1, [4] * 5)],
    "of different widths": [stream(0, [3] * 2), stream(1, [3] * 2, top=2**40)],
    "of different size": [stream(0, [5, 2, 4]), stream(1, [4, 2, 1])],
    "of different number": [stream(0, [4] * 3), stream(1, [4] * 5)],
}


def plain(samples):
    return [{name: (str(field.dtype), field.tolist()) for name, field in each.items()} for each in samples]


def passed(exchange):
    """Iterate beside collectives of the training; the error ends the pass."""
    steps = []
    try:
        for samples in exchange:
            total = torch.ones(1)
            distributed.all_reduce(total)
            steps.append(plain(samples))
            assert total == 2
    except (UserError, RuntimeError, OSError) as error:
        steps.append(f"{type(error).__name__}: {error}")
    return steps


def run(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: passed(Exchange(streams[rank])) for name, streams in STREAMS.items()}
    broken_off = Exchange(STREAMS["equal"][rank], order="dealt")
    found["first step"] = plain(next(iter(broken_off)))
    found["again"] = passed(broken_off)
    batches = stream(rank, [4])
    found["failed"] = passed(Exchange(breaking(batches, RuntimeError("damaged")) if rank else batches * 2))
    found["unopenable"] = passed(Exchange(batches if rank else Unopenable()))
    found["unlike"] = passed(Exchange(other_fields(batches) if rank else batches))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    multiprocessing.spawn(run, args=(folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def expected(streams, order="snake"):
    """What each rank gets: the list of the samples rank by rank, dealt; the steps that both streams have."""
    ranks = [[], []]
    for batches in zip(*streams, strict=False):
        samples = [each for batch in batches for each in batch]
        samples = samples[: len(samples) // 2 * 2]
        for rank, rows in enumerate(deal([len(each["input_ids"]) for each in samples], 2, order)):
            ranks[rank].append(json.loads(json.dumps(plain([samples[row] for row in rows]))))
    return ranks


@pytest.mark.parametrize("name", STREAMS)
def test_the_global_batch_is_dealt_anew(found, name):
    assert [each[name] for each in found] == expected(STREAMS[name])


def test_a_pass_that_was_broken_off_starts_again(found):
    dealt = expected(STREAMS["equal"], "dealt")
    assert [each["first step"] for each in found] == [steps[0] for steps in dealt]
    assert [each["again"] for each in found] == dealt


def test_all_ranks_hear_of_a_failure(found):
    assert found[0]["failed"][1] == "UserError: The stream of rank 1 failed: mend the error that this rank shows."
    assert found[1]["failed"][1] == "RuntimeError: damaged"
    assert found[0]["unopenable"] == ["OSError: no such file"]
    assert found[1]["unopenable"] == ["UserError: The stream of rank 0 failed: mend the error that this rank shows."]
    for each in found:
        assert each["unlike"] == [
            "UserError: The ranks' samples differ in their fields or types: give all ranks samples of one kind."
        ]


def test_alone_it_reads_one_step_ahead_and_collates_in_a_thread():
    batches, threads = stream(0, [4] * 5), []
    read = [threading.Event() for _ in batches]

    def reading():
        for batch, event in zip(batches, read, strict=True):
            event.set()
            yield batch

    def collate(samples):
        threads.append(threading.current_thread())
        return [len(each["input_ids"]) for each in samples]

    for step, lengths in enumerate(Exchange(reading(), collate=collate)):
        assert lengths == sorted((len(each["input_ids"]) for each in batches[step]), reverse=True)
        assert all(event.wait(timeout=60) for event in read[: step + 2])  # while this batch is in use
        assert not any(event.is_set() for event in read[step + 2 :])
    assert step == 4
    assert {thread.name for thread in threads} == {"exchange_0"}
    assert not threads[0].is_alive()


integers = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(st.lists(integers, max_size=5), st.lists(st.booleans(), max_size=3)), min_size=1, max_size=6))
def test_packing_loses_nothing(contents):
    samples = [{"b": np.array(wide, np.int64), "a": np.array(flags, bool)} for wide, flags in contents]
    layout = layout_of(samples, "b")
    entries = pack(samples, layout)
    sizes, values = entries[: 2 * len(samples)].reshape(-1, 2), entries[2 * len(samples) :]
    back = unpack(np.arange(len(samples))[::-1], layout, sizes, values)
    assert plain(back) == [{"a": each["a"], "b": each["b"]} for each in plain(samples[::-1])]


@pytest.mark.parametrize(
    ("value", "bits"), [(-(2**15), 16), (2**15 - 1, 16), (2**15, 32), (-(2**31), 32), (2**31, 64), (-(2**63), 64)]
)
def test_packed_samples_are_as_narrow_as_their_values(value, bits):
    samples = [{"input_ids": np.array([0, value])}]
    assert pack(samples, layout_of(samples, "input_ids")).dtype == f"int{bits}"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "a batch without samples"),
        ([{"input_id": np.arange(3)}], r"no field 'input_ids' .* Did you mean 'input_id'\?"),
        ([{"input_ids": np.arange(3)}, {"input_ids": np.arange(3, dtype=np.int16)}], "differ in their fields or types"),
        ([{"input_ids": np.arange(3)}, {"input_ids": np.arange(3), "labels": np.arange(3)}], "differ in their fields"),
        ([{"input_ids": np.arange(3.0)}], "type float64"),
        ([{"input_ids": np.arange(3, dtype=np.uint64)}], "type uint64"),
        ([{"input_ids": np.ones((2, 3), int)}], r"the shape \(2, 3\)"),
    ],
)
def test_samples_of_another_form_are_refused(batch, message):
    with pytest.raises(UserError, match=message):
        next(iter(Exchange([batch])))
