"""Two processes: what they select, sum and step is what one process would, to the last bit unless said otherwise.

Starting processes takes seconds, so that one test checks several things in the same two.
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import aimfair
from aimfair.selective import collectives, layout, ops, units
from aimfair.selective.score import Score

from . import processes
from .models import same_bits, weights

pytestmark = pytest.mark.skipif("config.getoption('--device') != 'cpu'", reason="Gloo processes on the CPU")

SOURCES = ("real", "biased", "fair")
OPTIMIZERS: dict[str, tuple[type, dict[str, Any]]] = {
    "adamw": (aimfair.MaskedAdamW, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    "sgd": (aimfair.MaskedSGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
}


def fails_everywhere(kind: type[Exception], fragment: str, call: Any) -> None:
    """Every process must raise, and none may wait for another."""
    with pytest.raises(kind, match=fragment):
        call()
    dist.barrier()


# -- counting ---------------------------------------------------------------------------------------------------------

NUMELS = [3000, 0, 1, 77, 2048, 33]
SPLITS = [[1000, 0, 0, 77, 1024, 1], [3000, 0, 1, 0, 1, 32], [0, 0, 0, 0, 0, 0], [1537, 0, 1, 31, 2047, 33]]
"""Elements of each tensor that process 0 holds."""


def tensors(kind: str) -> list[Tensor]:
    if kind == "constant":
        return [torch.full((n,), 0.25) for n in NUMELS]
    if kind == "ties":
        return [torch.randint(-2, 3, (n,)) * 1.0 for n in NUMELS]
    return [torch.randn(n).abs() for n in NUMELS]


def scores_of(kind: str) -> Iterator[Score]:
    a, b, c, d = (tensors(kind) for _ in range(4))
    squares = [x.square() for x in a], [x.square() for x in b]
    yield Score("value", a)
    yield Score("magnitude", a, scale_a=1 / 3)
    yield Score("difference", a, b, 1 / 3, 0.7)
    yield Score("relative_difference", a, b, eps=1e-3)
    yield Score("norm_ratio", *squares, eps=1e-3)
    yield Score("difference", a, b, divisor=Score("difference", c, d, scale_a=0.1), eps=1e-3)


def held(score: Score, split: list[int], rank: int) -> Score:
    return score.map(lambda t, x: x[split[t] :] if rank else x[: split[t]])


def check_counting(rank: int, _: Path) -> None:
    torch.manual_seed(0)
    group = dist.group.WORLD
    total = sum(NUMELS)
    for kind in ("normal", "ties", "constant"):
        for score in scores_of(kind):
            for split in SPLITS if score.criterion in ("value", "norm_ratio") else SPLITS[:1]:
                for k in (0, 30, total // 3, total):
                    for largest in (True, False):
                        expected = layout.empty_mask(NUMELS)
                        ops.select_(*expected, k, score, largest=largest)
                        found = collectives.top_k(held(score, split, rank), k, group, largest=largest)
                        for x, y in zip(found, expected, strict=True):
                            assert torch.equal(x, y), (kind, score.criterion, split, k, largest)
                for threshold in (0.25, 1.0):
                    for largest in (True, False):
                        expected = units.at_least(score, threshold, largest=largest)
                        found = collectives.at_least(held(score, split, rank), threshold, group, largest=largest)
                        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True)), (kind, threshold)
    check_counting_nan(rank, group)


def check_counting_nan(rank: int, group: dist.ProcessGroup) -> None:
    for places in ([(3, 76), (4, 5)], [(4, 5)], [(3, 76)]):  # in both processes, in the first, in the second
        score = Score("value", tensors("normal"))
        for t, element in places:
            score.a[t][element] = math.nan
        part, found = held(score, [1000, 0, 0, 60, 1024, 1], rank), rf"a\[{places[0][0]}\].*NaN"
        fails_everywhere(RuntimeError, found, lambda part=part: collectives.top_k(part, 7, group, largest=True))
        fails_everywhere(RuntimeError, found, lambda part=part: collectives.refuse_nan(part, group))


def test_counting_over_processes_is_a_selection(tmp_path):
    processes.run(check_counting, tmp_path)


# -- replicas ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Rows that two processes cannot share evenly, a tensor of one row, and one of more than a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.body = nn.ModuleList([nn.Linear(63, 41), nn.Linear(41, 33)])
        self.head = nn.Linear(33, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).relu().flatten(1)
        for layer in self.body:
            x = layer(x).relu()
        return self.head(x)


def net() -> Net:
    torch.manual_seed(1)
    return Net()


def gradients(seed: int, model: nn.Module) -> dict[str, Tensor]:
    """The same in every process; rounded, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator).round(decimals=1) for name, p in model.named_parameters()}


