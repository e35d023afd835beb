"""Compile a small network around every module and function of ``torch.nn``, for docs/what_can_be_compiled.md.

python docs/compiled_table.py           writes the page's tables, in a minute or two

A row says ``compiled`` where the compiled network's output is the module's, and its gradient autograd's, in
float64. What is refused stands with the first line of the error and what it says to do instead.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gncompile.app.api import loss_of
from gncompile.derivation.batch_gradient import BatchGradient
from gncompile.errors import GncompileError
from gncompile.frontends.torch_export import trace
from gncompile.graph.dropout import without_dropout
from gncompile.graph.torch_network import flat_output, objective
from gncompile.losses import resolve_loss
from gncompile.losses.examples import example_target
from gncompile.pipeline import prepare
from gncompile.program.builder import ProgramBuilder
from gncompile.program.phases import step_phases
from gncompile.runtime.executable import Executable
from gncompile.training.batches import BatchReader

PAGE = Path(__file__).with_name("what_can_be_compiled.md")
COMPILED = "compiled"
SAMPLES, INPUTS = 3, 4
CLOSE = 1e-8
"""Relative error of values and gradients in float64: torch's hardsigmoid takes its slope 1/6 in float32."""


@dataclass(frozen=True)
class Trained:
    """An argument that is a trained parameter."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """An argument that is a buffer, or one that is repeated over the batch and comes first."""

    value: Tensor
    repeated: bool = False


SECOND = object()
"""An argument that is another activation, of the same shape."""


@dataclass(frozen=True)
class Probe:
    """What a module or function is tried with: the shape of a sample, and arguments besides."""

    shape: tuple[int, ...] = (6,)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    whole: int = 0
    """Inputs are whole numbers below this."""


def probe(*shape: int, args: tuple[Any, ...] = (), whole: int = 0, **kwargs: Any) -> Probe:
    """Shorthand of the tables below."""
    return Probe(shape, args, kwargs, whole)


LINE, GRID, SPACE = (2, 8), (2, 6, 6), (2, 4, 4, 4)
SHAPES = {"1d": LINE, "2d": GRID, "3d": SPACE}

MODULES: dict[str, Probe] = {
    **{f"{lazy}Conv{t}{n}": probe(*shape, args=(3, 3) if lazy else (2, 3, 3))
       for lazy in ("", "Lazy") for t in ("", "Transpose") for n, shape in SHAPES.items()},
    **{f"{kind}{n}": probe(*shape, args=(2,)) for n, shape in SHAPES.items()
       for kind in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "BatchNorm", "InstanceNorm",
                    "ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad")},
    **{f"Lazy{kind}{n}": probe(*shape) for n, shape in SHAPES.items()
       for kind in ("BatchNorm", "InstanceNorm")},
    **{f"ConstantPad{n}": probe(*shape, args=(1, 0.5)) for n, shape in SHAPES.items()},
    **{f"LPPool{n}": probe(*shape, args=(2.0, 2)) for n, shape in SHAPES.items()},
    **{f"FractionalMaxPool{n}": probe(*SHAPES[n], args=(2,), output_size=2) for n in ("2d", "3d")},
    **{f"Dropout{n}": probe(*shape) for n, shape in SHAPES.items()},
    "FeatureAlphaDropout": probe(*GRID),
    "SyncBatchNorm": probe(*GRID, args=(2,)),
    "Linear": probe(6, args=(6, 3)), "LazyLinear": probe(6, args=(3,)),
    "Bilinear": probe(6, args=(6, 6, 3)), "Embedding": probe(5, args=(7, 3), whole=7),
    "EmbeddingBag": probe(5, args=(7, 3), whole=7),
    "Threshold": probe(6, args=(0.1, 0.2)), "GLU": probe(6), "Softmax2d": probe(*GRID),
    **{name: probe(6, dim=1) for name in ("Softmax", "Softmin", "LogSoftmax")},
    "Flatten": probe(*GRID), "Unflatten": probe(6, args=(1, (2, 3))),
    "Fold": probe(8, 9, args=((4, 4), (2, 2))), "Unfold": probe(*GRID, args=((2, 2),)),
    "PixelShuffle": probe(4, 3, 3, args=(2,)), "PixelUnshuffle": probe(1, 4, 4, args=(2,)),
    "ChannelShuffle": probe(4, 3, 3, args=(2,)),
    "Upsample": probe(*GRID, scale_factor=2, mode="bilinear"),
    "UpsamplingNearest2d": probe(*GRID, scale_factor=2),
    "UpsamplingBilinear2d": probe(*GRID, scale_factor=2),
    "GroupNorm": probe(4, 3, args=(2, 4)), "LayerNorm": probe(6, args=(6,)),
    "RMSNorm": probe(6, args=(6,)), "LocalResponseNorm": probe(*GRID, args=(2,)),
    "CrossMapLRN2d": probe(*GRID, args=(2,)),
    "MultiheadAttention": probe(3, 4, args=(4, 2), batch_first=True),
    "TransformerEncoderLayer": probe(3, 4, args=(4, 2, 8), batch_first=True),
    "TransformerDecoderLayer": probe(3, 4, args=(4, 2, 8), batch_first=True),
    "TransformerEncoder": probe(3, 4), "TransformerDecoder": probe(3, 4),
    "Transformer": probe(3, 4, args=(4, 2, 1, 1, 8), batch_first=True),
    **{name: probe(3, 4, args=(4, 5), batch_first=True) for name in ("RNN", "LSTM", "GRU")},
    **{f"{name}Cell": probe(4, args=(4, 5)) for name in ("RNN", "LSTM", "GRU")},
}  # fmt: skip
"""Constructors' arguments; what is not here is made without any, for a sample of six numbers."""

