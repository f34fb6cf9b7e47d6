"""The book: configuration, contents, notebooks executed afresh, and the gate that builds it and
reads every page."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jsonschema
import jupyter_book
import jupytext
import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock

from gliznet.lab import ledger

ROOT = Path(__file__).parents[1]


def contents() -> list[str]:
    """Every page of the table of contents, the first page included, without suffix."""
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))

    def files(node):
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield value
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    return list(files(toc))


def chapters() -> list[str]:
    return [Path(page).name for page in contents() if page.startswith("chapters/")]


# --- configuration -------------------------------------------------------------------------------


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def strict_schema() -> dict:
    """Jupyter Book's schema, which lets any key pass, with unknown keys forbidden."""

    def tighten(node):
        if isinstance(node, dict):
            if "properties" in node:
                node["additionalProperties"] = False
            for value in node.values():
                tighten(value)
        return node

    path = Path(jupyter_book.__file__).parent / "config_schema.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    # A valid key that the schema of 1.0.4 forgets.
    schema["properties"]["only_build_toc_files"] = {"type": "boolean"}
    return tighten(schema)


def test_config_has_only_known_keys():
    jsonschema.validate(config(), strict_schema())


@pytest.mark.parametrize(
    "typo",
    [
        {"only_buid_toc_files": True},
        {"execute": {"execute_notebooks": "off", "timeot": 3}},
        {"sphinx": {"confg": {}}},
        {"html": {"comments": {"utterence": True}}},
        {"only_build_toc_files": "yes"},
    ],
)
def test_strict_schema_refuses_typos(typo):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config(), **typo}, strict_schema())


def test_sphinx_knows_every_option():
    # Sphinx ignores an option it does not know, so a typo would go unseen.
    program = (
        "import json, sys, tempfile\n"
        "from sphinx.application import Sphinx\n"
        "options = json.loads(sys.argv[1])\n"
        "with tempfile.TemporaryDirectory() as out:\n"
        "    extensions = [e for e in options['extensions'] if e not in sys.argv[3:]]\n"
        "    app = Sphinx(sys.argv[2], None, out, out, 'html', status=None, warning=None,\n"
        "        confoverrides={'extensions': extensions, 'external_toc_path': '_toc.yml',\n"
        "                       'html_theme': 'sphinx_book_theme',\n"
        "                       'bibtex_bibfiles': ['references.bib']})\n"
        "    known = [*app.config.values, 'extensions']\n"
        "    print(json.dumps([o for o in options if o not in known]))\n"
    )
    options = {**config()["sphinx"]["config"], "nb_output_stder": "planted typo"}
    local = list(config()["sphinx"]["local_extensions"])
    command = [sys.executable, "-c", program, json.dumps(options), str(ROOT / "book"), *local]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["nb_output_stder"]


def test_jupyter_book_is_version_1():
    # Version 2 ignores _config.yml, builds nothing and exits 0.
    assert jupyter_book.__version__.split(".")[0] == "1"


# --- contents ------------------------------------------------------------------------------------


def test_every_page_and_notebook_is_in_the_contents_once():
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.py")}
    pages = {path.stem for path in (ROOT / "book").glob("*.md")}
    listed = contents()
    assert len(listed) == len(set(listed)), "a page is listed twice"
    assert set(chapters()) == notebooks
    assert {page for page in listed if "/" not in page} == pages


def test_ledger_entries_name_a_chapter():
    entries = ledger.load(ROOT)
    assert entries
    for entry in entries:
        assert entry.chapter in chapters(), f"{entry.id}: no chapter {entry.chapter!r}"


# --- notebooks executed afresh -------------------------------------------------------------------


def nbmake(folder: Path, *options: str) -> subprocess.CompletedProcess:
    where = ["-c", os.devnull, "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=240", "-q", *where]
    return subprocess.run([*command, *options], capture_output=True, text=True, cwd=folder)


