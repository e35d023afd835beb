"""The text of the Triton backend, which needs no Triton: names, order of launches, and how it reads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from small_programs import METHODS, chain, program_of, traced, triton_texts, unnumbered
from torch import nn
from training import NETWORKS

import gncompile
from gncompile.base.settings import Settings
from gncompile.emit.layout import WIDTH
from gncompile.emit.step_source import emit_step
from gncompile.explain.explain import summary
from gncompile.pipeline import step_program
from gncompile.program.launches import schedule
from gncompile.program.operations import Random
from gncompile.program.schedule import Kind
from gncompile.program.step_program import StepProgram
from gncompile.runtime.source_check import checked

EVERYTHING = {"l2": {"*weight": 1e-3}, "average": 0.9, "guarded": True}


def phases_of(step: str) -> dict[str, str]:
    """The text of every phase's function."""
    (bind,) = (node for node in ast.parse(step).body if isinstance(node, ast.FunctionDef))
    return {
        node.name: "\n".join(map(ast.unparse, node.body))
        for node in bind.body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(("name", "method"), list(zip([*NETWORKS, "gated"], METHODS, strict=True)))
def test_every_name_is_defined_and_every_import_used(name: str, method: str) -> None:
    for text in triton_texts(program_of(NETWORKS[name](), method, **EVERYTHING)):
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", "-"]
        found = subprocess.run(command, input=text, capture_output=True, text=True)
        # What a step does not need is bound all the same, for other phases and for reading.
        unused = re.findall(r"^F841", found.stdout, re.MULTILINE)
        assert len(re.findall(r"^[EF]\d+", found.stdout, re.MULTILINE)) == len(unused), found.stdout


@pytest.mark.parametrize("method", METHODS)
def test_launches_run_in_the_order_of_the_schedule(method: str) -> None:
    program = program_of(NETWORKS["gated"](), method, **EVERYTHING)
    phases = phases_of(triton_texts(program)[1])
    for phase, launches in schedule(program).phases.items():
        planned = [x.kernels[0].stores[0] for x in launches if x.kind is not Kind.TORCH]
        assert re.findall(r"run\(write_(\w+)\)", phases[phase]) == planned


@pytest.mark.parametrize("method", METHODS)
def test_lines_are_of_moderate_width(method: str) -> None:
    for text in triton_texts(program_of(chain(), method, **EVERYTHING)):
        tree = ast.parse(text)
        code = text.split("\n")[len((ast.get_docstring(tree) or "").split("\n")) + 1 :]
        assert max(map(len, code)) <= WIDTH + 10, "an operand of a formula has no comma to break at"


EXPECTED = {
    "a_layer_1_tanh_tile": '''\
        @triton.jit
        def a_layer_1_tanh_tile(h_layer_0):
            """a_layer_1_tanh, b_layer_1_tanh of x0, v_0_weight, v_0_bias"""
            tanh_h_layer_0 = accurate.tanh(h_layer_0)  # tanh(h_layer_0)
            return tanh_h_layer_0, 1.0 - tanh_h_layer_0 * tanh_h_layer_0
        ''',
    "write_a_layer_1_tanh": """\
        # pre-activation of 0; 1; f' of layer_1_tanh
        write_a_layer_1_tanh = [
            *gemm.launches(
                x0,
                v_0_weight,
                a_layer_1_tanh,
                transpose_b=True,
                bias=v_0_bias,
                epilogue=kernels.a_layer_1_tanh_tile,
                outputs=(b_layer_1_tanh,),
                precision=precision,
            ),
        ]
        """,
    "write_Q_layer_0": """\
        # input second moment of 0; input second moment of 2; input second moment of 4
        write_Q_layer_0 = [
            *moments.grouped_moments.launches(
                moments.plan_moments(
                    [
                        moments.Moment(x0_F, None, Q_layer_0),
                        moments.Moment(a_layer_1_tanh_F, None, Q_layer_2),
                        moments.Moment(a_layer_3_silu_F, None, Q_layer_4),
                    ],
                    homogeneous=True,
                    precision=precision,
                ),
                alpha=1 / F,
            ),
        ]
        """,
    "write_grad_layer_0_decayed": """\
        write_grad_layer_0_l2 = [
            *grouped_elementwise.launches(
                kernels.plus_0_001_times_tile,
                plan_elementwise_group([
                    tiles.Problem((grad_layer_0[:, :-1], v_0_weight), (grad_layer_0_l2[:, :-1],)),
                    tiles.Problem((grad_layer_2[:, :-1], v_2_weight), (grad_layer_2_l2[:, :-1],)),
                    tiles.Problem((grad_layer_4[:, :-1], v_4_weight), (grad_layer_4_l2[:, :-1],)),
                ]),
            ),
            *grouped_elementwise.launches(
                kernels.itself_tile,
                plan_elementwise_group([
                    tiles.Problem((grad_layer_0[:, -1],), (grad_layer_0_l2[:, -1],)),
                    tiles.Problem((grad_layer_2[:, -1],), (grad_layer_2_l2[:, -1],)),
                    tiles.Problem((grad_layer_4[:, -1],), (grad_layer_4_l2[:, -1],)),
                ]),
            ),
        ]
        """,
}


@pytest.mark.parametrize("part", list(EXPECTED))
def test_the_text_reads_as_written(part: str) -> None:
    kernels, step = triton_texts(program_of(chain(), l2={"*weight": 1e-3}))
    wanted = textwrap.dedent(EXPECTED[part])
    assert wanted in (
        kernels if part.endswith("tile") else textwrap.dedent(step[step.index("    #") :])
    )


SAMPLED = """\
    write_g_sampled = [
        *categorical.launches(
            p,
            Draw("uniform", (F, 1), random_state, 0),
            g_sampled,
            epilogue=kernels.g_sampled_tile,
            epilogue_inputs=(target_mass, p),
        ),
    ]
"""
SAMPLED_TILE = """\
@triton.jit
def g_sampled_tile(y_sampled, target_mass, p):
    \"\"\"g_sampled of p, target_mass\"\"\"
    return (accurate.sqrt(target_mass) * (p - y_sampled),)
"""


def test_targets_are_sampled_and_used_in_one_launch() -> None:
    program = sampling_program("cross_entropy", "kfac")
    kernels, step = map(unnumbered, triton_texts(program))
    assert SAMPLED in step
    assert SAMPLED_TILE in kernels
    assert "    random_state = memory.draws.state\n" in step
    assert "    advance_curvature = advance.launches(random_state, 1)\n" in step
    assert phases_of(step)["curvature"].endswith("run(advance_curvature)")


def sampling_program(loss: str, method: str | dict[str, str], **options: object) -> StepProgram:
    found, declared = traced(chain(), loss)
    settings = Settings.from_options(method=method, **EVERYTHING, **options)
    return step_program(found.graph, declared, settings)


@pytest.mark.parametrize("method", [*METHODS, "kfac_rp", {"*": "kfac", "0": "kfac_rp"}])
@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", "cross_entropy"])
def test_every_draw_is_of_the_kernels_and_counted(loss: str, method: str | dict[str, str]) -> None:
    """Its places in a phase are 0, 1, …, and the phase ends by counting as many; torch draws nothing."""
    program = sampling_program(loss, method)
    step = triton_texts(program)[1]
    assert "memory.random" not in step
    assert "sample_categorical" not in step
    for phase, text in phases_of(step).items():
        drawn = [i for i in program.phase(phase) if isinstance(i.op, Random)]
        counted = re.findall(rf"advance_{phase} = advance.launches\(random_state, (\d+)\)", step)
        assert counted == [str(len(drawn))] * bool(drawn)
        assert text.endswith(f"run(advance_{phase})") == bool(drawn)
        planned = "".join(
            plan
            for name in re.findall(r"run\((write_\w+)\)", text)
            for plan in re.findall(
                rf"^    {name} = \[\n(.*?)^    \]", step, re.DOTALL | re.MULTILINE
            )
        )
        numbers = re.findall(r"Draw\([^)]*\), random_state, (\d+)\)", planned)
        assert sorted(numbers) == [str(number) for number in range(len(drawn))]


def test_refined_inverses_are_one_launch_of_every_full_factor() -> None:
    program = program_of(chain(), inverse="newton_schulz")
    kernels = [
        k for x in schedule(program).phases["invert"] if x.kind is Kind.INVERSE for k in x.kernels
    ]
    assert len(kernels) == 5, "the output factor of the last layer is diagonal"
    assert "inverses.Inverse(Q_0, Q_inverse_0, q_damping)," in triton_texts(program)[1]


WRITTEN = """
from gncompile.emit.torch_statements import torch_statements
from gncompile.functions.transfer import transfer, transfer_names
from small_programs import program_of, triton_texts
from training import Gated

for name in transfer_names():
    rule = transfer(name).rule
    second = rule.seconds[0, 0]
    print(rule, second, torch_statements(second, {rule.arguments[0]: "x"}, "o", "s{}".format))
print(*triton_texts(program_of(Gated(), l2=1e-3)))
"""


def test_the_same_text_for_every_hash_seed() -> None:
    """Sets and dictionaries of symbols are ordered by the hash seed; rules and texts are not."""
    texts = set()
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", WRITTEN]
        texts.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    (text,) = texts
    assert b"torch.sigmoid" in text
    assert b"@triton.jit" in text


def launches_by_phase(program: StepProgram, **options: object) -> str:
    found, loss = traced(chain())
    return summary(found, loss, Settings(), program, **options)  # type: ignore[arg-type]


def test_the_summary_counts_launches_where_there_are_any() -> None:
    program = program_of(chain())
    text = launches_by_phase(program, order=schedule(program))
    assert re.search(r"^direction .* 1$", text, re.MULTILINE)
    assert "launches" not in launches_by_phase(program)
    # Values inside a kernel have no buffer, so launches need less than the program's own order.
    pattern = r"work buffers at most, batch 1000 +([\d.]+) KiB"
    least, most = (float(re.findall(pattern, t)[0]) for t in (text, launches_by_phase(program)))
    assert least < most


# --- convolutions -------------------------------------------------------------------------------------


def convolved(between: nn.Module) -> StepProgram:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), between, nn.Flatten(), nn.Linear(64, 2))
    return gncompile.compile(model, "mse", torch.zeros(3, 2, 4, 4), "kfac", tune="off").program


