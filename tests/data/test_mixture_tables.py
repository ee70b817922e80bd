import os

import pytest

from kdbench.data import registry
from kdbench.data.readers.mixture_tables import local_mixtures
from kdbench.errors import UserError

real = pytest.mark.skipif("KDBENCH_DATA" not in os.environ, reason="KDBENCH_DATA is not set: no published tables")
MIXTURE = "index,train_the_pile_arxiv,train_the_pile_github\n1,0.4,0.6\n2,1.0,0.0\n"
LOSS = "index,metric/the_pile_arxiv_val_loss\n2,3.5\n1,4.5\n"


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "train_mixture_1m.csv").write_text(MIXTURE)
    (tmp_path / "train_pile_loss_1m.csv").write_text(LOSS)
    return tmp_path


def test_mixtures_and_losses_belong_together_by_their_index(tables):
    assert local_mixtures(tables, "train") == [
        {"size": "1m", "mixture": {"arxiv": 0.4, "github": 0.6}, "losses": {"arxiv": 4.5}},
        {"size": "1m", "mixture": {"arxiv": 1.0, "github": 0.0}, "losses": {"arxiv": 3.5}},
    ]
    (tables / "train_pile_loss_1m.csv").write_text(LOSS.replace("1,4.5\n", ""))
    assert len(local_mixtures(tables, "train")) == 1
    assert local_mixtures(tables, "validation") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            MIXTURE.replace("index", "number"),
            "there is no column 'index', by which mixtures and losses belong together",
        ),
        ("", "there is no column 'index'"),
        (MIXTURE.replace("2,1.0", "1,1.0"), "the index 1 is there twice"),
        (MIXTURE.replace("0.6", "much"), "the row of index 1 has not a number in every column"),
        (MIXTURE.replace(",0.6", ""), "the row of index 1 has not a number"),
    ],
)
def test_a_damaged_table_is_told_in_a_sentence(tables, content, message):
    (tables / "train_mixture_1m.csv").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        local_mixtures(tables, "train")
    assert "\n" not in str(raised.value)


@real
def test_the_published_tables():
    train = registry.load("mixtures/pile", "local", "train")
    test = registry.load("mixtures/pile", "local", "test")
    assert len(train) == 512
    assert [sum(row["size"] == size for row in test) for size in ("1m", "60m", "1b")] == [256, 256, 64]
    for row in (*train, *test):
        assert len(row["mixture"]) == 17 and len(row["losses"]) == 13
        assert sum(row["mixture"].values()) == pytest.approx(1, abs=0.005)
