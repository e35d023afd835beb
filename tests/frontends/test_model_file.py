"""Model files: the graph they build, and what each mistake is answered with."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gncompile.app.training_run import load_data
from gncompile.errors import ExpressionError, GncompileError, ModelFileError
from gncompile.frontends import trace
from gncompile.frontends.model_file import ModelFile, load_model_file
from gncompile.graph.fuse_pointwise import fuse_pointwise
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph
from gncompile.graph.nodes import Pointwise

EXAMPLES = Path(__file__).parents[2] / "examples"

HEAD = """
[model]
name = "small"
[data]
name = "curves"
[loss]
name = "mse"
[training]
updates = 3
batch_size = 4
"""

CHAIN = """
[network]
layers = [6, 5, 3, 5, 6]
transfer = ["tanh", "identity", "u*sigmoid(1.702*u)"]
"""

GATED = """
[network]
input_size = 6
[[network.node]]
name = "value"
op = "linear"
inputs = ["input"]
size = 5
transfer = "bent"
[[network.node]]
name = "gate"
op = "linear"
inputs = ["input"]
size = 5
bias = false
[[network.node]]
name = "gated"
op = "pointwise"
inputs = ["value", "gate"]
expression = "value * sigmoid(gate)"
[[network.node]]
name = "joined"
op = "concat"
inputs = ["gated", "input"]
[[network.node]]
name = "part"
op = "slice"
inputs = ["joined"]
start = 1
stop = 9
[[network.node]]
name = "chosen"
op = "select"
inputs = ["part"]
index = [7, 0, 0, 3]
[[network.node]]
name = "soft"
op = "pointwise"
inputs = ["chosen"]
transfer = "softplus"
[[network.node]]
name = "result"
op = "linear"
inputs = ["soft"]
size = 2
[transfer.bent]
expression = "select(u > 0, u, 0.1*expm1(u))"
"""


def written(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "model.toml"
    path.write_text(head + text)
    return path


def loaded(folder: Path, text: str, head: str = HEAD) -> ModelFile:
    return load_model_file(written(folder, text, head))


def refusal(folder: Path, text: str, head: str = HEAD) -> str:
    path = written(folder, text, head)
    with pytest.raises(GncompileError) as caught:
        load_model_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def anonymous(graph: ModelGraph) -> list[object]:
    """The graph without names and origins: ``x7`` in an expression is the node in place 7."""
    place = {node.name: number for number, node in enumerate(graph)}
    rows: list[object] = []
    for node in graph:
        op: object = node.op
        if isinstance(node.op, Affine):
            op = ("affine", node.op.bias is not None)
        elif isinstance(node.op, Pointwise):
            symbols = zip(node.op.arguments, node.inputs, strict=True)
            op = str(node.op.expression.subs({s: f"x{place[name]}" for s, name in symbols}))
        inputs = [place[name] for name in node.inputs]
        rows.append((op, sorted(inputs) if isinstance(node.op, Pointwise) else inputs, node.shape))
    return rows


class Gated(nn.Module):
    """What GATED describes, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.result = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.value(x)
        value = torch.where(h > 0, h, 0.1 * torch.expm1(h))
        gated = value * torch.sigmoid(self.gate(x))
        part = torch.cat([gated, x], dim=1)[:, 1:9]
        return self.result(nn.functional.softplus(part[:, [7, 0, 0, 3]]))


class Gelu(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return u * torch.sigmoid(1.702 * u)


def chain_by_hand() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 5)]
    return nn.Sequential(*layers, Gelu(), nn.Linear(5, 6))


@pytest.mark.parametrize(
    ("text", "by_hand"), [(CHAIN, chain_by_hand), (GATED, Gated)], ids=["chain", "gated"]
)
def test_same_graph_and_values_as_the_module(
    tmp_path: Path, text: str, by_hand: type[nn.Module]
) -> None:
    declared, module = loaded(tmp_path, text).build(), by_hand()
    for mine, theirs in zip(declared.parameters(), module.parameters(), strict=True):
        theirs.data.copy_(mine)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(declared(x), module(x), rtol=1e-6, atol=1e-6)
    graphs = [fuse_pointwise(trace(m, x).graph) for m in (declared, module)]
    assert anonymous(graphs[0]) == anonymous(graphs[1])


