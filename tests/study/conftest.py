"""What the tests of a study share."""

from pathlib import Path
from typing import Any

import pytest
from tiny import grid_of

from twinline.study import run as run_module
from twinline.study.plan import run_grid


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Results of the tiny grid, whose first run was stopped in a test and in a stage."""
    folder = tmp_path_factory.mktemp("study")
    grid = grid_of(folder, tiny_bert)
    score = run_module.score
    calls = 0

    def stopped(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return score(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, folder / "results", folder / "work")
    left = folder / "results" / "tiny" / "hybrid-latent-0.jsonl"
    before = left.read_text()
    assert '"split": "test"' not in before
    done = run_grid(grid, folder / "results", folder / "work")
    assert done == [
        "hybrid-latent-0", "hybrid-sentence-0", "softmax-windows512-sentence-0",
        "softmax-windows512-mean-0", "softmax-full-mean-0", "linear-real-mean-0",
        "hybrid-latent-1", "hybrid-sentence-1",
    ]  # fmt: skip
    assert left.read_text().startswith(before)  # what was known was not made again
    assert run_grid(grid, folder / "results", folder / "work") == []
    return folder