def test_a_convolution_is_the_librarys_then_a_launch_in_place() -> None:
    text = triton_texts(convolved(nn.Tanh()))[1]
    start = text.index("    write_a_layer_1_tanh = [")
    assert text[start : text.index("    ]\n", start)] == textwrap.indent(
        textwrap.dedent("""\
            write_a_layer_1_tanh = [
                library_call(
                    convolutions.convolve,
                    x0,
                    v_0_weight,
                    v_0_bias,
                    convolutions.convolution(
                        convolutions.window(size=(4, 4), kernel=(3, 3), padding=(1, 1)),
                        inputs=2,
                        outputs=4,
                    ),
                    a_layer_1_tanh,
                    precision=precision,
                ),
                *elementwise.launches(
                    kernels.a_layer_1_tanh_tile,
                    (a_layer_1_tanh,),
                    (a_layer_1_tanh, b_layer_1_tanh),
                ),
        """),
        "    ",
    )


def test_with_settings_it_is_one_kernel_and_checked() -> None:
    program = convolved(nn.SiLU())
    settings = {"block_m": 16, "block_n": 16, "block_k": 16, "num_warps": 4, "num_stages": 2}
    kinds = Kind.CONVOLUTION, Kind.CONVOLUTION_GRADIENT
    chosen = {x.name: settings for x in schedule(program).launches if x.kind in kinds}
    source = emit_step(program, backend="triton", variants=chosen)
    assert "library_call" not in source.text
    start = source.text.index("*convolve.launches(")
    launch = source.text[start : source.text.index("]\n", start)]
    assert "bias=v_0_bias" in launch
    assert "outputs=(a_layer_1_silu, b_layer_1_silu)" in launch, "what is fused to it"
    for text in (source.text, source.kernels):
        checked(text)