def once(tmp_path_factory, name: str, make: Callable[[Path], str]) -> tuple[Path, str]:
    """A folder that `make` fills and what it said; once per test session, whatever the workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    log = folder / "log"
    with FileLock(f"{folder}.lock"):
        if not log.is_file():
            folder.mkdir(exist_ok=True)
            log.write_text(make(folder), encoding="utf-8")
    return folder, log.read_text(encoding="utf-8")


def execute_fresh_conversions(folder: Path) -> str:
    # nbmake runs a notebook in its own folder; what notebooks read lies beside it, as in a clone.
    for name in ("notebooks", "book", "results"):
        (folder / name).symlink_to(ROOT / name)
    fresh = folder / "fresh"
    fresh.mkdir()
    for source in (ROOT / "notebooks").glob("*.py"):
        nbformat.write(jupytext.read(source), fresh / f"{source.stem}.ipynb")
    done = nbmake(fresh, "--overwrite")
    return f"exit status {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> tuple[Path, str]:
    """Folder of the notebooks, executed with their own parameters cells (smoke), and the log."""
    folder, log = once(tmp_path_factory, "nbmake", execute_fresh_conversions)
    return folder / "fresh", log


def test_fresh_conversions_run_under_nbmake(executed):
    assert executed[1].startswith("exit status 0\n"), executed[1]


def test_a_failing_notebook_would_be_seen(tmp_path):
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    assert nbmake(tmp_path).returncode == 1


# --- the gate ------------------------------------------------------------------------------------


def build(folder: Path, notebooks: Path) -> subprocess.CompletedProcess:
    """Copy the book and its chapters to `folder` and build it, warnings as errors."""
    shutil.copy(ROOT / "_config.yml", folder / "_config.yml")
    ignore = shutil.ignore_patterns("chapters", "_build", "__pycache__")
    shutil.copytree(ROOT / "book", folder / "book", ignore=ignore)
    (folder / "book" / "chapters").mkdir()
    for name in chapters():
        shutil.copy(notebooks / f"{name}.ipynb", folder / "book" / "chapters")
    return jupyter_book_build(folder)


def jupyter_book_build(folder: Path) -> subprocess.CompletedProcess:
    """Build the book in `folder` with every warning an error, and without a network."""
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", "book", "-n", "-W", "--keep-going"]
    # A dead proxy: a build that fetches anything fails here.
    dead = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://[::]:9"
    )
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, **dead}
    )


@pytest.fixture(scope="session")
def site(tmp_path_factory, request) -> Path:
    """The built book: of the committed evidence if that is complete, else of a fresh execution."""
    notebooks = ROOT / "results" / "bench" / "notebooks"
    if not all((notebooks / f"{name}.ipynb").is_file() for name in chapters()):
        notebooks, _ = request.getfixturevalue("executed")

    def make(folder: Path) -> str:
        done = build(folder, notebooks)
        return f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"

    folder, log = once(tmp_path_factory, "book-gate", make)
    assert log.startswith("exit status 0\n"), log
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def html(site) -> dict[str, BeautifulSoup]:
    """Every built page, parsed, by its path in the site."""
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }


def broken_links(html: dict[str, BeautifulSoup], site: Path) -> list[str]:
    """Internal references of the pages whose file or anchor does not exist."""
    anchors = {
        page: {tag["id"] for tag in soup.find_all(id=True)}
        | {tag["name"] for tag in soup.find_all("a", attrs={"name": True})}
        for page, soup in html.items()
    }
    broken = []
    for page, soup in html.items():
        for tag in soup.find_all(["a", "link", "img", "script", "source", "iframe"]):
            target = tag.get("href") or tag.get("src") or ""
            parts = urlsplit(target)
            if not target or parts.scheme or parts.netloc:
                continue
            path = (site / page).parent / unquote(parts.path) if parts.path else site / page
            name = os.path.relpath(path, site).replace(os.sep, "/")
            anchor = unquote(parts.fragment)
            has_anchor = not anchor or tag.name != "a" or anchor in anchors.get(name, {anchor})
            if not path.is_file() or not has_anchor:
                broken.append(f"{page}: {target}")
    return broken


def images_without_alt(html: dict[str, BeautifulSoup]) -> list[str]:
    """Images in the article of a page that have no alternative text, or only their file's name."""
    bad = []
    for page, soup in html.items():
        for image in soup.select("article img"):
            alt = image.get("alt", "").strip()
            if not alt or alt == image.get("src", "") or re.fullmatch(r"\S+\.(png|svg)", alt):
                bad.append(f"{page}: {image.get('src')}")
    return bad


