"""How tokens mix: four kinds of bidirectional attention behind one signature.

``ATTENTION[kind](spec)`` is an ``nn.Module`` called as ``module(q, k, v, mask)`` with

- ``q, k, v``: ``(batch, heads, length, head_dim)``,
- ``mask``: ``(batch, length)``, True where a token is real, or None when every token is,

and returns ``(batch, heads, length, head_dim)``. What comes out at positions that are not real is
finite and means nothing; a row without any real token is all zeros. A new kind is one file and one
line in ``ATTENTION``.

A kind whose module has ``piece`` can also read a long text piece by piece, each a multiple of that
many tokens: ``collect(k, v, mask)`` for every piece, ``join`` over what came out, then
``read(q, (k, v), mask, joined[i])`` for piece i; ``(k, v)`` may be None unless ``reads_keys``.

A kind that sums over tokens wherever they stand has ``reads_lent``: its module takes a ``Lent`` as
fifth argument, with which the texts of a batch read one another's prose (training alone), then how
many tokens each text reads, (batch,), where its sentences begin, (batch, length), if they are kept
apart, and ``Ends`` that each of them reads too. Its ``read`` takes the last three too, ``collect``
the first of those.
"""

from torch import nn

from .feature_maps import FEATURE_MAPS as FEATURE_MAPS
from .hybrid import HybridAttention as HybridAttention
from .lightning import LightningAttention
from .linear import LinearAttention
from .softmax import SoftmaxAttention
from .spec import AttentionSpec as AttentionSpec
from .spec import Ends as Ends
from .spec import Lent as Lent

ATTENTION: dict[str, type[nn.Module]] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "lightning": LightningAttention,
    "hybrid": HybridAttention,
}
