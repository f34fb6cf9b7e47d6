# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Errata of the sources
#
# Which statements of the sources do not hold as printed?
# Each entry says what is printed, what is right, why, and what difference it makes.
# Every one is checked in the chapter that it links to; its name leads to its place in {doc}`equations`.
#
# Symbols are those of {doc}`/notation`, or of the equation that the entry links to.
# A wrong formula in a document need not be wrong in its authors' code; where an entry concerns a package, it says so.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
evidence: str = ""  # profile whose chapters gave the outcomes; empty: none yet

# %% tags=["hide-input"]
from IPython.display import Markdown
from myst_nb import glue

from gliznet.lab import ledger, records
from gliznet.lab.fingerprints import fingerprint
from gliznet.lab.profiles import find_root
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste

report = Reporter(out)
loaded = records.load(evidence) if evidence else {}
found = ledger.verdicts(loaded)
entries = ledger.equations(find_root())
report.data("ledger/equations", rows=len(entries), sha256=fingerprint("ledger/equations"))
corrected = [e for e in entries if e.printed]
effects = {
    e.id: loaded[e.chapter].metrics.get(f"effect/{e.id}") for e in corrected if e.chapter in loaded
}
report.metric("entries", len(corrected), n=len(entries))
paste("errata_total", str(len(corrected)))

# %% [markdown]
# Corrected entries: {glue:text}`errata_total:s`.


# %% tags=["hide-input"]
def size(effect):
    """The number that an error changes, with what it is."""
    if effect is None:
        return ""
    digits = ",.0f" if abs(effect.value) >= 100 else ".3g"
    unit = f" ({effect.unit})" if effect.unit else ""
    return f"**{effect.value:{digits}}**{unit}. "


def entry_text(e):
    """One entry in MyST: what is printed, what is right, the proof, the difference in numbers."""
    outcome, text = found.get(e.id, ("open", "not run in this profile"))
    name = f'<a id="erratum-{e.id}" href="equations.html#entry-{e.id}">{e.id}</a>'
    place = f"{{eq}}`eq-{e.equation}`" if e.equation else f"{{doc}}`{e.chapter}`"
    parts = [
        f"**{name}** ({e.source}; {place}; *{outcome}*)",
        f": Printed: {' '.join(e.printed.split())}",
        f": Right: {' '.join(e.right.split())}",
        f": Why: {' '.join(e.proof.split())}",
        f": Difference: {size(effects.get(e.id))}{' '.join(text.split())}",
    ]
    return "\n".join(parts)


glue("errata", Markdown("\n\n".join(entry_text(e) for e in corrected)), display=False)
report.close()

# %% [markdown]
# ```{glue:md} errata
# :format: myst
# ```
