"""Checks of a chapter: what must agree, what must be rejected, each a metric of the record."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import sympy
from hypothesis import strategies as st

from gliznet.lab.records import Reporter

KINDS = ("symbolic", "autograd", "naive", "hypothesis", "search", "exact", "library")
# The same code draws the same cases. A slow case is no error: it may compile or load first.
_SEARCH = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)


class Checks:
    """Asserts the equations of one chapter and keeps the largest deviation of every check.

    An equation is named by its label in the text without the prefix `eq-`. Kinds: "symbolic"
    (sympy), "autograd" (gradcheck, jacobian), "naive" (a loop or central differences written from
    the formula alone), "hypothesis" (a guided search for a counter-example), "search" (many random
    cases or a grid), "exact" (whole numbers, shapes, sets), "library" (a second, public
    implementation).

    Several checks of one kind take a `case` each. Every method raises AssertionError, with the
    deviation, when the check fails.
    """

    def __init__(self, report: Reporter):
        self._report = report
        self._rows: list[tuple[str, str, float, float, str]] = []

    def equal(
        self,
        equation: str,
        kind: str,
        found: Any,
        expected: Any,
        tolerance: float = 0.0,
        case: str = "",
    ) -> None:
        """Both sides agree to an absolute tolerance; shapes must be the same."""
        deviation = _deviation(found, expected)
        if not deviation <= tolerance:
            raise AssertionError(f"{equation}, {kind}: they differ by {deviation:.3g}")
        self._add(equation, kind, case, deviation, tolerance)

    def zero(self, equation: str, expression: sympy.Expr, case: str = "") -> None:
        """A sympy expression, left side minus right side, simplifies to zero."""
        left = sympy.simplify(expression)
        if left != 0:
            raise AssertionError(f"{equation}, symbolic: {left} is left, not 0")
        self._add(equation, "symbolic", case, 0.0, 0.0)

    def at_least(
        self,
        equation: str,
        kind: str,
        found: Any,
        bound: Any,
        tolerance: float = 0.0,
        case: str = "",
    ) -> None:
        """No case falls below its bound by more than the tolerance."""
        gap = np.asarray(found, dtype=float) - np.asarray(bound, dtype=float)
        if gap.size == 0:
            raise AssertionError(f"{equation}, {kind}: nothing is compared")
        worst = float(np.max(-gap))
        if not worst <= tolerance:
            raise AssertionError(f"{equation}, {kind}: a case is {worst:.3g} below its bound")
        self._add(equation, kind, case, max(worst, 0.0), tolerance)

    def survives(
        self,
        equation: str,
        slack: Callable[..., Any],
        tolerance: float = 0.0,
        case: str = "",
        examples: int = 500,
        **strategies: st.SearchStrategy,
    ) -> float:
        """Hypothesis finds no case whose slack (right minus left side) is below -tolerance.

        The search climbs towards small slack and shrinks the counter-example it finds, which is
        then part of the error. `slack` takes the drawn values by name; a NaN is a counter-example.
        Returns the smallest slack seen.
        """
        seen: list[float] = []

        @hypothesis.settings(_SEARCH, max_examples=examples)
        @hypothesis.given(st.fixed_dictionaries(strategies))
        def probe(drawn: dict[str, Any]) -> None:
            value = float(slack(**drawn))
            if not value >= -tolerance:
                raise AssertionError(f"{equation}, hypothesis: the slack is {value:.3g} at {drawn}")
            seen.append(value)
            # Below the tolerance there is nothing to climb but round-off, which takes minutes.
            if np.isfinite(value):
                hypothesis.target(-max(value, tolerance))

        probe()
        self._add(equation, "hypothesis", case, max(-min(seen), 0.0), tolerance)
        return min(seen)

    def refuted(
        self,
        equation: str,
        mutant: str,
        slack: Callable[..., Any],
        tolerance: float = 0.0,
        examples: int = 2000,
        **strategies: st.SearchStrategy,
    ) -> dict[str, Any]:
        """A wrong inequality: hypothesis finds a case whose slack is clearly below -tolerance.

        Returns the counter-example, shrunk to the simplest one that hypothesis can reach.
        """
        limit = -max(100 * tolerance, 1e-6)
        try:
            drawn = hypothesis.find(
                st.fixed_dictionaries(strategies),
                lambda drawn: float(slack(**drawn)) < limit,
                settings=hypothesis.settings(_SEARCH, max_examples=examples),
            )
        except hypothesis.errors.NoSuchExample as error:
            raise AssertionError(f"{equation}: no case refutes {mutant!r}") from error
        self._reject(equation, mutant, -float(slack(**drawn)), tolerance)
        return drawn

    def rejects(
        self, equation: str, mutant: str, found: Any, expected: Any, tolerance: float
    ) -> None:
        """A wrong formula misses the truth by far more than the tolerance of the check."""
        deviation = _deviation(found, expected)
        if not deviation > 100 * tolerance:
            raise AssertionError(f"{equation}: the mutant {mutant!r} passes ({deviation:.3g})")
        self._reject(equation, mutant, deviation, tolerance)

    def rows(self) -> pd.DataFrame:
        """Every check so far: equation, check, largest deviation, tolerance, result."""
        columns = ["equation", "check", "deviation", "tolerance", "result"]
        return pd.DataFrame(self._rows, columns=columns).set_index("equation")

    def table(self) -> pd.DataFrame:
        """One row per equation, for the page; the record holds every check.

        Columns: the kinds of check that hold and how many of each, deviation and tolerance of the
        check that comes closest to failing, and the wrong formulas that were rejected.
        """
        shown = {}
        for equation, rows in self.rows().groupby("equation", sort=False):
            holds = rows[rows["result"] == "holds"]
            rejected = rows.loc[rows["result"] == "rejected", "check"]
            kinds = Counter(check.split(",")[0] for check in holds["check"])
            closest = max(
                zip(holds["deviation"], holds["tolerance"], strict=True),
                key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0,
                default=(0.0, 0.0),
            )
            shown[equation] = {
                "checks that hold": ", ".join(f"{kind} {n}" for kind, n in kinds.items()),
                "deviation": scientific(closest[0]),
                "tolerance": scientific(closest[1]),
                "wrong formulas rejected": "; ".join(rejected),
            }
        table = pd.DataFrame(shown).T
        table.index.name = "equation"
        return table

    def _reject(self, equation: str, mutant: str, deviation: float, tolerance: float) -> None:
        self._report.metric(f"reject/{equation}/{mutant}", deviation, unit="deviation")
        self._rows.append((equation, mutant, deviation, tolerance, "rejected"))

    def _add(self, equation: str, kind: str, case: str, deviation: float, tolerance: float) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
        name = f"{kind}, {case}" if case else kind
        self._report.metric(f"check/{equation}/{name}", deviation, unit="largest deviation")
        self._rows.append((equation, name, deviation, tolerance, "holds"))


def scientific(value: float) -> str:
    """A deviation with two digits; an exact zero is `0`."""
    return f"{value:.1e}" if value else "0"


def _deviation(found: Any, expected: Any) -> float:
    a, b = (
        np.asarray(getattr(x, "detach", lambda x=x: x)(), dtype=float) for x in (found, expected)
    )
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {a.shape} and {b.shape}")
    if a.size == 0:
        raise AssertionError("nothing is compared: both sides are empty")
    return float(np.max(np.abs(a - b)))
