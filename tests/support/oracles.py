"""Curvature by brute force: torch.func and a few lines of algebra, sharing no code with gncompile.

Conventions are those of the mathematics: ``E_n`` is the loss of sample ``n``, summed over outputs;
the objective is its mean over the batch. ``h: [N, d]`` is the output of one ``nn.Linear``, ``J_n =
∂z_n/∂h_n``. The samples of a batch do not meet, so the derivative of a sum over samples holds every
sample's own derivative: that is how all per-sample Jacobians and Hessians below are read off one
reverse pass per output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp

Loss = str | nn.Module
Function = Callable[[Tensor], Tensor]


# --- losses ---------------------------------------------------------------------------------------


def total_loss(loss: Loss, z: Tensor, y: Tensor) -> Tensor:
    """``Σ_n E_n``: N times the objective, whichever reduction a torch module uses."""
    if isinstance(loss, nn.Module):
        value: Tensor = z.shape[0] * loss(z, y)
        return value
    if loss == "mse":
        return 0.5 * (z - y).square().sum()
    if loss == "bce_with_logits":
        return (F.softplus(z) - y * z).sum()
    if loss == "cross_entropy":
        log_p = z.log_softmax(dim=-1)
        return -log_p.gather(1, y[:, None]).sum() if y.dim() == 1 else -(y * log_p).sum()
    if loss == "exp(z) - y*z":
        return (z.exp() - y * z).sum()
    if loss == "huber":
        e = z - y
        return torch.where(e.abs() <= 1, 0.5 * e.square(), e.abs() - 0.5).sum()
    raise ValueError(f"no oracle for the loss {loss!r}")


def mean_loss(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """The objective ``(1/N) Σ_n E_n``."""
    return total_loss(loss, model(x), y) / x.shape[0]


def output_gradient(loss: Loss, z: Tensor, y: Tensor) -> Tensor:
    """``g_L = ∂E_n/∂z_n``: [N, K]."""
    return grad(lambda u: total_loss(loss, u, y))(z.detach())


def output_hessian(loss: Loss, z: Tensor, y: Tensor) -> Tensor:
    """``𝓗_L = ∂²E_n/∂z_n∂z_nᵀ``: [N, K, K]."""
    return per_sample_jacobian(lambda u: grad(lambda v: total_loss(loss, v, y))(u), z.detach())


def per_sample_jacobian(function: Function, at: Tensor) -> Tensor:
    """``J[n, i, j] = ∂f(at)[n, i] / ∂at[n, j]`` for a function that treats samples separately."""
    columns = jacrev(lambda u: function(u).sum(dim=0))(at)
    return columns.detach().transpose(0, 1)


# --- first order ----------------------------------------------------------------------------------


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Detached parameters by name."""
    return {name: p.detach() for name, p in model.named_parameters()}


