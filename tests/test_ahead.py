"""What other processes make ahead is what this one would have made."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from twinline.ahead import in_order
from twinline.errors import TwinlineError


def made(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3 == 0))  # so that later ones are ready first
    return number * number, os.getpid()


def broken(number: int) -> int:
    if number == 5:
        raise TwinlineError("Row 5 has no score.")
    return number


@pytest.mark.parametrize("workers", [0, 3])
def test_everything_comes_in_order(workers: int) -> None:
    found = list(in_order(made, range(30), workers))
    assert [value for value, _ in found] == [n * n for n in range(30)]
    here = {process == os.getpid() for _, process in found}
    assert here == {workers == 0}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_raises_is_raised_behind_what_came_before(workers: int) -> None:
    every = in_order(broken, range(10), workers)
    assert [next(every) for _ in range(5)] == list(range(5))
    with pytest.raises(TwinlineError, match=r"^Row 5 has no score\.$"):
        next(every)


def test_what_is_left_is_given_up_when_it_is_closed() -> None:
    with closing(in_order(made, range(10**9), 2)) as every:
        assert next(every)[0] == 0


def whose(number: int) -> int:
    return os.getpid()


def runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it ended
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_no_process_outlives_one_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    makers = [int(one) for one in parent.stdout.readline().split()]
    assert makers
    assert all(map(runs, makers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(map(runs, makers)):
        assert time.monotonic() < until, "They are still there."
        time.sleep(0.1)


if __name__ == "__main__":  # the process that is killed
    waiting = in_order(whose, range(10**9), 2)
    print(*{next(waiting) for _ in range(20)}, flush=True)
    time.sleep(600)


TOKENIZING = """
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from twinline.ahead import in_order

tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
texts = ["a a"] * 100
tokenizer.encode_batch(texts)
print(sum(in_order(lambda number: len(tokenizer.encode_batch(texts)), range(3), 1)))
"""


def test_a_tokenizer_that_has_used_its_threads_does_not_wait_for_them() -> None:
    given = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    ended = subprocess.run(
        [sys.executable, "-c", TOKENIZING], env=given, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "300\n", ended.stderr