def feed(probe: aimfair.Sensitivity, model: nn.Module, source: str, grads: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = grads[name].clone()
    probe.update(source)


def assert_same_in_all(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        assert all(same_bits(part, parts[0]) for part in parts), name


def check_reduce(rank: int, directory: Path) -> None:
    model = net()
    for statistics in ("all", "signed"):
        for batches in (1, 3):
            declared = dict.fromkeys(SOURCES, 2 * batches) if statistics == "signed" else None
            own, whole = (
                aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=declared) for _ in range(2)
            )
            for s, source in enumerate(SOURCES):
                for batch in range(2 * batches):
                    grads = gradients(100 * s + batch, model)
                    feed(whole, model, source, grads)
                    if batch % 2 == rank:
                        feed(own, model, source, grads)
            own.reduce()
            assert own.batches == whole.batches
            found, expected = own._statistics.tensors(), whole._statistics.tensors()
            assert_same_in_all(found)
            for key in expected:
                # One batch each: the order of adding is that of one process, and signed sums mix sources.
                if batches == 1 and not key.startswith(("square_norms", "signed")):
                    assert same_bits(found[key], expected[key]), key
                torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
            mask = own.select("intersection", bias_density=0.5, domain_density=0.5)
            assert_same_in_all({"bits": mask.bits})
            if batches == 1 and statistics == "all":
                assert mask == whole.select("intersection", bias_density=0.5, domain_density=0.5)
    check_reduce_once(own, model, directory / f"probe{rank}")


def check_reduce_once(probe: aimfair.Sensitivity, model: nn.Module, path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in probe._statistics.tensors().items()}
    probe.save(path)
    for again in (probe, aimfair.Sensitivity.load(path, model)):
        fails_everywhere(RuntimeError, "already", again.reduce)
        fails_everywhere(RuntimeError, "reset", lambda again=again: feed(again, model, "fair", gradients(0, model)))
        fails_everywhere(RuntimeError, "reset", lambda again=again: again.capture("fair"))
        for name, tensor in again._statistics.tensors().items():
            assert same_bits(tensor, before[name]), name
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    for group, processes_in in ((None, dist.get_world_size()), (groups[dist.get_rank()], 1)):
        probe.reset()
        feed(probe, model, "fair", gradients(0, model))
        probe.reduce(group)
        assert probe.batches["fair"] == processes_in
    fails_everywhere(ValueError, "not in the group", lambda: probe.reduce(groups[1 - dist.get_rank()]))


def check_reduce_in_any_order(rank: int) -> None:
    """The same contrasts, named in another order in every process."""
    model, grads = net(), {source: gradients(s, net()) for s, source in enumerate(SOURCES)}
    contrasts = {"domain": ("real", "biased"), "bias": ("biased", "fair")}
    own, whole = (
        aimfair.Sensitivity(
            model, SOURCES, statistics="signed", batches=dict.fromkeys(SOURCES, 2), contrasts=dict(named)
        )
        for named in (list(contrasts.items())[:: -1 if rank else 1], contrasts)
    )
    for source in SOURCES:
        feed(own, model, source, grads[source])
        for _ in range(2):
            feed(whole, model, source, grads[source])
    own.reduce()
    found, expected = own._statistics.tensors(), whole._statistics.tensors()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)


