"""Everything here runs the real stable-diffusion.cpp on tiny models that are made on the spot.

Where its binding is not installed these tests are skipped, and say so; with TEST_SDCPP=required, as in the gate, they fail.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from node.engine_names import EngineName
from node.models import Models, find_models
from tests.node.conftest import written

MISSING = "stable-diffusion-cpp-python is not installed: pip install -e '.[sdcpp]'"


@pytest.fixture(scope="session")
def sdcpp_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with ovis, klein, ovis-q8 and ovis-q4. Tests copy what they change."""
    if find_spec("stable_diffusion_cpp") is None:
        if os.environ.get("TEST_SDCPP") == "required":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return written("tiny_sdcpp", tmp_path_factory)


@pytest.fixture(scope="session")
def sdcpp_models(sdcpp_files: Path) -> Models:
    """The same, as a node finds them."""
    return find_models([sdcpp_files], engines={EngineName.SDCPP})