WHOLE_MODULES: dict[str, Callable[[], nn.Module]] = {
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1, enable_nested_tensor=False
    ),
    "TransformerDecoder": lambda: nn.TransformerDecoder(
        nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 1
    ),
}
SEVERAL = {"MultiheadAttention": 3, "TransformerDecoderLayer": 2, "Transformer": 2,
           "TransformerDecoder": 2, "Bilinear": 2, "CosineSimilarity": 2, "PairwiseDistance": 2}  # fmt: skip
"""Modules of several inputs, and of how many activations."""
HOLD = ("Module", "Sequential", "ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container",
        "RNNBase", "RNNCellBase", "LinearCrossEntropyOptions")  # fmt: skip
"""They hold modules and parameters, or are bases of others, and compute nothing themselves."""
OWN_LOSSES = ("NLLLoss2d", "LinearCrossEntropyLoss", "AdaptiveLogSoftmaxWithLoss")
"""A deprecated name, and losses with layers of their own, which are refused."""
UNPOOL = (
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
)
"""They take the indices that a maximum pooling returns, which is refused."""

FUNCTIONS: dict[str, Probe] = {
    **{f"conv{n}": probe(*shape, args=(Trained((3, 2, *([3] * (len(shape) - 1)))),))
       for n, shape in SHAPES.items()},
    **{f"conv_transpose{n}": probe(*shape, args=(Trained((2, 3, *([3] * (len(shape) - 1)))),))
       for n, shape in SHAPES.items()},
    **{f"{kind}{n}": probe(*shape, args=(2,)) for n, shape in SHAPES.items()
       for kind in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool")},
    **{f"lp_pool{n}": probe(*shape, args=(2.0, 2)) for n, shape in SHAPES.items()},
    **{f"fractional_max_pool{n}": probe(*SHAPES[n], args=(2, 2)) for n in ("2d", "3d")},
    **{f"dropout{n}": probe(*shape, training=True) for n, shape in SHAPES.items()},
    **{name: probe(*GRID, training=True)
       for name in ("dropout", "alpha_dropout", "feature_alpha_dropout")},
    "linear": probe(6, args=(Trained((3, 6)),)),
    "bilinear": probe(6, args=(SECOND, Trained((3, 6, 6)))),
    "embedding": probe(5, args=(Trained((7, 3)),), whole=7),
    "embedding_bag": probe(5, args=(Trained((7, 3)),), whole=7),
    "one_hot": probe(5, args=(7,), whole=7),
    "batch_norm": probe(*GRID, args=(Constant(torch.zeros(2)), Constant(torch.ones(2)))),
    "instance_norm": probe(*GRID), "layer_norm": probe(6, args=((6,),)),
    "group_norm": probe(4, 3, args=(2,)), "rms_norm": probe(6, args=((6,),)),
    "local_response_norm": probe(*GRID, args=(2,)), "normalize": probe(6),
    **{name: probe(6, dim=1) for name in ("softmax", "softmin", "log_softmax", "gumbel_softmax")},
    "threshold": probe(6, args=(0.1, 0.2)), "prelu": probe(6, args=(Trained((1,)),)),
    "scaled_dot_product_attention": probe(3, 4, args=(SECOND, SECOND)),
    "cosine_similarity": probe(6, args=(SECOND,)), "pairwise_distance": probe(6, args=(SECOND,)),
    "pad": probe(*LINE, args=((1, 2),)), "interpolate": probe(*GRID, scale_factor=2),
    "upsample": probe(*GRID, scale_factor=2), "upsample_nearest": probe(*GRID, scale_factor=2),
    "upsample_bilinear": probe(*GRID, scale_factor=2),
    "pixel_shuffle": probe(4, 3, 3, args=(2,)), "pixel_unshuffle": probe(1, 4, 4, args=(2,)),
    "channel_shuffle": probe(4, 3, 3, args=(2,)), "native_channel_shuffle": probe(4, 3, 3, args=(2,)),
    "fold": probe(8, 9, args=((4, 4), (2, 2))), "unfold": probe(*GRID, args=((2, 2),)),
    "grid_sample": probe(3, 3, 2, args=(Constant(torch.arange(32.0).reshape(2, 4, 4).sin(), True),),
                         align_corners=False),
    "affine_grid": probe(2, 3, args=((SAMPLES, 1, 3, 3),)),
}  # fmt: skip
HELPERS = re.compile(
    "assert_|boolean_|handle_|has_|.*_with_indices$|.*mm$|.*_$|multi_head_attention|conv_tbc|linear_cross|pdist"
)
"""Functions that are none of a user's, or need other devices, shapes and dtypes than a sample's."""


class Around(nn.Module):
    """What is looked at, behind a linear layer an activation, or beside one for whole numbers."""

    def __init__(self, inner: Callable[..., Any], given: Probe, count: int = 1) -> None:
        super().__init__()
        self.inner, self.given = inner, given
        count += sum(each is SECOND for each in given.args)
        sizes = [1] if given.whole else [math.prod(given.shape)] * count
        self.layers = nn.ModuleList(nn.Linear(INPUTS, size) for size in sizes)
        for i, each in enumerate(given.args):
            if isinstance(each, Trained):
                self.register_parameter(f"trained_{i}", nn.Parameter(torch.randn(each.shape)))
            elif isinstance(each, Constant):
                self.register_buffer(f"constant_{i}", each.value)

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.given.whole:
            activations = [inputs[1]]
        else:
            activations = [layer(inputs[0]).unflatten(1, self.given.shape) for layer in self.layers]
        if isinstance(self.inner, nn.Module):
            found = self.inner(*activations)
        else:
            others = iter(activations[1:])
            args = [
                getattr(self, f"trained_{i}") if isinstance(each, Trained)
                else getattr(self, f"constant_{i}") if isinstance(each, Constant)
                else next(others) if each is SECOND else each
                for i, each in enumerate(self.given.args)
            ]  # fmt: skip
            args.insert(0, activations[0])
            if any(isinstance(each, Constant) and each.repeated for each in self.given.args):
                at, image = args  # an image, and the places that it is read at
                args = [image.expand(at.shape[0], *image.shape), at]
            mode = {"training": self.training} if "training" in self.given.kwargs else {}
            found = self.inner(*args, **{**self.given.kwargs, **mode})
        while isinstance(found, tuple):
            found = found[0]
        found = found.flatten(1) if found.dim() > 1 else found[:, None]
        return found + self.layers[0](inputs[0]) if self.given.whole else found


def around(name: str, given: Probe) -> nn.Module:
    """The network around a module of this name, or a function."""
    torch.manual_seed(0)
    if name in WHOLE_MODULES:
        inner: Any = WHOLE_MODULES[name]()
    else:
        inner = getattr(nn, name, None) if name in nn.modules.__all__ else None
        inner = inner(*given.args, **given.kwargs) if inner else getattr(F, name)
    return Around(inner, given, SEVERAL.get(name, 1)).double()


def inputs_of(given: Probe) -> tuple[Tensor, ...]:
    """A few samples, and whole numbers where they are looked up."""
    x = torch.randn(SAMPLES, INPUTS).double()
    return (x, torch.randint(given.whole, (SAMPLES, *given.shape))) if given.whole else (x,)


def verdict(model: nn.Module, x: tuple[Tensor, ...], loss: Any = "mse") -> str:
    """``compiled`` where value and gradient are torch's, or why not."""
    try:
        declared = resolve_loss(loss)
        traced = trace(model, x, passes=prepare)
        declared = loss_of(loss, traced)
    except GncompileError as error:
        return refusal(error)
    output = traced.graph.output
    generator = torch.Generator().manual_seed(0)
    y = example_target(declared, SAMPLES, output.shape, generator, torch.float64)
    graph = without_dropout(traced.graph)
    builder = ProgramBuilder(step_phases())
    batch = BatchGradient(builder, graph, declared)
    builder.results |= {f"grad.{layer}": g.name for layer, g in batch.gradients.items()}
    place: dict[str, Any] = {"dtype": torch.float64, "device": torch.device("cpu")}
    step = Executable(
        builder.finish(), traced.with_graph(graph), declared, backend="reference", **place
    )
    reader = BatchReader(graph, declared, nodes=traced.inputs, **place)
    step.load(*reader.pair(x, y))
    step.run("gradient")

    parameters = dict(model.named_parameters())
    z = flat_output(model.eval()(*x))
    wanted = objective(declared, loss if isinstance(loss, nn.Module) else None)(z, y)
    wanted.backward()
    pairs = [(step.result("loss"), wanted)]
    exact = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()
    }
    pairs += [(step.result(f"grad.{n}"), layer.joined(exact)) for n, layer in graph.layers.items()]
    apart = max(float((a - b).norm() / (1 + b.norm())) for a, b in pairs)
    return COMPILED if apart < CLOSE else f"wrong by {apart:.1e}"


