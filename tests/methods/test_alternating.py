"""Several updates a training step: their order and pace, what each of them changes, and exact resumption."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed, multiprocessing, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from kdbench.callbacks.resume import ExactResume
from kdbench.data.vectors import VectorClassification
from kdbench.errors import UserError
from kdbench.methods.alternating import Alternating, Update
from kdbench.methods.optimizers import Constant, LinearDecay
from kdbench.models.origins import FromConfig


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


class Duel(Alternating):
    """A critic tells the student's logits from noise; the student learns its labels and to look like noise."""

    def __init__(self, every=1, **changes):
        super().__init__(FromConfig("MLPClassifier", {"widths": [4]}), {}, None)
        self.critic = nn.Linear(20, 1)
        self.updates = {
            "critic": Update(["critic"], adam, Constant(), every=every, **changes),
            "student": Update(["student"], adam, LinearDecay(0.0)),
        }
        self.register_buffer("updated", torch.zeros(2))
        self.order = []

    def weight_of(self, term):
        return 0.5 if term == "fools" else 1.0

    def prepare(self, batch):
        return {**batch, "noise": torch.randn(len(batch["id"]), 20)}

    def terms(self, update, batch):
        logits = self.student(**batch["inputs"]).logits
        ones, zeros = torch.ones(len(logits), 1), torch.zeros(len(logits), 1)
        if update == "critic":
            scores = self.critic(torch.cat([batch["noise"], logits.detach()]))
            return {"critic": binary_cross_entropy_with_logits(scores, torch.cat([ones, zeros]))}
        fools = binary_cross_entropy_with_logits(self.critic(logits), ones)
        return {"labels": cross_entropy(logits, batch["labels"]), "fools": fools}

    def after_update(self, update):
        self.updated[list(self.updates).index(update)] += 1
        self.order.append((self.global_step, update))


def data():
    return VectorClassification("synthetic/gaussian_tree", batch_size=64)


def trainer(steps, **more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    saved = {"enable_checkpointing": False, "callbacks": [ExactResume()]}
    return pl.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", **quiet | saved | more)


def fitted(steps, module=None, checkpoint=None, keep=None):
    pl.seed_everything(0, verbose=False)
    module = module or Duel(every=3)
    saved = {"enable_checkpointing": True, "callbacks": [ExactResume(), keep]} if keep else {}
    fit = trainer(steps, **saved)
    fit.fit(module, datamodule=data(), ckpt_path=checkpoint)
    return module, fit


def test_updates_come_in_order_at_their_pace_and_one_step_counts_once():
    module, fit = fitted(7)
    assert fit.global_step == 7
    assert module.updated.tolist() == [3, 7]
    assert [name for _, name in module.order[:5]] == ["critic", "student", "student", "student", "critic"]
    critic, student = module.optimizers()
    assert {int(state["step"]) for state in critic.optimizer.state.values()} == {3}
    assert {int(state["step"]) for state in student.optimizer.state.values()} == {7}
    rates = [each.get_last_lr()[0] for each in module.lr_schedulers()]
    assert rates == [1e-2, 0.0], "each schedule counts its own updates, and the student's has ended"


def test_an_update_changes_nothing_but_what_it_trains():
    class Watched(Duel):
        before = None

        def after_update(self, update):
            super().after_update(update)
            now = {name: value.detach().clone() for name, value in self.named_parameters()}
            if self.before is not None:
                changed = {name.split(".")[0] for name in now if not now[name].equal(self.before[name])}
                assert changed == {update}
            self.before = now

    module, _ = fitted(5, Watched())
    assert len(module.order) == 10


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    whole, _ = fitted(8, keep=kept)
    resumed, _ = fitted(8, checkpoint=str(tmp_path / "step=5.ckpt"))
    assert resumed.updated.tolist() == whole.updated.tolist() == [3, 8]
    for name, value in whole.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


def test_a_gradient_is_clipped_where_an_update_says_so():
    class Clipped(Duel):
        def after_update(self, update):
            super().after_update(update)
            if update == "critic":
                norms.append(torch.cat([value.grad.flatten() for value in self.critic.parameters()]).norm())

    norms = []
    fitted(3, Clipped(clip=1e-3))
    torch.testing.assert_close(torch.stack(norms), torch.full((3,), 1e-3), rtol=1e-2, atol=0)


def test_what_cannot_be_an_update_is_refused():
    with pytest.raises(ValueError, match="not every 0"):
        Update(["student"], adam, Constant(), every=0)
    with pytest.raises(ValueError, match="more than 0"):
        Update(["student"], adam, Constant(), clip=0.0)
    slow = Duel()
    slow.updates = {name: Update([name], adam, Constant(), every=2) for name in slow.updates}
    with pytest.raises(ValueError, match="at every step"):
        slow.check_optimizers()


def distributed_fit(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    pl.seed_everything(0, verbose=False)
    with pytest.raises(UserError, match="ddp_find_unused_parameters_true"):
        trainer(4, devices=2, strategy="ddp", use_distributed_sampler=False).fit(Duel(), datamodule=data())
    module = Duel(every=2)
    fit = trainer(4, devices=2, strategy="ddp_find_unused_parameters_true", use_distributed_sampler=False)
    fit.fit(module, datamodule=data())
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}.items():
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("spawn")
    processes = []
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("RANK", str(rank))
        process = context.Process(target=distributed_fit, args=(rank, str(tmp_path)))
        process.start()
        processes.append(process)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["updated"].tolist() == [2, 4]
    for name, value in first.items():
        assert value.equal(second[name]), name
