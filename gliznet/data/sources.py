"""Training rows by name: the shipped corpus or a mix."""

from gliznet.data.corpus import hardset_mini
from gliznet.data.loading import load
from gliznet.data.sampling import mixes, sample_mix
from gliznet.data.types import Example

CORPUS = "hardset-mini"


def training_examples(data: str, rows: int, seed: int) -> list[Example]:
    """Training rows of "hardset-mini" or of "mix:NAME".

    Args:
        data: the shipped corpus, or a mix of `mix.yaml`, whose sources must be available.
        rows: rows to draw from a mix; of the corpus its first rows, 0 for all.
        seed: of the draw from a mix.

    Raises:
        ValueError: an unknown name, or more rows than there are.
        DataUnavailable: a source of the mix is neither local nor on the Hub.
    """
    if data.startswith("mix:"):
        known = mixes()
        name = data.removeprefix("mix:")
        if name not in known:
            raise ValueError(f"no mix is called {name!r}: choose one of {', '.join(known)}")
        return sample_mix(known[name], rows, seed, load)
    if data != CORPUS:
        raise ValueError(f"data is {data!r}: choose '{CORPUS}' or 'mix:NAME'")
    corpus = list(hardset_mini("train"))
    if rows > len(corpus):
        raise ValueError(f"{rows} rows asked for, {CORPUS} has {len(corpus)} training rows")
    return corpus[:rows] if rows else corpus
