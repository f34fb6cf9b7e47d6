"""The checks of the mathematics chapters can fail, and leave their deviations in the record."""

import json

import numpy as np
import pytest
import sympy
import torch
from hypothesis import strategies as st

from gliznet.lab.checks import Checks
from gliznet.lab.records import Reporter


@pytest.fixture
def checks(tmp_path) -> Checks:
    return Checks(Reporter(tmp_path))


def metrics(checks: Checks) -> dict[str, float]:
    checks._report.close()
    found = json.loads((checks._report.out / "report.json").read_text())
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def test_agreement_is_recorded_with_its_largest_deviation(checks):
    checks.equal("a", "naive", torch.tensor([1.0, 2.0]), [1.0, 2.5], tolerance=0.5)
    checks.equal("a", "exact", 3, 3, case="three")
    x = sympy.Symbol("x")
    checks.zero("a", (x + 1) ** 2 - x**2 - 2 * x - 1)
    checks.at_least("b", "search", [1.0, 2.0], 0.5)
    checks.at_least("b", "search", [0.4, 2.0], 0.5, tolerance=0.2, case="near")
    checks.rejects("a", "sign", -1.0, 1.0, tolerance=1e-3)
    assert metrics(checks) == pytest.approx(
        {
            "check/a/naive": 0.5,
            "check/a/exact, three": 0.0,
            "check/a/symbolic": 0.0,
            "check/b/search": 0.0,
            "check/b/search, near": 0.1,
            "reject/a/sign": 2.0,
        }
    )
    assert list(checks.rows()["result"]) == ["holds"] * 5 + ["rejected"]


def test_the_table_has_a_row_per_equation_with_its_weakest_check(checks):
    checks.equal("a", "naive", [1.0], [1.1], tolerance=0.5)
    checks.equal("a", "naive", [1.0], [1.3], tolerance=0.4, case="close")
    checks.equal("a", "exact", 3, 3)
    checks.rejects("a", "sign", -1.0, 1.0, tolerance=1e-3)
    checks.rejects("a", "scale", 5.0, 1.0, tolerance=1e-3)
    checks.equal("b", "exact", 3, 3)
    table = checks.table()
    assert list(table.index) == ["a", "b"]
    assert list(table.loc["a"]) == ["naive 2, exact 1", "3.0e-01", "4.0e-01", "sign; scale"]
    assert list(table.loc["b"]) == ["exact 1", "0", "0", ""]


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("equal", ("a", "naive", [1.0, 2.0], [1.0, 2.1], 0.01), "differ by 0.1"),
        ("equal", ("a", "naive", [1.0], 1.0), "shapes differ"),
        ("equal", ("a", "naive", [np.nan], [1.0], 10.0), "differ by nan"),
        ("equal", ("a", "naive", [], []), "nothing is compared"),
        ("at_least", ("a", "search", [], []), "nothing is compared"),
        ("rejects", ("a", "none", [], [], 1e-9), "nothing is compared"),
        ("zero", ("a", sympy.Symbol("x")), "x is left"),
        ("at_least", ("a", "search", [1.0, -2.0], 0.0, 1.0), "2 below its bound"),
        ("at_least", ("a", "search", [np.nan], 0.0, 1.0), "nan below its bound"),
        ("rejects", ("a", "twin", 1.0, 1.0, 1e-9), "mutant 'twin' passes"),
        ("rejects", ("a", "close", 1.0 + 5e-8, 1.0, 1e-9), "passes"),
    ],
)
def test_a_check_that_does_not_hold_raises_and_is_not_recorded(checks, method, arguments, message):
    with pytest.raises(AssertionError, match=message):
        getattr(checks, method)(*arguments)
    assert metrics(checks) == {}


def test_an_unknown_kind_is_refused(checks):
    with pytest.raises(ValueError, match="kind is 'guess'"):
        checks.equal("a", "guess", 1, 1)


NUMBERS = {"x": st.floats(-4, 4), "y": st.floats(-4, 4)}


def test_hypothesis_searches_for_a_counter_example(checks):
    smallest = checks.survives("a", lambda x, y: (x - y) ** 2, case="square", **NUMBERS)
    assert 0 <= smallest < 1e-3
    drawn = checks.refuted("a", "product", lambda x, y: x * y, **NUMBERS)
    assert drawn["x"] * drawn["y"] < 0
    assert set(metrics(checks)) == {"check/a/hypothesis, square", "reject/a/product"}
    assert list(checks.rows()["result"]) == ["holds", "rejected"]


def test_a_rare_counter_example_is_found_and_named(checks):
    """A corner of one millionth of the square, which uniform draws would miss."""
    with pytest.raises(AssertionError, match=r"a, hypothesis: the slack is .* at \{'x'") as error:
        checks.survives("a", lambda x, y: 7.99 - x - y, **NUMBERS)
    assert "'y'" in str(error.value)
    assert metrics(checks) == {}


def test_a_true_inequality_is_not_refuted_and_nan_does_not_survive(checks):
    with pytest.raises(AssertionError, match="no case refutes 'true'"):
        checks.refuted("a", "true", lambda x, y: (x - y) ** 2, **NUMBERS)
    with pytest.raises(AssertionError, match="slack is nan"):
        checks.survives("a", lambda x, y: float("nan"), **NUMBERS)
    with pytest.raises(AssertionError, match="no case refutes 'within tolerance'"):
        checks.refuted("a", "within tolerance", lambda x, y: -0.05, 1e-3, **NUMBERS)
    assert metrics(checks) == {}