def external_requests(html: dict[str, BeautifulSoup], site: Path) -> list[str]:
    """What a browser would fetch from elsewhere when it opens a page."""
    elsewhere = re.compile(r"^(?:https?:)?//")
    found = []
    for page, soup in html.items():
        for tag in soup.find_all(["script", "img", "iframe", "source", "video", "audio", "embed"]):
            if elsewhere.match(tag.get("src", "")):
                found.append(f"{page}: {tag['src']}")
        for tag in soup.find_all("link"):
            fetched = {"stylesheet", "preload", "icon", "modulepreload", "prefetch", "preconnect"}
            if elsewhere.match(tag.get("href", "")) and fetched & set(tag.get("rel", [])):
                found.append(f"{page}: {tag['href']}")
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", text):
            found.append(f"{sheet.relative_to(site)} imports from elsewhere")
    return found


def test_first_page_exists(site):
    # Jupyter Book has been known to build nothing and exit 0.
    assert (site / "index.html").is_file()
    for page in contents():
        assert (site / f"{page}.html").is_file(), page


def test_every_internal_link_resolves(html, site):
    assert broken_links(html, site) == []


def test_every_image_has_an_alternative_text(html):
    assert any(soup.select("article img") for soup in html.values())
    assert images_without_alt(html) == []


def test_pages_fetch_nothing_from_elsewhere(html, site):
    assert external_requests(html, site) == []


def test_mathematics_is_drawn_by_the_local_copy(html, site):
    sources = {tag["src"].split("?")[0] for tag in html["notation.html"].select("script[src]")}
    assert "_static/mathjax/tex-mml-chtml.js" in sources
    fonts = site / "_static" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2"
    assert len(list(fonts.glob("*.woff"))) > 20


def test_bibliography_roles_are_valid(html):
    entries = html["bibliography.html"].select("[role=list] > [role]")
    assert entries
    assert {entry["role"] for entry in entries} == {"listitem"}


def test_no_page_shows_a_traceback_or_an_unrendered_role(html):
    for page, soup in html.items():
        article = soup.select_one("article")
        if article is None:
            continue
        for shown in article.select("pre, code, script"):
            shown.extract()
        text = article.get_text()
        assert "Traceback (most recent call last)" not in text, page
        assert not re.search(r"\{[a-z:]+\}`", text), page


def test_page_checks_find_planted_faults(tmp_path):
    (tmp_path / "b.html").write_text("<p id='here'></p>")
    page = (
        "<article><a href='b.html#here'>1</a><a href='b.html#gone'>2</a><a href='c.html'>3</a>"
        "<a href='#no'>4</a><img src='x.png' alt=''><img src='b.html' alt='a picture'></article>"
        "<script src='https://cdn.example/x.js'></script><link rel='stylesheet' href='//f.example'>"
    )
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "s.css").write_text("@import url(https://f.example/f.css);")
    html = {
        name: BeautifulSoup((tmp_path / name).read_text(), "html.parser")
        for name in ("a.html", "b.html")
    }
    assert [link.split(": ")[1] for link in broken_links(html, tmp_path)] == [
        "b.html#gone",
        "c.html",
        "#no",
        "x.png",
    ]
    assert images_without_alt(html) == ["a.html: x.png"]
    assert len(external_requests(html, tmp_path)) == 3


def test_gate_stops_planted_faults(site, tmp_path):
    # On the built copy, so that only the changed page is read again.
    folder = tmp_path / "copy"
    shutil.copytree(site.parents[1], folder)
    faults = {
        "no_such_key": f"{{glue:text}}`chapters/{chapters()[0]}.ipynb::no_such_key:s`",
        "nobody1900": "{cite}`nobody1900`",
        "nowhere": "{doc}`nowhere`",
        "eq-nothing": "{eq}`eq-nothing`",
    }
    with (folder / "book" / "notation.md").open("a", encoding="utf-8") as stream:
        stream.write("\n" + "\n\n".join(faults.values()) + "\n")
    done = jupyter_book_build(folder)
    assert done.returncode != 0
    for name in faults:
        assert name in done.stdout + done.stderr
