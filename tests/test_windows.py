"""Texts in windows, and an encoder that averages them."""

from pathlib import Path

import pytest
import torch

from twinline.encoder import Encoder
from twinline.errors import TwinlineError
from twinline.windows import Windows, averages, cut


def test_every_token_is_in_one_window_between_the_special_ones() -> None:
    row = [2, *range(10, 20), 3]
    windows = cut([row, [2, 10, 3], [2, 3], []], 6, {2, 3})
    assert windows.ids[:3] == [[2, 10, 11, 12, 13, 3], [2, 14, 15, 16, 17, 3], [2, 18, 19, 3]]
    assert windows.ids[3:] == [[2, 10, 3], [2, 3], []]
    assert windows.owner.tolist() == [0, 0, 0, 1, 2, 3]
    assert windows.share().tolist() == pytest.approx([0.4, 0.4, 0.2, 1, 1, 1])


def test_a_text_is_the_mean_of_its_windows_and_of_those_it_reads() -> None:
    vectors = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    windows = Windows([], torch.tensor([0, 0, 1]), torch.tensor([3.0, 1.0, 4.0]))
    assert averages(vectors, windows).tolist() == [[1.5, 0.0], [0.0, 4.0]]
    reads = torch.tensor([[False, True], [False, False]])
    made = averages(vectors, windows, reads)
    torch.testing.assert_close(made, torch.tensor([[0.75, 2.0], [0.0, 4.0]]))


def test_an_encoder_in_windows_averages_and_cuts_nothing(tiny_bert: Path) -> None:
    whole, parts = Encoder(tiny_bert), Encoder(tiny_bert, windows=10)
    short, long = "a man plays", "a man plays the guitar on green grass and dogs run"
    assert torch.equal(
        whole.encode([short], convert_to_tensor=True), parts.encode([short], convert_to_tensor=True)
    )
    ids = whole.tokenize([long])[0][0]
    pieces = [[ids[0], *ids[1:9], ids[-1]], [ids[0], *ids[9:-1], ids[-1]]]
    weights = torch.tensor([8.0, len(ids) - 10.0])  # by their tokens
    want = (weights @ whole.embed(pieces)) / weights.sum()
    made = parts.encode([long, short], convert_to_tensor=True)[0]
    torch.testing.assert_close(made, want)
    with pytest.raises(TwinlineError, match="windows must be at least 8"):
        Encoder(tiny_bert, windows=3)
