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
# What the sources print, what is right, why, and what difference it makes.
# Every entry has been checked in the chapter that it links to.
# A wrong formula in a document says nothing about the authors' code: most of these slips would not run.

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
effects = {
    name.removeprefix("effect/"): metric.value
    for record in loaded.values()
    for name, metric in record.metrics.items()
    if name.startswith("effect/")
}
entries = ledger.equations(find_root())
report.data("ledger/equations", rows=len(entries), sha256=fingerprint("ledger/equations"))
corrected = [e for e in entries if e.printed]
paste("errata_total", str(len(corrected)))

# %% [markdown]
# Corrected entries: {glue:text}`errata_total:s`.


# %% tags=["hide-input"]
def entry_text(e):
    """One entry in MyST: what is printed, what is right, the proof, the difference in numbers."""
    outcome, text = found.get(e.id, ("open", "not run in this profile"))
    place = f"{{eq}}`eq-{e.equation}`" if e.equation else f"{{doc}}`{e.chapter}`"
    parts = [
        f"**{e.id}** ({e.source}; {place}; *{outcome}*)",
        f": Printed: {' '.join(e.printed.split())}",
        f": Right: {' '.join(e.right.split())}",
        f": Why: {' '.join(e.proof.split())}",
        f": Difference: {' '.join(text.split())}",
    ]
    return "\n".join([parts[0], *parts[1:]])


glue("errata", Markdown("\n\n".join(entry_text(e) for e in corrected)), display=False)
for e in corrected:
    if e.id in effects:
        report.metric(f"effect/{e.id}", effects[e.id])
report.close()

# %% [markdown]
# ```{glue:md} errata
# :format: myst
# ```
