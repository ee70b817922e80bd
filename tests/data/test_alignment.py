import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.data.alignment import aligned_positions, fold_vocabulary, same_vocabulary, shared_forms
from kdbench.data.tokenizers import SPECIAL_TOKENS, encode_words, split_words, train_word_level, train_wordpiece
from kdbench.errors import UserError

TEXTS = [
    "Casa mea este lângă o pădure. Casa ta este veche. Pădure, pădure!",
    "CASA bătrânului: o casă veche și o carte veche despre oameni și case.",
    "Oamenii citeau despre pădure; oamenii mergeau prin pădure. Oameni și oameni.",
]


@pytest.fixture(scope="module")
def cased():
    return train_wordpiece(TEXTS, 160, lowercase=False)


@pytest.fixture(scope="module")
def uncased():
    return train_wordpiece(TEXTS, 110, lowercase=True)


def pieces_of(tokenizer, groups: torch.Tensor, number: int) -> set[str]:
    return set(tokenizer.convert_ids_to_tokens((groups == number).nonzero().flatten().tolist()))


def test_same_vocabulary(cased, uncased):
    assert same_vocabulary(cased, train_wordpiece(TEXTS, 160, lowercase=False))
    assert not same_vocabulary(cased, uncased)


@pytest.mark.parametrize("fold", [True, False])
def test_shared_forms_against_the_strings(cased, uncased, fold):
    student, teacher, forms = shared_forms(cased, uncased, fold)
    assert student.shape == (len(cased),) and teacher.shape == (len(uncased),)
    assert len(set(forms)) == len(forms) and student.max() == teacher.max() == len(forms) - 1
    whole = {piece for piece in uncased.get_vocab() if not piece.startswith("##") and piece not in SPECIAL_TOKENS}
    expected = {}
    for piece, number in cased.get_vocab().items():
        form = piece.lower() if fold else piece
        if not piece.startswith("##") and piece not in SPECIAL_TOKENS and form in whole:
            expected.setdefault(form, set()).add(number)
    assert set(forms) == set(expected)
    for number, form in enumerate(forms):
        assert pieces_of(uncased, teacher, number) == {form}
        assert {cased.convert_tokens_to_ids(piece) for piece in pieces_of(cased, student, number)} == expected[form]
    ids = [uncased.convert_tokens_to_ids(form) for form in forms]
    assert ids == sorted(ids)


def test_folding_is_many_to_one(cased, uncased):
    student, _, forms = shared_forms(cased, uncased)
    assert pieces_of(cased, student, forms.index("c")) == {"c", "C"}
    strict, _, strict_forms = shared_forms(cased, uncased, fold=False)
    assert pieces_of(cased, strict, strict_forms.index("c")) == {"c"}
    assert strict[cased.convert_tokens_to_ids("C")] == -1
    assert {"pădure", "veche"} <= set(forms)


def test_folding_follows_the_teachers_normaliser(cased):
    bare = train_wordpiece(TEXTS, 110, lowercase=True, strip_accents=True)
    student, _, forms = shared_forms(cased, bare)
    assert student[cased.convert_tokens_to_ids("pădure")] == forms.index("padure")
    # a cased teacher keeps the capitals of a cased student, and an uncased student has none to give
    same, _, own = shared_forms(cased, cased)
    assert all(pieces_of(cased, same, number) == {form} for number, form in enumerate(own))
    assert not any(form != form.lower() for form in shared_forms(bare, cased)[2])


def test_a_students_mass_is_summed_over_a_form(cased, uncased):
    student, _, forms = shared_forms(cased, uncased)
    probabilities = torch.softmax(torch.randn(len(cased), generator=torch.Generator().manual_seed(0)), 0)
    mass = torch.zeros(len(forms)).index_add(0, student[student >= 0], probabilities[student >= 0])
    position = forms.index("c")
    expected = sum(probabilities[cased.convert_tokens_to_ids(piece)] for piece in ("c", "C"))
    assert mass[position].item() == pytest.approx(expected.item())


