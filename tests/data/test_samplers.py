from collections import Counter

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from kdbench.data import balance
from kdbench.data.samplers import GroupedBatches, ResumableLoader, WholeBatches
from kdbench.errors import UserError


def epoch_of(sampler: GroupedBatches, epoch: int) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def rows_of(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [row for batch in batches for row, _ in batch]


sizes = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 9), "world": st.integers(1, 4)}
deals = st.sampled_from(["snake", "dealt", "greedy", "interleaved"])


@settings(deadline=None)
@given(
    **sizes,
    group=st.integers(1, 4),
    grouped=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    deal=deals,
)
def test_training_epoch(rows, batch_size, world, group, grouped, drop_last, epoch, deal):
    needed = batch_size * world if drop_last else world
    lengths = np.random.default_rng(rows).integers(1, 20, rows) if grouped else None
    options = {"lengths": lengths, "group": group, "seed": 5, "drop_last": drop_last, "deal": deal}
    if rows < needed:
        with pytest.raises(UserError, match="do not fill one batch"):
            GroupedBatches(rows, batch_size, **options, world=world)
        return
    ranks = [
        epoch_of(GroupedBatches(rows, batch_size, **options, rank=rank, world=world), epoch) for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {len(GroupedBatches(rows, batch_size, **options, world=world))}
    seen = [row for batches in ranks for row in rows_of(batches)]
    assert len(set(seen)) == len(seen) == rows - rows % needed
    assert all(len(batch) == len(other) for step in zip(*ranks, strict=True) for batch in step for other in step)
    short = sum(len(batch) < batch_size for batch in ranks[0])
    assert short <= (0 if drop_last else 1)
    # together the ranks see what one process sees with the whole batch
    if rows % world == 0 or drop_last:
        one = epoch_of(GroupedBatches(rows, batch_size * world, **options), epoch)
        steps = [sorted(rows_of(list(step))) for step in zip(*ranks, strict=True)]
        assert steps == [sorted(rows_of([batch])) for batch in one]


@settings(deadline=None)
@given(**sizes, grouped=st.booleans())
def test_evaluation_deals_every_row_once(rows, batch_size, world, grouped):
    lengths = np.random.default_rng(rows).integers(1, 5, rows)
    ranks = [
        GroupedBatches(
            rows, batch_size, lengths=lengths if grouped else None, shuffle=False, draws=1, rank=rank, world=world
        )
        for rank in range(world)
    ]
    batches = [epoch_of(sampler, 3) for sampler in ranks]
    assert [len(each) for each in batches] == [len(sampler) for sampler in ranks]
    assert sorted(row for each in batches for row in rows_of(each)) == list(range(rows))
    assert {draw for each in batches for batch in each for _, draw in batch} == {0}
    if world == 1:
        expected = sorted(range(rows), key=lambda row: lengths[row]) if grouped else list(range(rows))
        assert rows_of(batches[0]) == expected


def test_epochs_are_a_pure_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    first, second = (GroupedBatches(500, 8, lengths=lengths, seed=1) for _ in range(2))
    second.set_epoch(7)
    list(second)
    assert epoch_of(first, 2) == epoch_of(second, 2)
    assert rows_of(epoch_of(first, 2)) != rows_of(epoch_of(first, 3))
    assert rows_of(epoch_of(GroupedBatches(500, 8, lengths=lengths, seed=2), 2)) != rows_of(epoch_of(first, 2))


def test_groups_have_like_lengths_in_shuffled_batches():
    lengths = np.random.default_rng(0).integers(1, 1000, 3200)
    batches = epoch_of(GroupedBatches(3200, 32, lengths=lengths, group=50), 0)
    spread = [np.ptp(lengths[[row for row, _ in batch]]) for batch in batches]
    assert max(spread) < 60  # a chunk of 1600 rows in 50 batches: about 20 each, against about 940 without grouping
    mean = np.array([lengths[[row for row, _ in batch]].mean() for batch in batches])
    assert abs(np.corrcoef(mean[:-1], mean[1:])[0, 1]) < 0.4  # the batches themselves come in no order of length
    plain = epoch_of(GroupedBatches(3200, 32, lengths=lengths, group=1), 0)
    assert min(np.ptp(lengths[[row for row, _ in batch]]) for batch in plain) > 500


def ranks_of(world: int, batch_size: int, epoch: int, **options) -> list[list[list[int]]]:
    """The rows of each batch of each rank."""
    samplers = (GroupedBatches(batch_size=batch_size, **options, rank=rank, world=world) for rank in range(world))
    return [[[row for row, _ in batch] for batch in epoch_of(sampler, epoch)] for sampler in samplers]


LENGTHS = np.random.default_rng(0).integers(8, 512, 1003)


@pytest.mark.parametrize(("group", "most"), [(1, 1.03), (10, 1.002)])
def test_ranks_get_equal_work_at_every_step(group, most):
    options = {"rows": 1003, "lengths": LENGTHS, "group": group}
    tokens = {
        deal: np.array([[LENGTHS[batch].sum() for batch in rank] for rank in ranks_of(4, 16, 1, **options, deal=deal)])
        for deal in ("interleaved", "dealt", "snake", "greedy")
    }
    lost = {deal: (of_rank.max(0) / of_rank.mean(0)).mean() for deal, of_rank in tokens.items()}
    assert lost["greedy"] < lost["snake"] < most < lost["dealt"]
    assert lost["interleaved"] > (1.1 if group == 1 else most)
    assert ranks_of(4, 16, 1, **options) == ranks_of(4, 16, 1, **options, deal="snake")
    assert ranks_of(4, 16, 1, **options) != ranks_of(4, 16, 2, **options)


def test_each_round_is_dealt_as_planned():
    options = {"rows": 117, "lengths": LENGTHS[:117], "group": 3}
    whole = ranks_of(1, 12, 2, **options)[0]
    assert sorted(map(len, whole)) == [9] + [12] * 9
    dealt = ranks_of(3, 4, 2, **options, deal="greedy")
    for step, rows in enumerate(map(np.array, whole)):
        planned = rows[balance.deal(LENGTHS[rows], 3, "greedy")]
        assert [rank[step] for rank in dealt] == planned.tolist()


@pytest.mark.parametrize("options", [{"deal": "interleaved", "lengths": LENGTHS[:50]}, {"lengths": [7] * 50}, {}])
def test_rows_are_dealt_one_by_one_on_request_and_where_lengths_tell_nothing(options):
    whole = ranks_of(1, 6, 3, rows=50, group=2, **options)[0]
    assert ranks_of(2, 3, 3, rows=50, group=2, **options) == [[batch[rank::2] for batch in whole] for rank in (0, 1)]


def test_dealing_changes_nothing_for_one_process_and_in_evaluation():
    one = GroupedBatches(50, 4, lengths=LENGTHS[:50], seed=1)
    assert epoch_of(one, 1) == epoch_of(GroupedBatches(50, 4, lengths=LENGTHS[:50], seed=1, deal="interleaved"), 1)
    options = {"rows": 50, "lengths": LENGTHS[:50], "shuffle": False}
    assert ranks_of(2, 4, 0, **options) == ranks_of(2, 4, 0, **options, deal="interleaved")


def test_a_rank_resumes_at_any_batch():
    sampler = GroupedBatches(50, 4, lengths=LENGTHS[:50], rank=1, world=2)
    whole = epoch_of(sampler, 1)
    assert len(whole) == len(sampler) == 7
    for start in range(8):
        sampler.start = start
        assert list(sampler) == whole[start:]


def test_all_rows_have_equal_chances_to_be_left_out():
    left_out = Counter()
    sampler = GroupedBatches(10, 4, lengths=np.arange(10), drop_last=True, group=2)
    for epoch in range(2000):
        left_out.update(set(range(10)) - set(rows_of(epoch_of(sampler, epoch))))
    assert all(320 < left_out[row] < 480 for row in range(10))  # 400 expected, standard deviation 18


def test_draws():
    assert [epoch_of(GroupedBatches(2, 1, draws=3), epoch)[0][0][1] for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert [epoch_of(GroupedBatches(2, 1), epoch)[0][0][1] for epoch in range(3)] == [0, 1, 2]


def test_whole_batches_are_the_same_batches():
    for epoch in range(3):
        batches = epoch_of(WholeBatches(20, 3, seed=4, rank=1, world=2), epoch)
        pairs = [[(int(row), draw) for row in rows] for rows, draw in batches]
        assert pairs == epoch_of(GroupedBatches(20, 3, seed=4, rank=1, world=2), epoch)


def test_a_start_position_belongs_to_its_epoch():
    sampler = GroupedBatches(20, 3)
    whole = epoch_of(sampler, 1)
    sampler.start = 4
    sampler.set_epoch(1)
    assert list(sampler) == whole[4:] and len(sampler) == 7
    assert len(epoch_of(sampler, 2)) == 7


def test_wrong_arguments():
    with pytest.raises(UserError, match="batch_size is 0"):
        GroupedBatches(3, 0)
    with pytest.raises(ValueError, match="2 lengths for 3 rows"):
        GroupedBatches(3, 1, lengths=[1, 2])
    with pytest.raises(ValueError, match="without shuffle"):
        GroupedBatches(3, 1, shuffle=False, drop_last=True)
    with pytest.raises(ValueError, match="deal is 'snake', 'dealt', 'greedy', 'interleaved', got 'random'"):
        GroupedBatches(3, 1, deal="random")


class Pairs(Dataset):
    """Row r in version d is the pair itself."""

    def __getitem__(self, pair: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(pair)


def loader(rows: int = 23, workers: int = 0, **options: bool) -> ResumableLoader:
    return ResumableLoader(Pairs(), batch_sampler=GroupedBatches(rows, 4, seed=1), num_workers=workers, **options)


def take(source: ResumableLoader, epoch: int, count: int | None = None) -> list[list[list[int]]]:
    source.batch_sampler.set_epoch(epoch)
    return [batch.tolist() for _, batch in zip(range(count or 99), source, strict=False)]


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"workers": 2, "persistent_workers": True}])
def test_loader_resumes_where_batches_were_handed_out(options):
    unbroken = loader()
    first, second = take(unbroken, 1), take(unbroken, 2)
    broken = loader(**options)
    assert take(broken, 1, 3) == first[:3]
    state = broken.state_dict()
    assert state == {"epoch": 1, "position": 3}
    resumed = loader(**options)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state and len(resumed) == 6
    iter(resumed)  # a pass that nobody starts does not use the place up
    assert take(resumed, 1) == first[3:]
    assert resumed.state_dict() == {"epoch": 1, "position": 6}
    assert take(resumed, 1) == first
    assert take(resumed, 2) == second
    resumed.batch_sampler.set_epoch(3)
    assert resumed.state_dict() == {"epoch": 3, "position": 0}