def test_layers_are_named_after_their_nodes(tmp_path: Path) -> None:
    graph = trace(loaded(tmp_path, GATED).build(), torch.zeros(2, 6)).graph
    assert list(graph.layers) == ["value", "gate", "result"]
    graph = trace(loaded(tmp_path, CHAIN).build(), torch.zeros(2, 6)).graph
    assert list(graph.layers) == ["layer1", "layer2", "layer3", "layer4"]


def test_weights_are_glorot_uniform_and_seeded(tmp_path: Path) -> None:
    file = loaded(tmp_path, "[network]\nlayers = [300, 200, 1]\n")
    model = file.build()
    weight = model.get_parameter("layer1.weight")
    bound = math.sqrt(6 / 500)
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.999 * bound
    # the standard error of the variance of 60,000 uniform numbers is 0.4 %
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)
    assert not model.get_parameter("layer1.bias").any()
    assert torch.equal(weight, file.build(seed=0).get_parameter("layer1.weight"))
    assert not torch.equal(weight, file.build(seed=1).get_parameter("layer1.weight"))


def test_dtype_and_the_same_start_in_both(tmp_path: Path) -> None:
    wide = loaded(tmp_path, CHAIN, HEAD + 'dtype = "float64"\n')
    single = loaded(tmp_path, CHAIN)
    assert wide.dtype is torch.float64
    for a, b in zip(wide.build().parameters(), single.build().parameters(), strict=True):
        assert a.dtype is torch.float64
        assert torch.equal(a.float(), b)


@pytest.mark.parametrize("name", ["curves_autoencoder", "mnist_autoencoder"])
def test_examples(name: str) -> None:
    file = load_model_file(EXAMPLES / f"{name}.toml")
    graph = trace(file.build(), torch.zeros(2, file.input_size)).graph
    sizes = [784, *(layer.rows for layer in graph.layers.values())]
    assert tuple(sizes) == file.sections.network.layers  # type: ignore[union-attr]
    pointwise = [node for node in graph if isinstance(node.op, Pointwise)]
    assert len(pointwise) == len(sizes) - 3  # neither after the code nor after the output
    assert file.loss == "bce_with_logits"
    assert file.data.target == "input"
    code = min(graph.layers.values(), key=lambda layer: layer.rows).node
    assert all(isinstance(node.op, Affine) for node in graph.consumers(code.name))


def test_a_missing_data_name_says_what_it_is(tmp_path: Path) -> None:
    head = HEAD.replace('name = "curves"', 'path = "own.csv"')
    with pytest.raises(ModelFileError, match="missing key 'data.name': curves, mnist, or the path"):
        loaded(tmp_path, CHAIN, head)


