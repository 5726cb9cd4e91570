"""The emulator itself: collectives as CUDA defines them, and a message for every kernel that breaks the rules."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.gate

HERE = Path(__file__).parent
ORDERS = ["forward", "backward", "1", "2"]

Results = dict[str, list[list[str]]]
"""Name -> the values of every line that a program printed under it."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emulator") / "programs"
    compiler = os.environ.get("CXX") or shutil.which("g++")
    assert compiler, "a C++ compiler is needed: set CXX"
    command = [
        compiler, "-std=c++20", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-O1", "-g1", "-ffp-contract=off",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all", "-fsanitize-sections=aimfair_shared", f"-I{HERE / 'include'}",
        f"-I{HERE.parents[1] / 'csrc'}",
        f"-I{HERE.parents[1] / 'csrc' / 'include'}", "-x", "c++", str(HERE.parents[1] / "csrc" / "cuda" / "launch.cu"),
        *(str(HERE / name) for name in ("programs.cpp", "emulator.cpp", "fiber.cpp")), "-o", str(path), "-pthread",
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr
    return path


def execute(program: Path, name: str, order: str = "forward") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"AIMFAIR_EMULATOR_ORDER": order}
    return subprocess.run([program, name], capture_output=True, text=True, check=False, env=environment, timeout=60)


def results(program: Path, name: str, order: str = "forward") -> Results:
    done = execute(program, name, order)
    assert done.returncode == 0, done.stderr
    found: Results = {}
    for line in done.stdout.splitlines():
        key, *values = line.split()
        found.setdefault(key, []).append(values)
    return found


def numbers(values: list[str]) -> list[int]:
    return [int(float(value)) for value in values]


VALUES = [thread * 37 % 64 - 20 for thread in range(64)]
WARPS = [VALUES[:32], VALUES[32:]]


def shuffled(source: Callable[[int], int]) -> list[int]:
    """Every lane's value from the lane ``source(lane)``, or its own where there is none."""
    return [warp[source(lane)] if 0 <= source(lane) < 32 else warp[lane] for warp in WARPS for lane in range(32)]


def per_warp(value: Callable[[list[int]], int]) -> list[int]:
    return [value(warp) for warp in WARPS for _ in range(32)]


def as_unsigned(warp: list[int]) -> list[int]:
    return [value % 2**32 for value in warp]


@pytest.mark.parametrize("order", ORDERS)
def test_collectives(program, order):
    found = results(program, "collectives", order)
    third = [sum(1 << lane for lane in range(32) if (first + lane) % 3 == 0) for first in (0, 32)]
    expected = {
        "ballot": [third[0]] * 32 + [third[1]] * 32,
        "any": [0] * 32 + [1] * 32,
        "all": [1] * 32 + [0] * 32,
        "shuffle": shuffled(lambda lane: lane * 7 % 32),
        "shuffle_up": shuffled(lambda lane: lane - 3),
        "shuffle_down": shuffled(lambda lane: lane + 5),
        "shuffle_xor": shuffled(lambda lane: lane ^ 9),
        "reduce_add": per_warp(sum),
        "reduce_min": per_warp(min),
        "reduce_max": per_warp(max),
        "unsigned_reduce_add": per_warp(lambda warp: sum(warp) % 2**32),
        "unsigned_reduce_min": per_warp(lambda warp: min(as_unsigned(warp))),
        "unsigned_reduce_max": per_warp(lambda warp: max(as_unsigned(warp))),
        "block_count": [13] * 64,
        "block_or": [2] * 64,
        "block_and": [2] * 64,
        "halves": [
            sum(range(first + 1, first + 32, 2)) if lane % 2 else 0x11111111 for first in (0, 32) for lane in range(32)
        ],
    }  # fmt: skip
    assert len(found["shuffle"]) == 5  # types
    for name, lines in found.items():
        for line in lines:
            assert numbers(line) == expected[name], name
    assert found.keys() == expected.keys()


def test_atomics_bits_and_errors(program):
    found = results(program, "values")
    meeting = 0
    for value in VALUES:
        meeting &= value
    expected = {
        "atomics": [sum(VALUES), min(VALUES), max(VALUES), -1, 64, 64 % 10, 7, meeting],
        "bits": [8, 4, 0, 5, 41, 32, 8, 63, 0xC8000000, 5, 0xC0000000, -(2**31), 0x3F800000],
        "floats": [2, 1, 3, 3],
        "launch_errors": [9, 9, 0] * 4 + [0, 0, 0],
    }
    assert {name: numbers(lines[0]) for name, lines in found.items()} == expected


