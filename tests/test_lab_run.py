"""The runner and the freshness test, on a small project of its own."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from gliznet.lab import freshness, notebooks, records, run
from gliznet.lab.profiles import load_profile

REPOSITORY = Path(__file__).parents[1]

TRAIN = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% [markdown]
# # Training

# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"
seed: int = 1
rate: float = 0.5
labels = ["a", "b"]
fail: bool = False

# %%
from pathlib import Path
from gliznet import GliZNetConfig
from gliznet.data import corpus
from gliznet.lab.records import Reporter
report = Reporter(out)
print("seed", seed)

# %%
print("folder", Path.cwd() / "notebooks")
assert not fail, "asked to fail"

# %%
report.metric("score", seed * rate, low=0.0, high=9.0, n=2, interval="all values")
report.data("toy", rows=2, sha256="0" * 64)
report.cost("steps", 3)
report.outcome("math-1", "verified", evidence="equal")
report.close()
"""

READ = """\
# %% tags=["parameters"]
out: str = ""
profile: str = "smoke"

# %%
from gliznet.lab import records
print(records.load(profile)["train/s2"].metrics["score"].value)
"""

# What the notebooks import, under the names of the real package, which is what they execute.
PACKAGE = {
    "__init__.py": "from gliznet.config import GliZNetConfig\nfrom gliznet.model import Model\n",
    "config.py": "def loss():\n    from gliznet.losses import loss\n",
    "losses.py": '"""Losses."""\nSCALE = 2\n\ndef f(x):\n    """Double."""\n    return SCALE * x\n',
    "model.py": "import gliznet.config\n",
    "data/__init__.py": "",
    "data/corpus.py": "import gliznet.lab\n",
    "data/loading.py": "",
    "data/registry.yaml": "{}\n",
    "data/corpus/train.jsonl": "{}\n",
    "lab/__init__.py": "import gliznet.model\n",
    "lab/run.py": "",
    "peers/__init__.py": "",
    "peers/other.py": "import gliznet.config\n",
    "peers/other.yaml": "{}\n",
}