def test_data_path_is_relative_to_the_model_file(tmp_path: Path) -> None:
    head = HEAD.replace('"curves"', '"sets/own.npz"')
    assert loaded(tmp_path, CHAIN, head).data.name == str(tmp_path / "sets" / "own.npz")
    moved = load_model_file(written(tmp_path, CHAIN, head), base="/elsewhere")
    assert moved.data.name == os.path.abspath("/elsewhere/sets/own.npz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[network]\nlayer = [3, 2]", "unknown key 'network.layer'. Did you mean 'layers'?"),
        ("[network]\nlayers = [3, 2]\nbiases = true", "unknown key 'network.biases'. Did you mean"),
        ("[networks]\nlayers = [3, 2]", "unknown key 'networks'. Did you mean 'network'?"),
        (
            "[network]\nlayers = [3, 2]\n[optimiser]\na = 1",
            "The keys here are model, data, network",
        ),
        (
            "[network]\nlayers = [3, 2.5]",
            "wrong value for 'network.layers[2]'\n  expected: a",
        ),
        ("[network]\nlayers = [3, 2.5]", "\n  got:      2.5"),
        ('[network]\nlayers = [3, "2"]', "got:      '2'"),
        ("[network]\nlayers = [3, 0]", "expected: greater than 0"),
        ("[network]\nlayers = [3]", "wrong value for 'network.layers'"),
        ("[network]\nlayers = [3, 2]\nbias = 1", "expected: true or false\n  got:      1"),
        ("[network]\nlayers = [3, 2]\ncode_layer = 1", "code_layer = 1, but there are 0 hidden"),
        ('[network]\nlayers = [3, 2]\ntransfer = ["tanh"]', "lists 1 functions for 0 hidden"),
        ('[network]\nlayers = [3, 2, 2]\ntransfer = "tahn"', "Did you mean 'tanh'?"),
        ('[network]\nlayers = [3, 2, 2]\ntransfer = "tahn"', "where:      node 'layer1'"),
        ('[network]\nlayers = [3, 2, 2]\ntransfer = "maximum"', "cannot be used as a transfer"),
    ],
)
def test_mistakes_in_a_chain(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("size = 2", "sizes = 2", "unknown key 'network.node[8].sizes'. Did you mean 'size'?"),
        ("size = 2", "sizes = 2", "missing key 'network.node[8].size'"),
        ("size = 2", "", "missing key 'network.node[8].size'"),
        ('op = "slice"', 'op = "slic"', "unknown operation 'slic'. Did you mean 'slice'?"),
        ('op = "slice"', "", "missing key 'network.node[5].op'"),
        ('name = "soft"', 'name = "gate"', "the name 'gate' is used twice"),
        ('name = "soft"', 'name = "forward"', "it is reserved"),
        ('name = "soft"', 'name = "training"', "it is reserved"),
        ('name = "soft"', 'name = "value_transfer"', "it is reserved"),
        ('name = "soft"', 'name = "a.b"', "wrong value for 'network.node[7].name'"),
        ('inputs = ["soft"]', 'inputs = ["sof"]', "input 'sof' is unknown. Did you mean 'soft'?"),
        ('inputs = ["input"]', 'inputs = ["gated"]', "the input 'gated' comes later"),
        ('inputs = ["soft"]', 'inputs = ["gate"]', "computed but never read: soft"),
        ('inputs = ["soft"]', "inputs = []", "linear takes one input, not 0"),
        ('inputs = ["soft"]', 'inputs = ["soft", "gate"]', "linear takes one input, not 2"),
        (
            '["value", "gate"]',
            '["value", "input"]',
            "inputs differ in size\n  inputs: value: 5, inp",
        ),
        ("stop = 9", "stop = 12", "the slice 1:12 is empty or leaves the input"),
        ("stop = 9", "stop = 1", "the slice 1:1 is empty"),
        ("[7, 0, 0, 3]", "[8]", "index is empty or leaves the input"),
        ("[7, 0, 0, 3]", "[-1]", "greater than or equal to 0"),
        ("value * sigmoid(gate)", "value * sigmoid(gat)", "the name 'gat' is unknown"),
        ('transfer = "softplus"', "", "give either expression or transfer"),
        ("[transfer.bent]", "[transfer.tanh]", "the transfer function 'tanh' exists already"),
        ("expm1(u)", "expm1(v)", "[transfer.bent]"),
    ],
)
def test_mistakes_in_nodes(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GATED
    assert expected in refusal(tmp_path, GATED.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "batch_size = 4",
            "batchsize = 4",
            "unknown key 'training.batchsize'. Did you mean 'batch_",
        ),
        ("updates = 3", "updates = 3\nepochs = 1", "give either updates or epochs"),
        ("updates = 3", "updates = true", "expected: a whole number\n  got:      True"),
        ('name = "mse"', "", "give either name or expression"),
        (
            'name = "curves"',
            'name = "curves"\ntargts = ["a"]',
            "'data.targts'. Did you mean 'target",
        ),
        ('name = "curves"', 'name = "curves"\ntarget = "in"', "'input', 'label' or 'value'"),
        ('name = "curves"', 'name = "curves"\ntrain = "20"', "a whole number\n  got:      '20'"),
        ('name = "curves"', 'name = "curves"\nvalidation = true', "number\n  got:      True"),
        ("updates = 3", 'updates = 3\ndtype = "half"', "'float32' or 'float64'"),
        ("updates = 3", "updates = 1979-05-27", "wrong value for 'training.updates'"),
    ],
)
def test_mistakes_in_other_sections(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in HEAD
    assert expected in refusal(tmp_path, CHAIN, HEAD.replace(old, new))


def test_lists_and_values_of_several_types(tmp_path: Path) -> None:
    head = HEAD.replace('"curves"', '"curves"\nvalidation = "x"')
    shown = refusal(tmp_path, "[network]\nlayers = [2]\ntransfer = 3\n", head)
    assert "'data.validation'\n  expected: a whole number, or a number\n  got:      'x'" in shown
    assert "'network.layers'\n  expected: at least 2 items\n  got:      [2]" in shown
    assert "'network.transfer'\n  expected: text, in quotes, or a list, in [ ]\n" in shown
    assert shown.count("expected:") == 3


def test_names_that_are_unknown_are_listed_at_once(tmp_path: Path) -> None:
    shown = refusal(
        tmp_path, CHAIN.replace("u*sigmoid(1.702*u)", "reluu"), HEAD.replace("mse", "msee")
    )
    assert "unknown transfer function 'reluu'. Did you mean 'relu'?" in shown
    assert "unknown loss 'msee'. Did you mean 'mse'?" in shown


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = refusal(tmp_path, CHAIN + "depth = 3\n", HEAD.replace("updates", "update"))
    assert "'network.depth'" in text
    assert "'training.update'. Did you mean 'updates'?" in text


HOSTILE = [
    "__import__('os').system('touch hacked')",
    "u.__class__",
    "(lambda: u)()",
    "open('hacked', 'w')",
    "[u for u in (1,)]",
    "u if u else exec('1')",
    "9**9**9**9",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_expressions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [
        CHAIN.replace("u*sigmoid(1.702*u)", hostile),
        GATED.replace("value * sigmoid(gate)", hostile),
        GATED.replace("select(u > 0, u, 0.1*expm1(u))", hostile),
    ]
    for text in places:
        with pytest.raises(ExpressionError):
            loaded(tmp_path, text)
    assert not (tmp_path / "hacked").exists()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model file"):
        load_model_file(tmp_path / "absent.toml")
    assert "cannot read the model file" in refusal(tmp_path, "[network")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match="cannot read the model file"):
        load_model_file(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = " + "[" * 100_000, "nested more than 16 deep"),
        ("a = " + "[" * 3000 + "]" * 3000, "nested more than 16 deep"),
        ("[training.options]\nl2 = " + "{a = " * 50 + "1" + "}" * 50, "nested more than 16 deep"),
        ("a = " + "9" * 5000, "cannot read the model file: Exceeds the limit"),
        ("# " + "a" * (17 << 20), "longer than"),
    ],
)
def test_files_that_are_too_much(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, CHAIN + text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[6, 5, 3, 5, 6]", "[6, 1000000000, 6]", "its states need"),
        ("[6, 5, 3, 5, 6]", "[6, 200000, 200000, 6]", "its states need"),
        ("[6, 5, 3, 5, 6]", "[6, 1000000000000, 6]", "less than or equal to 1000000000"),
        ("[6, 5, 3, 5, 6]", f"[{'3, ' * 1000}1]", "at most 401 items"),
    ],
)
def test_sizes_are_added_up_before_they_are_allocated(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    text = CHAIN.replace(old, new).replace('transfer = ["tanh"', "# ")
    path = written(tmp_path, text)
    with pytest.raises(ModelFileError) as caught:
        load_model_file(path).build()
    assert expected in str(caught.value)


def test_features_that_double_are_counted(tmp_path: Path) -> None:
    nodes = "[network]\ninput_size = 6\n"
    for i in range(40):
        read = f"c{i - 1}" if i else "input"
        nodes += f'[[network.node]]\nname = "c{i}"\nop = "concat"\ninputs = ["{read}", "{read}"]\n'
    nodes += '[[network.node]]\nname = "o"\nop = "slice"\ninputs = ["c39"]\nstart = 0\nstop = 2\n'
    file = loaded(tmp_path, nodes)
    assert file.sizes["c39"] == 6 * 2**40
    with pytest.raises(ModelFileError, match="values of c39"):
        file.build()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"small"', '""', "at least 1 character"),
        ('"small"', f'"{"a" * 5000}"', "at most 200 characters"),
        ('"small"', '"a\\u0000b"', "one line of text without control characters"),
        ('"small"', '"a\\nb"', "one line of text without control characters"),
        (
            "updates = 3",
            "updates = 3\nseed = 10000000000000000000",
            "less than 9223372036854775808",
        ),
        (
            "updates = 3",
            "updates = 3\ndamping = 1",
            "damping is an option: write it in [training.options]",
        ),
        (
            "batch_size = 4",
            "batch_size = 4\n[training.options]\nbatch_size = 3",
            "'batch_size' is no option\n  where:      [training.options]",
        ),
        (
            "batch_size = 4",
            "batch_size = 4\n[training.options]\nseed = 3",
            "write seed in [training]",
        ),
        ("batch_size = 4", "batch_size = 4\n[training.options]\nmodel = 3", "'model' is no option"),
        ("batch_size = 4", "batch_size = 4\n[training.options]\nbackend = [1]", "expected: text"),
        ("updates = 3", 'updates = 3\ntune = "../x.json"', "outside the model file's folder"),
        ('name = "curves"', 'name = "/etc/x.csv"', "outside the model file's folder"),
        ('name = "curves"', 'name = "~nosuchuser/x.csv"', "is no path"),
        ('name = "curves"', 'name = "a\\u0000.csv"', "is no path"),
        ('name = "mse"', 'expression = "(z-y)**2"\ntargets = [nan, nan]', "is no interval"),
        ('name = "mse"', 'expression = "(z-y)**2"\ntargets = [5, -5]', "is no interval"),
    ],
)
def test_values_without_sense(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in HEAD
    assert expected in refusal(tmp_path, CHAIN, HEAD.replace(old, new, 1))


def test_an_unknown_operation_is_one_mistake(tmp_path: Path) -> None:
    text = '[network]\ninput_size = 6\n[[network.node]]\nname = "a"\nop = "liner"\ninputs = []\n'
    said = refusal(tmp_path, text)
    assert "unknown operation 'liner'. Did you mean 'linear'?" in said
    assert "at least" not in said


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, CHAIN)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_model_file(path).name == "small"