def check_reduce_refuses(rank: int) -> None:
    model = net()
    other = aimfair.Sensitivity(model, SOURCES, statistics="sum" if rank else "square")
    fails_everywhere(ValueError, 'differ in statistics: rank 0 has "square", rank 1 has "sum"', other.reduce)
    other = aimfair.Sensitivity(model, SOURCES, nonfinite="ignore" if rank else "raise")
    fails_everywhere(ValueError, 'differ in nonfinite: rank 0 has "raise", rank 1 has "ignore"', other.reduce)
    interrupted = aimfair.Sensitivity(model, SOURCES)
    if rank:

        def fail(_: Tensor) -> None:
            raise MemoryError

        handle = model.conv.weight.register_hook(fail)  # the last gradient of the backward pass
        with pytest.raises(MemoryError), interrupted.capture("fair"):
            model(torch.randn(2, 3, 5, 5)).sum().backward()
        handle.remove()
    fails_everywhere(RuntimeError, "'fair' holds part of a batch in process 1", interrupted.reduce)
    probe = aimfair.Sensitivity(model, SOURCES)
    for source in SOURCES:
        grads = gradients(5, model)
        if rank and source == "biased":
            grads["body.0.weight"][3, 4] = math.nan
        feed(probe, model, source, grads)  # alone, rank 1 would stop here
    probe.reduce()
    fails_everywhere(FloatingPointError, r"'biased': body\.0\.weight \(1\)", lambda: probe.select("top_k", k=5))


def check_ddp(rank: int) -> None:
    """Replicas that see different batches, stepped under a mask, stay the same to the bit."""
    for kind, options in OPTIMIZERS.values():
        model = nn.parallel.DistributedDataParallel(net())
        before = weights(model.module)
        mask = aimfair.ParameterMask.random(model, 0.2, seed=3)
        optimizer = kind(model.named_parameters(), mask, state="compact", **options)
        torch.manual_seed(100 + rank)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 5, 5)).square().mean().backward()
            optimizer.step()
        after = weights(model.module)
        assert_same_in_all(after)
        assert not same_bits(after["body.0.weight"], before["body.0.weight"])


def check_replicas(rank: int, directory: Path) -> None:
    check_reduce(rank, directory)
    check_reduce_in_any_order(rank)
    check_reduce_refuses(rank)
    check_ddp(rank)


@pytest.mark.slow
def test_replicas(tmp_path):
    processes.run(check_replicas, tmp_path)


# -- shards -----------------------------------------------------------------------------------------------------------


def sharded(mesh: Any, dtype: torch.dtype = torch.float32) -> Net:
    from torch.distributed.fsdp import fully_shard

    model = net().to(dtype)
    for layer in model.body:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def full(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor()


def full_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: full(parameter.grad) for name, parameter in model.named_parameters()}


def set_shards(model: nn.Module, grads: dict[str, Tensor]) -> None:
    from torch.distributed.tensor import distribute_tensor

    for name, p in model.named_parameters():
        p.grad = distribute_tensor(grads[name].to(p.dtype), p.device_mesh, p.placements)


def check_shards_lie_as_expected(model: nn.Module, rank: int) -> None:
    rows = {name: parameter.to_local().shape[0] for name, parameter in model.named_parameters()}
    assert rows["body.0.weight"] == (20 if rank else 21)
    assert rows["head.weight"] == (0 if rank else 1)


