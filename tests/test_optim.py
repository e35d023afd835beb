"""The optimiser-shaped adapter: a trainer's steps, exact states, and clear words for old habits."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.errors import BatchError, CheckpointError, CompileError, GncompileError
from gncompile.optim import GaussNewton

DRAW = torch.Generator().manual_seed(0)
BATCHES = [
    (torch.randn(100, 5, generator=DRAW), torch.randn(100, 2, generator=DRAW)) for _ in range(26)
]


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))


def steps(optimiser: GaussNewton, first: int = 0, last: int = 6) -> list[float]:
    return [optimiser.step(x, y).item() for x, y in BATCHES[first:last]]


def test_its_steps_are_those_of_a_trainer() -> None:
    optimiser, trainer = (
        GaussNewton(net(), "mse", l2=0.01),
        gncompile.compile(net(), "mse", BATCHES[0][0], l2=0.01),
    )
    assert steps(optimiser) == [trainer.step(x, y).loss for x, y in BATCHES[:6]]
    assert optimiser.trainer.updates == 6
    assert "6 updates" in repr(optimiser)


def test_example_inputs_compile_at_once() -> None:
    optimiser = GaussNewton(net(), "mse", example_inputs=torch.zeros(1, 5), method="kfac")
    assert optimiser.trainer.updates == 0
    with pytest.raises(GncompileError, match=r"before the first step\n.*example_inputs"):
        GaussNewton(net(), "mse").trainer  # noqa: B018


def test_the_loss_is_a_scalar_for_all_but_backward() -> None:
    optimiser = GaussNewton(net(), "mse")
    loss = optimiser.step(*BATCHES[0])
    other = optimiser.step(*BATCHES[1])
    assert loss.item() != other.item()  # not a view of what the next step writes
    assert f"{loss:.3f}" == f"{loss.item():.3f}"
    assert repr(loss) == f"StepLoss({loss.item():.6g})"
    assert type(loss + other) is Tensor
    assert loss.shape == ()
    assert not loss.requires_grad
    assert torch.equal(copy.deepcopy(loss), loss)
    with pytest.raises(GncompileError, match=r"stepped on already\n.*leave out loss.backward"):
        loss.backward()


@pytest.mark.parametrize("method", ["kfra", "kfac", "adam"])
@pytest.mark.parametrize("compiled", [False, True], ids=["new", "compiled"])
def test_a_state_goes_on_bit_for_bit(method: str, compiled: bool) -> None:
    """After more steps than averages and dampings take to begin; into a new optimiser or the same."""
    optimiser = GaussNewton(net(dropout=0.2), "mse", method=method)
    steps(optimiser, 0, 22)
    file = io.BytesIO()
    torch.save(optimiser.state_dict(), file)
    kept = optimiser.state_dict()
    wanted = steps(optimiser, 22, 26)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = optimiser if compiled else GaussNewton(net(dropout=0.2), "mse", method=method)
    for state in (saved, kept):
        other.load_state_dict(state)
        assert steps(other, 22, 26) == wanted


def test_before_the_first_step_there_is_no_state() -> None:
    optimiser = GaussNewton(net(), "mse")
    assert optimiser.state_dict() == {}
    optimiser.load_state_dict({})
    assert len(steps(optimiser)) == 6


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            lambda: GaussNewton(net(), "mse", damping_rate=0.9),
            r"another damping_rate\n.*0.9\n.*0.95",
        ),
        (lambda: GaussNewton(net(), "mse", method="kflr"), r"another method\n.*kflr\n.*kfra"),
        (lambda: GaussNewton(net(), "huber"), "another model"),
        (lambda: GaussNewton(nn.Linear(5, 2), "mse"), "another model"),
    ],
)
def test_a_state_of_another_training_is_refused(
    other: Callable[[], GaussNewton], told: str
) -> None:
    optimiser = GaussNewton(net(), "mse")
    steps(optimiser, 0, 2)
    state, new = optimiser.state_dict(), other()
    with pytest.raises(CheckpointError, match=told):
        new.load_state_dict(state)
    state["about"] = {"format": 2}
    with pytest.raises(CheckpointError, match=r"no state of a compiled training(.|\n)*as it was"):
        optimiser.load_state_dict(state)
    with pytest.raises(CheckpointError, match="no state of a compiled training"):
        optimiser.load_state_dict({"state": {}, "param_groups": []})  # of another optimiser
    with pytest.raises(CheckpointError, match="no state of a compiled training"):
        GaussNewton(net(), "mse").load_state_dict(None)  # type: ignore[arg-type]
    assert len(steps(optimiser)) == 6


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda o: o.step(), "no batch"),
        (lambda o: o.step(lambda: 0.0), "a closure"),
        (lambda o: o.step(closure=lambda: 0.0), "a closure"),
        (lambda o: o.step(BATCHES[0][0]), "x alone"),
        (
            lambda o: o.step(*BATCHES[0], closure=lambda: 0.0),
            "computes something, beside the batch",
        ),
    ],
)
def test_old_habits_of_step_are_answered(call: Callable[[GaussNewton], object], told: str) -> None:
    optimiser = GaussNewton(net(), "mse", example_inputs=BATCHES[0][0])
    with pytest.raises(BatchError, match=rf"{told}(.|\n)*loss = optimiser.step\(x, y\)"):
        call(optimiser)
    assert optimiser.trainer.updates == 0


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o),
        lambda o: o.param_groups[0]["lr"],
        lambda o: o.param_groups[0].__setitem__("lr", 0.1),
        lambda o: o.param_groups[0].update(lr=0.1),
    ],
    ids=["StepLR", "ReduceLROnPlateau", "param_groups", "lr = 0.1", "update"],
)
def test_schedulers_are_refused(schedule: Callable[[GaussNewton], object]) -> None:
    with pytest.raises(GncompileError, match=r"no learning rate\n.*leave the .* scheduler out"):
        schedule(GaussNewton(net(), "mse"))


def test_what_tools_look_at() -> None:
    model = net()
    model[0].weight.requires_grad_(False)
    optimiser = GaussNewton(model, "mse")
    assert isinstance(optimiser, torch.optim.Optimizer)
    assert [id(p) for p in optimiser.param_groups[0]["params"]] == [
        id(p) for p in model.parameters() if p.requires_grad
    ]
    called = []
    optimiser.register_step_post_hook(lambda *_: called.append(1))
    optimiser.zero_grad(set_to_none=True)
    optimiser.step(*BATCHES[0], closure=lambda: called.append(2))
    assert called == [2, 1]
    with pytest.raises(GncompileError, match="those of the compiled model"):
        optimiser.add_param_group({"params": []})
    with pytest.raises(GncompileError, match=r"cannot be pickled or copied\n.*state_dict"):
        copy.deepcopy(optimiser)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: GaussNewton(net().parameters(), "mse"), "the torch.nn.Module itself"),
        (lambda: GaussNewton(net(), "mse", lr=0.1), "choose their step size"),
        (lambda: GaussNewton(net(), "mse", weight_decay=0.1), "use l2"),
        (lambda: GaussNewton(net(), "mse", betas=(0.9, 0.999)), "second-order methods need none"),
        (lambda: GaussNewton(net(), "mse", eps=1e-8), "second-order methods need none"),
        (lambda: GaussNewton(net(), "mse", momentum=0.9), "True or False"),
        (lambda: GaussNewton(net(), "mse", scheduler=None), "chosen anew in every step"),
    ],
)
def test_arguments_of_other_optimisers_are_answered_at_once(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(CompileError, match=told):
        make()


def test_a_standardised_training_goes_on_too() -> None:
    x, y = BATCHES[0][0] * 100 + 1000, BATCHES[0][1] * 50
    optimiser = GaussNewton(net(), "mse", standardise=(x, y))
    first = [optimiser.step(x, y).item() for _ in range(3)]
    assert first[-1] < first[0] < 3  # the loss of standardised targets
    state = optimiser.state_dict()
    wanted = [optimiser.step(x, y).item() for _ in range(3)]
    other = GaussNewton(net(), "mse", standardise=True)
    other.load_state_dict(state)
    assert [other.step(x, y).item() for _ in range(3)] == wanted