def test_fold_vocabulary_of_words():
    student = train_word_level(["Ana are Mere mere ana ARE"], lowercase=False)
    teacher = train_word_level(["mere are ana ana"], lowercase=True)
    groups = fold_vocabulary(student, teacher)
    folded = teacher.convert_ids_to_tokens(groups.tolist())
    pieces = student.convert_ids_to_tokens(list(range(len(student))))
    assert folded == [piece if piece in SPECIAL_TOKENS else piece.lower() for piece in pieces]
    text = "Ana ARE Mere [MASK] necunoscut"
    assert groups[student(text)["input_ids"]].tolist() == teacher(text)["input_ids"]


def test_fold_vocabulary_of_pieces():
    lower = ["ab ab abc abc cab cab"]
    teacher = train_wordpiece(lower, 40, lowercase=True)
    student = train_wordpiece([*lower, "A B C AB BC CA"], 19, lowercase=False)  # the characters and no more
    groups = fold_vocabulary(student, teacher)
    for piece, number in student.get_vocab().items():
        expected = piece if piece in SPECIAL_TOKENS else piece.lower()
        assert groups[number] == teacher.convert_tokens_to_ids(expected)


def test_fold_vocabulary_maps_special_tokens_by_role(cased, uncased):
    renamed = train_word_level(["a"], lowercase=True)
    other = train_word_level(["<mask> a"], lowercase=True)
    other.add_special_tokens({"mask_token": "<m>"})
    groups = fold_vocabulary(renamed, other)
    assert groups[renamed.mask_token_id] == other.mask_token_id != renamed.mask_token_id


def test_a_piece_without_counterpart_is_named():
    student = train_word_level(["Ana are prune"], lowercase=False)
    teacher = train_word_level(["ana are"], lowercase=True)
    with pytest.raises(UserError, match=r"'prune' has no counterpart .*use shared_words"):
        fold_vocabulary(student, teacher)


rows_of_counts = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6), min_size=1, max_size=4)


@settings(deadline=None)
@given(rows_of_counts)
def test_aligned_positions_against_loops(rows):
    """Each word has some pieces (or none) in each view."""
    sides = []
    for side in (0, 1):
        lists = [[-1] + [word for word, counts in enumerate(row) for _ in range(counts[side])] + [-1] for row in rows]
        width = max(map(len, lists))
        sides.append(torch.tensor([each + [-1] * (width - len(each)) for each in lists]))
    student, teacher = sides
    expected = [
        (number, student[number].tolist().index(word), teacher[number].tolist().index(word))
        for number, row in enumerate(rows)
        for word, counts in enumerate(row)
        if counts == (1, 1)
    ]
    found = aligned_positions(student, teacher)
    assert list(zip(*(each.tolist() for each in found), strict=True)) == expected
    keep = torch.arange(student.numel()).view_as(student) % 2 == 0
    kept = aligned_positions(student, teacher, keep)
    assert list(zip(*(each.tolist() for each in kept), strict=True)) == [
        place for place in expected if keep[place[0], place[1]]
    ]


def test_aligned_positions_of_real_text(cased, uncased):
    rows = [split_words(text) for text in TEXTS]
    views = []
    for tokenizer in (cased, uncased):
        encoded = encode_words(tokenizer, rows, 128)
        width = max(len(ids) for ids, _ in encoded)
        ids, index = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -1)
        for number, (row_ids, row_index) in enumerate(encoded):
            ids[number, : len(row_ids)], index[number, : len(row_ids)] = torch.tensor(row_ids), torch.tensor(row_index)
        views.append((ids, index))
    (student_ids, student_index), (teacher_ids, teacher_index) = views
    student_groups, teacher_groups, _ = shared_forms(cased, uncased)
    found, here, there = aligned_positions(student_index, teacher_index, student_groups[student_ids] >= 0)
    assert len(found) > 20
    # where both have one piece, it is the same surface form in both
    assert torch.equal(student_groups[student_ids[found, here]], teacher_groups[teacher_ids[found, there]])
    pieces = uncased.convert_ids_to_tokens(teacher_ids[found, there].tolist())
    words = [rows[row][student_index[row, position]] for row, position in zip(found, here, strict=True)]
    assert pieces == [word.lower() for word in words]
