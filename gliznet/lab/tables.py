"""Tables of the book. Published figures come from `results/published`, each row with its source."""

from pathlib import Path

import pandas as pd

from gliznet.lab import LabError

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


def published(name: str) -> pd.DataFrame:
    """The rows of `results/published/<name>.csv`; values stay text, as printed by the source.

    Raises LabError that lists the files there are.
    """
    path = PUBLISHED / f"{name}.csv"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in PUBLISHED.glob("*.csv")))
        raise LabError(f"no published figures {name!r}: choose one of {names}")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """A value with its bounds."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def paste_table(key: str, table: pd.DataFrame, caption: str) -> None:
    """Glues a numbered MyST table, to be shown with the directive `glue:md` in `myst` format.

    Args:
        key: glue key; the table's label is `tbl-` and the key.
        table: cells as text; the index is the first column.
        caption: says what is shown and over what the intervals are.
    """
    from IPython.display import Markdown
    from myst_nb import glue

    rows = [
        [str(table.index.name or ""), *map(str, table.columns)],
        ["---"] * (1 + table.shape[1]),
        *(
            [str(index), *map(str, row)]
            for index, row in zip(table.index, table.values, strict=True)
        ),
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = f":::{{table}} {caption}\n:name: tbl-{key}\n\n{lines}\n:::"
    glue(key, Markdown(text), display=False)


def paste(key: str, text: str) -> None:
    """Glues a piece of text, usually a formatted number, for `glue:text`."""
    from myst_nb import glue

    glue(key, text, display=False)