SELECTIONS: list[dict[str, Any]] = [
    {"rule": "top_k", "density": 0.3},
    {"rule": "top_k", "k": 1},
    {"rule": "top_k", "density": 1.0, "criterion": "norm_ratio"},
    {"rule": "top_k", "density": 0.2, "criterion": "fisher", "source": "fair"},
    {"rule": "top_k", "density": 0.2, "criterion": "magnitude", "source": "fair"},
    {"rule": "ratio", "density": 0.3, "criterion": "relative_difference"},
    {"rule": "intersection", "bias_density": 0.6, "domain_density": 0.6},
    {"rule": "budget", "density": 0.1},
    {"rule": "random", "density": 0.3, "seed": 4},
    {"rule": "all"},
    {"rule": "head_only"},
    {"rule": "blocks", "blocks": ["body.1", "conv"]},
    {"rule": "top_k", "density": 0.3, "freeze": ["body.0"]},
]
OF_VECTORS: list[dict[str, Any]] = [
    {"rule": "top_k", "density": 0.3, "criterion": "cosine"},
    {"rule": "intersection", "bias_density": 0.8, "domain_density": 0.8, "criterion": "cosine"},
    {"rule": "ratio", "k": 3, "criterion": "difference", "domain_criterion": "cosine"},
]
GROUPS = {"conv.weight": "first", "body.0.weight": "rest", "body.1.bias": "rest", "head.weight": "rest"}
WITHIN: list[dict[str, Any]] = [
    {"within": "row", "density": 0.2},
    {"within": "row", "k": 1, "rule": "ratio"},
    {"within": "row", "k": {"body.1.weight": 5, "conv.bias": 2}},
    {"within": "tensor", "density": 0.3},
    {"within": "tensor", "density": 0.3, "granularity": "row"},
    {"within": GROUPS, "density": {"first": 0.5, "rest": 0.01}},
    {"within": GROUPS, "k": 3, "granularity": "row"},
    {"within": GROUPS, "k": 1, "granularity": "tensor"},
]
WITHOUT_UNITS = ("all", "head_only", "blocks")


def check_sensitivity(mesh: Any, rank: int, path: Path, replicas: bool = False) -> None:
    model, plain = sharded(mesh), net()
    probe, whole = aimfair.Sensitivity(model, SOURCES), aimfair.Sensitivity(plain, SOURCES)
    torch.manual_seed(10 + rank)
    for s, source in enumerate(SOURCES):
        for _ in range(2):
            model(torch.randn(4, 3, 5, 5)).square().mean().backward()
            feed(whole, plain, source, full_gradients(model))
            probe.update(source)
            assert not any(p.grad.to_local().any() for p in model.parameters())
        grads = gradients(s, plain)  # with ties
        set_shards(model, grads)
        probe.update(source)
        feed(whole, plain, source, grads)
    for granularity in ("element", "row", "tensor"):
        for selection in SELECTIONS + (OF_VECTORS if granularity != "element" else []):
            arguments = selection if selection["rule"] in WITHOUT_UNITS else {"granularity": granularity} | selection
            mask, expected = probe.select(**arguments), whole.select(**arguments)
            assert mask == expected, arguments
            assert mask.digest == expected.digest
            assert torch.equal(mask.rank, expected.rank)
            mask.check(model)
        for criterion in ("difference",) if granularity == "element" else ("difference", "cosine"):
            scores, expected_scores = (x.unit_scores(criterion, granularity=granularity) for x in (probe, whole))
            assert all(same_bits(scores[name], expected_scores[name]) for name in scores)
    for selection in WITHIN:
        assert probe.select(**{"rule": "top_k"} | selection) == whole.select(**{"rule": "top_k"} | selection), selection
    for source in SOURCES:
        torch.testing.assert_close(probe.square_norm(source), whole.square_norm(source), rtol=1e-6, atol=0)
    assert str(probe.summary()) == str(whole.summary())
    with pytest.raises(TypeError, match="update"):
        probe.capture("fair")
    fails_everywhere(TypeError, "sums over the", probe.reduce)
    probe.save(path / f"shard{rank}")
    dist.barrier()
    again = aimfair.Sensitivity.load(path / f"shard{rank}", model)
    assert again.select("top_k", k=99) == whole.select("top_k", k=99)
    if not replicas:
        with pytest.raises(ValueError, match=rf"part {1 - rank} of 2, this process holds {rank} of 2"):
            aimfair.Sensitivity.load(path / f"shard{1 - rank}", model)
        with pytest.raises(ValueError, match=rf"part {rank} of 2, this process holds 0 of 1"):
            aimfair.Sensitivity.load(path / f"shard{rank}", plain)