class Project:
    """A repository with two notebooks and a profile `toy`."""

    def __init__(self, root: Path):
        self.root = root
        self.write("notebooks/train.py", TRAIN)
        self.write("notebooks/read.py", READ)
        for path, text in PACKAGE.items():
            self.write(f"gliznet/{path}", text)
        self.profile(
            {"notebook": "train", "id": "s2", "chapter": True, "parameters": {"seed": 2}},
            {"notebook": "read", "needs": ["train/s2"]},
        )

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def profile(self, *entries: dict) -> None:
        text = yaml.safe_dump({"description": "A toy.", "entries": list(entries)})
        self.write("notebooks/profiles/toy.yaml", text)

    def run(self, *options: str) -> int:
        return run.main(["--profile", "toy", *options])

    def stale(self) -> dict[str, list[str]]:
        return {k: v for k, v in freshness.status("toy", self.root).items() if v}

    def path(self, name: str) -> Path:
        return self.root / "results" / "toy" / name


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A project that has run once; tests copy it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.chdir(project.root)
        assert project.run() == 0
    return project


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Project:
    """A project that has run once, to change at will."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    # Else a subprocess would import the project's own gliznet, which is only there to be hashed.
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.chdir(tmp_path)
    copy = Project.__new__(Project)
    copy.root = tmp_path
    return copy


@pytest.fixture
def executions(monkeypatch) -> list[str]:
    """The keys of the entries that were executed; nothing is."""
    calls = []

    def note(entry, root, discard=False):
        calls.append(entry.key)
        return 0.0

    monkeypatch.setattr(run, "run_entry", note)
    return calls


def test_record_holds_inputs_results_and_environment(project):
    record = records.load("toy")["train/s2"]
    assert record.parameters == {
        "profile": "toy", "seed": 2, "rate": 0.5, "labels": ["a", "b"], "fail": False,
    }  # fmt: skip
    assert record.metrics["score"].value == 1.0
    assert (record.data[0].rows, record.costs) == (2, {"steps": 3.0})
    assert record.outcomes["math-1"].evidence == "equal"
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record.hardware.cores == os.cpu_count()
    assert 5 < record.peak_memory_mib < 2000
    assert not project.path("runs/train/s2/report.json").exists()


def test_a_reader_gets_what_earlier_entries_found(project):
    book = nbformat.read(project.path("notebooks/read.ipynb"), as_version=4)
    assert book.cells[-1].outputs[0].text == "1.0\n"


def test_stored_notebook_is_clean(project):
    path = project.path("runs/train/s2/notebook.ipynb")
    assert path.read_bytes() == project.path("notebooks/train.ipynb").read_bytes()
    stored = json.loads(path.read_text())
    assert [c["id"] for c in stored["cells"]] == [f"train-{i:03d}" for i in range(6)]
    assert stored["metadata"]["papermill"] == {
        "parameters": {"seed": 2, "out": "results/toy/runs/train/s2", "profile": "toy"}
    }
    assert all(cell["metadata"].keys() <= {"tags"} for cell in stored["cells"])
    assert "folder notebooks" in path.read_text()
    for file in project.root.glob("results/**/*.*"):
        assert "gliznet-" not in file.read_text() and "/finished" not in file.read_text()


def test_two_runs_give_the_same_bytes(project):
    names = ["runs/train/s2/notebook.ipynb", "notebooks/read.ipynb"]
    before = [project.path(name).read_bytes() for name in names]
    assert project.run("--force") == 0
    assert [project.path(name).read_bytes() for name in names] == before


def test_second_run_skips(project, executions, capsys):
    dates = {p: p.stat().st_mtime_ns for p in project.root.glob("results/**/*")}
    assert project.run() == 0
    assert executions == []
    assert "[1/2] train/s2 … fresh, skipped\n[2/2] read … fresh" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in project.root.glob("results/**/*")} == dates
    assert project.run("--check") == 0


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("notebooks/train.py", '"seed", seed', '"Seed", seed', {"train/s2"}),
        ("notebooks/profiles/toy.yaml", "seed: 2", "seed: 3", {"train/s2"}),
        ("notebooks/train.py", "rate: float = 0.5", "rate: float = 0.25", {"train/s2"}),
        ("gliznet/losses.py", "SCALE = 2", "SCALE = 3", {"train/s2"}),
        ("results/toy/runs/train/s2/record.json", '"value": 1.0', '"value": 1.5', {"read"}),
        ("results/toy/notebooks/read.ipynb", ".value", ".n", {"read"}),
        ("results/toy/notebooks/read.ipynb", '_count": 3', '_count": 4', {"read"}),
        ("results/toy/notebooks/read.ipynb", '"stdout"', '"stderr"', {"read"}),
        ("results/toy/notebooks/read.record.json", 'version": 1', 'version": 0', {"read"}),
        ("notebooks/profiles/toy.yaml", "needs:\n  - train/s2", "needs: []", {"read"}),
    ],
)  # fmt: skip
def test_a_change_of_inputs_or_results_is_stale(project, executions, path, old, new, stale):
    project.edit(path, old, new)
    assert set(project.stale()) == stale
    assert project.run("--check") == 1
    project.run()
    assert set(executions) == stale


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("gliznet/losses.py", '"""Double."""', '"""Twice it."""'),
        ("gliznet/losses.py", "SCALE * x", "(SCALE\n            * x)  # scaled"),
        ("gliznet/losses.py", '"""Losses."""', "# Losses"),
        ("notebooks/train.py", "# # Training", "# # How we train"),
        ("results/toy/runs/train/s2/record.json", '"wall_seconds": ', '"wall_seconds": 1'),
    ],
)
def test_comments_docstrings_prose_and_timings_are_not(project, path, old, new):
    project.edit(path, old, new)
    assert project.stale() == {}


@pytest.mark.parametrize(
    "path",
    [
        "lab/run.py",  # plumbing
        "cli.py",
        "__init__.py",  # names only
        "model.py",  # exported, but not to this notebook
        "peers/other.py",  # imports what the notebook imports
        "peers/other.yaml",
        "data/loading.py",  # beside a module that is used
        "data/README.md",
        "data/registry.yaml",  # the records have fingerprints of the data
    ],
)
def test_what_a_notebook_does_not_run_is_not_hashed(project, path):
    project.write(f"gliznet/{path}", "from gliznet.config import GliZNetConfig\n")
    assert project.stale() == {}


@pytest.mark.parametrize(
    "path", ["config.py", "data/__init__.py", "data/corpus.py", "data/corpus/train.jsonl"]
)
def test_what_a_notebook_imports_is_hashed_with_the_data_beside_it(project, path):
    project.write(f"gliznet/{path}", "x = 1\n")
    assert set(project.stale()) == {"train/s2"}
    assert project.stale()["train/s2"] == ["package changed"]


def test_data_are_compared_where_available(project):
    known = {"toy": "0" * 64}
    assert not any(freshness.status("toy", project.root, known.get).values())
    assert not any(freshness.status("toy", project.root, lambda name: None).values())
    known["toy"] = "1" * 64
    assert freshness.status("toy", project.root, known.get)["train/s2"] == ["data set toy changed"]


def test_evidence_files_are_compared(project):
    project.write("results/toy/runs/train/s2/predictions.parquet", "x")
    path = project.path("runs/train/s2/record.json")
    record = json.loads(path.read_text())
    record["files"] = {"predictions.parquet": records.sha256("x")}
    path.write_text(json.dumps(record))
    (entry, _) = load_profile("toy", project.root)
    assert freshness.entry_status(entry, project.root) == []
    project.write("results/toy/runs/train/s2/predictions.parquet", "y")
    assert freshness.entry_status(entry, project.root) == ["file predictions.parquet changed"]


def test_a_result_that_the_profile_does_not_list_is_found(project):
    shutil.copytree(project.path("runs/train/s2"), project.path("runs/train/s9"))
    assert set(project.stale()) == {"results/toy/runs/train/s9/record.json"}
    assert set(records.load("toy")) == {"train/s2", "read"}


def test_package_hash_is_the_same_under_every_python(project):
    """Evidence made under one version stays fresh under the next: the value is written down."""
    code = PACKAGE["losses.py"] + 'NAME = f"{SCALE!r:>3}"\n\n\nclass A:\n    pass\n'
    project.write("gliznet/losses.py", code)
    (entry, _) = load_profile("toy", project.root)
    source = notebooks.read_source(entry, project.root)
    assert freshness.package_hash(source, project.root)[:16] == "31970e888245d63b"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sede": 1}, "unknown parameters ['sede']"),
        ({"seed": "1"}, "'seed' = '1' is str, not int"),
        ({"seed": True}, "'seed' = True is bool, not int"),
        ({"fail": 1}, "'fail' = 1 is int, not bool"),
        ({"rate": True}, "'rate' = True is bool, not float"),
        ({"rate": "1e-5"}, "write 1.0e-5"),
        ({"labels": "a"}, "'labels' = 'a' is str, not list"),
        ({"out": "x"}, "'out' is set by the runner"),
        ({"rate": None}, "is NoneType, not float"),
    ],
)
def test_bad_parameters_are_refused_before_anything_runs(
    project, executions, capsys, parameters, message
):
    # The bad entry is the last one: the first must not have run either.
    project.profile({"notebook": "read"}, {"notebook": "train", "parameters": parameters})
    assert project.run("--force") == 1
    assert executions == []
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: int = 1", "seed: int = ...", "'seed' is required"),
        ('tags=["parameters"]', "", "0 cells are tagged parameters"),
        ('profile: str = "smoke"\n', "", "must declare profile"),
        ("seed: int = 1", "seed: int = len('a')", "must be a literal"),
        ("seed: int = 1", "import os", "is no default"),
    ],
)
def test_bad_parameters_cells_are_refused(project, executions, capsys, old, new, message):
    project.edit("notebooks/train.py", old, new)
    project.profile({"notebook": "train"})
    assert project.run() == 1
    assert executions == []
    assert message in capsys.readouterr().err


def test_types_that_are_accepted(project):
    project.edit("notebooks/train.py", "seed: int = 1", "seed: int = ...\nany_ = None")
    project.profile({"notebook": "train", "parameters": {"rate": 2, "seed": 3, "any_": "x"}})
    (entry,) = load_profile("toy", project.root)
    found = notebooks.resolve_parameters(notebooks.read_source(entry, project.root), entry)
    assert (found["rate"], found["seed"], found["any_"]) == (2.0, 3, "x")
    assert type(found["rate"]) is float


def test_a_failed_notebook_leaves_no_result(project, capsys):
    project.edit("notebooks/profiles/toy.yaml", "seed: 2", "fail: true")
    project.write("results/toy/runs/train/s2/checkpoint-old", "of other inputs")
    assert project.run() == 1
    error = capsys.readouterr().err
    assert "asked to fail" in error and "assert not fail" in error
    # Checkpoints of other inputs are gone; what this run wrote stays for the next call.
    left = {path.name for path in project.path("runs/train/s2").iterdir()}
    assert left == {".inputs", "report.json"}


def test_stderr_and_a_forgotten_close_are_failures(project, capsys):
    project.profile({"notebook": "train"})
    project.edit(
        "notebooks/train.py", 'print("seed", seed)', "import sys; print(1, file=sys.stderr)"
    )
    assert project.run() == 1
    assert "text on stderr" in capsys.readouterr().err
    project.edit("notebooks/train.py", "file=sys.stderr", "")
    project.edit("notebooks/train.py", "report.close()", "")
    assert project.run() == 1
    assert "report.close()" in capsys.readouterr().err
    assert not project.path("notebooks/train.record.json").exists()


def test_killed_in_mid_run_it_resumes_from_its_checkpoint(project):
    slow = "import time\n(report.out / 'checkpoint').open('a').write('x')\n"
    slow += "steps = len((report.out / 'checkpoint').read_text())\n"
    slow += "time.sleep(60 if steps == 1 else 0)\nprint('steps', steps)\n"
    project.edit("notebooks/train.py", 'print("seed", seed)\n', slow)
    command = [sys.executable, "-m", "gliznet.lab.run", "--profile", "toy"]
    process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.DEVNULL)
    checkpoint = project.path("runs/train/s2/checkpoint")
    deadline = time.monotonic() + 180  # a kernel that starts on a busy machine
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not project.path("runs/train/s2/record.json").exists()
    assert project.run("--only", "train/s2") == 0
    assert "steps 2" in project.path("notebooks/train.ipynb").read_text()
    assert "train/s2" not in project.stale()
    # The run is complete: what is left in its folder is no interrupted run.
    assert not project.path("runs/train/s2/.inputs").exists()


def test_prose_flows_in_without_running(project, executions, capsys):
    before = json.loads(project.path("notebooks/train.ipynb").read_text())
    project.edit(
        "notebooks/train.py", "# # Training\n", "# # How we train\n\n# %% [markdown]\n# New.\n"
    )
    project.edit("notebooks/train.py", '# %%\nprint("folder"', '# %% tags=["hide"]\nprint("folder"')
    assert project.run() == 0
    assert executions == []
    assert "train/s2 … fresh, prose updated" in capsys.readouterr().out
    after = json.loads(project.path("notebooks/train.ipynb").read_text())
    assert [c["source"] for c in after["cells"][:2]] == [["# How we train"], ["New."]]
    assert after["cells"][5]["metadata"]["tags"] == ["hide"]

    def code(book):
        cells = [c for c in book["cells"] if c["cell_type"] == "code"]
        return [(c["source"], c["outputs"], c["execution_count"]) for c in cells]

    assert code(after) == code(before)
    assert after["metadata"] == before["metadata"]
    assert project.stale() == {}


def test_render_only_runs_nothing_and_lists_gaps(project, executions, capsys):
    project.edit("notebooks/train.py", "# # Training", "# # How we train")
    project.edit("notebooks/read.py", ".value", ".n")
    project.path("notebooks/train.ipynb").unlink()
    project.profile(
        {"notebook": "train", "id": "s2", "chapter": True, "parameters": {"seed": 2}},
        {"notebook": "train", "id": "s3", "parameters": {"seed": 3}},
        {"notebook": "read", "needs": ["train/s2"]},
    )
    assert project.run("--render-only") == 0
    assert executions == []
    out = capsys.readouterr().out
    assert "train/s3: no record" in out and "read: code cells of the notebook changed" in out
    assert "train/s2" not in out.replace("train/s2'", "")
    assert "How we train" in project.path("notebooks/train.ipynb").read_text()


def test_only_selects_by_key_or_notebook_and_refuses_a_missing_need(project, executions, capsys):
    assert project.run("--force", "--only", "train", "read") == 0
    assert executions == ["train/s2", "read"]
    assert project.run("--only", "trian") == 1
    assert "no such entry" in capsys.readouterr().err


def test_a_need_without_record_is_refused(project, capsys):
    project.path("runs/train/s2/record.json").unlink()
    assert project.run("--only", "read") == 1
    assert "needs train/s2, not yet run" in capsys.readouterr().err


def test_list_prints_entries(project, capsys):
    assert project.run("--list") == 0
    assert capsys.readouterr().out == "train/s2\nread ← train/s2\n"


def test_plumbing_names_no_model_library():
    """Only the modules that show models or fingerprint data know torch or transformers."""
    naming = set()
    for path in (REPOSITORY / "gliznet" / "lab").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {module.split(".")[0] for module in modules} & {"torch", "transformers"}:
                naming.add(path.name)
    assert naming <= {"fingerprints.py", "figures.py", "readme.py"}
    assert "figures.py" in naming, "the search finds nothing: figures.py imports transformers"


def test_snakemake_orders_what_is_not_fresh(project):
    pytest.importorskip("snakemake")
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(REPOSITORY / "Snakefile")]
    command += ["--config", "profile=toy", "--cores", "1"]

    def planned() -> str:
        done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "run_" not in planned()
    project.path("runs/train/s2/record.json").unlink()
    plan = planned()
    # Missing, and behind a missing one: both are jobs, the second waits for the first.
    assert "train/s2 -> results/toy/runs/train/s2/record.json" in plan
    job = plan[plan.index("read -> results/toy/notebooks/read.record.json") :]
    assert "input: .snakemake/gliznet/toy/train/s2.done" in job.replace("\n", " ")
