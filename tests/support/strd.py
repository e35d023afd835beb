"""Non-linear regression problems of the Statistical Reference Datasets, with certified results.

Data, models, starting values and certified values (ten significant digits of parameters, standard
deviations and residual sums of squares) are those that the National Institute of Standards and Technology
publishes: https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml. Each model is one formula of trainable
vectors of one number, named as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class Problem:
    """One of the data sets: ``y = formula(x, b1, b2, …)``."""

    name: str
    difficulty: str
    formula: Formula
    starts: tuple[Sequence[float], Sequence[float]]
    certified: Sequence[float]
    deviations: Sequence[float]
    residual_sum: float
    y: Sequence[float]
    x: Sequence[float]

    def data(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The observations, ``x`` and ``y`` as ``[N, 1]``."""
        return torch.tensor([self.x], dtype=dtype).T, torch.tensor([self.y], dtype=dtype).T

    def model(self, start: int, dtype: torch.dtype = torch.float64) -> Model:
        """The model at one of the two starting points."""
        return Model(self.formula, self.starts[start], dtype)


class Model(nn.Module):
    """A formula with parameters ``b1, b2, …`` to fit."""

    def __init__(self, formula: Formula, start: Sequence[float], dtype: torch.dtype) -> None:
        super().__init__()
        self.formula = formula
        for number, value in enumerate(start, start=1):
            setattr(self, f"b{number}", nn.Parameter(torch.tensor([value], dtype=dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """``formula(x, b1, b2, …)``."""
        return self.formula(x, *self.parameters())


def saturation(x: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """Of Misra1a and BoxBOD."""
    return b1 * (1 - torch.exp(-b2 * x))


def chwirut(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    return torch.exp(-b1 * x) / (b2 + b3 * x)


def power(x: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    return b1 * torch.exp(b2 * torch.log(x))


def lanczos(
    x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor, b5: Tensor, b6: Tensor
) -> Tensor:
    return b1 * torch.exp(-b2 * x) + b3 * torch.exp(-b4 * x) + b5 * torch.exp(-b6 * x)


def osborne(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor, b5: Tensor) -> Tensor:
    return b1 + b2 * torch.exp(-x * b4) + b3 * torch.exp(-x * b5)


def thurber(
    x: Tensor,
    b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor, b5: Tensor, b6: Tensor, b7: Tensor,
) -> Tensor:  # fmt: skip
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def kowalik(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor) -> Tensor:
    return b1 * (x**2 + x * b2) / (x**2 + x * b3 + b4)


def meyer(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    return b1 * torch.exp(b2 / (x + b3))


def eckerle(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor) -> Tensor:
    return (b1 / b2) * torch.exp(-0.5 * ((x - b3) / b2) ** 2)


def ratkowsky(x: Tensor, b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor) -> Tensor:
    return b1 * torch.exp(-torch.log1p(torch.exp(b2 - b3 * x)) / b4)


PROBLEMS = (
    Problem(
        "Misra1a", "lower", saturation,
        ((500, 0.0001), (250, 0.0005)),
        (2.3894212918e02, 5.5015643181e-04),
        (2.7070075241e00, 7.2668688436e-06),
        1.2455138894e-01,
        (
            10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47,
            81.78,
        ),
        (
            77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1,
            760.0,
        ),
    ),
    Problem(
        "Chwirut2", "lower", chwirut,
        ((0.1, 0.01, 0.02), (0.15, 0.008, 0.010)),
        (1.6657666537e-01, 5.1653291286e-03, 1.2150007096e-02),
        (3.8303286810e-02, 6.6621605126e-04, 1.5304234767e-03),
        5.1304802941e02,
        (
            92.9, 57.1, 31.05, 11.5875, 8.025, 63.6, 21.4, 14.25, 8.475, 63.8, 26.8, 16.4625, 7.125,
            67.3, 41.0, 21.15, 8.175, 81.5, 13.12, 59.9, 14.62, 32.9, 5.44, 12.56, 5.44, 32.0, 13.95,
            75.8, 20.0, 10.42, 59.5, 21.67, 8.55, 62.0, 20.2, 7.76, 3.75, 11.81, 54.7, 23.7, 11.55,
            61.3, 17.7, 8.74, 59.2, 16.3, 8.62, 81.0, 4.87, 14.62, 81.7, 17.17, 81.3, 28.9,
        ),
        (
            0.5, 1.0, 1.75, 3.75, 5.75, 0.875, 2.25, 3.25, 5.25, 0.75, 1.75, 2.75, 4.75, 0.625, 1.25,
            2.25, 4.25, 0.5, 3.0, 0.75, 3.0, 1.5, 6.0, 3.0, 6.0, 1.5, 3.0, 0.5, 2.0, 4.0, 0.75, 2.0,
            5.0, 0.75, 2.25, 3.75, 5.75, 3.0, 0.75, 2.5, 4.0, 0.75, 2.5, 4.0, 0.75, 2.5, 4.0, 0.5, 6.0,
            3.0, 0.5, 2.75, 0.5, 1.75,
        ),
    ),
    Problem(
        "DanWood", "lower", power,
        ((1, 5), (0.7, 4)),
        (7.6886226176e-01, 3.8604055871e00),
        (1.8281973860e-02, 5.1726610913e-02),
        4.3173084083e-03,
        (2.138, 3.421, 3.597, 4.340, 4.882, 5.660),
        (1.309, 1.471, 1.490, 1.565, 1.611, 1.680),
    ),
    Problem(
        "Lanczos3", "lower", lanczos,
        ((1.2, 0.3, 5.6, 5.5, 6.5, 7.6), (0.5, 0.7, 3.6, 4.2, 4, 6.3)),
        (
            8.6816414977e-02, 9.5498101505e-01, 8.4400777463e-01, 2.9515951832e00, 1.5825685901e00,
            4.9863565084e00,
        ),
        (
            1.7197908859e-02, 9.7041624475e-02, 4.1488663282e-02, 1.0766312506e-01, 5.8371576281e-02,
            3.4436403035e-02,
        ),
        1.6117193594e-08,
        (
            2.5134, 2.0443, 1.6684, 1.3664, 1.1232, 0.9269, 0.7679, 0.6389, 0.5338, 0.4479, 0.3776,
            0.3197, 0.2720, 0.2325, 0.1997, 0.1723, 0.1493, 0.1301, 0.1138, 0.1000, 0.0883, 0.0783,
            0.0698, 0.0624,
        ),
        (
            0.00, 0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70,
            0.75, 0.80, 0.85, 0.90, 0.95, 1.00, 1.05, 1.10, 1.15,
        ),
    ),
    Problem(
        "MGH17", "average", osborne,
        ((50, 150, -100, 1, 2), (0.5, 1.5, -1, 0.01, 0.02)),
        (
            3.7541005211e-01, 1.9358469127e00, -1.4646871366e00, 1.2867534640e-02, 2.2122699662e-02,
        ),
        (
            2.0723153551e-03, 2.2031669222e-01, 2.2175707739e-01, 4.4861358114e-04, 8.9471996575e-04,
        ),
        5.4648946975e-05,
        (
            0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685,
            0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448,
            0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
        ),
        tuple(10.0 * i for i in range(33)),
    ),
    Problem(
        "Thurber", "higher", thurber,
        ((1000, 1000, 400, 40, 0.7, 0.3, 0.03), (1300, 1500, 500, 75, 1, 0.4, 0.05)),
        (
            1.2881396800e03, 1.4910792535e03, 5.8323836877e02, 7.5416644291e01, 9.6629502864e-01,
            3.9797285797e-01, 4.9727297349e-02,
        ),
        (
            4.6647963344e00, 3.9571156086e01, 2.8698696102e01, 5.5675370270e00, 3.1333340687e-02,
            1.4984928198e-02, 6.5842344623e-03,
        ),
        5.6427082397e03,
        (
            80.574, 84.248, 87.264, 87.195, 89.076, 89.608, 89.868, 90.101, 92.405, 95.854, 100.696,
            101.060, 401.672, 390.724, 567.534, 635.316, 733.054, 759.087, 894.206, 990.785, 1090.109,
            1080.914, 1122.643, 1178.351, 1260.531, 1273.514, 1288.339, 1327.543, 1353.863, 1414.509,
            1425.208, 1421.384, 1442.962, 1464.350, 1468.705, 1447.894, 1457.628,
        ),
        (
            -3.067, -2.981, -2.921, -2.912, -2.840, -2.797, -2.702, -2.699, -2.633, -2.481, -2.363,
            -2.322, -1.501, -1.460, -1.274, -1.212, -1.100, -1.046, -0.915, -0.714, -0.566, -0.545,
            -0.400, -0.309, -0.109, -0.103, 0.010, 0.119, 0.377, 0.790, 0.963, 1.006, 1.115, 1.572,
            1.841, 2.047, 2.200,
        ),
    ),
    Problem(
        "BoxBOD", "higher", saturation,
        ((1, 1), (100, 0.75)),
        (2.1380940889e02, 5.4723748542e-01),
        (1.2354515176e01, 1.0455993237e-01),
        1.1680088766e03,
        (109, 149, 149, 191, 213, 224),
        (1, 2, 3, 5, 7, 10),
    ),
    Problem(
        "MGH09", "higher", kowalik,
        ((25, 39, 41.5, 39), (0.25, 0.39, 0.415, 0.39)),
        (1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01),
        (1.1435312227e-02, 1.9633220911e-01, 8.0842031232e-02, 9.0025542308e-02),
        3.0750560385e-04,
        (
            0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246,
        ),
        (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625),
    ),
    Problem(
        "MGH10", "higher", meyer,
        ((2, 400000, 25000), (0.02, 4000, 250)),
        (5.6096364710e-03, 6.1813463463e03, 3.4522363462e02),
        (1.5687892471e-04, 2.3309021107e01, 7.8486103508e-01),
        8.7945855171e01,
        (
            34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820,
            3307, 2872,
        ),
        tuple(50.0 + 5 * i for i in range(16)),
    ),
    Problem(
        "Eckerle4", "higher", eckerle,
        ((1, 10, 500), (1.5, 5, 450)),
        (1.5543827178e00, 4.0888321754e00, 4.5154121844e02),
        (1.5408051163e-02, 4.6803020753e-02, 4.6800518816e-02),
        1.4635887487e-03,
        (
            0.0001575, 0.0001699, 0.0002350, 0.0003102, 0.0004917, 0.0008710, 0.0017418, 0.0046400,
            0.0065895, 0.0097302, 0.0149002, 0.0237310, 0.0401683, 0.0712559, 0.1264458, 0.2073413,
            0.2902366, 0.3445623, 0.3698049, 0.3668534, 0.3106727, 0.2078154, 0.1164354, 0.0616764,
            0.0337200, 0.0194023, 0.0117831, 0.0074357, 0.0022732, 0.0008800, 0.0004579, 0.0002345,
            0.0001586, 0.0001143, 0.0000710,
        ),
        (
            400.0, 405.0, 410.0, 415.0, 420.0, 425.0, 430.0, 435.0, 436.5, 438.0, 439.5, 441.0, 442.5,
            444.0, 445.5, 447.0, 448.5, 450.0, 451.5, 453.0, 454.5, 456.0, 457.5, 459.0, 460.5, 462.0,
            463.5, 465.0, 470.0, 475.0, 480.0, 485.0, 490.0, 495.0, 500.0,
        ),
    ),
    Problem(
        "Rat43", "higher", ratkowsky,
        ((100, 10, 1, 1), (700, 5, 0.75, 1.3)),
        (6.9964151270e02, 5.2771253025e00, 7.5962938329e-01, 1.2792483859e00),
        (1.6302297817e01, 2.0828735829e00, 1.9566123451e-01, 6.8761936385e-01),
        8.7864049080e03,
        (
            16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03, 651.92, 724.93, 699.56,
            689.96, 637.56, 717.41,
        ),
        tuple(float(i) for i in range(1, 16)),
    ),
)  # fmt: skip