def refusal(error: GncompileError) -> str:
    """What was found, and what to do instead, in one line; the list of all operators is left out."""
    found, _, rest = str(error).partition("\n")
    remedy = rest.partition("what to do: ")[2].partition("\n")[0].partition(" (elementwise")[0]
    return (
        "; ".join(filter(None, (found, remedy))).replace("|", "\\|").replace("Around", "the model")
    )


def row(name: str, given: Probe, loss: bool = False) -> str:
    """The verdict on a module or function of this name; in training and evaluation where these differ."""
    torch.manual_seed(0)
    if loss:
        made = getattr(nn, name)() if name in nn.modules.__all__ else getattr(F, name)
        return verdict(nn.Sequential(nn.Linear(INPUTS, 3)).double(), inputs_of(Probe()), made)
    x = inputs_of(given)
    model = around(name, given)
    if name.startswith("Lazy"):
        model(*x)
    in_training = verdict(model, x)
    if in_training == COMPILED:
        return COMPILED
    evaluation = around(name, given)
    if name.startswith("Lazy"):
        evaluation(*x)
    if verdict(evaluation.eval(), x) == COMPILED:
        return f"{COMPILED} in evaluation mode; in training: {in_training}"
    return in_training


def modules() -> list[str]:
    """The modules of ``torch.nn`` that compute something, losses left out."""
    left_out = {*HOLD, *UNPOOL, *losses(), *OWN_LOSSES}
    return sorted(name for name in nn.modules.__all__ if name not in left_out and hasattr(nn, name))


