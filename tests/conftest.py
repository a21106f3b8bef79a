"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stsb_data() -> Path:
    """The folder of data sets named by TWINLINE_DATA; tests that need it are skipped without."""
    folder = os.environ.get("TWINLINE_DATA")
    if not folder:
        pytest.skip("TWINLINE_DATA is not set: no real STS-B here")
    return Path(folder)
