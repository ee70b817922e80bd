import pytest
import torch
from safetensors.torch import save

from kdbench.data.target_file import TargetFile, write_targets
from kdbench.errors import UserError


def test_a_file_of_targets_by_row_and_draw(tmp_path):
    path = tmp_path / "targets.safetensors"
    tokens = [torch.arange(2.0 * n).reshape(n, 2) for n in (3, 1, 2)]
    classes = [torch.tensor([float(n), 0.0]) for n in range(3)]
    write_targets(path, [7, 7, 9], {"hidden": tokens, "logits": classes}, draws=[0, 1, 0])
    file = TargetFile(path)
    second, first = file.read("hidden", [9, 7], [0, 0])
    assert torch.equal(first["values"], tokens[0])
    assert torch.equal(second["values"], tokens[2])
    (row,) = file.read("logits", [7], [1])
    assert row["values"].tolist() == [[1.0, 0.0]]
    with pytest.raises(UserError, match="no target for row 9, version 1"):
        file.read("logits", [9], [1])
    with pytest.raises(UserError, match=r"no targets 'logit'\. Did you mean 'logits'"):
        file.read("logit", [7], [0])
    write_targets(path, [3], {"logits": classes[:1]})
    assert TargetFile(path).read("logits", [3, 3], [0, 5]), "without draws they are of all versions"


def test_a_file_that_holds_no_targets_is_one_sentence(tmp_path):
    for content in (b"", b"text", save({"logits": torch.ones(2)})):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match="is no file of targets"):
            TargetFile(tmp_path / "x")
