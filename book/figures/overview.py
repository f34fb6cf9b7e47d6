"""Draws overview.svg: how GliZNet scores every candidate label in one pass.

Run `python book/figures/overview.py`; a test compares the file with this script's output.
"""

from pathlib import Path
from xml.sax.saxutils import escape

TEXT, LABEL, CONTROL = ("#dbe9f9", "#1d4f91"), ("#fde3c8", "#8a4300"), ("#e8e8e8", "#444444")
TOKENS = [
    [("[CLS]", 0, CONTROL), ("a", 0, TEXT), ("new", 0, TEXT), ("planet", 0, TEXT)],
    [("[SEP]", 0, CONTROL), ("space", 1, LABEL), ("travel", 1, LABEL), ("[LAB]", 0, CONTROL)],
    [("finance", 2, LABEL), ("[LAB]", 0, CONTROL)],
]
WIDTH, HEIGHT, LEFT = 600, 640, 24
FONT = "font-family='DejaVu Sans, Verdana, Arial, sans-serif'"


def box(x: int, y: int, w: int, h: int, colours: tuple[str, str]) -> str:
    """A rounded rectangle with the given fill and outline."""
    fill, line = colours
    return f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='8' fill='{fill}' stroke='{line}'/>"


def words(x: int, y: int, text: str, size: int = 18, colour: str = "#222222", end: str = "") -> str:
    """Text centred on x, or starting at x if `end` is "start"."""
    anchor = end or "middle"
    return (
        f"<text x='{x}' y='{y}' font-size='{size}' fill='{colour}' text-anchor='{anchor}' {FONT}>"
        f"{escape(text)}</text>"
    )


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """A line with an arrow head at its end."""
    return (
        f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='#444444' stroke-width='2' "
        "marker-end='url(#head)'/>"
    )


def sequence() -> list[str]:
    """The token rows with the label mask under each token."""
    parts = [words(LEFT, 30, "1. One sequence: the text, then every label", end="start")]
    for row, tokens in enumerate(TOKENS):
        y = 44 + row * 66
        for column, (token, mask, colours) in enumerate(tokens):
            x = LEFT + column * 112
            parts += [box(x, y, 102, 34, colours), words(x + 51, y + 23, token, 17, colours[1])]
            parts.append(words(x + 51, y + 53, str(mask), 16, "#444444"))
        if row == 0:
            parts.append(words(LEFT + 4 * 112 + 2, y + 53, "label mask", 16, "#444444", "start"))
    return parts


def draw() -> str:
    """The whole picture as SVG text."""
    parts = sequence()
    parts += [
        arrow(300, 242, 300, 270),
        box(LEFT, 272, WIDTH - 2 * LEFT, 44, ("#f4f4f4", "#444444")),
        words(300, 300, "2. Encoder: one forward pass over all of it"),
        arrow(160, 318, 160, 350),
        arrow(440, 318, 440, 350),
        box(LEFT, 352, 268, 84, TEXT),
        words(158, 386, "3. Text tokens", 18, TEXT[1]),
        words(158, 412, "weighted anew by each label", 16, TEXT[1]),
        box(308, 352, 268, 84, LABEL),
        words(442, 386, "3. Label embeddings", 18, LABEL[1]),
        words(442, 412, "one vector per label", 16, LABEL[1]),
        arrow(160, 438, 230, 478),
        arrow(440, 438, 370, 478),
        box(140, 480, 320, 44, ("#f4f4f4", "#444444")),
        words(300, 508, "4. Similarity, label by label"),
        arrow(300, 526, 300, 556),
        words(132, 584, "space travel", 18, LABEL[1]),
        words(132, 620, "finance", 18, LABEL[1]),
        box(216, 566, 300, 24, ("#2a6f3c", "#2a6f3c")),
        box(216, 602, 60, 24, ("#9a9a9a", "#666666")),
    ]
    head = (
        "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' "
        "markerHeight='7' orient='auto'><path d='M0 0L10 5L0 10z' fill='#444444'/></marker></defs>"
    )
    opening = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}'>"
    background = f"<rect width='{WIDTH}' height='{HEIGHT}' fill='#ffffff'/>"
    return "\n".join([opening, head, background, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
