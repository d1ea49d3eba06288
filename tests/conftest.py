"""What every test relies on: nothing is fetched, a laptop's share of threads, and the reference data if it is there."""

import functools
import os
import ssl
from pathlib import Path

# Read by the libraries when they are imported, hence set before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# The models of the tests are tiny: more threads than this only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
from hypothesis import settings

# A busy machine is no reason for a property to fail; nor may a failure depend on the day's random seed.
settings.register_profile("triptych", deadline=None, derandomize=True)
settings.load_profile("triptych")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What trains comes first: the longest files, which one of two workers would otherwise be left alone with."""
    items.sort(key=lambda item: not item.path.name.startswith("test_training"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository (facts and golden files of the released models)."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"the reference data is not there: no folder {path.name}/ beside the repository")
    return path


@pytest.fixture(scope="module")
def one_ssl_context():
    """Each client reads all certificates, a third of the time of such tests, though no connection there needs one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A finished tiny editor, with its autoencoder; what tests add to the folder has a name of its own."""
    from edit_recipe import train_small_editor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.edit.SHEET_STEPS", 1)
        return train_small_editor(tmp_path_factory.mktemp("editor"))


@pytest.fixture
def script(monkeypatch):
    """The app's model replaced by a `Script`, and every word of it sent to the page at once."""
    from scripted_model import Script

    import app
    from pacore import panel_answers

    script = Script()
    monkeypatch.setattr(app, "load", script.load)
    monkeypatch.setattr(panel_answers, "stream_answer", script.stream)
    monkeypatch.setattr(panel_answers, "REFRESH_SECONDS", 0.0)
    return script
