"""Size by counting, speed by networks that note when they run and sleep a known time."""

import time

import pytest
import torch
from torch import nn

from kdbench.metrics.speed import Speed, compare_speed, parameters, ratio


class Sleeper(nn.Module):
    """Takes a known time, and notes every call and the modes that it ran under."""

    def __init__(self, seconds, calls):
        super().__init__()
        self.seconds, self.calls = seconds, calls
        self.inner = nn.Dropout()

    def forward(self, values):
        self.calls.append((self.seconds, self.training, self.inner.training, torch.is_inference_mode_enabled()))
        time.sleep(self.seconds)
        return values


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(10, 4), nn.Embedding(6, 4)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))


def test_parameters_count_shared_weights_once():
    size = parameters(Tied())
    assert size["parameters"] == 40 + 24 + 20
    assert size["without_embeddings"] == 20
    assert size["megabytes"] == pytest.approx((84 * 4 + 3 * 8) / 2**20)


def test_megabytes_are_those_of_the_present_dtype():
    assert parameters(Tied().half())["megabytes"] == pytest.approx((84 * 2 + 3 * 8) / 2**20)


def pair(slow=0.006, fast=0.002):
    calls = []
    networks = {"teacher": Sleeper(slow, calls), "student": Sleeper(fast, calls)}
    inputs = {"teacher": {"values": torch.zeros(8, 2)}, "student": {"values": torch.zeros(4, 2)}}
    return networks, inputs, calls


def test_networks_take_turns_and_begin_alternately():
    networks, inputs, calls = pair(0.0002, 0.0001)
    speeds = compare_speed(networks, inputs, repeats=4, warmup=3)
    order = ["teacher" if seconds == 0.0002 else "student" for seconds, *_ in calls]
    assert order == ["teacher", "student"] * 3 + ["teacher", "student", "student", "teacher"] * 2
    assert [len(speed.rounds) for speed in speeds.values()] == [4, 4]


def test_seconds_throughput_and_ratio():
    networks, inputs, _ = pair()
    speeds = compare_speed(networks, inputs, repeats=9, warmup=1)
    teacher, student = speeds["teacher"], speeds["student"]
    assert min(teacher.rounds) >= 0.006
    assert min(student.rounds) >= 0.002
    for speed, examples in ((teacher, 8), (student, 4)):
        assert speed.median == sorted(speed.rounds)[4]
        assert speed.low == sorted(speed.rounds)[2]
        assert speed.high == sorted(speed.rounds)[6]
        assert speed.examples_per_second == pytest.approx(examples / speed.median)
    assert ratio(speeds, "student", "teacher") > 1 > ratio(speeds, "teacher", "student")


def test_ratio_is_the_median_of_the_ratios_of_each_round():
    """The machine is ten times slower in one round, a hundred times in another; the ratio within a round stays 2."""
    fast, slow = (1.0, 10.0, 100.0, 1.0), (2.0, 20.0, 200.0, 2.0)
    speeds = {"s": Speed(1, 1, 1, 1, fast), "t": Speed(1, 1, 1, 1, slow)}
    assert ratio(speeds, "s", "t") == 2.0
    with pytest.raises(ValueError, match="zip"):
        ratio(speeds | {"t": Speed(1, 1, 1, 1, slow[:2])}, "s", "t")


def test_modes_during_and_after():
    networks, inputs, calls = pair(0.0, 0.0)
    networks["teacher"].eval()
    networks["student"].inner.eval()  # a frozen part of a network in training
    compare_speed(networks, inputs, repeats=1, warmup=1)
    assert all(call[1:] == (False, False, True) for call in calls)
    student, teacher = networks["student"], networks["teacher"]
    assert (student.training, student.inner.training) == (True, False)
    assert (teacher.training, teacher.inner.training) == (False, False)


def test_modes_are_restored_after_a_failure():
    networks, inputs, _ = pair(0.0, 0.0)
    inputs["student"] = {"wrong": torch.zeros(1)}
    with pytest.raises(TypeError):
        compare_speed(networks, inputs)
    assert networks["student"].training
    assert networks["student"].inner.training


def test_a_time_asks_for_more_rounds():
    networks, inputs, _ = pair(0.0, 0.0)
    begin = time.perf_counter()
    speeds = compare_speed(networks, inputs, repeats=2, warmup=0, seconds=0.05)
    assert time.perf_counter() - begin >= 0.05
    assert len(speeds["student"].rounds) == len(speeds["teacher"].rounds) > 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: its kernels return before they are done")
def test_kernels_of_the_gpu_are_waited_for():
    small, large = nn.Linear(64, 64).cuda(), nn.Linear(8192, 8192).cuda()
    inputs = {
        "small": {"input": torch.zeros(64, 64, device="cuda")},
        "large": {"input": torch.zeros(8192, 8192, device="cuda")},
    }
    speeds = compare_speed({"small": small, "large": large}, inputs)
    # 2 * 8192^3 operations take 1 ms even at 10^15 operations a second; a mere launch takes some microseconds.
    assert speeds["large"].median > 1e-3
    assert ratio(speeds, "small", "large") > 5


@pytest.mark.parametrize(
    "change",
    [{"inputs": {}}, {"inputs": {"student": {}, "teacher": {}}}, {"repeats": 0}, {"warmup": -1}],
)
def test_wrong_use_is_named(change):
    networks, inputs, _ = pair(0.0, 0.0)
    with pytest.raises(ValueError, match=r"[Ii]nput|round"):
        compare_speed(**({"networks": networks, "inputs": inputs} | change))