def gradient(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradient of the objective for every parameter, by autograd."""
    objective = mean_loss(model, loss, x, y)
    names, values = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(objective, values), strict=True))


def directional_output(model: nn.Module, x: Tensor, direction: Mapping[str, Tensor]) -> Tensor:
    """``r_z``: [N, K], the derivative of ``z`` along a direction in parameter space."""
    at = parameters(model)
    tangents = {name: direction.get(name, torch.zeros_like(p)) for name, p in at.items()}
    r_z: Tensor = jvp(lambda p: functional_call(model, p, (x,)), (at,), (tangents,))[1]
    return r_z


def gauss_newton_products(
    model: nn.Module, loss: Loss, x: Tensor, y: Tensor, directions: Sequence[Mapping[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """``d_iᵀ G d_j`` with the full Gauss-Newton matrix ``G``, and ``b_i = d_iᵀ∇``."""
    r_z = torch.stack([directional_output(model, x, d) for d in directions])
    curvature = output_hessian(loss, model(x), y)
    products = torch.einsum("ink,nkl,jnl->ij", r_z, curvature, r_z) / x.shape[0]
    slope = gradient(model, loss, x, y)
    b = torch.stack([torch.stack([(d[k] * slope[k]).sum() for k in d]).sum() for d in directions])
    return products, b


# --- at the output of each linear layer -----------------------------------------------------------


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Every ``nn.Linear`` by module path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def has_bias(layer: nn.Linear) -> bool:
    """Whether the layer has a bias, and so the homogeneous input ``[a, 1]``."""
    return isinstance(layer.bias, Tensor)


@contextmanager
def perturbed(layer: nn.Module, perturbation: Tensor) -> Iterator[None]:
    """Inside, the layer's output has ``perturbation`` added to it."""
    handle = layer.register_forward_hook(lambda module, inputs, output: output + perturbation)
    try:
        yield
    finally:
        handle.remove()


def _from_perturbation(model: nn.Module, layer: nn.Linear, x: Tensor) -> tuple[Function, Tensor]:
    """``ε ↦ z(h + ε)`` and ``ε = 0``: [N, d]."""

    def outputs(perturbation: Tensor) -> Tensor:
        with perturbed(layer, perturbation):
            z: Tensor = model(x)
        return z

    return outputs, x.new_zeros(x.shape[0], layer.out_features)


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``J_n = ∂z_n/∂h_n``: [N, K, d] for every linear layer."""
    layers = linear_layers(model).items()
    return {name: per_sample_jacobian(*_from_perturbation(model, m, x)) for name, m in layers}


def per_sample_ggn(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``𝒢_n = J_nᵀ 𝓗_L J_n``: [N, d, d] for every linear layer."""
    top = output_hessian(loss, model(x), y)
    return {name: congruence(J, top) for name, J in jacobians(model, x).items()}


def ggn(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``E[𝒢]``: [d, d] for every linear layer."""
    return {name: G.mean(dim=0) for name, G in per_sample_ggn(model, loss, x, y).items()}


def per_sample_hessian(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``𝓗_n = ∂²E_n/∂h_n∂h_nᵀ``: [N, d, d] for every linear layer."""

    def of(layer: nn.Linear) -> Tensor:
        outputs, zero = _from_perturbation(model, layer, x)
        return per_sample_jacobian(grad(lambda e: total_loss(loss, outputs(e), y)), zero)

    return {name: of(layer) for name, layer in linear_layers(model).items()}


def output_gradients(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``g_n = ∂E_n/∂h_n``: [N, d] for every linear layer."""

    def of(layer: nn.Linear) -> Tensor:
        outputs, zero = _from_perturbation(model, layer, x)
        return grad(lambda e: total_loss(loss, outputs(e), y))(zero)

    return {name: of(layer) for name, layer in linear_layers(model).items()}


def congruence(J: Tensor, M: Tensor) -> Tensor:
    """``J_nᵀ M_n J_n`` for every sample; ``M`` may be one matrix for all."""
    return J.transpose(-1, -2) @ M @ J


def layer_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``ā``: [N, in+1] with a column of ones, or [N, in] for a layer without bias."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            a = inputs[0].detach()
            seen[name] = torch.cat([a, a.new_ones(len(a), 1)], dim=1) if has_bias(layer) else a

        return hook

    layers = linear_layers(model).items()
    handles = [layer.register_forward_hook(remember(name)) for name, layer in layers]
    model(x)
    for handle in handles:
        handle.remove()
    return {name: seen[name] for name, _ in layers}


def input_moments(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``Q = (1/N) Āᵀ Ā`` for every linear layer."""
    return {name: a.T @ a / len(a) for name, a in layer_inputs(model, x).items()}


# --- in parameter space, for small nets -----------------------------------------------------------


def _from_weight(model: nn.Module, name: str, x: Tensor) -> tuple[Function, Tensor]:
    """``W̄ ↦ z`` and the present ``W̄ = [W, b]``, all other parameters fixed."""
    layer = linear_layers(model)[name]
    prefix = f"{name}." if name else ""

    def outputs(W: Tensor) -> Tensor:
        if has_bias(layer):
            changed = {f"{prefix}weight": W[:, :-1], f"{prefix}bias": W[:, -1]}
        else:
            changed = {f"{prefix}weight": W}
        z: Tensor = functional_call(model, changed, (x,))
        return z

    columns = [layer.weight, layer.bias[:, None]] if has_bias(layer) else [layer.weight]
    return outputs, torch.cat(columns, dim=1).detach()


def parameter_ggn(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``E[(∂z/∂W̄)ᵀ 𝓗_L (∂z/∂W̄)]``, ``W̄`` flattened row by row, for every linear layer."""
    top = output_hessian(loss, model(x), y)

    def of(name: str) -> Tensor:
        outputs, W = _from_weight(model, name, x)
        J = jacrev(outputs)(W).flatten(start_dim=2)
        return congruence(J, top).mean(dim=0)

    return {name: of(name) for name in linear_layers(model)}


def parameter_hessian(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``∂²Ē/∂W̄∂W̄``, ``W̄`` flattened row by row, for every linear layer."""

    def of(name: str) -> Tensor:
        outputs, W = _from_weight(model, name, x)
        H = hessian(lambda V: total_loss(loss, outputs(V), y) / len(x))(W)
        return H.reshape(W.numel(), W.numel())

    return {name: of(name) for name in linear_layers(model)}


# --- KFRA on chains, and single rules -------------------------------------------------------------


def slopes(function: Function, h: Tensor) -> Tensor:
    """``b = f'(h)`` of an elementwise function."""
    b: Tensor = jvp(function, (h,), (torch.ones_like(h),))[1]
    return b


def kfra_chain(
    layers: Sequence[nn.Linear], functions: Sequence[Function], loss: Loss, x: Tensor, y: Tensor
) -> list[Tensor]:
    """KFRA's ``Ḡ`` of each layer of the chain ``a_l = f_l(W_l a_{l-1} + b_l)``, ``z = a_L``.

    ``Ḡ_l = (W_{l+1}ᵀ Ḡ_{l+1} W_{l+1}) ⊙ E[b_l b_lᵀ]``, with ``E[𝓗_L]`` for the product at the top.
    """
    pre: list[Tensor] = []
    a = x
    for layer, function in zip(layers, functions, strict=True):
        pre.append(layer(a).detach())
        a = function(pre[-1])
    M = output_hessian(loss, a, y).mean(dim=0)
    blocks: list[Tensor] = []
    for layer, function, h in reversed(list(zip(layers, functions, pre, strict=True))):
        b = slopes(function, h)
        blocks.insert(0, M * (b.T @ b) / len(b))
        M = layer.weight.detach().T @ blocks[0] @ layer.weight.detach()
    return blocks


def averaged_rule(node: Function, h: Tensor, M: Tensor) -> Tensor:
    """``E[J_nᵀ M J_n]`` over the samples of ``h``, ``J_n`` the Jacobian of ``node`` there."""
    return congruence(per_sample_jacobian(node, h), M).mean(dim=0)


# --- sampled factors ------------------------------------------------------------------------------


def sampled_gradients(loss: str, method: str, z: Tensor) -> tuple[Tensor, Tensor] | None:
    """Every output gradient ``g̃: [R, N, K]`` that KFAC can draw, with probabilities [R, N].

    ``"kfac"`` draws targets from the model, ``g̃ = p − ỹ``; ``"kfac_rp"`` has ``g̃ = C_L v``, ``v =
    ±1``. None when the draw is Gaussian (squared error under ``"kfac"``).
    """
    n, k = z.shape
    signs = z.new_tensor(list(itertools.product((-1.0, 1.0), repeat=k)))
    even = z.new_full((len(signs), n), 1.0 / len(signs))
    if loss == "cross_entropy":
        p = z.softmax(dim=-1)
        if method == "kfac":
            return p - torch.eye(k, dtype=z.dtype)[:, None, :], p.T
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        return torch.einsum("nij,rj->rni", root, signs), even
    if loss == "bce_with_logits":
        p = z.sigmoid()
        if method == "kfac":
            targets = (signs[:, None, :] + 1.0) / 2.0
            return p - targets, torch.where(targets > 0, p, 1.0 - p).prod(dim=-1)
        return (p * (1.0 - p)).sqrt() * signs[:, None, :], even
    if loss == "mse":
        return None if method == "kfac" else (signs[:, None, :].expand(-1, n, -1), even)
    raise ValueError(f"no enumeration for the loss {loss!r}")


def sampling_moments(loss: str, method: str, J: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, [d, d] each, of one draw of ``(1/N) Σ_n g̃_n g̃_nᵀ``, ``g̃_n = J_nᵀ
    g̃_{L,n}``.

    Samples are drawn separately, so variances add. A Gaussian ``g̃_n ~ N(0, J_nᵀJ_n)`` has
    ``Var[g̃_i g̃_j] = 𝒢_ii 𝒢_jj + 𝒢_ij²`` (Wick).
    """
    drawn = sampled_gradients(loss, method, z)
    if drawn is None:
        G = J.transpose(1, 2) @ J
        diagonal = G.diagonal(dim1=1, dim2=2)
        variance = diagonal[:, :, None] * diagonal[:, None, :] + G.square()
    else:
        vectors, chances = drawn
        g = torch.einsum("nki,rnk->rni", J, vectors)
        outer = g[..., :, None] * g[..., None, :]
        G = torch.einsum("rn,rnij->nij", chances, outer)
        variance = torch.einsum("rn,rnij->nij", chances, (outer - G).square())
    return G.mean(dim=0), variance.sum(dim=0) / len(J) ** 2