def check_calls_are_the_same(mesh: Any, rank: int) -> None:
    """Other arguments, batches or calls than in another process are refused in all, replicas of shards included."""
    model = sharded(mesh)
    probe = aimfair.Sensitivity(model, SOURCES)
    for source in SOURCES:
        set_shards(model, gradients(5, model))
        probe.update(source)

    def differs(key: str, values: tuple[object, object], call: Callable[[], object]) -> None:
        fragment = re.escape(f"differ in {key}: rank 0 has {values[0]}, rank 1 has {values[1]}")
        fails_everywhere(ValueError, fragment, call)

    for method in (probe.select, probe.unit_scores, probe.square_norm):
        for name in inspect.signature(method).parameters:
            differs(name, ('"0"', '"1"'), lambda method=method, name=name: method(**{name: str(rank)}))
    differs("the call", ("select()", "summary()"), probe.summary if rank else lambda: probe.select("all"))
    differs("density", (0.25, 0.5), lambda: probe.select("random", density=(0.25, 0.5)[rank]))
    for made in ({"sources": SOURCES[rank:]}, {"contrasts": {"bias": SOURCES[rank : rank + 2]}}):
        other = aimfair.Sensitivity(model, **{"sources": SOURCES} | made)
        fails_everywhere(ValueError, f"differ in {next(iter(made))}", other.summary)
    other = aimfair.Sensitivity(dict(list(model.named_parameters())[rank:]), SOURCES)
    fails_everywhere(ValueError, "differ in names", other.summary)
    other = aimfair.Sensitivity(model, SOURCES, nonfinite="ignore" if rank else "raise")
    differs("nonfinite", ('"raise"', '"ignore"'), lambda: other.select("top_k", k=5))
    if not rank:
        probe.reset("fair")
    for call in (
        lambda: probe.select("top_k", k=5),
        probe.unit_scores,
        lambda: probe.square_norm("fair"),
        probe.summary,
    ):
        differs("the batches of 'fair'", (0, 1), call)


def check_masks_are_the_same(mesh: Any, rank: int) -> None:
    model = sharded(mesh)
    mask, own = (aimfair.ParameterMask.random(net(), 0.3, seed=seed) for seed in (3, 3 + rank))
    part = aimfair.ParameterMask.random(dict(list(net().named_parameters())[rank:]), 0.3, seed=3)
    for differing in (own, part, None if rank else mask):
        fails_everywhere(
            ValueError, "differ in the mask", lambda m=differing: aimfair.MaskedAdamW(model.named_parameters(), m)
        )
    head, *rest = list(model.named_parameters())[::-1]
    optimizer = aimfair.MaskedSGD(rest, mask, lr=0.1)
    group = {"params": [head], "mask": own}
    fails_everywhere(ValueError, "differ in the mask", lambda: optimizer.add_param_group(group))
    optimizer.add_param_group(group | {"mask": mask})


def check_sensitivity_refuses(mesh: Any, rank: int) -> None:
    model = sharded(mesh)
    probe = aimfair.Sensitivity(model, SOURCES)
    for source in SOURCES:
        grads = gradients(5, model)
        if source == "biased":
            grads["body.0.weight"][3, 4] = math.nan  # a row of process 0
        set_shards(model, grads)
        probe.update(source)
    fails_everywhere(FloatingPointError, r"'biased': body\.0\.weight \(1\)", lambda: probe.select("top_k", k=5))
    cases = [("difference", "element"), ("difference", "row"), ("difference", "tensor")]
    for criterion, granularity in [*cases, ("cosine", "row"), ("cosine", "tensor")]:  # NaN in process 0: inf - inf
        probe = aimfair.Sensitivity(model, SOURCES)
        for source in SOURCES:
            set_shards(model, gradients(6, model))
            probe.update(source)
        for source in ("biased", "fair"):
            if rank == 0:
                probe._statistics._views[f"sum/{source}"][4][:1] = math.inf
        name = list(dict(model.named_parameters()))[4]
        fails_everywhere(
            RuntimeError,
            rf"NaN.*{name}",
            lambda c=criterion, g=granularity, p=probe: p.select("top_k", criterion=c, k=2, granularity=g),
        )
    probe.reset()
    fails_everywhere(ValueError, "no batches", lambda: probe.select("top_k", k=2))
    for source in SOURCES:
        set_shards(model, {name: torch.zeros(p.shape) for name, p in model.named_parameters()})
        probe.update(source)
    fails_everywhere(ValueError, "was zero", lambda: probe.select("top_k", k=2))


