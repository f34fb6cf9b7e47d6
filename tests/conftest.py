"""Shared test settings: no network, and the local data mirror where there is one."""

import os

# Set before any Hugging Face import, which reads it once: a test must never wait for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# The suite runs one process per core; more threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts processes of its own; part of every test run")


# Minutes each. A worker takes whole files, so these come first and the many short ones fill up.
LONG = ("test_book.py", "test_training.py", "test_lab_run.py", "test_mutants.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONG, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder that GLIZNET_DATA names; the test is skipped where it is unset."""
    folder = os.environ.get("GLIZNET_DATA")
    if not folder:
        pytest.skip("GLIZNET_DATA is unset: no local data mirror to check against")
    return Path(folder)
