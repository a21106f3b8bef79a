"""The README.md of a saved model: what it is, and how each library loads it."""

from __future__ import annotations

from typing import Any

FRONT = """---
library_name: sentence-transformers
pipeline_tag: {task}
tags:
- twinline
- sentence-transformers
---
"""
ENCODER = """
# A Twinline encoder

This model turns a text of any length into a vector of {width} numbers. It has {layers} layers with
{attention} attention and {pooling} pooling. Two texts are scored by {similarity}.

With Twinline:

```python
from twinline import Encoder

encoder = Encoder("path/to/this/folder")
vectors = encoder.encode(["a text", "another one"])
scores = encoder.score(["a text"], ["another one"])
```

With sentence-transformers or transformers. The first import makes this model type known to them;
without it they ask you to update transformers.

```python
import twinline.auto
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("path/to/this/folder").encode(["a text", "another one"])
```

```python
import twinline.auto
from transformers import AutoModel

model = AutoModel.from_pretrained("path/to/this/folder")
```
"""
LEARNED = """
sentence-transformers gives the vectors of this model, not its scores: the {similarity} head is
Twinline's own.
"""
CROSS_ENCODER = """
# A cross-encoder trained with Twinline

This model reads two texts together and gives one number. Its sigmoid is the pair's score, 0 to 1.

```python
from twinline import Teacher

teacher = Teacher("path/to/this/folder")
scores = teacher.predict([("a text", "another one")])
```

```python
from sentence_transformers import CrossEncoder

scores = CrossEncoder("path/to/this/folder").predict([("a text", "another one")])
```
"""


def encoder_card(model: Any, similarity: str) -> str:
    """The card of a twin encoder, in Markdown."""
    config = model.config
    text = FRONT.format(task="sentence-similarity") + ENCODER.format(
        width=config.projection_dim,
        layers=config.num_hidden_layers,
        attention=config.attention,
        pooling=config.pooling,
        similarity=similarity,
    )
    learned = similarity not in ("cosine", "dot")
    return text + LEARNED.format(similarity=similarity) if learned else text


def cross_encoder_card() -> str:
    """The card of a cross-encoder that ``teach`` trained, in Markdown."""
    return FRONT.format(task="text-ranking") + CROSS_ENCODER
