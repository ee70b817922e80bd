import json

import numpy as np
import pytest

from kdbench.data.shares import checked_shares, read_mixture
from kdbench.errors import UserError

DOMAINS = ["arxiv", "github", "pile_cc"]


def test_shares_are_in_the_order_of_the_domains_and_sum_to_one():
    np.testing.assert_allclose(checked_shares({"pile_cc": 0.3, "arxiv": 0.7}, DOMAINS, "here"), [0.7, 0, 0.3])
    rounded = checked_shares({"pile_cc": 0.333, "arxiv": 0.333, "github": 0.333}, DOMAINS, "here")
    assert rounded.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"arxiv": 0.5, "github": 0.3}, r"here: the shares sum to 0\.8: those of a mixture sum to 1\."),
        ({"arxiv": 1.2, "github": -0.2}, r"here: the share of 'github' is -0\.2: a share is 0 or more\."),
        ({"arxiv": float("nan"), "github": 1.0}, "the share of 'arxiv' is nan"),
        ({"arxif": 1.0}, r"here: there is no domain 'arxif', only arxiv, github, pile_cc\. Did you mean 'arxiv'\?"),
        ({}, "sum to 0"),
    ],
)
def test_mistakes_are_told_in_a_sentence(mixture, message):
    with pytest.raises(UserError, match=message) as raised:
        checked_shares(mixture, DOMAINS, "here")
    assert "\n" not in str(raised.value)


def test_a_mixture_is_read_from_the_file_that_a_run_has_left(tmp_path):
    file = tmp_path / "trees.json"
    file.write_text(json.dumps({"arxiv": 1}))
    assert read_mixture(file) == {"arxiv": 1}
    with pytest.raises(UserError, match=r"left no file 'tree.json'. Did you mean 'trees.json'\?"):
        read_mixture(tmp_path / "tree.json")
    for content, message in (
        ("{", "is no JSON"),
        ("[1]", "holds no mixture"),
        ('{"arxiv": "all"}', "holds no mixture"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            read_mixture(file)
