"""README's Python runs as it stands there and prints what stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = r"-?\d+\.?\d*"


def test_the_snippet_prints_its_output(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code, output = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", readme, re.S).groups()
    assert len(code.strip().splitlines()) <= 10
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.sub(NUMBER, "#", made.stdout).split() == re.sub(NUMBER, "#", output).split()
    numbers = [[float(n) for n in re.findall(NUMBER, text)] for text in (made.stdout, output)]
    # Training rounds differently on another processor.
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)


def test_its_commands_and_files_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"^make (\w+)", readme, re.M):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert (ROOT / link).exists(), link