def test_training_options_are_kept_as_written(tmp_path: Path) -> None:
    text = CHAIN + "[training.options]\nl2 = 1e-5\nmomentum = false\nrefresh = 5\nbounds = [1, 2]\n"
    text += '[training.options.eta]\n"*.weight" = 1e-4\n'
    options = loaded(tmp_path, text).training.options
    assert options == {
        **{"l2": 1e-5, "momentum": False, "refresh": 5},
        **{"bounds": [1, 2], "eta": {"*.weight": 1e-4}},
    }
    assert type(options["momentum"]) is bool
    assert type(options["refresh"]) is int


def test_numbers_that_may_be_classes_are_told_how_to_be(tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 3}.5,{i % 2}" for i in range(20))
    (tmp_path / "own.csv").write_text(f"a,kind\n{rows}\n")
    path = tmp_path / "own.toml"
    path.write_text(
        '[model]\nname = "own"\n[data]\nname = "own.csv"\ntargets = ["kind"]\n'
        'target = "value"\n[network]\nlayers = [1, 2]\n'
        '[loss]\nname = "cross_entropy"\n[training]\nupdates = 1\n'
    )
    with pytest.raises(ModelFileError, match='target = "label" in \\[data\\]'):
        load_data(load_model_file(path))


# --- Training, and keys in the wrong place

