"""Sensitivity.update: exact statistics per source, what is refused, and files a run can go on from."""

import copy
import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import aimfair
from aimfair.selective import ops, statistics

from .models import Toy, backward, batch, random_gradients, set_gradients, toy

SOURCES = ("real", "biased", "fair")


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


def feed(probe: aimfair.Sensitivity, model: nn.Module, counts: dict[str, int]) -> dict[str, list[dict[str, Tensor]]]:
    """Random gradients, as many batches per source as ``counts`` says; returns them."""
    history: dict[str, list[dict[str, Tensor]]] = {source: [] for source in counts}
    for source, count in counts.items():
        for _ in range(count):
            history[source].append(random_gradients(model))
            set_gradients(model, history[source][-1])
            probe.update(source)
    return history


def total(tensors: list[Tensor]) -> Tensor:
    """fp32 sum in order, as accumulators add up."""
    result = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor in tensors:
        result = result + tensor.float()
    return result


def test_statistics_are_exact_sums_over_batches(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    history = feed(probe, model, {"real": 3, "fair": 5, "biased": 1})
    assert probe.batches == {"real": 3, "biased": 1, "fair": 5}
    for source, gradients in history.items():
        mean, mean_square, norms = probe.mean(source), probe.mean_square(source), probe.square_norm(source)
        for name, parameter in model.named_parameters():
            values = [gradient[name] for gradient in gradients]
            assert mean[name].shape == parameter.shape
            assert torch.equal(mean[name], total(values) / len(values))
            assert torch.equal(mean_square[name], total([value * value for value in values]) / len(values))
            assert norms[name] == pytest.approx(sum(float(v.double().square().sum()) for v in values), rel=1e-6)


def test_gradients_are_zeroed_unless_asked_not_to(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    gradients = random_gradients(model)
    set_gradients(model, gradients)
    probe.update("real", zero_grads=False)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())
    probe.update("real")
    assert not any(p.grad.any() for p in model.parameters())


def test_real_backward_gives_what_autograd_gives(model, device):
    model.eval()
    probe = aimfair.Sensitivity(model, ("only",))
    expected = []
    for _ in range(2):
        images, labels = batch(device)
        backward(model, images, labels)
        expected.append(model.body[0].weight.grad.clone())
        probe.update("only")
    assert torch.equal(probe.mean("only")["body.0.weight"], total(expected) / 2)
    assert not probe.mean("only")["unused"].any()


@pytest.mark.parametrize("missing", [["conv.weight"], ["scale", "body.1.bias", "head.bias"]])
def test_a_missing_gradient_adds_zero_and_the_batch_counts(model, missing):
    probe = aimfair.Sensitivity(model, SOURCES)
    first, second = random_gradients(model), random_gradients(model)
    set_gradients(model, first)
    probe.update("real")
    set_gradients(model, {name: gradient for name, gradient in second.items() if name not in missing})
    probe.update("real")
    assert probe.batches["real"] == 2
    norms = probe.square_norm("real")
    for name, mean in probe.mean("real").items():
        values = [first[name]] if name in missing else [first[name], second[name]]
        assert torch.equal(mean, total(values) / 2)
        assert norms[name] == pytest.approx(sum(float(v.double().square().sum()) for v in values), rel=1e-6)


def test_only_parameters_that_require_a_gradient_take_part(model):
    model.conv.requires_grad_(False)
    probe = aimfair.Sensitivity(model, ("only",))
    feed(probe, model, {"only": 1})
    assert "conv.weight" not in probe.mean("only")
    assert probe.select("all") == aimfair.ParameterMask.full(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradients_are_summed_in_fp32(dtype, device):
    model = toy(device).to(dtype)
    probe = aimfair.Sensitivity(model, ("only",))
    gradients = feed(probe, model, {"only": 4})["only"]
    for name, mean in probe.mean("only").items():
        assert mean.dtype == torch.float32
        assert torch.equal(mean, total([gradient[name] for gradient in gradients]) / 4)


# -- kinds of statistics ----------------------------------------------------------------------------------------------


def accumulator_bytes(probe: aimfair.Sensitivity) -> int:
    return sum(t.numel() * 4 for t in probe._statistics.tensors().values() if t.dtype == torch.float32)


@pytest.mark.parametrize(("statistics", "accumulators"), [("all", 6), ("sum", 3), ("square", 3), ("signed", 2)])
def test_memory_of_each_kind(statistics, accumulators):
    model = nn.Linear(64, 64)
    counts = dict.fromkeys(SOURCES, 2) if statistics == "signed" else None
    probe = aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=counts)
    assert accumulator_bytes(probe) == accumulators * 4 * (64 * 64 + 64)


@pytest.mark.parametrize("statistics", ["sum", "square"])
def test_one_kind_is_the_same_as_both(model, statistics):
    probe, both = (aimfair.Sensitivity(model, SOURCES, statistics=kind) for kind in (statistics, "all"))
    for gradients in feed(probe, model, {"real": 3})["real"]:
        set_gradients(model, gradients)
        both.update("real")
    read = {"sum": aimfair.Sensitivity.mean, "square": aimfair.Sensitivity.mean_square}
    kept, left_out = read[statistics], read["square" if statistics == "sum" else "sum"]
    for name, value in kept(probe, "real").items():
        assert torch.equal(value, kept(both, "real")[name])
    with pytest.raises(ValueError, match=f"statistics='{statistics}' does not keep"):
        left_out(probe, "real")


def test_signed_keeps_the_differences_of_means(model):
    counts = {"real": 2, "biased": 4, "fair": 3}
    probe = aimfair.Sensitivity(model, SOURCES, statistics="signed", batches=counts)
    history = feed(probe, model, counts)
    for contrast, (a, b) in {"domain": ("real", "biased"), "bias": ("biased", "fair")}.items():
        scores = probe.unit_scores("difference", contrast=contrast, granularity="element")
        for name, parameter in model.named_parameters():
            means = [sum(g[name].double() for g in history[source]) / counts[source] for source in (a, b)]
            expected = (means[0] - means[1]).abs().float()
            torch.testing.assert_close(scores[name].view(parameter.shape), expected, rtol=1e-5, atol=1e-6)


def test_signed_refuses_other_counts_than_declared(model):
    counts = dict.fromkeys(SOURCES, 2)
    probe = aimfair.Sensitivity(model, SOURCES, statistics="signed", batches=counts)
    feed(probe, model, {"real": 2, "biased": 2, "fair": 1})
    with pytest.raises(ValueError, match="'fair' has 1 batches, 2 were declared"):
        probe.select("top_k", density=0.1)
    feed(probe, model, {"fair": 1})
    assert probe.select("top_k", density=0.1).nnz > 0
    with pytest.raises(ValueError, match=r'relative_difference.*statistics="all"'):
        probe.select("top_k", criterion="relative_difference", density=0.1)
    with pytest.raises(ValueError, match=r"only reset\(\) of all"):
        probe.reset("real")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The operators that are called from now on, in order."""
    calls: list[str] = []

    def call(name, operator, *arguments, **options):
        calls.append(name)
        return operator(*arguments, **options)

    for name in ("accumulate_", "plan_accumulate", "planned_accumulate_", "set_grads_"):
        monkeypatch.setattr(ops, name, partial(call, name, getattr(ops, name)))
    return calls


def test_a_plan_is_made_for_each_source_and_set_of_parameters(model, calls):
    probe = aimfair.Sensitivity(model, SOURCES)
    set_gradients(model, random_gradients(model))

    def updates(*sources: str, **options: bool) -> list[str]:
        calls.clear()
        for source in sources:
            probe.update(source, **options)
        return calls

    made, used = ["plan_accumulate", "planned_accumulate_"], ["planned_accumulate_"]
    assert updates("real", "real", "fair", "real", "fair") == [*made, *used, *made, *used, *used]
    first, *_, last = (p for p in model.parameters() if p.numel())
    kept = [first.grad]  # held, so that what comes in its place lies elsewhere
    first.grad = first.grad.clone()
    assert updates("real", "real") == ["set_grads_", *used, *used]
    assert updates("real", "real", zero_grads=False) == [*made, *used]
    kept.append(last.grad)
    last.grad = None
    assert updates("real", "real", "fair") == [*made, *used, *made]
    last.grad = kept[-1]
    assert updates("real") == made  # zeroed again
    assert updates("fair") == ["set_grads_", *used]
    weight = model.conv.weight
    weight.grad = torch.ones(*weight.shape, 2, device=weight.device)[..., 0]
    assert updates("fair", "fair") == ["accumulate_"] * 2


def test_plans_are_bounded(model, calls, monkeypatch):
    monkeypatch.setattr(statistics, "_MOST_PLANNED", 1)
    probe = aimfair.Sensitivity(model, SOURCES)
    feed(probe, model, {"real": 2, "fair": 1})
    set_gradients(model, random_gradients(model))
    probe.update("real")
    assert calls.count("plan_accumulate") == 3


def test_gradients_that_share_memory_are_refused_in_a_later_batch(device):
    first, second = (nn.Parameter(torch.zeros(5, device=device)) for _ in range(2))
    probe = aimfair.Sensitivity({"first": first, "second": second}, ("a",))
    first.grad, second.grad = torch.ones(5, device=device), torch.ones(5, device=device)
    probe.update("a")
    second.grad = first.grad
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"grads\[1\] overlaps the memory of grads\[0\] \(parameter 'second'\)"):
            probe.update("a")


def test_a_copy_has_its_own_accumulators(model):
    probe = aimfair.Sensitivity(model, ("a",))
    feed(probe, model, {"a": 1})
    before, twin = probe.mean("a"), copy.deepcopy(probe)
    set_gradients(model, random_gradients(model))
    for parameter, other in zip(model.parameters(), twin._parameters, strict=True):
        other.grad = parameter.grad
    twin.update("a")
    assert all(torch.equal(mean, before[name]) for name, mean in probe.mean("a").items())
    assert not torch.equal(twin.mean("a")["scale"], before["scale"])


def test_reset(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    feed(probe, model, {"real": 1, "fair": 1})
    kept = probe.mean("fair")
    probe.reset("real")
    assert probe.batches == {"real": 0, "biased": 0, "fair": 1}
    assert all(torch.equal(value, kept[name]) for name, value in probe.mean("fair").items())
    gradients = feed(probe, model, {"real": 1})["real"][0]
    assert all(torch.equal(value, gradients[name]) for name, value in probe.mean("real").items())
    assert probe.square_norm("real")["scale"] == pytest.approx(float(gradients["scale"] ** 2))
    probe.reset()
    assert probe.batches == dict.fromkeys(SOURCES, 0)


# -- loss scaling and autocast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_", ["number", "tensor"])
def test_scaled_gradients_are_divided(model, device, as_):
    probe = aimfair.Sensitivity(model, ("only",))
    gradients = random_gradients(model)
    set_gradients(model, {name: gradient * 1024.0 for name, gradient in gradients.items()})
    probe.update("only", grad_scale=1024.0 if as_ == "number" else torch.tensor(1024.0, device=device))
    assert all(torch.equal(mean, gradients[name]) for name, mean in probe.mean("only").items())


class _Seen(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_a_scale_that_is_a_number_is_made_on_the_device(model):
    """A tensor of the host that is copied there would wait for all that the device has queued."""
    probe = aimfair.Sensitivity(model, ("only",))
    set_gradients(model, random_gradients(model))
    with _Seen() as seen:
        probe.update("only", grad_scale=1024.0)
    assert "aten::full" in seen.names
    assert not seen.names & {"aten::lift_fresh", "aten::_to_copy", "aten::copy_"}


def test_grad_scaler_and_autocast(model, device):
    model.eval()
    scaled, plain = aimfair.Sensitivity(model, ("only",)), aimfair.Sensitivity(model, ("only",))
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
    images, labels = batch(device)
    for probe, loss_scale in ((plain, lambda loss: loss), (scaled, scaler.scale)):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss_scale(loss).backward()
        probe.update("only", grad_scale=scaler if probe is scaled else None)
    for name, mean in scaled.mean("only").items():
        assert torch.equal(mean, plain.mean("only")[name])  # a power of two scales exactly
    assert scaled.mean("only")["head.weight"].any()
    off = torch.amp.GradScaler(device.type, enabled=False)
    set_gradients(model, random_gradients(model))
    expected = model.scale.grad.clone()
    plain.reset()
    plain.update("only", grad_scale=off)
    assert torch.equal(plain.mean("only")["scale"], expected)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_no_gradient_at_all(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        probe.update("real")
    assert probe.batches["real"] == 0


def test_unknown_source(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    for call in (probe.update, probe.capture, probe.mean, probe.square_norm, probe.reset):
        with pytest.raises(ValueError, match="'reel', expected one of real, biased, fair"):
            call("reel")


def test_sparse_gradients_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    probe = aimfair.Sensitivity(model, ("only",))
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"'0\.weight' has layout torch.sparse"):
        probe.update("only")
    assert probe.batches["only"] == 0


def test_strided_gradients_are_taken_and_zeroed(device):
    model = nn.Linear(5, 7).to(device)
    probe = aimfair.Sensitivity(model, ("only",))
    gradient = torch.randn(5, 7, device=device).t()
    model.weight.grad, model.bias.grad = gradient, torch.ones(7, device=device)
    expected = gradient.clone()
    probe.update("only")
    assert torch.equal(probe.mean("only")["weight"], expected)
    assert not gradient.any()


@pytest.mark.parametrize(("change", "kind", "message"), [
    (lambda m: m.double(), TypeError, r"'scale' is torch\.float64"),
    (lambda m: m.to(memory_format=torch.channels_last), ValueError, r"'conv\.weight' is not contig.*contiguous_format"),
])  # fmt: skip
def test_parameters_the_kernels_cannot_tune(model, change, kind, message):
    with pytest.raises(kind, match=message):
        aimfair.Sensitivity(change(model))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"sources": ()}, "at least one"),
    ({"sources": ("a", "a")}, "without duplicates"),
    ({"statistics": "some"}, "all, sum, square, signed"),
    ({"nonfinite": "drop"}, "ignore"),
    ({"contrasts": {"bias": ("real_biased", "other")}}, "'bias' is .*two of the sources"),
    ({"contrasts": {"bias": ("real_biased", "real_biased")}}, "two of the sources"),
    ({"batches": {"real_biased": 1}}, "only valid for statistics"),
    ({"statistics": "signed"}, "signed statistics need batches"),
    ({"statistics": "signed", "batches": {"real_biased": 1}}, "signed statistics need batches"),
    ({"statistics": "signed", "sources": "ab", "batches": {"a": 1, "b": 0}}, "expected several names"),
    ({"statistics": "signed", "sources": list("ab"), "batches": {"a": 1, "b": 0}}, "signed statistics need batches"),
    ({"statistics": "signed", "sources": list("abcd"), "batches": dict.fromkeys("abcd", 1),
      "contrasts": {c: ("a", c) for c in "bcd"}}, "'a' is in more than two"),
])  # fmt: skip
def test_arguments_that_make_no_sense(model, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        aimfair.Sensitivity(model, **arguments)


def test_two_devices_are_refused(model):
    named = dict(model.named_parameters()) | {"far": nn.Parameter(torch.empty(3, device="meta"))}
    with pytest.raises(ValueError, match="'far' on meta"):
        aimfair.Sensitivity(named)


# -- values that are not finite ---------------------------------------------------------------------------------------


def poisoned(model: nn.Module) -> dict[str, Tensor]:
    gradients = random_gradients(model)
    gradients["head.bias"][1] = torch.nan
    gradients["body.0.weight"][3, 4:6] = torch.inf
    return gradients


def test_nonfinite_gradients_raise_by_name(model, device):
    probe = aimfair.Sensitivity(model, SOURCES)
    feed(probe, model, dict.fromkeys(SOURCES, 1))
    set_gradients(model, poisoned(model))
    if device.type == "cpu":
        with pytest.raises(FloatingPointError, match=r"'fair': body\.0\.weight \(2\), head\.bias \(1\)"):
            probe.update("fair")
    else:
        probe.update("fair")
    with pytest.raises(FloatingPointError, match=r"body\.0\.weight \(2\), head\.bias \(1\)"):
        probe.select("top_k", density=0.5)
    assert probe.select("top_k", criterion="fisher", source="real", density=0.5).nnz > 0  # another source
    probe.reset("fair")
    feed(probe, model, {"fair": 1})
    assert probe.select("top_k", density=0.5).nnz > 0


@pytest.mark.parametrize(
    ("statistics", "criterion", "size", "key"),
    [
        ("all", "norm_ratio", 2e19, "square/fair"), ("all", "difference", 2e19, None),
        ("sum", "difference", 2e19, None), ("sum", "difference", 3e38, "sum/fair"),
        ("signed", "difference", 2e19, None), ("signed", "difference", 3e38, None),  # keeps means
    ],
)  # fmt: skip
def test_gradients_that_exceed_float32_are_not_ranked(model, statistics, criterion, size, key, tmp_path):
    """Sums of them, or of their squares, whichever the criterion takes."""
    batches = dict.fromkeys(SOURCES, 2) if statistics == "signed" else None
    probe = aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=batches)
    for source in SOURCES * 2:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.full_like(parameter, size if (source, name) == ("fair", "head.bias") else 1.0)
        probe.update(source)
    if key is None:
        assert probe.select("top_k", criterion=criterion, density=0.5).nnz > 0
    else:
        with pytest.raises(FloatingPointError, match=rf"{key} exceeds float32 in head\.bias; give grad_scale"):
            probe.select("top_k", criterion=criterion, density=0.5)
    with pytest.raises(FloatingPointError, match=r"fair holds NaN or infinite values in head\.bias"):
        probe.require_finite()
    probe.save(tmp_path / "s")
    with pytest.raises(ValueError, match=r"/s: \w+/fair holds NaN or infinite values in head\.bias"):
        aimfair.Sensitivity.load(tmp_path / "s", model)


def test_nonfinite_gradients_left_out(model):
    probe = aimfair.Sensitivity(model, SOURCES, nonfinite="ignore")
    feed(probe, model, dict.fromkeys(SOURCES, 1))
    before = probe.mean("fair")["body.0.weight"]
    gradients = poisoned(model)
    set_gradients(model, gradients)
    probe.update("fair")
    finite = gradients["body.0.weight"].isfinite()
    expected = torch.where(finite, before + gradients["body.0.weight"], before) / 2
    assert torch.equal(probe.mean("fair")["body.0.weight"], expected)
    assert probe.summary().nonfinite == {"real": {}, "biased": {}, "fair": {"body.0.weight": 2, "head.bias": 1}}
    assert str(probe.summary()).splitlines()[-1].split() == ["non-finite", "values", "0", "0", "3"]
    assert probe.select("top_k", density=0.5).nnz > 0


def test_nonfinite_gradients_are_counted_next_to_missing_ones(model):
    probe = aimfair.Sensitivity(model, ("only",), nonfinite="ignore")
    gradients = poisoned(model)
    del gradients["body.0.bias"], gradients["scale"]
    for _ in range(2):
        set_gradients(model, gradients)
        probe.update("only")
    assert probe.summary().nonfinite["only"] == {"body.0.weight": 4, "head.bias": 2}


def test_summary(model):
    probe = aimfair.Sensitivity(model, SOURCES)
    gradients = feed(probe, model, {"real": 2})["real"]
    summary = probe.summary()
    expected = (sum(float(g["head.weight"].double().square().sum()) for g in gradients) / 2) ** 0.5
    assert summary.norms["real"][summary.names.index("head.weight")] == pytest.approx(expected, rel=1e-6)
    lines = str(summary).splitlines()
    assert lines[0].split() == ["gradient", "norm", *SOURCES]
    assert lines[1].split() == ["batches", "2", "0", "0"]
    assert lines[-2].split() == ["head.weight", f"{expected:.3e}", "0.000e+00", "0.000e+00"]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["all", "sum", "square", "signed"])
def test_a_run_goes_on_from_a_file(model, tmp_path, statistics):
    counts = dict.fromkeys(SOURCES, 3)
    declared = counts if statistics == "signed" else None
    criterion = "norm_ratio" if statistics == "square" else "difference"
    whole = aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=declared)
    history = feed(whole, model, counts)

    part = aimfair.Sensitivity(model, SOURCES, statistics=statistics, batches=declared)
    for source in SOURCES:
        for number, gradients in enumerate(history[source]):
            set_gradients(model, gradients)
            part.update(source)
            if source == "biased" and number == 1:
                part.save(tmp_path / "s.safetensors")
                part = aimfair.Sensitivity.load(tmp_path / "s.safetensors", model)
                assert part.batches == {"real": 3, "biased": 2, "fair": 0}
    assert part.batches == whole.batches
    for key, tensor in whole._statistics.tensors().items():
        assert torch.equal(part._statistics.tensors()[key], tensor), key
    masks = [probe.select("budget", criterion=criterion, density=0.1) for probe in (part, whole)]
    assert masks[0] == masks[1]


def test_file_of_another_model_is_refused(model, tmp_path):
    path = tmp_path / "s.safetensors"
    aimfair.Sensitivity(model, SOURCES).save(path)
    other = toy()
    other.head = nn.Linear(33, 7)
    with pytest.raises(ValueError, match=r"s\.safetensors: .*another model: head\.bias, head\.weight") as error:
        aimfair.Sensitivity.load(path, other)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(model, tmp_path):
    path = tmp_path / "s.safetensors"
    probe = aimfair.Sensitivity(model, SOURCES)
    feed(probe, model, {"real": 1})
    probe.save(path)
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"s\.safetensors: not a usable aimfair\.sensitivity file"):
            aimfair.Sensitivity.load(path, model)
    path.write_bytes(content)
    tensors = load_file(path)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors["sum/real"][5] = torch.inf
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match="sum/real holds NaN or infinite"):
        aimfair.Sensitivity.load(path, model)
    tensors["sum/real"] = torch.zeros(3)
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match=r"sum/real is torch\.float32 \(3,\)"):
        aimfair.Sensitivity.load(path, model)
    aimfair.ParameterMask.full(model).save(path)
    with pytest.raises(ValueError, match=r"found aimfair\.mask"):
        aimfair.Sensitivity.load(path, model)


def test_a_selection_is_refused_in_a_graph_capture(device, monkeypatch):
    """Before anything is read; without a GPU, nothing is ever captured."""
    probe = aimfair.Sensitivity(nn.Linear(3, 2).to(device), ("a", "b"))
    looked_at = []
    monkeypatch.setattr(torch.cuda, "device", lambda other: nullcontext(looked_at.append(other)))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(probe._statistics, "device", torch.device("cuda:1"))
    with pytest.raises(RuntimeError, match=r"select\(\): the host reads statistics, which a CUDA graph cannot hold"):
        probe.select("top_k", density=0.5)
    assert looked_at == [torch.device("cuda:1")]  # not the current device
