"""Notebook files: reading sources, checking parameters, composing what is stored."""

import ast
import copy
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from gliznet.lab import LabError
from gliznet.lab.profiles import Entry

INJECTED = "injected-parameters"
# The runner sets these two; every notebook declares them.
RESERVED = {"out", "profile"}


def read_source(entry: Entry, root: Path) -> NotebookNode:
    """Convert the entry's jupytext source afresh."""
    return jupytext.read(root / entry.source, fmt="py:percent")


def read_executed(entry: Entry, root: Path) -> NotebookNode | None:
    """Return the stored executed notebook, or None where there is none."""
    path = root / entry.executed
    return nbformat.read(path, as_version=4) if path.is_file() else None


def code_cells(notebook: NotebookNode) -> list[str]:
    """Return the sources of the code cells, without the one that papermill injected."""
    return [cell.source for cell in _code(notebook)]


def resolve_parameters(notebook: NotebookNode, entry: Entry) -> dict[str, Any]:
    """Return every parameter of the run except `out`: the cell's defaults, then the profile's.

    Raises LabError for a parameters cell that is missing, double or not literal, for a given
    parameter that is reserved, unknown or of another type, and for a required one not given.
    """
    declared = _declared(notebook, entry)
    for name in sorted(RESERVED):
        if not isinstance(declared.get(name), str):
            raise LabError(f'{entry.source}: the parameters cell must declare {name}: str = "…"')
        if name in entry.parameters:
            raise LabError(f"{entry.key}: {name!r} is set by the runner; take it out")
    if unknown := sorted(entry.parameters.keys() - declared.keys()):
        known = sorted(declared.keys() - RESERVED)
        raise LabError(f"{entry.key}: unknown parameters {unknown}; {entry.source} has {known}")
    resolved = declared | entry.parameters | {"profile": entry.profile}
    del resolved["out"]
    return {name: _checked(entry, name, resolved[name], declared[name]) for name in resolved}


def compose(source: NotebookNode, executed: NotebookNode, stem: str) -> NotebookNode:
    """Return the notebook to store: cells of the source, outputs and counts of the executed one.

    Nothing that differs between two equal runs is kept. Composing again with a source whose prose,
    captions or tags changed re-flows these around the kept outputs. The code cells must be equal.
    """
    injected = [cell.source for cell in executed.cells if _tagged(cell, INJECTED)]
    cells = []
    for cell in copy.deepcopy(source.cells):
        cells.append(cell)
        if _tagged(cell, "parameters"):
            tags = {"tags": [INJECTED]}
            cells += [nbformat.v4.new_code_cell(text, metadata=tags) for text in injected]
    code, ran = ([c for c in some if c.cell_type == "code"] for some in (cells, executed.cells))
    for new, old in zip(code, ran, strict=True):
        new.outputs, new.execution_count = copy.deepcopy(old.outputs), old.execution_count
    for number, cell in enumerate(cells):
        cell.id = f"{stem}-{number:03d}"
    kept = ("kernelspec", "language_info")
    metadata = {name: executed.metadata[name] for name in kept if name in executed.metadata}
    given = executed.metadata.get("papermill", {}).get("parameters", {})
    metadata["papermill"] = {"parameters": given}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)


def problems(executed: NotebookNode) -> list[str]:
    """Return why an executed notebook cannot be shown; an empty list when it can."""
    found = []
    cells = [c for c in executed.cells if c.cell_type == "code" and c.source.strip()]
    counts = [c.get("execution_count") for c in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"execution counts are {counts}, not 1 to {len(cells)}")
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{cell.id}: error output {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                found.append(f"{cell.id}: text on stderr: {output.text.strip()[:200]}")
    return found


def to_text(notebook: NotebookNode) -> str:
    """Return the notebook as it is stored."""
    return nbformat.writes(notebook, version=4) + "\n"


def scrub(node: Any, root: Path) -> Any:
    """Return a copy of JSON-like data with paths below `root` made relative; images untouched."""
    if isinstance(node, str):
        # The look-behind keeps a folder that merely ends like root, such as /mnt/<root>.
        return re.sub(rf"(?<![\w.-]){re.escape(str(root))}(/|(?![\w.-]))", "", node)
    if isinstance(node, dict):
        clean = {k: v if k.startswith("image/") else scrub(v, root) for k, v in node.items()}
        return type(node)(clean)
    return [scrub(item, root) for item in node] if isinstance(node, list) else node


def _tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code" and not _tagged(c, INJECTED)]


def _declared(notebook: NotebookNode, entry: Entry) -> dict[str, Any]:
    """Return the defaults of the parameters cell; Ellipsis for a required parameter."""
    cells = [cell for cell in _code(notebook) if _tagged(cell, "parameters")]
    if len(cells) != 1:
        raise LabError(f"{entry.source}: {len(cells)} cells are tagged parameters, not one")
    declared = {}
    for node in ast.parse(cells[0].source).body:
        text = f"{entry.source}: parameters cell: {ast.unparse(node)!r}"
        match node:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                try:
                    declared[name] = ast.literal_eval(value)
                except (ValueError, TypeError) as error:
                    raise LabError(f"{text}: the default must be a literal") from error
            case _:
                raise LabError(f"{text} is no default")
    return declared


def _checked(entry: Entry, name: str, value: Any, default: Any) -> Any:
    """Return `value`, an int made float where the default is one; None and Ellipsis as defaults
    accept any type."""
    if value is ...:
        raise LabError(f"{entry.key}: parameter {name!r} is required; give it in the profile")
    if default is None or default is ... or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    kinds = f"{type(value).__name__}, not {type(default).__name__} like its default"
    hint = " (YAML reads 1e-5 as text: write 1.0e-5)" if isinstance(default, float) else ""
    raise LabError(f"{entry.key}: parameter {name!r} = {value!r} is {kinds}{hint}")
