"""How an encoder's numbers are held: float32, bfloat16, int8, or what is fastest here.

int8 is weights *and* activations in 8 bits, on processors with VNNI: each row of a weight matrix
has its own step, each activation one range for every text. The ranges are found once, on sample
texts, so that they do not depend on what is encoded together. A text's vector hardly does: padding
changes the last bit of a sum in fp32, which now and then tips a number to its next step of 8 bits.
The vector of a text alone has a cosine of at least 0.99 with that in a batch (docs/speed.md).
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import one_of
from .attention.folded import FoldedAttention, can_fold
from .attention.linear import LinearAttention
from .errors import TwinlineError
from .model import Layer, TwinlineModel
from .statistics import ROUNDING

DTYPES = ("float32", "bfloat16", "int8", "auto")
FUSED = {
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
"""Activations that oneDNN applies inside an 8-bit product, under its names."""

VECTORS = ("float32", "int8", "uint8", "binary", "ubinary")
"""What ``encode`` gives vectors as, under sentence-transformers' names."""
AFTERWARDS = (
    "encode in float32 and quantise all vectors alike with "
    "sentence_transformers.util.quantize_embeddings, its ranges from one calibration"
)

log = logging.getLogger("twinline")


def check_dtype(dtype: str | torch.dtype) -> str:
    """The name of a dtype among ``DTYPES``.

    Raises: TwinlineError if it is none.
    """
    name = str(dtype).removeprefix("torch.")
    one_of("dtype", name, DTYPES)
    return name


def int8_here() -> bool:
    """Whether this processor multiplies 8-bit numbers faster than wide ones, and torch can."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    return bool(has_vnni) and torch.backends.mkldnn.is_available()


def check_int8() -> None:
    """Raises: TwinlineError where this machine has no 8-bit products."""
    if not int8_here():
        raise TwinlineError(
            "dtype int8 needs a processor with VNNI and a PyTorch with oneDNN: use bfloat16, "
            "float32 or auto here."
        )


@cache
@torch.random.fork_rng(())
def product_rates() -> dict[str, float]:
    """Floating-point operations a second of a matrix product, by dtype, measured here and now.

    The shape is that of a small encoder's feed-forward; about 0.1 s.
    """
    tokens, width, inner = 2048, 384, 1536
    x, w = torch.randn(tokens, width), torch.randn(inner, width)
    operations = 2.0 * tokens * width * inner
    rates = {}
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        a, b = x.to(dtype), w.to(dtype)
        rates[name] = operations / best_seconds(lambda a=a, b=b: F.linear(a, b))
    if int8_here():
        product = Int8Linear(nn.Linear(width, inner), -4.0, 4.0, then=("relu", ""), step=0.1)
        rounded = product.rounded(x)
        rates["int8"] = operations / best_seconds(lambda: product(rounded))
    return rates


def best_seconds(work: Any, turns: int = 10) -> float:
    """The quickest of several turns of ``work``, after two that warm up."""
    seconds = []
    for _ in range(turns + 2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


def fastest(device: torch.device) -> str:
    """float32 or bfloat16, whichever this machine multiplies faster; the choice is logged.

    int8 is never chosen by itself: its vectors differ too much from those of other machines.
    """
    if device.type == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        log.info("dtype auto: %s on %s", name, device)
        return name
    rates = {name: rate for name, rate in product_rates().items() if name != "int8"}
    name = max(rates, key=rates.__getitem__)
    told = ", ".join(f"{key} {rate / 1e9:.0f}" for key, rate in rates.items())
    log.info("dtype auto: %s (GFLOP/s here: %s)", name, told)
    return name


class Int8Linear(nn.Module):
    """``x Wᵀ + b`` of 8-bit numbers, accumulated in 32 bits (oneDNN), by static quantisation.

    ``x`` is held as ``round(x / step) + zero`` in 0..255, which covers ``low`` to ``high``; a row
    of W as ``round(w / s)`` in -127..127 with ``s = max |w| / 127`` (Jacob et al., 1712.05877).

    Args:
        linear: weights (outputs, inputs) and bias in fp32.
        low, high: the range of x; beyond it x is clipped.
        then: an activation applied to the sums before they are rounded for the next product.
        step, zero: the next product's, with ``then``.
        bound: clips what comes out to -bound..bound, without ``then``.
    """

    def __init__(
        self, linear: nn.Linear, low: float, high: float,
        then: tuple[str, str] | None = None, step: float = 1.0, zero: int = 0,
        bound: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        steps = linear.weight.detach().abs().amax(dim=1).clamp_min(1e-12) / 127
        rounded = (linear.weight.detach() / steps[:, None]).round().to(torch.int8)
        self.out_dtype = torch.float32 if then is None else torch.uint8
        self.then = then or ("none", "")
        limits: list[float] = []
        if bound is not None:
            self.then, limits = ("hardtanh", ""), [-bound, bound]
        # All that a result depends on is in buffers: a fingerprint of them sees what has changed.
        self.weight: Tensor
        self.steps: Tensor
        self.bias: Tensor
        self.grids: Tensor
        self.register_buffer("weight", rounded)
        self.register_buffer("steps", steps)
        self.register_buffer("bias", linear.bias.detach().clone())
        grids = [*grid(low, high), step, zero, *limits]
        self.register_buffer("grids", torch.tensor(grids, dtype=torch.float64))
        self.pack()

    def pack(self) -> None:
        """Bring what the buffers hold into the forms that oneDNN takes."""
        # The packed matrix has a form of its own that cannot be a buffer, copied or pickled.
        self.packed: Any = torch.ops.onednn.qlinear_prepack(self.weight, None)
        self.zeros = torch.zeros(len(self.steps), dtype=torch.int32)
        self.step, zero, self.out_step, out_zero, *self.limits = self.grids.tolist()
        self.zero, self.out_zero = int(zero), int(out_zero)
        self.shift = torch.tensor(self.zero + 0.5)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_int8()  # it may have been sent from another machine
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pack()

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self.pack()

    def rounded(self, x: Tensor) -> Tensor:
        """``x`` (..., inputs) in 8 bits; what is rounded already stays."""
        if x.dtype == torch.uint8:
            return x
        # Half a step more, and the cast cuts off: rounding with one pass fewer. The cast to signed
        # numbers keeps the same eight bits, and is four times as fast as that to unsigned ones.
        places = torch.add(self.shift, x, alpha=1 / self.step)
        return places.clamp_(0, 255).to(torch.int8).view(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` in fp32, or rounded already; out comes fp32, with ``then`` 8 bits."""
        x = self.rounded(x)
        name, algorithm = self.then
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.step, self.zero, self.packed, self.steps, self.zeros, self.bias,
            self.out_step, self.out_zero, self.out_dtype, name, self.limits, algorithm,
        )  # fmt: skip
        return out


