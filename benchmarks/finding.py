"""Can a learned query find a sentence in prose that it was never trained against?

    python benchmarks/finding.py MODEL

Sentences of STS-B stand among consecutive ones of a document; each is the mean of its states in a
layer of MODEL read one by one (a hybrid with anchors, its far branch off), so that what is compared
is finding alone. A query is trained on novels, three seeds each, and told more and more: nothing of
the rest of the text; its mean; the sentences beside each one; how like them and the mean a sentence
is, in a learned subspace. Pooling by the sentence is told all of it (``bysentence``). Each is asked
which of a text's sentences weighs most: in other authors' novels and in meetings, on the validation
split.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twinline.batching import pad
from twinline.bysentence import SUBSPACE
from twinline.conversion import convert
from twinline.data import load
from twinline.data.carriers import load_carrier
from twinline.encoder import Encoder
from twinline.evaluate import far_off
from twinline.stca import NEAR, USUAL, Sentences

TOKENS, STRETCHES, TARGETS = 2048, 40, 1500
STEPS, TEXTS, RATE = 300, 64, 1e-3
PROSE = ("novels", "qmsum")
LAYERS = (4, 6)
HEADS = 12


@torch.inference_mode()
def sentence_means(encoder: Encoder, text: str, whole: bool = False) -> Tensor:
    """Each sentence's mean states, (sentences, LAYERS, width), special tokens left out; or the
    whole text's as of one."""
    ids, mask = pad(encoder.tokenize([text])[0], encoder.model.config.pad_token_id)
    states = encoder.model(ids, mask, output_hidden_states=True).hidden_states
    starts = encoder.model.sentence_starts(ids, mask.bool())[:, 1:-1]
    starts[:, 1:] &= not whole
    starts[:, 0] = True
    every = torch.ones_like(starts)
    of = [Sentences.of(states[layer][:, 1:-1], starts, every).means[0] for layer in LAYERS]
    return torch.stack(of, dim=1)


def texts(targets: Tensor, prose: list[Tensor], draw: random.Random) -> tuple[Tensor, Tensor]:
    """Texts of 20 to 60 sentences, in each one target among consecutive ones of a document: their
    means, (texts, sentences, width), and the targets' places."""
    many, made, places = draw.randrange(20, 60), [], []
    long = [stretch for stretch in prose if len(stretch) >= many]
    for _ in range(TEXTS):
        stretch, place = draw.choice(long), draw.randrange(many)
        start = draw.randrange(len(stretch) - many + 1)
        before, behind = stretch[start : start + many - 1].tensor_split([place])
        made.append(torch.cat([before, targets[draw.randrange(len(targets))][None], behind]))
        places.append(place)
    return torch.stack(made), torch.tensor(places)


class Query(nn.Module):
    """Weights (texts, heads, sentences) of sentences (texts, sentences, width), sharpened by the
    logarithm of the sentences' number; ``told`` nothing (0), the mean (1), the neighbours too (2),
    the likeness too (3)."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.told = told
        self.key, self.contrast, self.nearby = (
            nn.Parameter(torch.zeros(HEADS, width)) for _ in range(3)
        )
        self.subspace = nn.Parameter(torch.randn(SUBSPACE, width) * width**-0.5)
        self.likeness = nn.Parameter(torch.zeros(2, HEADS))
        self.sharpness = nn.Parameter(torch.full((HEADS, 1), 1 / math.log(USUAL)))

    def forward(self, x: Tensor) -> Tensor:
        whole, near = x.mean(dim=1, keepdim=True), torch.zeros_like(x)
        count = x.new_zeros(x.shape[1], 1)
        for away in range(1, NEAR + 1):
            near[:, away:] += x[:, :-away]
            near[:, :-away] += x[:, away:]
            count[away:] += 1
            count[:-away] += 1
        near = near / count
        logits, scale = x @ self.key.T, x.shape[-1] ** 0.5
        if self.told > 0:
            logits = logits + scale * (x * whole) @ self.contrast.T
        if self.told > 1:
            logits = logits + scale * (x * near) @ self.nearby.T
        if self.told > 2:
            own, beside, of_all = (
                F.normalize(y @ self.subspace.T, dim=-1) for y in (x, near, whole)
            )
            like = torch.stack([(own * beside).sum(-1), (own * of_all).sum(-1)], dim=-1)
            logits = logits + scale * like @ self.likeness
        return (logits.transpose(1, 2) * self.sharpness * math.log(x.shape[1])).softmax(dim=-1)


FINDERS: dict[str, Callable[[int], nn.Module]] = {
    "told nothing": partial(Query, told=0),
    "told the mean": partial(Query, told=1),
    "told its neighbours": partial(Query, told=2),
    "told its likeness to them": partial(Query, told=3),
}


def trained(
    finder: Callable[[int], nn.Module], targets: Tensor, prose: list[Tensor], seed: int
) -> nn.Module:
    """One that was shown where the targets are."""
    torch.manual_seed(seed)
    draw, query = random.Random(seed), finder(targets.shape[1])
    optimiser = torch.optim.AdamW(query.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        states, places = texts(targets, prose, draw)
        share = query(states)[torch.arange(TEXTS), :, places]
        loss = -share.clamp_min(1e-9).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return query


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    name = parser.parse_args().model
    encoder = Encoder(convert(name, "hybrid", sentences=True, anchors=True, pooling="mean"))
    draw = random.Random(0)

    def read(split: str, source: str) -> list[Tensor]:
        carrier, made = load_carrier(source, split, encoder.tokenizer), []
        for _ in range(STRETCHES):
            found, _ = carrier.stretch(draw, carrier.sides(draw, TOKENS)[0], TOKENS)
            made.append(sentence_means(encoder, " ".join(found))[:-1])
        return made

    def short(split: str) -> Tensor:
        pairs = load("stsb", split)
        chosen = draw.sample(pairs.sentence1, TARGETS if split == "train" else TARGETS // 3)
        return torch.cat([sentence_means(encoder, text, whole=True) for text in chosen])

    with far_off(encoder.model):
        train = short("train"), read("train", "novels")
        tests = {source: (short("validation"), read("validation", source)) for source in PROSE}
    for (place, layer), (name, finder) in product(enumerate(LAYERS), FINDERS.items()):
        queries = [trained(finder, *of_layer(place, *train), seed) for seed in range(3)]
        for source, test in tests.items():
            found = []
            for query in queries:
                asked = random.Random(0)
                with torch.no_grad():
                    for _ in range(8):
                        states, places = texts(*of_layer(place, *test), asked)
                        best = query(states).mean(dim=1).argmax(dim=1)
                        found.append(float((best == places).float().mean()))
            by_seed = np.array(found).reshape(3, -1).mean(axis=1)
            print(f"layer {layer}, {name}, {source}: the sentence weighs most in "
                  f"{by_seed.mean():.2f} of the texts (seeds {by_seed.round(2)})",
                  flush=True)  # fmt: skip


def of_layer(place: int, targets: Tensor, prose: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Targets and prose as the layer ``LAYERS[place]`` has them."""
    return targets[:, place], [stretch[:, place] for stretch in prose]


if __name__ == "__main__":
    main()
