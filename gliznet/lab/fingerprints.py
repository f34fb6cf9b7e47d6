"""Fingerprints of the data that runs read, for the freshness check."""

import hashlib
from functools import cache

from gliznet.data.corpus import SPLITS, hardset_mini
from gliznet.data.loading import available, load
from gliznet.data.registry import registry
from gliznet.data.types import examples_sha256
from gliznet.lab import records
from gliznet.lab.profiles import find_root


@cache
def fingerprint(name: str) -> str | None:
    """sha256 of data by the name that notebooks report, None where it is not on this machine.

    Known names: `hardset-mini/SPLIT`, `SET/WORDING` of the registry, `records:PROFILE`,
    `ledger/equations`.
    """
    kind, _, rest = name.partition("/")
    if kind == "hardset-mini" and rest in SPLITS:
        return examples_sha256(list(hardset_mini(rest)))
    if kind in registry() and rest in ("readable", "published") and available(kind):
        return load(kind, rest).sha256
    if name == "ledger/equations":
        return records.file_sha256(find_root() / "book" / "ledger" / "equations.yaml")
    if name.startswith("records:"):
        return records_sha256(name.removeprefix("records:"))[1]
    return None


def records_sha256(profile: str, notebook: str = "evaluate") -> tuple[int, str]:
    """Number and joint fingerprint of the records of one notebook in a profile."""
    found = sorted(
        f"{key}:{record.result_hash()}"
        for key, record in records.load(profile).items()
        if record.notebook == notebook
    )
    return len(found), hashlib.sha256("".join(found).encode()).hexdigest()
