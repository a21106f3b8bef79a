"""What the package tells and sets about the machine."""

import subprocess
import sys

import pytest

from twinline.machine import keep_memory

FAULTS = """
import resource, sys
import torch
from twinline.machine import keep_memory

if "keep" in sys.argv:
    assert keep_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

torch.zeros(16 << 20)  # 64 MB
before = faults()
for _ in range(4):
    torch.zeros(16 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults as Linux counts them")
def test_freed_memory_stays_for_the_next_tensor() -> None:
    if not keep_memory():
        pytest.skip("another C library than glibc")
    made = {}
    for word in ("keep", "by itself"):
        command = [sys.executable, "-c", FAULTS, word]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made[word] = int(done.stdout)
    assert made["keep"] < 0.1 * made["by itself"], made
