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
    """Return the stored executed notebook, or None. Raises LabError if it cannot be read."""
    path = root / entry.executed
    if not path.is_file():
        return None
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises errors of several libraries
        raise LabError(f"{entry.executed} cannot be read: {error}") from error


def code_cells(notebook: NotebookNode) -> list[str]:
    """Return the sources of the code cells, without the one that papermill injected."""
    return [c.source for c in notebook.cells if c.cell_type == "code" and not _tagged(c, INJECTED)]


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
        raise LabError(
            f"{entry.key}: unknown parameters {unknown}; {entry.source} declares "
            f"{sorted(declared.keys() - RESERVED)}"
        )
    given = {**entry.parameters, "profile": entry.profile}
    resolved = {}
    for name, default in declared.items():
        if name in given:
            resolved[name] = _checked(entry.key, name, given[name], default)
        elif default is ...:
            raise LabError(f"{entry.key}: parameter {name!r} is required; give it in the profile")
        else:
            resolved[name] = default
    del resolved["out"]
    return resolved


def compose(source: NotebookNode, executed: NotebookNode, stem: str) -> NotebookNode:
    """Return the notebook to store: cells of the source, outputs and counts of the executed one.

    Nothing that differs between two equal runs is kept. Composing again with a source whose prose,
    captions or tags changed re-flows these around the kept outputs. Raises LabError when the code
    cells differ.
    """
    if code_cells(source) != code_cells(executed):
        raise LabError(f"{stem}: code cells differ from the executed ones; run the notebook again")
    done = iter([c for c in executed.cells if c.cell_type == "code" and not _tagged(c, INJECTED)])
    injected = [c for c in executed.cells if _tagged(c, INJECTED)]
    cells = []
    for cell in source.cells:
        new = copy.deepcopy(cell)
        cells.append(new)
        if cell.cell_type != "code":
            continue
        _take_outputs(new, next(done))
        if _tagged(cell, "parameters"):
            for extra in injected:
                cells.append(nbformat.v4.new_code_cell(extra.source, metadata={"tags": [INJECTED]}))
                _take_outputs(cells[-1], extra)
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
        return type(node)(
            {k: v if str(k).startswith("image/") else scrub(v, root) for k, v in node.items()}
        )
    return [scrub(item, root) for item in node] if isinstance(node, list) else node


def _tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def _take_outputs(cell: NotebookNode, executed: NotebookNode) -> None:
    """Copy outputs and count to `cell`; chunks of one stream become one, as timing splits them."""
    cell.execution_count = executed.execution_count
    cell.outputs = []
    for output in copy.deepcopy(executed.outputs):
        last = cell.outputs[-1] if cell.outputs else None
        streams = last and last.output_type == output.output_type == "stream"
        if streams and last.name == output.name:
            last.text += output.text
        else:
            cell.outputs.append(output)


def _declared(notebook: NotebookNode, entry: Entry) -> dict[str, Any]:
    """Return the defaults of the parameters cell; Ellipsis for a required parameter."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and _tagged(c, "parameters")]
    if len(cells) != 1:
        raise LabError(
            f"{entry.source}: {len(cells)} cells are tagged parameters; one is needed: "
            '# %% tags=["parameters"]'
        )
    declared = {}
    for node in ast.parse(cells[0].source).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        else:
            target = node.target if isinstance(node, ast.AnnAssign) and node.value else None
        if not isinstance(target, ast.Name):
            raise LabError(f"{entry.source}: parameters cell: {ast.unparse(node)!r} is no default")
        try:
            default = ast.literal_eval(node.value)
        except ValueError as error:
            raise LabError(
                f"{entry.source}: the default of {target.id!r} must be a literal, not "
                f"{ast.unparse(node.value)}"
            ) from error
        declared[target.id] = default
    return declared


def _checked(key: str, name: str, value: Any, default: Any) -> Any:
    """Return `value`, an int made float where the default is one. Raises LabError on another type.

    No default (None) and a required parameter (Ellipsis) accept any type.
    """
    if default is None or default is ... or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    hint = ""
    if isinstance(default, float) and isinstance(value, str):
        hint = " (YAML reads 1e-5 as text: write 1.0e-5)"
    raise LabError(
        f"{key}: parameter {name!r} = {value!r} is {type(value).__name__}, not "
        f"{type(default).__name__} like its default{hint}"
    )
