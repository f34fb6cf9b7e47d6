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
# # Every equation
#
# Does what the sources print hold?
# This index answers for every displayed equation and every quantitative statement that the mathematics part of the book judges, in the order of its chapters.
#
# - *Verified*: it holds as printed.
# - *Corrected*: it does not. The word leads to the entry of {doc}`errata` that says what is right.
# - *Not testable here*: the evidence says why.

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
evidence: str = ""  # profile whose chapters gave the outcomes; empty: none yet

# %% tags=["hide-input"]
from collections import Counter

import pandas as pd

from gliznet.lab import ledger, records
from gliznet.lab.fingerprints import fingerprint
from gliznet.lab.profiles import find_root
from gliznet.lab.records import Reporter
from gliznet.lab.tables import paste, paste_table

report = Reporter(out)
root = find_root()
entries = ledger.equations(root)
found = ledger.verdicts(records.load(evidence)) if evidence else {}
counts = Counter(found[e.id][0] if e.id in found else "open" for e in entries)
paste("equations_total", str(len(entries)))
paste("equations_counts", ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
report.data("ledger/equations", rows=len(entries), sha256=fingerprint("ledger/equations"))
report.metric("entries", len(entries), n=len(entries))
for name, n in counts.items():
    report.metric(f"outcome/{name}", n, n=len(entries))

# %% [markdown]
# Entries: {glue:text}`equations_total:s`.
# Outcomes: {glue:text}`equations_counts:s`.
#
# The buttons above the table choose an outcome.
# The third column leads to the place that treats the statement; the table at the end of that chapter leads back here.


# %% tags=["hide-input"]
def cell(text):
    return " ".join(text.split()).replace("|", r"\|")


def formula(entry):
    """The formula on one line, with `|` spelt out because it would end a table cell."""
    latex = " ".join(entry.latex.split()).replace(r"\|", r"\Vert ").replace("|", r"\vert ")
    return f"{cell(entry.statement)} ${latex}$" if latex else cell(entry.statement)


rows = {}
for e in entries:
    outcome, evidence_text = found.get(e.id, ("open", ""))
    place = f"{{eq}}`eq-{e.equation}`" if e.equation else f"{{doc}}`{e.chapter}`"
    rows[f'<span id="entry-{e.id}">{e.id}</span>'] = {
        "outcome": f'<a href="errata.html#erratum-{e.id}">{outcome}</a>' if e.printed else outcome,
        "where": place,
        "statement": formula(e),
        "evidence": cell(evidence_text),
        "source": cell(e.source),
        "code": f"`{e.code}`" if e.code else "",
    }
table = pd.DataFrame(rows).T
table.index.name = "entry"
paste_table("equations", table, "Equations and quantitative statements of the sources.")

# %% [markdown]
# ```{glue:md} equations
# :format: myst
# ```

# %% tags=["hide-input"]
report.close()
