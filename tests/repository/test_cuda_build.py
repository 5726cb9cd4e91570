"""What nvcc compiles every CUDA kernel to: no spills, the documented registers, wide memory accesses, exact arithmetic.

Compiles csrc/cuda for all architectures, which takes a minute of two processors and no GPU.
"""

import re
import shutil

import pytest

from tools import cuda_kernels
from tools.cuda_kernels import Kernel, Usage

pytestmark = pytest.mark.gate

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH")


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return cuda_kernels.compile_kernels(cuda_kernels.SOURCES)


@needs_nvcc
def test_nothing_spills(kernels):
    sources = {"accumulate.cu", "launch.cu", "mask.cu", "step.cu", "step_moments.cu", "topk.cu"}
    assert {kernel.source for kernel in kernels} >= sources
    for kernel in kernels:
        assert list(kernel.usage) == cuda_kernels.architectures(), kernel.name
        for architecture, usage in kernel.usage.items():
            used = (usage.stack_bytes, usage.spill_bytes)
            assert used == (0, 0), f"{kernel.name} on {architecture}: {used} bytes of stack and spills"


@needs_nvcc
def test_registers_suffice_for_the_thread_blocks_of_the_launch_bounds(kernels):
    """Shared memory, which the launch bounds do not limit, may allow fewer."""
    for kernel in kernels:
        for architecture, usage in kernel.usage.items():
            asked = kernel.least_resident  # of the first architecture
            if architecture in ("sm_100", "sm_120") and kernel.name.startswith("masked_step"):
                asked = 3 if "bits8" in kernel.name else 5
            assert usage.fit(kernel.threads) >= asked, f"{kernel.name} on {architecture}"


@needs_nvcc
def test_table_of_the_documentation(kernels):
    version, table = cuda_kernels.documented()
    if cuda_kernels.nvcc_version() != version:
        pytest.skip(f"the table is of nvcc {version}; others give out registers differently")
    assert table == cuda_kernels.table(kernels), "python -m tools.cuda_kernels --write"


@needs_nvcc
def test_local_memory_is_not_used(kernels):
    for kernel in kernels:
        assert ".local" not in kernel.ptx, kernel.name


@needs_nvcc
def test_nothing_is_fused(kernels):
    """Neither written as a fused multiply-add nor left for ptxas to fuse: that is what .rn forbids."""
    for kernel in kernels:
        fused = re.findall(r"\b(?:fma|mad)\.\S*f(?:32|64)\b|\b(?:add|sub|mul)\.f(?:32|64)\b", kernel.ptx)
        assert not fused, f"{kernel.name}: {set(fused)}"
        approximate = re.findall(r"\b\w+\.(?:approx|full)\S*", kernel.ptx)
        assert not approximate, f"{kernel.name}: {set(approximate)}"
        flushed = re.findall(r"\S+\.ftz\S*", kernel.ptx)
        assert not flushed, f"{kernel.name}: {set(flushed)}"


@needs_nvcc
@pytest.mark.parametrize("source", ["accumulate.cu", "step.cu"])
def test_four_aligned_elements_are_one_access(source, kernels):
    """Gradients, parameters and state, each way: 128 bits of fp32, 64 bits of the other types."""
    own = [kernel for kernel in kernels if kernel.source == source]
    assert own
    for kernel in own:
        for access in ("ld", "st"):
            assert re.search(rf"\b{access}\.global\.(?:\w+\.)*v4\.[fub]32\b", kernel.ptx), f"{kernel.name}: {access}"
            apart = in_fours(kernel.ptx, access)
            assert not apart, f"{kernel.name}: {access} of one at a time from {apart}"