SHORT = HEAD.replace("updates = 3\n", "")


@pytest.mark.parametrize(
    ("text", "epochs", "patience"),
    [
        ("", 200, 20),
        ("early_stop = false", 200, None),
        ("epochs = 5", 5, None),
        ("epochs = 5\nearly_stop = 3", 5, 3),
        ("early_stop = {patience = 4}", 200, 4),
    ],
)
def test_the_length_of_a_training(
    tmp_path: Path, text: str, epochs: int, patience: int | None
) -> None:
    training = loaded(tmp_path, CHAIN, f"{SHORT}{text}\n").training
    assert training.epochs == epochs
    stops = training.early_stop
    assert (stops.patience if stops else None) == patience


def test_what_is_watched(tmp_path: Path) -> None:
    text = (
        'early_stop = {monitor = "r2", min_delta = 1e-3}\nmetrics = ["r2", "mae"]\nlog = ["csv"]\n'
        "keep_best = false\nvalidate_every = 7\n"
    )
    training = loaded(tmp_path, CHAIN, SHORT + text).training
    assert training.metrics == ("r2", "mae")
    assert training.log == ("csv",)
    assert training.keep_best is False
    assert training.validate_every == 7
    assert training.early_stop is not None
    assert (training.early_stop.monitor, training.early_stop.min_delta) == ("r2", 1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('early_stop = {monitor = "r2"}', "early_stop monitors 'r2', which is not computed"),
        ("early_stop = 0", "wrong value for 'training.early_stop.patience'"),
        ("early_stop = true", "wrong value for 'training.early_stop'"),
        ("early_stop = {patince = 3}", "'training.early_stop.patince'. Did you mean 'patience'?"),
        ('metrics = ["acuracy"]', "wrong value for 'training.metrics[1]'\n  expected: 'accuracy', 'r2'"),
        ('log = ["wandb"]', "expected: 'csv' or 'tensorboard'"),
        ("hidden = [3]", "unknown key 'training.hidden'. hidden belongs in [network]"),
        ('targets = ["a"]', "targets belongs in [data] or [loss]"),
        ("damping = 0.1", "damping is an option: write it in [training.options]"),
        ("learning_rate = 0.1", "learning_rate is an option: write it in [training.options]"),
        ("lr = 0.1", "Second-order methods choose their step size"),
        ("weight_decay = 0.1", "Use l2, the coefficient"),
        ('optimizer = "adam"', "Use method in [training]"),
        ("patience = 4", "Use early_stop in [training]"),
        ("steps = 4", "The length of a training is updates or epochs"),
    ],
)  # fmt: skip
def test_hints_in_training(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, CHAIN, f"{SHORT}{text}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[data]\nname = 'curves'\nbatch_size = 3", "batch_size belongs in [training]"),
        ("[data]\nname = 'curves'\npath = 'a'", "Use name in [data]"),
        ("[data]\nname = 'curves'\nlayers = [1, 2]", "layers belongs in [network]"),
        ("epochs = 3\n[data]\nname = 'curves'", "unknown key 'epochs'. epochs belongs in [training]"),
        ("[data]\nname = 'curves'\n[network]\nactivation = 'tanh'", "Use transfer in [network]"),
        ("[data]\nname = 'curves'\n[network]\nlayers = [1, 1]\nhidden = [2]", "give either layers or"),
        ("[data]\nname = 'curves'\n[model]\nseed = 2", "seed belongs in [training] or [data]"),
        ("[network]\nhidden = [2]", "missing key 'data'"),
        ("[data]\nname = 'curves'\n[transfer.a]\nexpresion = 'x'", "Did you mean 'expression'?"),
    ],
)  # fmt: skip
def test_hints_elsewhere(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text + "\n", head="")


def test_a_name_is_the_files_or_its_folders(tmp_path: Path) -> None:
    text = '[data]\nname = "curves"\n'
    folder = tmp_path / "houses"
    folder.mkdir()
    (folder / "model.toml").write_text(text)
    (folder / "other.toml").write_text(text)
    assert load_model_file(folder / "other.toml").name == "other"
    assert load_model_file(folder / "model.toml").name == "houses"
