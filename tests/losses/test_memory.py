"""Contrast with memories: oracles, a loop, what is remembered and when, and equality over processes."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, multiprocessing
from torch.nn.functional import normalize

from kdbench.losses.memory import ContrastiveMemory, noise_contrastive
from kdbench.methods.objective import Objective, Term


def g(shape, a, phase, scale=1.0):
    return (scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + phase)).reshape(shape)


STUDENT, TEACHER = g((3, 6), 0.31, 0.2), g((3, 8), 0.23, 0.5)
ASKED = torch.tensor([[1, 4, 7, 0, 3], [4, 9, 2, 5, 8], [7, 4, 7, 0, 3]])
BATCH = {"id": ASKED[:, 0], "negatives": ASKED[:, 1:]}
STATE = {
    "student_side.weight": g((4, 6), 0.61, 0.1),
    "student_side.bias": g((4,), 0.61, 0.2),
    "teacher_side.weight": g((4, 8), 0.73, 0.3),
    "teacher_side.bias": g((4,), 0.73, 0.4),
    "student_memory": normalize(g((10, 4), 0.41, 0.5), dim=-1),
    "teacher_memory": normalize(g((10, 4), 0.59, 0.6), dim=-1),
    "normalisers": torch.zeros(2),
}


def memory(state=STATE):
    loss = ContrastiveMemory(rows=10, width=4).double()
    loss.load_state_dict(state)
    return loss


def test_oracles():
    loss = memory()
    assert float(loss(STUDENT, TEACHER, **BATCH).detach()) == pytest.approx(20.4491751, abs=5e-8)
    normalisers = [2883.27312, 1485634.35]
    assert loss.normalisers.tolist() == pytest.approx(normalisers, rel=1e-8)
    assert float(loss(STUDENT, TEACHER, **BATCH).detach()) == pytest.approx(14.6161508, abs=5e-8)
    assert loss.normalisers.tolist() == pytest.approx(normalisers, rel=1e-8)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_value_is_the_cross_entropy_of_right_against_drawn(seed, negatives):
    scores = torch.rand(3, 1 + negatives, generator=torch.Generator().manual_seed(seed)).double() + 0.01
    expected = 0.0
    for right, *wrong in scores.tolist():
        noise = negatives / 50
        expected -= math.log(right / (right + noise)) + sum(math.log(noise / (each + noise)) for each in wrong)
    assert float(noise_contrastive(scores, 50)) == pytest.approx(expected / 3, rel=1e-5)


def test_a_memory_moves_towards_what_was_seen_last_and_the_others_stay():
    loss = memory()
    before = copy.deepcopy(loss.state_dict())
    loss(STUDENT, TEACHER, **BATCH)
    for side, values in (("student", STUDENT), ("teacher", TEACHER)):
        seen = normalize(values @ before[f"{side}_side.weight"].T + before[f"{side}_side.bias"], dim=-1)
        expected = before[f"{side}_memory"].clone()
        expected[ASKED[:, 0]] = normalize((expected[ASKED[:, 0]] + seen) / 2, dim=-1)
        torch.testing.assert_close(loss.state_dict()[f"{side}_memory"], expected)


@pytest.mark.parametrize("how", ["without gradients", "in evaluation"])
def test_a_batch_that_is_not_learnt_from_changes_nothing(how):
    loss = memory()
    if how == "in evaluation":
        value = loss.eval()(STUDENT, TEACHER, **BATCH).detach()
    else:
        with torch.no_grad():
            value = loss(STUDENT, TEACHER, **BATCH)
    assert float(value) == pytest.approx(20.4491751, abs=5e-8), "its own normalisers serve it"
    torch.testing.assert_close(loss.state_dict(), STATE | {"normalisers": torch.zeros(2).double()})


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    loss = memory()
    loss(STUDENT, TEACHER, **BATCH)
    other = memory(loss.state_dict())
    torch.testing.assert_close(other(STUDENT, TEACHER, **BATCH), loss(STUDENT, TEACHER, **BATCH))
    torch.testing.assert_close(other.state_dict(), loss.state_dict())


def test_the_memories_start_as_published_and_the_student_as_it_does_without_them():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    loss = ContrastiveMemory(rows=2000, width=12)
    torch.testing.assert_close(torch.randn(3), expected)
    for each in (loss.student_memory, loss.teacher_memory):
        assert float(each.abs().max()) == pytest.approx(math.sqrt(3 / 12), rel=1e-3)
        assert float(each.mean()) == pytest.approx(0, abs=0.01)
        assert float(each.var()) == pytest.approx(1 / 12, rel=0.02)
    assert not torch.equal(loss.student_memory, loss.teacher_memory)
    torch.manual_seed(6)
    assert not torch.equal(ContrastiveMemory(rows=2000, width=12).student_memory, loss.student_memory)


def test_both_maps_learn_and_the_teacher_does_not():
    loss = ContrastiveMemory(rows=10, width=4)
    student, teacher = STUDENT.float().requires_grad_(), TEACHER.float().requires_grad_()
    loss(student, teacher, **BATCH).backward()
    assert sorted(name for name, each in loss.named_parameters() if each.grad.abs().sum() > 0) == [
        "student_side.bias",
        "student_side.weight",
        "teacher_side.bias",
        "teacher_side.weight",
    ]
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_training_tells_the_right_row_from_the_others():
    torch.manual_seed(0)
    students, teachers = torch.randn(40, 6), torch.randn(40, 8)
    loss = ContrastiveMemory(rows=40, width=16)
    generator, values = torch.Generator().manual_seed(0), []
    optimizer = None
    for _ in range(60):
        ids = torch.randperm(40, generator=generator)[:20]
        negatives = (ids[:, None] + torch.randint(1, 40, (20, 15), generator=generator)) % 40
        value = loss(students[ids], teachers[ids], id=ids, negatives=negatives)
        optimizer = optimizer or torch.optim.Adam(loss.parameters(), lr=0.01)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert sum(values[-5:]) < 0.8 * sum(values[1:6])


def test_half_precision_is_computed_wider():
    loss = memory().float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(STUDENT.bfloat16(), TEACHER.bfloat16(), **BATCH)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(20.449, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": torch.tensor([1, 4, 10])}, "the ids must lie in 0 .. 9"),
        ({"negatives": -ASKED[:, 1:]}, "the ids must lie in 0 .. 9"),
        ({"id": ASKED[:2, 0], "negatives": ASKED[:2, 1:]}, "2 ids need as many vectors"),
    ],
)
def test_what_does_not_fit(changes, told):
    with pytest.raises(ValueError, match=told):
        memory()(STUDENT, TEACHER, **BATCH | changes)


def test_settings():
    for settings, told in (
        ({"rows": 1}, "at least 2 rows"),
        ({"rows": 5, "width": 0}, "at least 2 rows"),
        ({"rows": 5, "temperature": 0.0}, "temperature must be positive"),
        ({"rows": 5, "momentum": 1.5}, "momentum is a share"),
    ):
        with pytest.raises(ValueError, match=told):
            ContrastiveMemory(**settings)


def test_a_term_gives_it_the_ids_and_the_negatives():
    objective = Objective({"contrast": Term(memory(), student="pooled", teacher="teacher.pooled")})
    values = objective({"pooled": STUDENT}, {"teacher": {"pooled": TEACHER}}, BATCH)
    assert float(values["contrast"].detach()) == pytest.approx(20.4491751, abs=5e-8)


# -- several processes


def two_batches(loss, rows):
    """Return what two batches leave behind."""
    for batch in range(2):
        ids = torch.tensor([(each + 3 * batch) % 10 for each in rows])
        negatives = (ids[:, None] + torch.arange(1, 4)) % 10
        loss(g((10, 6), 0.31, batch)[rows], g((10, 8), 0.23, batch)[rows], id=ids, negatives=negatives)
    return {name: each.tolist() for name, each in loss.named_buffers()}


def run(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(two_batches(memory(), [[0, 1], [2, 3]][rank])))
    distributed.destroy_process_group()


def test_over_two_ranks_every_rank_remembers_what_one_process_would(tmp_path):
    multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for name, expected in two_batches(memory(), [0, 1, 2, 3]).items():
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(expected))
