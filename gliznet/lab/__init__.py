"""Plumbing that turns notebooks and profiles into evidence; the method never imports it.

`profiles` says what to run, `run` executes it, `records` holds what came out, `freshness` proves
that it is still current, and `ledger` compares outcomes with the list of statements to check.
"""


class LabError(Exception):
    """A mistake in a profile, a notebook or the stored results, with the way to mend it."""