def losses() -> list[str]:
    """The losses of ``torch.nn``."""
    found = {n for n in nn.modules.__all__ if getattr(nn, n).__module__ == "torch.nn.modules.loss"}
    return sorted(found - {*HOLD, *OWN_LOSSES})


def functions() -> list[str]:
    """The functions of ``torch.nn.functional`` of one or several activations."""
    names = (n for n in vars(F) if n.islower() and n[0] != "_" and callable(getattr(F, n)))
    here = {n for n in names if (getattr(F, n).__module__ or "torch").startswith("torch")}
    taken = {name for name in here if HELPERS.match(name) or name in UNPOOL}
    return sorted(here - taken - set(loss_functions()))


def loss_functions() -> list[str]:
    """Those that are losses."""
    pattern = "binary_cross|cross_entropy$|ctc|kl_div|.*_loss$"
    return sorted(n for n in vars(F) if re.match(pattern, n) and callable(getattr(F, n)))


TABLES: dict[str, tuple[Callable[[], list[str]], dict[str, Probe], bool]] = {
    "modules": (modules, MODULES, False),
    "functions": (functions, FUNCTIONS, False),
    "losses": (losses, {}, True),
    "loss functions": (loss_functions, {}, True),
}
"""The page's tables: the names, what they are tried with, and whether they are losses."""


def verdicts(table: str, names: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
    """Names of a table, or some of them, with their verdicts."""
    listed, given, loss = TABLES[table]
    for name in listed() if names is None else names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield name, row(name, given.get(name, Probe()), loss)


def written(found: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines of a table: all that is compiled in one paragraph, then what is not, by reason."""
    names = defaultdict[str, list[str]](list)
    for name, text in found:
        names[text].append(f"`{name}`")
    yield ", ".join(names.pop(COMPILED, [])) + "."
    yield from ("", "| otherwise | |", "|---|---|")
    for text, those in names.items():
        yield f"| {', '.join(those)} | {text} |"


def read(page: str, table: str) -> dict[str, str]:
    """The verdicts that stand on the page."""
    body = page.partition(f"<!-- {table}: ")[2].partition("<!-- end of")[0]
    compiled, _, rest = body.partition("| otherwise")
    rows = [(compiled, COMPILED), *re.findall(r"^\| (`.*`) \| (.*) \|$", rest, re.M)]
    return {name: text for names, text in rows for name in re.findall(r"`(\w+)`", names)}


def replaced(page: str, table: str, lines: Iterable[str]) -> str:
    """``page`` with the table between its marks exchanged."""
    start, end = f"<!-- {table}: python docs/compiled_table.py -->", f"<!-- end of {table} -->"
    body = "\n".join([start, "", *lines, "", end])
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: body, page, flags=re.S)


def main() -> None:
    page = PAGE.read_text()
    for table in TABLES:
        page = replaced(page, table, written(verdicts(table)))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