def test_the_guard_of_the_current_device(program):
    """Set in this thread alone, and as it was afterwards; a device that is not there (error 101) changes nothing."""
    found = numbers(results(program, "current_device")["devices"][0])
    assert found[:7] == [0, 0, 1, 0, 0, 1, 0]
    assert found[7:14] == [0] * 7
    assert found[14:] == [0, 101, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_of_every_block_runs_once(program, order):
    found = results(program, "grid", order)
    expected = [1000 * block + thread + 500_000 for block in range(5) for thread in range(96)]
    assert numbers(found["place"][0]) == expected
    assert numbers(found["place_in_another_system_thread"][0]) == expected
    for name in ("sequence", "sequence_after_barrier"):
        count, *sequence = numbers(found[name][0])
        assert count == 192
        assert sorted(sequence) == list(range(192))
        blocks = [[thread // 64 for thread in sequence[at : at + 64]] for at in (0, 64, 128)]
        assert all(len(set(block)) == 1 for block in blocks), "blocks run one after another"
        if order in ("forward", "backward"):
            assert sequence == sorted(sequence, reverse=order == "backward")
        else:
            assert sequence not in (sorted(sequence), sorted(sequence, reverse=True))


def test_a_number_draws_the_same_order_again(program):
    orders = [numbers(results(program, "grid", order)["sequence"][0]) for order in ("1", "1", "2")]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kernel", ["next_value", "warp_sums"])
def test_a_missing_barrier_shows_in_some_order(program, kernel):
    right = [results(program, kernel, order) for order in ORDERS]
    wrong = [results(program, f"{kernel}_without_barrier", order) for order in ORDERS]
    assert all(result == right[0] for result in right)
    assert any(result != right[0] for result in wrong)
    assert wrong[0] != wrong[1], "forward and backward"


def test_shared_memory_is_filled_before_every_block(program):
    assert numbers(results(program, "unset_shared")["out"][0]) == [0xA5A5A5A5, 0xA5A5] * 2


@pytest.mark.parametrize("order", ORDERS)
def test_the_blocks_of_a_cooperative_launch_wait_for_each_other(program, order):
    found = results(program, "rounds", order)
    own, total = [block + 1 for block in range(6)], 0
    for _ in range(3):
        total = 2 * (total + 64 * sum(own))
        own = [total % 7 + block for block in range(6)]
    assert numbers(found["error"][0]) == [0]
    assert numbers(found["out"][0]) == [total + one for one in own for _ in range(64)]


def test_a_cooperative_launch_is_not_larger_than_the_device(program):
    found = results(program, "rounds_of_too_many")
    assert numbers(found["error"][0]) == [720]
    assert set(numbers(found["out"][0])) == {0}


def test_unknown_order(program):
    done = execute(program, "grid", "sideways")
    assert done.returncode != 0
    assert "AIMFAIR_EMULATOR_ORDER is 'sideways', expected forward, backward or a number" in done.stderr


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("divergent_barrier", ["its 64 threads cannot go on", "32 threads from thread 0 on wait in __syncthreads",
                               "32 threads from thread 32 on wait in __syncthreads"]),
        ("ended_before_barrier", ["63 threads from thread 0 on wait in __syncthreads",
                                  "1 threads from thread 5 on have ended"]),
        ("barrier_against_collective", ["63 threads from thread 0 on wait in __syncthreads at",
                                        "1 threads from thread 40 on wait in __syncwarp with mask 0xffffffff"]),
        ("missing_lane", ["31 threads from thread 0 on wait in __ballot_sync with mask 0xffffffff",
                          "1 threads from thread 7 on have ended"]),
        ("lane_outside_mask", ["__syncwarp: this lane is not in the mask"]),
        ("shuffle_from_outside", ["__shfl_down_sync: reads from a lane that is not in the mask"]),
        ("different_collectives", ["wait in __any_sync", "wait in __all_sync"]),
        ("different_masks", ["wait in __syncwarp with mask 0xffffffff", "have ended"]),
        ("never", ["__nanosleep: the blocks wait for each other forever"]),
        ("sleeps", ["__nanosleep: blocks wait for each other only in a cooperative launch"]),
        ("other_width", ["shuffles of another width than 32 are not supported"]),
    ],
)  # fmt: skip
def test_a_broken_rule_ends_the_program(program, name, messages, order):
    done = execute(program, name, order)
    assert done.returncode != 0
    assert done.stderr.startswith("CUDA emulator: block "), done.stderr
    assert ".cpp:" in done.stderr or "warp.h:" in done.stderr
    for message in messages:
        assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("past_the_end", "heap-buffer-overflow"),
        ("past_shared", "global-buffer-overflow"),
        ("past_local", "stack-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_the_sanitizers_see_into_kernels(program, name, message):
    done = execute(program, name)
    assert done.returncode != 0
    assert message in done.stderr
