"""Can a learned query find a sentence in prose that it was never trained against?

    python benchmarks/finding.py MODEL

Sentences of STS-B stand among consecutive ones of a document; each is the mean of its states in
MODEL read one by one (a hybrid with anchors, its far branch off), so that what is compared is
finding alone. Latent pooling is trained on novels with and without its ``contrast`` (see ``stca``),
three seeds each, and asked which of a text's sentences weighs most: in other authors' novels and
in meetings, on the validation split.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from torch import Tensor

from twinline.batching import pad
from twinline.conversion import convert
from twinline.data import load
from twinline.data.carriers import load_carrier
from twinline.encoder import Encoder
from twinline.evaluate import far_off
from twinline.pooling import Latent
from twinline.sentences import sentence_starts
from twinline.stca import Sentences

TOKENS, STRETCHES, TARGETS = 2048, 40, 1500
STEPS, TEXTS, RATE = 300, 64, 1e-3
PROSE = ("novels", "qmsum")


@torch.inference_mode()
def sentence_means(encoder: Encoder, text: str, whole: bool = False) -> Tensor:
    """Each sentence's mean state, (sentences, width), special tokens left out; or the whole text's
    as of one."""
    ids, mask = pad(encoder.tokenize([text])[0], encoder.model.config.pad_token_id)
    states = encoder.model(ids, mask).last_hidden_state
    assert encoder.model.roles is not None
    starts = sentence_starts(ids, mask.bool(), encoder.model.roles)[:, 1:-1]
    starts[:, 1:] &= not whole
    starts[:, 0] = True
    return Sentences.of(states[:, 1:-1], starts, torch.ones_like(starts)).means[0].clone()


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


def weights_of(pool: Latent, states: Tensor) -> Tensor:
    """(texts, heads, sentences); every state is a sentence by itself."""
    every = torch.ones(states.shape[:2], dtype=torch.bool)
    return pool([states], every, Sentences.of(states, every, every))[1][-1]


def trained(targets: Tensor, prose: list[Tensor], contrast: bool, seed: int) -> Latent:
    """A pooling that was shown where the targets are."""
    draw, pool = random.Random(seed), Latent(targets.shape[1], 12, sentences=True)
    for layer in pool.stca.layers:
        layer.contrast.requires_grad_(contrast)
    optimiser = torch.optim.AdamW(pool.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        states, places = texts(targets, prose, draw)
        share = weights_of(pool, states)[torch.arange(TEXTS), :, places]
        loss = -share.clamp_min(1e-9).log().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return pool


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
    for contrast in (False, True):
        pools = [trained(*train, contrast, seed) for seed in range(3)]
        for source, test in tests.items():
            found = []
            for pool in pools:
                asked = random.Random(0)
                with torch.no_grad():
                    for _ in range(8):
                        states, places = texts(*test, asked)
                        best = weights_of(pool, states).mean(dim=1).argmax(dim=1)
                        found.append(float((best == places).float().mean()))
            by_seed = np.array(found).reshape(3, -1).mean(axis=1)
            print(f"{'with' if contrast else 'without'} contrast, {source}: the sentence weighs "
                  f"most in {by_seed.mean():.2f} of the texts (seeds {by_seed.round(2)})",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
