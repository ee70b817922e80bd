"""A teacher read from the store gives what its forward gives, whatever part of a batch is stored."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from kdbench.data.target_file import TargetFile, write_targets
from kdbench.data.targets import Column
from kdbench.losses.top_k import TopK, top_k
from kdbench.methods.reader import FileReader, Reader, StoredReader, taps_by_role

VIEWS = {"inputs": "inputs"}
TAPS = ["logits", "pooled"]


@dataclass
class Output:
    logits: torch.Tensor
    pooled: torch.Tensor


class Network(nn.Module):
    """Logits a token and one vector a row."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 9)
        self.calls = 0

    def forward(self, input_ids, attention_mask):
        self.calls += 1
        logits = self.table(input_ids)
        return Output(logits, (logits * attention_mask[..., None]).sum(1))


def batch_of(*rows):
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    return {"inputs": {"input_ids": ids, "attention_mask": mask}}


ONE, TWO, THREE = [1, 2, 3], [4, 5], [6, 7, 8, 9, 10]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def stored(network, home, **options):
    columns = {tap: Column(home, {"tap": tap, **{k: str(v) for k, v in options.items()}}, {}, 10**8) for tap in TAPS}
    reader = StoredReader(lambda: Reader(network, TAPS, VIEWS), TAPS, VIEWS, columns, **options)
    reader.keeps = True
    return reader


def read(reader, batch):
    with torch.no_grad():
        return reader(batch, reader.look_up(batch))


def flush(reader):
    for column in reader.columns.values():
        column.flush()


def same(found, network, batch):
    mask = batch["inputs"]["attention_mask"].bool()
    expected = network(**batch["inputs"])
    assert torch.equal(found["logits"][mask], expected.logits[mask])
    torch.testing.assert_close(found["pooled"], expected.pooled)


def test_fresh_stored_and_mixed_rows_agree_with_a_forward(network, tmp_path):
    reader = stored(network, tmp_path)
    same(read(reader, batch_of(ONE, TWO)), network, batch_of(ONE, TWO))
    flush(reader)
    network.calls = 0
    found = read(reader, batch_of(TWO, ONE))
    assert network.calls == 0
    same(found, network, batch_of(TWO, ONE))
    mixed = batch_of(ONE, THREE, TWO)
    found = read(reader, mixed)
    same(found, network, mixed)
    assert (reader.read_rows, reader.computed_rows) == (4, 3)
    assert not found["logits"][0, 3:].any(), "padding of stored rows is 0"


def test_a_network_is_not_built_when_every_row_is_stored(network, tmp_path):
    first = stored(network, tmp_path)
    read(first, batch_of(ONE, TWO))
    flush(first)
    second = stored(network, tmp_path)
    second.build = None
    same(read(second, batch_of(TWO)), network, batch_of(TWO))
    assert second.reader is None


def test_a_rehearsal_keeps_nothing(network, tmp_path):
    reader = stored(network, tmp_path)
    reader.keeps = False
    read(reader, batch_of(ONE))
    flush(reader)
    assert len(reader.columns["logits"]) == reader.computed_rows == 0


def test_half_precision_rounds_fresh_and_stored_values_alike(network, tmp_path):
    reader = stored(network, tmp_path, dtype=torch.float16)
    fresh = read(reader, batch_of(ONE))
    flush(reader)
    again = read(reader, batch_of(ONE))
    assert fresh["logits"].dtype == again["logits"].dtype == torch.float32
    assert torch.equal(fresh["logits"], again["logits"])
    assert torch.equal(fresh["logits"], network(**batch_of(ONE)["inputs"]).logits.half().float())


def test_logits_in_short(network, tmp_path):
    reader = stored(network, tmp_path, top_k={"logits": (4, 2.0)})
    mixed = batch_of(ONE, THREE)
    read(reader, batch_of(ONE))
    flush(reader)
    for _ in range(2):
        found = read(reader, mixed)["logits"]
        assert isinstance(found, TopK)
        expected = top_k(network(**mixed["inputs"]).logits, 4, 2.0)
        mask = mixed["inputs"]["attention_mask"].bool()
        torch.testing.assert_close(found.logits[mask], expected.logits[mask])
        assert torch.equal(found.classes[mask], expected.classes[mask])
        flush(reader)


def test_roles_sort_taps():
    views = {"first": "first.cased", "second": "second.cased"}
    assert taps_by_role(["first.embedding", "second.embedding", "logits"], views) == {
        "first": {"first.embedding": "embedding", "first.logits": "logits"},
        "second": {"second.embedding": "embedding"},
    }
    assert taps_by_role(["hidden_states.-1", "inputs.logits"], VIEWS) == {
        "inputs": {"hidden_states.-1": "hidden_states.-1", "logits": "logits"}
    }


@pytest.mark.parametrize("unpad", [False, True])
def test_the_head_runs_on_labelled_positions_with_and_without_padding(unpad):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = BertForMaskedLM(config).eval()
    batch = batch_of(ONE, THREE, TWO)
    batch["masked_labels"] = torch.tensor([[-100, 2, -100, -100, -100], [6, -100, 8, -100, 10], [-100] * 5])
    found = Reader(bert, ["logits"], VIEWS, "masked_labels", unpad)(batch)["logits"]
    whole = bert(**batch["inputs"]).logits[batch["masked_labels"] != -100]
    torch.testing.assert_close(found, whole)


def test_targets_of_a_file_come_as_a_forward_would_give_them(network, tmp_path):
    batch = batch_of(ONE, THREE) | {"id": torch.tensor([4, 2]), "draw": torch.tensor([0, 0])}
    mask = batch["inputs"]["attention_mask"].bool()
    expected = network(**batch["inputs"])
    logits = [row[own].detach() for row, own in zip(expected.logits, mask, strict=True)]
    write_targets(tmp_path / "t", [4, 2], {"logits": logits, "pooled": list(expected.pooled.detach())})
    reader = FileReader(TargetFile(tmp_path / "t"), TAPS, VIEWS)
    same(reader(batch, reader.look_up(batch)), network, batch)
