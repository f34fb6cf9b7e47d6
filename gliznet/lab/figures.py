"""One look for all figures: size, palette, and what keeps the files small and repeatable."""

import warnings

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

COLOURS = {
    "math": "#0072b2",
    "card": "#d55e00",
    "untrained": "#777777",
    "published": "#009e73",
    "accent": "#cc79a7",
}
"""Colour-blind safe (Okabe and Ito); a model has the same colour in every figure."""


def use_style() -> None:
    """Opaque white figures of 100 dots per inch, thin grid, no frame above and right.

    Tables are shown whole: a row that a page leaves out cannot be checked.
    """
    pd.set_option("display.max_rows", None)
    plt.rcParams.update(
        {
            "figure.dpi": 100,
            "savefig.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.linewidth": 0.4,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
        }
    )


def quiet() -> None:
    """Silences progress bars and load reports, which would end up in executed notebooks."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def show(figure: plt.Figure) -> None:
    """Displays a figure once and closes it."""
    display(figure)
    plt.close(figure)