def in_fours(ptx: str, access: str) -> list[str]:
    """Addresses from which four neighbours are read or written one at a time."""
    offsets: dict[tuple[str, int], set[int]] = {}
    single = rf"\b{access}\.(?:global\.)?[fub](16|32)\s+(?:%\w+, )?\[(%rd\d+)(?:\+(-?\d+))?\]"
    for bits, base, offset in re.findall(single, ptx):
        offsets.setdefault((base, int(bits) // 8), set()).add(int(offset or 0))
    return [base for (base, size), found in offsets.items() for o in found if {o + i * size for i in range(4)} <= found]


@needs_nvcc
@pytest.mark.skipif(cuda_kernels.disassembler() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize(
    ("kernel", "loads"),
    [("masked_step<AdamW<false>, float32>", 4 * 4), ("masked_step<AdamW<true>, float32>", 2 * 5)],
)
def test_a_step_waits_once_for_the_elements_of_a_list(kernel, loads, kernels):
    """All loads of a lane's elements precede the first square root: their latencies overlap.

    ptxas moves plain loads of the parameter below the square root and the division that do not need it.
    """
    (found,) = [candidate for candidate in kernels if candidate.name == kernel]
    assert list(found.sass) == cuda_kernels.architectures()
    for architecture, instructions in found.sass.items():
        rounds = [(single, square) for single, square in load_rounds(instructions) if single]
        assert rounds, architecture
        assert {len(single) for single, _ in rounds} == {loads}, architecture
        assert all(square for _, square in rounds), architecture


def load_rounds(sass: list[str]) -> list[tuple[list[str], bool]]:
    """Loads of single elements that no square root and no store interrupts, and whether a square root follows them."""
    rounds: list[tuple[list[str], bool]] = []
    single: list[str] = []
    for name in sass:
        if re.fullmatch(r"LDG\.E(\.U16)?\.STRONG\.SM", name):
            single.append(name)
        elif name.startswith(("STG", "MUFU.RSQ")):
            rounds.append((single, name == "MUFU.RSQ"))
            single = []
    return rounds


@needs_nvcc
def test_a_single_architecture(tmp_path, monkeypatch):
    """nvcc then names its files otherwise."""
    source = tmp_path / "twice.cu"
    source.write_text('extern "C" __global__ void __launch_bounds__(64) twice(float* x) { x[threadIdx.x] *= 2; }')
    monkeypatch.setattr(cuda_kernels, "architectures", lambda: ["sm_80"])
    (kernel,) = cuda_kernels.compile_kernels([source])
    assert (kernel.name, kernel.threads, list(kernel.usage)) == ("twice", 64, ["sm_80"])
    if cuda_kernels.disassembler() is not None:
        assert any(name.startswith("LDG") for name in kernel.sass["sm_80"])


# -- the reading of what nvcc writes, which needs no nvcc --------------------------------------------------------------

SYMBOL = "_ZN7aimfair4cuda46_GLOBAL__N__75e83ae1_13_accumulate_cu_02f57bd14stepINS_5AdamWILb1EEEEEvPdPl"
LOG = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_80'
ptxas info    : Function properties for {SYMBOL}
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 120 bytes smem, 440 bytes cmem[0]
ptxas info    : Compiling entry function '{SYMBOL}' for 'sm_90'
ptxas info    : Function properties for {SYMBOL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 0 barriers
"""
PTX = f"""
.entry {SYMBOL}(
\t.param .u64 first
)
.maxntid 128, 1, 1
.minnctapersm 7
{{
\tld.global.v4.f32 \t{{%f1, %f2, %f3, %f4}}, [%rd1];
\tret;
}}
"""
SASS = f"""
.section	.text.{SYMBOL},"ax",@progbits
.text.{SYMBOL}:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.STRONG.SM R2, desc[UR4][R2.64] ;
        /*0020*/                   MUFU.RSQ R0, R2 ;
        /*1030*/               @P1 BRA `(.L_x_1) ;
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt, of the binutils")
def test_reading():
    (kernel,) = cuda_kernels.kernels_of("step.cu", LOG, PTX, {"sm_80": SASS})
    assert (kernel.name, kernel.threads, kernel.least_resident) == ("step<AdamW<true>>", 128, 7)
    assert kernel.usage == {"sm_80": Usage(72, 120, 8, 28), "sm_90": Usage(26, 0, 0, 0)}
    assert "ld.global.v4.f32" in kernel.ptx
    assert kernel.sass == {"sm_80": ["MOV", "LDG.E.STRONG.SM", "MUFU.RSQ", "BRA"]}
    assert load_rounds(kernel.sass["sm_80"]) == [(["LDG.E.STRONG.SM"], True)]
    assert cuda_kernels.kernels_of("empty.cu", "ptxas info    : 0 bytes gmem\n", "", {}) == []


def test_four_at_a_time_are_told_from_one_at_a_time():
    stores = "\n".join(f"\tst.global.f32 \t[%rd9+{4 * i}], %f{i};" for i in range(1, 5))
    assert in_fours(stores, "st") == ["%rd9"]
    assert in_fours(stores.replace("+8]", "+80]"), "st") == []
    assert in_fours(stores.replace("%rd9+4]", "%rd8+4]"), "st") == []
    assert in_fours(stores, "ld") == []
    halves = "\n".join(f"\tld.u16 \t%rs{i}, [%rd9{f'+{2 * i}' if i else ''}];" for i in range(4))
    assert in_fours(halves, "ld") == ["%rd9"]
    assert in_fours(PTX, "ld") == []


@pytest.mark.parametrize(("registers", "shared", "threads", "resident"), [
    (72, 0, 128, 7), (73, 0, 128, 6), (64, 0, 128, 8), (32, 0, 128, 16), (16, 0, 32, 32), (16, 0, 1024, 2),
    (32, 48 * 1024, 128, 3), (255, 0, 256, 1),
])  # fmt: skip
def test_resident_blocks(registers, shared, threads, resident):
    """As the occupancy calculator of CUDA has them, for sm_80."""
    assert Usage(registers, shared, 0, 0).resident(threads, "sm_80") == resident


def test_resident_blocks_of_a_smaller_multiprocessor():
    """48 warps, 24 blocks and 100 KB of shared memory."""
    assert [Usage(16, 0, 0, 0).resident(threads, "sm_120") for threads in (32, 128, 1024)] == [24, 12, 1]
    assert Usage(32, 48 * 1024, 0, 0).resident(128, "sm_120") == 2
