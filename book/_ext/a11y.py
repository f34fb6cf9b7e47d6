"""Accessibility: makes the HTML of docutils' bibliographies agree with WAI-ARIA.

docutils writes `role="list"` around children of role `doc-biblioentry`, which is no list item.
"""

import re
from typing import Any

_ENTRY = re.compile(r'role="doc-biblioentry"')


def mark_bibliography_entries(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give each bibliography entry of a page the role `listitem` (handler of html-page-context)."""
    if context.get("body"):
        context["body"] = _ENTRY.sub('role="listitem"', context["body"])


def setup(app: Any) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("html-page-context", mark_bibliography_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