def test_loader_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(loader(), 0)
    assert torch.equal(before, torch.get_rng_state())


class Regression(lightning.LightningModule):
    """A linear model on the rows' own numbers; it notes what it was trained on."""

    def __init__(self, workers: int, validate: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(2, 1)
        self.workers, self.validate, self.seen = workers, validate, []

    def train_dataloader(self) -> ResumableLoader:
        return loader(workers=self.workers)

    def val_dataloader(self) -> ResumableLoader | list:
        batches = GroupedBatches(5, 2, shuffle=False, draws=1)
        return ResumableLoader(Pairs(), batch_sampler=batches) if self.validate else []

    def predict_dataloader(self) -> ResumableLoader:
        return ResumableLoader(Pairs(), batch_sampler=GroupedBatches(5, 2, shuffle=False, draws=1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch.tolist()))
        return (self.linear(batch / 10.0) - batch.sum(1, keepdim=True) / 7.0).square().mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("loss", self.linear(batch / 10.0).mean(), batch_size=len(batch))

    def predict_step(self, batch: torch.Tensor) -> torch.Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Break(Exception):
    """The run is killed."""


class BreakAfter(lightning.Callback):
    """Save a checkpoint after some steps, go on for two more, and break."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.step + 2:
            raise Break


def fit(
    module: Regression, limit: dict[str, int], callbacks: list[lightning.Callback], checkpoint: str | None = None
) -> list[torch.Tensor]:
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        num_sanity_val_steps=0,
        callbacks=callbacks,
        **limit,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    return [parameter.detach().clone() for parameter in module.parameters()]


FOUR_EPOCHS, STEPS = {"max_epochs": 4}, {"max_steps": 24, "max_epochs": -1}  # 6 batches in an epoch


@pytest.mark.parametrize(
    ("step", "workers", "validate", "limit"),
    [
        *[(step, 0, validate, FOUR_EPOCHS) for step in (4, 6, 7, 12) for validate in (False, True)],
        *[(step, 0, False, STEPS) for step in (4, 6, 7, 12)],
        (9, 2, False, FOUR_EPOCHS),
        (12, 2, False, FOUR_EPOCHS),
    ],
)
def test_lightning_resumes_to_the_same_bits(tmp_path, step, workers, validate, limit):
    whole = Regression(0, validate)
    expected = fit(whole, limit, [])
    path = str(tmp_path / "broken.ckpt")
    broken = Regression(workers, validate)
    with pytest.raises(Break):
        fit(broken, limit, [BreakAfter(step, path)])
    resumed = Regression(workers, validate)
    weights = fit(resumed, limit, [], path)
    assert broken.seen[:step] + resumed.seen == whole.seen
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))


def test_lightning_goes_on_from_the_end_of_an_epoch(tmp_path):
    """The checkpoint of a finished epoch, more epochs asked for: with workers, which start before the epoch is set."""
    whole = Regression(0, False)
    expected = fit(whole, {"max_epochs": 3}, [])
    saving = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True)
    first = Regression(2, False)
    fit(first, {"max_epochs": 2}, [saving])
    second = Regression(2, False)
    weights = fit(second, {"max_epochs": 3}, [], str(tmp_path / "last.ckpt"))
    assert first.seen + second.seen == whole.seen
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))


@pytest.mark.filterwarnings("ignore:You are using a custom batch sampler")
def test_lightning_predicts_every_row():
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    predicted = trainer.predict(Regression(0, False))
    assert torch.cat(predicted)[:, 0].tolist() == [0, 1, 2, 3, 4]