def check_placements(mesh: Any, replicated: Any, rank: int) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    weight = nn.Parameter(distribute_tensor(torch.randn(6, 4), mesh, [Shard(1)]))
    with pytest.raises(ValueError, match=r"'w' is placed .*Shard\(dim=1\).*expected Shard\(0\)"):
        aimfair.Sensitivity({"w": weight})
    mask = aimfair.ParameterMask.full({"w": weight})
    with pytest.raises(ValueError, match="'w' is placed"):
        aimfair.MaskedAdamW([("w", weight)], mask)
    weight = nn.Parameter(distribute_tensor(torch.randn(6, 4), mesh, [Shard(0)]))
    weight.grad = distribute_tensor(torch.randn(6, 4), mesh, [Replicate()])
    probe = aimfair.Sensitivity({"w": weight}, ("a", "b"))
    with pytest.raises(TypeError, match="gradient of 'w' is placed"):
        probe.update("a")
    with pytest.raises(TypeError, match="gradient of 'w' is placed"):
        aimfair.MaskedAdamW([("w", weight)], mask).step()

    class Interleaved(Shard):
        """Equal to Shard(0), but its rows lie in another order."""

    for placement in (_StridedShard(0, split_factor=2), Interleaved(0)):
        rows = DTensor.from_local(torch.randn(3, 4), mesh, [placement], run_check=False).requires_grad_()
        with pytest.raises(ValueError, match=r"'w' is placed .*expected Shard"):
            aimfair.Sensitivity({"w": rows})
    uneven = torch.randn(4 if rank else 2, 4)
    rows = nn.Parameter(DTensor.from_local(uneven, mesh, [Shard(0)], run_check=False, shape=(6, 4), stride=(4, 1)))
    with pytest.raises(ValueError, match=rf"shard {rank} of 2 is \({len(uneven)}, 4\), expected 3 of the 6 rows"):
        aimfair.Sensitivity({"w": rows})
    other = nn.Parameter(distribute_tensor(torch.randn(6, 4), replicated, [Replicate(), Shard(0)]))
    with pytest.raises(ValueError, match=rf"'w' and 'v' are sharded over different processes: \[0, 1\] and \[{rank}\]"):
        aimfair.Sensitivity({"w": weight, "v": other})