def grid(low: float, high: float) -> tuple[float, int]:
    """Step and zero of 0..255 over ``low`` to ``high``, 0 always exact among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, 1e-12) / 255
    return step, round(-low / step)


@torch.no_grad()
@torch.random.fork_rng(())  # a new layer draws weights, which are all replaced
def to_int8(model: TwinlineModel, samples: Iterable[Tensor]) -> TwinlineModel:
    """A copy of ``model`` whose layers' products are 8-bit; embeddings and norms stay fp32.

    Args:
        samples: batches of token ids (batch, length) without padding, on which ranges are found.
    Raises: TwinlineError where the machine or the model cannot.
    """
    check_int8()
    model = copy.deepcopy(model)
    model.train(False)
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(x) for x in torch.aminmax(inputs[0]))
        seen = ranges.get(module, (low, high))
        ranges[module] = min(low, seen[0]), max(high, seen[1])

    products = [p for layer in model.each_layer() for p in products_of(layer)]
    handles = [product.register_forward_pre_hook(observe) for product in products]
    for ids in samples:
        model(ids)
    for handle in handles:
        handle.remove()
    if len(ranges) < len(products):
        raise TwinlineError("int8 needs sample texts to find its ranges on: calibration is empty.")
    for layer in model.each_layer():
        qkv, out, up, down = products_of(layer)
        if can_fold(layer.attention):
            folded = FoldedAttention(cast(LinearAttention, layer.attention), qkv)
            for name in ("for_queries", "for_keys"):
                linear, bound = getattr(folded, name)
                setattr(folded, name, Int8Linear(linear, *ranges[qkv], bound=bound.max_val))
            folded.for_values = Int8Linear(cast(nn.Linear, folded.for_values), *ranges[qkv])
            layer.attention = folded
            swapped: dict[str, nn.Module] = {"qkv": nn.Identity()}
        else:
            swapped = {"qkv": Int8Linear(qkv, *ranges[qkv])}
        swapped["out"] = Int8Linear(out, *ranges[out])
        last = swapped["down"] = Int8Linear(down, *ranges[down])
        if then := FUSED.get(model.config.hidden_act):
            swapped["up"] = Int8Linear(up, *ranges[up], then, last.step, last.zero)
            layer.activation = nn.Identity()
        else:
            swapped["up"] = Int8Linear(up, *ranges[up])
        for name, module in swapped.items():
            setattr(layer, name, module)
    return model


def products_of(layer: Layer) -> list[nn.Linear]:
    return [layer.qkv, layer.out, layer.up, layer.down]


def check_one_range(precision: str) -> None:
    """Refuse a precision of vectors that would depend on which of them come in one batch.

    Raises: TwinlineError for int8 and uint8, whose ranges are those of all vectors, or if
        ``precision`` is not known.
    """
    one_of("precision", precision, VECTORS)
    if precision in ("int8", "uint8"):
        raise TwinlineError(
            f"encode_iter never has all texts at once, so no ranges for precision={precision!r}: "
            f"{AFTERWARDS}."
        )


def quantised(vectors: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """Vectors (texts, dimension) in fewer bits, as sentence-transformers makes them of these.

    int8 and uint8 are (texts, dimension), each dimension in 255 steps from the least to the
    greatest number of these texts; binary and ubinary (texts, dimension / 8), a bit for each sign.

    Raises: TwinlineError if int8 or uint8 finds a dimension in which these texts do not differ.
    """
    from sentence_transformers.util import quantize_embeddings

    if precision in ("int8", "uint8") and len(vectors):
        flat = np.flatnonzero(np.ptp(vectors, axis=0) <= ROUNDING * np.abs(vectors).max())
        if len(flat):
            raise TwinlineError(
                f"precision={precision!r} takes each dimension's range from the texts of the call, "
                f"and in dimension {flat[0] + 1} ({len(flat)} in all) these {len(vectors)} have "
                f"none: {AFTERWARDS}."
            )
    made: NDArray[Any] = quantize_embeddings(vectors, precision)  # type: ignore[assignment, arg-type]
    return made
