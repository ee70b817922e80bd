"""The notation of claims: arithmetic against Python's own, readings of curves, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.errors import UserError
from kdbench.suite.expressions import Reading, Reference, read_comparison, read_value, satisfied

NUMBERS = {"a.x": 3.0, "b.x": 2.0, "c.x": -0.5}
CURVE = {"values": [4.0, 2.0, None, 1.0], "steps": [0, 10, 20, 30], "seconds": [0.5, 1, 1.5, 4], "best": 1}

numbers = st.floats(-1e6, 1e6).map(lambda number: float(f"{number:.6g}"))
leaves = st.sampled_from(sorted(NUMBERS)) | numbers.map(lambda number: f"({number!r})")
arithmetic = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda parts: f"({' '.join(parts)})")
        | inner.map(lambda term: f"-{term}")
        | st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        )
        | inner.map(lambda term: f"abs({term})")
    ),
    max_leaves=8,
)


def lookup(reference):
    return NUMBERS[reference.text]


def value(text):
    return read_value(text).of(lookup)


def pythons(text):
    """Return what Python makes of the text, None where it divides by zero."""
    for name, number in NUMBERS.items():
        text = text.replace(name, repr(number))
    try:
        return eval(text)
    except ZeroDivisionError:
        return None


@given(arithmetic)
def test_arithmetic_is_pythons(text):
    expected = pythons(text)
    found = read_value(f"{text} + 0 * a.x").of(lookup)
    if expected is None or not math.isfinite(expected):
        assert not math.isfinite(found)
    else:
        assert found == expected


@given(arithmetic, st.sampled_from(["<", "<=", ">", ">=", "=="]), arithmetic)
def test_the_margin_is_positive_on_the_right_side(left, sign, right):
    sides = pythons(left), pythons(right)
    found = read_comparison(f"{left} {sign} {right} + 0 * a.x")
    margins = found.margins(lookup)
    if None in sides or not all(map(math.isfinite, sides)):
        return
    assert found.holds(lookup) is eval(f"{sides[0]!r} {sign} {sides[1]!r}")
    assert found.holds(lookup) is satisfied(margins, [link.strict for link in found.links])
    assert abs(margins[0]) == abs(sides[0] - sides[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.x ** b.x ** c.x", 3 ** (2**-0.5)),
        ("-a.x ** 2", -9),
        ("log10(1000 + 0 * a.x)", 3),
        ("log2(8) + ln(exp(b.x)) + sqrt(9) + 0 * a.x", 8),
        ("mean(a.x, b.x, c.x)", 1.5),
        ("2 / 3 * a.x - a.x/b.x", 0.5),
        ("1e-3 * a.x", 0.003),
        ("a.x\n  + b.x", 5),
    ],
)
def test_functions_and_precedence(text, expected):
    assert value(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "a.x / 0",
        "sqrt(c.x)",
        "log10(c.x)",
        "(-8 + 0 * a.x) ** (1/3)",
        "9 ** 9 ** 9 + a.x",
        "exp(10000 * a.x)",
        "0 ** c.x",
    ],
)
def test_what_is_undefined_or_too_large_is_not_a_number(text):
    assert math.isnan(value(text))
    assert read_comparison(f"{text} > 0").holds(lookup) is None


@pytest.mark.parametrize("text", ["max(a.x, 1)", "min(1, a.x)", "a.x ** 0", "0 * a.x", "mean(a.x, 1)", "abs(a.x)"])
def test_nothing_swallows_what_is_not_a_number(text):
    assert math.isnan(read_value(text).of(lambda reference: math.nan))


def test_the_logarithm_of_nothing_is_minus_infinity():
    comparison = read_comparison("log10(a.mse) < -4")
    assert comparison.margins(lambda reference: 0.0) == (math.inf,)
    assert comparison.holds(lambda reference: 0.0) is True


def test_two_infinities_are_equal():
    for sign, truth in (("<", False), ("<=", True), ("==", True)):
        comparison = read_comparison(f"a.x {sign} b.x")
        assert comparison.margins(lambda reference: math.inf) == (0.0,)
        assert comparison.holds(lambda reference: math.inf) is truth


def test_a_chain_has_a_margin_for_each_link():
    chain = read_comparison("a.x >= b.x > c.x")
    assert chain.margins(lookup) == (1.0, 2.5)
    assert [link.strict for link in chain.links] == [False, True]
    assert chain.holds(lookup) is True
    assert read_comparison("-0.01 < a.x - b.x < 0.01").holds(lookup) is False


def test_exactness_takes_no_tolerance():
    assert read_comparison("a.x == 3").holds(lookup) is True
    assert read_comparison("a.x == b.x").margins(lookup) == (-1.0,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("multi.macro_f1", ("multi", None, None, "macro_f1", None, "last")),
        ("multi.upos.macro_f1", ("multi", "upos", None, "macro_f1", None, "last")),
        ("multi.upos.val.loss.best", ("multi", "upos", "val", "loss", None, "best")),
        ("multi.label_loyalty@cased", ("multi", None, None, "label_loyalty", "cased", "last")),
        ("multi.upos.label_loyalty@cased.area", ("multi", "upos", None, "label_loyalty", "cased", "area")),
        ("rank.ndcg@10", ("rank", None, None, "ndcg@10", None, "last")),
        ("rank.test.ndcg@10@teacher.best", ("rank", None, "test", "ndcg@10", "teacher", "best")),
    ],
)
def test_what_a_value_names(text, told):
    (found,) = read_value(text).references
    assert found.text == text
    assert (found.arm, found.task, found.split, found.metric, found.network, found.reading.name) == told


def test_where_a_value_stands_in_a_record():
    assert Reference("", "a", None, None, "loss", None).keys() == ["loss@student", "loss"]
    assert Reference("", "a", None, "val", "loss", None).keys() == ["val/loss@student", "val/loss"]
    assert Reference("", "a", None, "test", "loss", "cased").keys() == ["loss@cased"]
    (reference,) = read_value("a.val.loss").references
    assert reference.of({"val/loss": 2, "loss@student": 3}) == 2
    assert math.isnan(reference.of({"loss@student": 3}))
    assert math.isnan(reference.of({"val/loss": None}))


def test_the_operators_of_a_network_bind_tighter_than_all_others():
    found = read_value("2 * a.x@cased - a.x@uncased ** 2")
    assert found.of(lambda reference: {"cased": 5.0, "uncased": 3.0}[reference.network]) == 1.0


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        ("last", 1.0),
        ("best", 2.0),
        ("at(5)", 3.0),
        ("at(10)", 2.0),
        ("at(0.75, seconds)", 3.0),
        ("first_below(4)", 10.0),
        ("first_below(2, seconds)", 4.0),
        ("first_above(3)", 0.0),
        ("first_below(1)", math.inf),
        ("first_below(-1)", math.inf),
    ],
)
def test_readings_of_a_curve(reading, expected):
    (found,) = read_value(f"a.x.{reading}").references
    assert found.of({"x@student": CURVE}) == expected
    assert found.text == f"a.x.{reading}"


def test_a_gap_in_a_curve_is_not_a_number():
    for reading in (Reading("area"), Reading("at", 15), Reading("at", 20), Reading("at", -1), Reading("at", 31)):
        assert math.isnan(reading.of(CURVE, "a.x"))
    assert math.isnan(Reading().of({"values": [], "steps": []}, "a.x"))
    assert math.isnan(Reading("area").of({"values": [], "steps": []}, "a.x"))


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-9, 9)), min_size=2, max_size=20), st.floats(0, 1))
def test_area_and_height_are_numpys(points, share):
    places = np.cumsum([gap for gap, _ in points]).tolist()
    heights = [height for _, height in points]
    curve = {"values": heights, "steps": places}
    area = np.trapezoid(heights, places) / (places[-1] - places[0])
    assert Reading("area").of(curve, "") == pytest.approx(area, abs=1e-9)
    place = places[0] + share * (places[-1] - places[0])
    assert Reading("at", place).of(curve, "") == pytest.approx(np.interp(place, places, heights), abs=1e-6)


def test_one_point_has_an_area_and_a_plain_number_a_last_value():
    assert Reading("area").of({"values": [7.0], "steps": [3]}, "") == 7.0
    assert Reading("last").of(5, "") == 5.0
    assert math.isnan(Reading("area").of(None, ""))


@pytest.mark.parametrize(
    ("reading", "record", "fault"),
    [
        (Reading("area"), 5.0, "one number there and no curve, so it has no area"),
        (Reading("best"), CURVE | {"best": None}, "read .last, or validate"),
        (Reading("at", 1, "examples"), CURVE, "no examples of this curve, only steps, seconds"),
        (Reading("area"), CURVE | {"steps": [0, 10, 5, 30]}, "out of order"),
        (Reading("area"), CURVE | {"steps": [0, 10]}, "out of order"),
    ],
)
def test_a_record_without_what_is_read_is_one_sentence(reading, record, fault):
    with pytest.raises(UserError, match=fault):
        reading.of(record, "a.x")


ATTACKS = [
    "__import__('os').system('true') > 0",
    "().__class__.__bases__[0].__subclasses__() > a.x",
    "a.x.__class__.__mro__.x > 0",
    "open('/etc/passwd') > a.x",
    "[each for each in (1, 2)] > a.x",
    "(lambda: a.x)() > 0",
    "(y := a.x) > 0",
    "f'{a.x}' > 'a'",
    "a.x if a.x else b.x",
    "a.x > 0 and b.x > 0",
    "not a.x > 0",
    "a.x in b.x",
    "a.x is b.x",
    "a.x != b.x",
    "a.x // b.x > 0",
    "a.x % b.x > 0",
    "a.x << 9 > 0",
    "~a.x > 0",
    "+a.x > 0",
    "a.x[0] > 0",
    "1j * a.x > 0",
    "True * a.x > 0",
    "None > a.x",
    "'a' * 999 > a.x",
    "max(*a.x) > 0",
    "max(a.x, b.x, key=a.x) > 0",
    "a.x > 0; b.x > 0",
    "a.x > 0 # b",
    "a.x >",
    "((a.x) > 0",
    "a.x > 0\x00",
    "a.x . y > 0",
    "eval > a.x",
    "(a.x > 0) > 0",
    "",
    "ø0 > a.x",
    "a.x ≥ 0",
    "9" * 400 + " > a.x",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_what_is_not_in_the_notation_is_refused(text):
    with pytest.raises(UserError) as told:
        read_comparison(text)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 330


@pytest.mark.parametrize(
    "text",
    [
        "a.x > " + "1 + " * 5000 + "1",
        "a.x > " + "(" * 400 + "1" + ")" * 400,
        "-" * 900 + "a.x > 0",
        "a.x > " + "**".join("9" * 80),
        "abs(" * 90 + "a.x" + ")" * 90 + " > 0",
    ],
)
def test_what_is_long_or_deep_is_refused_at_once(text):
    with pytest.raises(UserError, match=r"longer|deeply|cannot be read"):
        read_comparison(text)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_a_sentence(text):
    for read in (read_comparison, read_value):
        try:
            read(text)
        except UserError as error:
            assert str(error).endswith(".")


@given(st.text(alphabet="ab.x@10 +-*/()<>=,_elos", max_size=60))
def test_near_misses_are_read_or_refused_in_a_sentence(text):
    try:
        found = read_comparison(text)
    except UserError:
        return
    assert found.references
    assert found.holds(lambda reference: 1.0) in (True, False, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("accuracy > 0.5 + 0 * a.x", "'accuracy' without an arm: write arm.accuracy"),
        ("1 < 2", "names no arm"),
        ("a.x - b.x", "compares nothing"),
        ("a.last > 1", r"arm\[.task\]"),
        ("a.b.c.d.e > 1", r"arm\[.task\]"),
        ("a.val.upos.loss > 1", r"arm\[.task\]"),
        ("maxx(a.x, 1) > 0", "Did you mean 'max'"),
        ("max(a.x) > 0", "takes two or more"),
        ("abs(a.x, b.x) > 0", "takes one"),
        ("a.x.at > 0", r"write .at\(number\)"),
        ("a.x.at() > 0", r"write .at\(number\)"),
        ("a.x.at(1, 2) > 0", r"write .at\(number\)"),
        ("a.x.area(1) > 0", r"write .area"),
        ("a.x.last(seconds) > 0", r"write .last"),
        ("a.x.at(1, second) > 0", "Did you mean 'seconds'"),
        ("a.x.at(b.x) > 0", "takes a plain number"),
        ("a.x@cased.bst > 0", "Did you mean 'best'"),
        ("a.x(3) > 0", "write .last"),
    ],
)
def test_a_mistake_is_one_sentence_that_mends_it(text, fault):
    with pytest.raises(UserError, match=fault):
        read_comparison(text)


def test_a_row_that_is_shown_compares_nothing():
    with pytest.raises(UserError, match="one value, such as a difference"):
        read_value("a.x > 1")


def test_the_arms_of_a_grid_are_named_together():
    arms = ["pipe_ce_few", "pipe_ce_many", "pipe_mse_few", "other"]
    found = read_comparison("mean(pipe_*_few.kept@teacher) > 2*other.x * max(pipe_ce_*.x)", arms)
    assert [each.text for each in found.references] == [
        *("pipe_ce_few.kept@teacher", "pipe_mse_few.kept@teacher"),
        *("other.x", "pipe_ce_few.x", "pipe_ce_many.x"),
    ]
    assert found.text == "mean(pipe_*_few.kept@teacher) > 2*other.x * max(pipe_ce_*.x)", "as it was written"
    with pytest.raises(UserError, match=r"means arms named like 'pipe_\*_none'"):
        read_value("mean(pipe_*_none.x)", arms)