def check_mixed(mesh: Any) -> None:
    """A sharded, a replicated and a plain parameter: what is whole everywhere counts once."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(3)
    shapes, kinds = {"s": (5, 40), "r": (6, 300), "p": (31,)}, {"s": [Shard(0)], "r": [Replicate()], "p": None}

    def placed(tensor: Tensor, placements: Any) -> Tensor:
        return tensor.clone() if placements is None else distribute_tensor(tensor, mesh, placements)

    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    plain = {name: nn.Parameter(value.clone()) for name, value in values.items()}
    mixed = {name: nn.Parameter(placed(value, kinds[name])) for name, value in values.items()}
    probe, whole = aimfair.Sensitivity(mixed, ("a", "b")), aimfair.Sensitivity(plain, ("a", "b"))
    for source in ("a", "b"):
        for name, shape in shapes.items():
            grad = torch.randn(shape).round(decimals=1)
            plain[name].grad, mixed[name].grad = grad, placed(grad, kinds[name])
        probe.update(source, zero_grads=False)
        whole.update(source, zero_grads=False)
    assert probe.square_norm("a")["r"] == whole.square_norm("a")["r"]
    for granularity in ("element", "row", "tensor"):
        assert probe.select("top_k", density=0.5, granularity=granularity) == whole.select(
            "top_k", density=0.5, granularity=granularity
        )
    mask = whole.select("top_k", density=0.3)
    for state in ("dense", "compact"):
        optimizers = [aimfair.MaskedAdamW(named.items(), mask, state=state) for named in (mixed, plain)]
        for optimizer in optimizers:
            optimizer.step()
        for name in shapes:
            assert same_bits(full(mixed[name]) if kinds[name] else mixed[name].detach(), plain[name].detach()), name


def check_steps(mesh: Any, rank: int, directory: Path) -> None:
    for name, (kind, options) in OPTIMIZERS.items():
        for state in ("dense", "compact"):
            for dtype in (torch.float32, torch.bfloat16):
                more = options | {"state": state, "master_weights": dtype != torch.float32}
                check_step(mesh, rank, directory / f"{name}-{state}-{dtype}", kind, more, dtype)
    check_step(
        mesh, rank, directory / "no mask", aimfair.MaskedAdamW, {"state": "compact"}, torch.float32, masked=False
    )


def check_step(
    mesh: Any, rank: int, directory: Path, kind: type, options: dict[str, Any], dtype: torch.dtype, masked: bool = True
) -> None:
    model, plain = sharded(mesh, dtype), net().to(dtype)
    mask = aimfair.ParameterMask.random(plain, 0.3, seed=3) if masked else None
    if mask is not None:  # nothing of one tensor, and nothing in one process of another
        bools = mask.to_bool()
        bools["body.1.bias"][:] = False
        bools["body.1.weight"][17:] = False
        mask = aimfair.ParameterMask.from_bool(bools)
    optimizer, single = kind(model.named_parameters(), mask, **options), kind(plain.named_parameters(), mask, **options)

    def step(*optimizers: torch.optim.Optimizer) -> None:
        grads = gradients(step.calls, plain)
        step.calls += 1
        for chosen in optimizers:
            if chosen is single:
                for name, p in plain.named_parameters():
                    p.grad = grads[name].to(dtype)
            else:
                set_shards(model, grads)
            chosen.step()

    step.calls = 0
    for _ in range(2):
        step(optimizer, single)
    assert_equals_single(model, plain)
    checkpoint = optimizer.state_dict()
    fresh = kind(model.named_parameters(), mask, **options)
    fresh.load_state_dict(checkpoint)
    step(fresh, single)
    assert_equals_single(model, plain)
    if options["state"] == "dense":
        check_dense_state(model, fresh, single)
        if dtype == torch.float32:
            check_checkpoint(model, fresh, kind, mask, options, directory)
        other = kind(model.named_parameters(), mask, **options | {"state": "compact"})
        other.load_state_dict(single.state_dict())  # of whole tensors, dense
        step(other, single)
        assert_equals_single(model, plain)
    elif masked:
        place = checkpoint["param_groups"][0]["place"]
        assert tuple(place) == (rank, 2)
        checkpoint["param_groups"][0]["place"] = (1 - rank, 2)
        with pytest.raises(ValueError, match=rf"part {1 - rank} of 2, this process holds {rank} of 2"):
            kind(model.named_parameters(), mask, **options).load_state_dict(checkpoint)


def check_moment_bits(mesh: Any, rank: int) -> None:
    """Moments of 16 and 8 bits of shards go on bit for bit in either layout; 8 bits belong to one process."""
    mask = aimfair.ParameterMask.random(net(), 0.3, seed=3)
    for bits, saved, loaded in itertools.product((16, 8), ("dense", "compact"), ("dense", "compact")):
        pair = [sharded(mesh) for _ in range(2)]
        optimizers = [
            aimfair.MaskedAdamW(model.named_parameters(), mask, state=state, moment_bits=bits)
            for model, state in zip(pair, (saved, loaded), strict=True)
        ]
        for calls in range(4):
            if calls == 2:
                pair[1].load_state_dict(pair[0].state_dict())
                checkpoint = optimizers[0].state_dict()
                optimizers[1].load_state_dict(checkpoint)
            for model, optimizer in zip(pair, optimizers, strict=True):
                set_shards(model, gradients(calls, net()))
                optimizer.step()
        for parameter, other in zip(*(model.parameters() for model in pair), strict=True):
            assert same_bits(full(parameter), full(other)), (bits, saved, loaded)
        assert checkpoint["param_groups"][0].get("place") == (None if (bits, saved) == (16, "dense") else (rank, 2))


def assert_equals_single(model: nn.Module, plain: nn.Module) -> None:
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert same_bits(full(parameter), expected.detach()), name


def check_dense_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, single: torch.optim.Optimizer, where: str = "state"
) -> None:
    """Sharded as the parameter is, and together the state of a single process; every process has entries for all."""
    parameters = dict(model.named_parameters())
    for (name, parameter), expected in zip(parameters.items(), single.param_groups[0]["params"], strict=True):
        assert optimizer.state[parameter].keys() == single.state[expected].keys(), name
        for key, value in optimizer.state[parameter].items():
            if key != "step":
                assert value.placements == parameter.placements
                value = full(value)
            assert same_bits(value, single.state[expected][key]), (where, name, key)


def check_checkpoint(
    model: nn.Module, optimizer: torch.optim.Optimizer, kind: type, mask: Any, options: Any, directory: Path
) -> None:
    """torch.distributed.checkpoint writes and reads dense state, sharded and gathered."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    lenient = StateDictOptions(strict=False)  # nothing is selected in one tensor: it has no state
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=directory)
    fresh = kind(model.named_parameters(), mask, **options)
    for parameter in model.parameters():
        parameter.grad = None
    loaded = {"optimizer": get_optimizer_state_dict(model, fresh)}
    dcp.load(loaded, checkpoint_id=directory)
    set_optimizer_state_dict(model, fresh, loaded["optimizer"], options=lenient)
    assert_same_state(model, fresh, optimizer)

    gathered = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    fresh = kind(model.named_parameters(), mask, **options)
    set_optimizer_state_dict(model, fresh, gathered, options=StateDictOptions(full_state_dict=True, strict=False))
    assert_same_state(model, fresh, optimizer)


