"""A grid whose runs take seconds."""

from pathlib import Path

GRID = """
name: tiny
base: {base}
data: builtin
carrier: builtin
train_carriers: [builtin, {prose}]
teach: {{epochs: 0.1, pairs: 16}}
twin: {{alpha: 0.0, epochs: 0.1, pairs: 16}}
softmax: {{epochs: 0.1, pairs: 16}}
transfer: {{steps: 2, texts: 8}}
transfer_texts: [builtin]
train: {{match: 1.0, states: 1.0, attend: 0.1, pairs: 8, schedule: constant, keep_best: false}}
lengths: {{least: 32, mean: 0.4, edge: 0.3, equal: tokens, native: 0.2}}
train_lengths: [48, 128]
find: {{pairs: 10, least: 32, greatest: 48, prose: 500, texts: 4, inside: 2}}
pooling_steps: [3, 2]
finish:
  steps: 2
  find: {{pairs: 10, least: 32, greatest: 48, prose: 500, texts: 4}}
  sources: [builtin]
  planted: 5
  keep: 0.5
  soften: [0.5, 0.25]
  pairs: 6
  constructions: [context, repeat]
  settle: 2
steps: [{steps}, 2]
curve_points: [1, 1]
curve_pairs: 10
arms:
  - {{name: hybrid, poolings: [latent, sentence], model: {{block_size: 16, sentences: true}},
      real: 64, seeds: [0, 1]}}
  - {{name: softmax-windows512, poolings: [sentence], real: 64, steps: [0, 0],
      model: {{sentences: true}}}}
  - {{name: softmax-windows512, poolings: [mean], real: 64}}
  - {{name: softmax-full, poolings: [mean], train_lengths: [48]}}
  - {{name: linear, label: linear-real, poolings: [mean], virtual: false, equal: pairs}}
rates: [1.0e-4, 1.0e-3]
pilot: 1
validation:
  - {{construction: native, last: false}}
  - {{construction: context, lengths: [64], pairs: 12}}
  - {{construction: context, lengths: [64], pairs: 12, similarity: late}}
test:
  - {{construction: native}}
  - {{construction: native, similarity: late}}
  - {{construction: context, lengths: [64, 200], pairs: 30, similarity: late}}
  - {{construction: context, lengths: [64, 200, 600], pairs: 30}}
  - {{construction: context, lengths: [64], pairs: 30, train_lengths: [48], poolings: [latent],
      arms: [hybrid], seeds: [1]}}
"""


def grid_of(folder: Path, base: Path, steps: int = 2) -> Path:
    """The grid's file, written to ``folder``."""
    file = folder / "grid.yaml"
    prose = folder / "prose.txt"
    prose.write_text("\n\n".join(f"In year {i} the river rose. Nobody saw it." for i in range(900)))
    file.write_text(GRID.format(base=base, steps=steps, prose=prose))
    return file
