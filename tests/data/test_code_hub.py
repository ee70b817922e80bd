"""SynthCoNL's triples as pairs, no repository in two splits."""

from collections import Counter

from kdbench.data.readers.code_hub import pairs
from kdbench.data.registry import SPLITS


def triple(repository):
    return {
        "repository_name": repository,
        "func_documentation_string": "Adds two numbers.",
        "language1_CSN": "python",
        "func1_CSN": "def add(a, b): return a + b",
        "language2": "Go",
        "func2": "func add(a, b int) int { return a + b }",
    }


def test_a_triple_is_a_text_with_its_code_and_the_code_with_its_translation():
    (split,) = (split for split in SPLITS if pairs([triple("owner/name")], split))
    text, code = pairs([triple("owner/name")], split)
    assert (text["query"], text["query_kind"]) == ("Adds two numbers.", "natural language query")
    assert (text["code"], text["code_kind"]) == (code["query"], code["query_kind"])
    assert code["query_kind"] == "python code snippet" and code["code_kind"] == "Go code snippet"
    assert code["code"].startswith("func add") and text["package"] == code["package"] == "owner/name"


def test_a_hundredth_of_the_repositories_is_held_out_for_validation_and_one_for_test():
    repositories = [f"owner/name{number}" for number in range(3000)]
    split_of = Counter()
    for split in SPLITS:
        found = {row["package"] for row in pairs(map(triple, repositories), split)}
        split_of.update(dict.fromkeys(found, 1))
        assert abs(len(found) / 3000 - {"train": 0.98}.get(split, 0.01)) < 0.01
    assert set(split_of.values()) == {1} and len(split_of) == 3000