def assert_same_state(model: nn.Module, x: torch.optim.Optimizer, y: torch.optim.Optimizer) -> None:
    for name, parameter in model.named_parameters():
        assert x.state.get(parameter, {}).keys() == y.state.get(parameter, {}).keys(), name
        for key, value in y.state.get(parameter, {}).items():
            found = x.state[parameter][key]
            if key != "step":
                value, found = full(value), full(found)
            assert same_bits(found, value), (name, key)


def check_rounding(mesh: Any) -> None:
    """Stochastic rounding draws other numbers in each shard, and the same in replicas and in a second run."""

    def run(of: Any) -> dict[str, Tensor]:
        model = sharded(of, torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        optimizer = aimfair.MaskedSGD(model.named_parameters(), lr=1e-3, stochastic_rounding=True)
        set_shards(model, {name: torch.ones(p.shape) for name, p in model.named_parameters()})
        optimizer.step()
        return {name: full(parameter) for name, parameter in model.named_parameters()}

    first, second = run(mesh), run(mesh)
    assert all(same_bits(first[name], second[name]) for name in first)
    weight = first["body.0.weight"]
    assert 0.1 < float((weight < 1).float().mean()) < 0.4  # a quarter of an ulp of 2^-8 below 1
    assert not torch.equal(weight[:20], weight[21:41])


def check_sharded(rank: int, directory: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    check_shards_lie_as_expected(sharded(mesh), rank)
    check_sensitivity(mesh, rank, directory)
    check_calls_are_the_same(mesh, rank)
    check_masks_are_the_same(mesh, rank)
    check_sensitivity_refuses(mesh, rank)
    check_mixed(mesh)
    check_rounding(mesh)
    check_steps(mesh, rank, directory)
    check_moment_bits(mesh, rank)
    replicated = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))  # HSDP
    check_sensitivity(replicated, rank, directory, replicas=True)
    check_calls_are_the_same(replicated, rank)
    check_masks_are_the_same(replicated, rank)
    check_placements(mesh, replicated, rank)


@pytest.mark.slow
def test_sharded_parameters(tmp_path):
    processes.run(check_sharded, tmp_path)
