"""SHiRA adapters of the real PEFT, in both directions."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import aimfair
from aimfair import Delta
from aimfair.selective.shira import read_adapter, write_adapter

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # of PEFT
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(40, 40), nn.Linear(40, 40, bias=False)])
        self.other_head = nn.Linear(40, 40)
        self.norm = nn.BatchNorm1d(40)
        self.head = nn.Linear(40, 3)

    def forward(self, x):
        for layer in self.body:
            x = layer(x).relu()
        return self.head(self.norm(self.other_head(x)))


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    return Model().to(dtype).eval()


def tuned(dtype, names, density=0.05):
    """A model after three steps on some of its weights."""
    model = model_of(dtype).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    mask = aimfair.ParameterMask.random(model, density)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=0.01)
    for _ in range(3):
        model(torch.randn(8, 40, dtype=dtype)).square().mean().backward()
        optimizer.step()
    return model.eval()


def merged(adapter, dtype):
    """The state of a fresh base with an adapter that PEFT loads and merges."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Sparse invariant")
        wrapped = peft.PeftModel.from_pretrained(model_of(dtype), adapter)
    return wrapped.merge_and_unload().state_dict()


LINEAR = ("body.0.weight", "body.1.weight", "other_head.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_peft_loads_and_merges_what_we_write(tmp_path, dtype):
    result = tuned(dtype, LINEAR)
    with torch.no_grad():
        result.head.bias += 1
    delta = Delta.between(model_of(dtype), result)
    adapter = write_adapter(delta, model_of(dtype), tmp_path)
    assert adapter.sparse == ("body.0", "body.1")
    assert adapter.whole == ("head", "norm", "other_head")  # PEFT saves modules whose names end with "head"
    found = merged(tmp_path, dtype)
    for name, tensor in result.state_dict().items():
        differing = found[name] != tensor
        assert differing.sum() <= adapter.inexact
        assert (found[name].double() - tensor.double()).abs().max() <= adapter.largest_error
    assert adapter.inexact <= 0.05 * delta.nnz
    assert adapter.largest_error <= 2**-25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back(tmp_path, dtype):
    result = tuned(dtype, LINEAR)
    delta = Delta.between(model_of(dtype), result)
    written = write_adapter(delta, model_of(dtype), tmp_path)
    back = read_adapter(tmp_path, model_of(dtype))
    assert (back.result == delta.result) == (written.inexact == 0)
    model = model_of(dtype)
    back.apply_(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in merged(tmp_path, dtype).items())


def test_one_module_of_few_changes_pads_the_others(tmp_path):
    base = model_of()
    result = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    result["body.0.weight"][:10] += 0.5  # 400 = 5 * (40 + 40)
    result["body.1.weight"][3, 4] += 0.5
    adapter = write_adapter(Delta.between(base, result), base, tmp_path)
    assert (adapter.r, adapter.sparse, adapter.whole, adapter.inexact) == (5, ("body.0", "body.1"), (), 0)
    assert all(torch.equal(merged(tmp_path, torch.float32)[name], tensor) for name, tensor in result.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_that_peft_trained(tmp_path, dtype):
    config = peft.ShiraConfig(
        r=3, target_modules=["body.0", "body.1"], modules_to_save=["norm"], init_weights=False, random_seed=1
    )
    wrapped = peft.get_peft_model(model_of(dtype), config)
    with torch.no_grad():
        wrapped.base_model.model.norm.modules_to_save["default"].running_mean.fill_(2)
    wrapped.save_pretrained(tmp_path / "adapter")
    save_file(model_of(dtype).state_dict(), tmp_path / "base.safetensors")
    delta = read_adapter(tmp_path / "adapter", tmp_path / "base.safetensors")
    assert delta.changes.keys() == {"body.0.weight", "body.1.weight", "norm.running_mean"}
    delta.apply(tmp_path / "base.safetensors", tmp_path / "result.safetensors")
    expected = merged(tmp_path / "adapter", dtype)
    found = load_file(tmp_path / "result.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_an_adapter_cannot_hold(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.register_parameter("token", nn.Parameter(torch.zeros(3)))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="cannot hold token: tensors of a module with submodules"):
        write_adapter(Delta.between(state, state | {"token": torch.ones(3)}), model, tmp_path)
    model[1].weight = model[0].weight
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = state["0.weight"] + 1
    with pytest.raises(ValueError, match=r"cannot hold 0.weight, 1.weight: tied to other tensors"):
        write_adapter(Delta.between(state, state | {"0.weight": other, "1.weight": other}), model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_out_of_reach_are_counted(tmp_path):
    base = model_of()
    with torch.no_grad():
        base.body[1].weight[0, :3] = torch.tensor([1.0, 0.0, 1.0])
    result = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    result["body.1.weight"][0, :3] = torch.tensor([1e-12, -0.0, 2.0])
    adapter = write_adapter(Delta.between(base, result), base, tmp_path)
    assert adapter.inexact == 2
    assert adapter.largest_error == pytest.approx(1e-12)


@pytest.mark.parametrize(
    ("config", "contents", "said"),
    [
        ({"peft_type": "LORA"}, {}, "adapter_config.json: found LORA, fan_in_fan_out False, expected SHIRA"),
        ({"peft_type": "SHIRA", "fan_in_fan_out": True}, {}, "fan_in_fan_out True"),
        ([], {}, "adapter_config.json: not the configuration of an adapter"),
        ({"peft_type": "SHIRA"}, {"x.shira_weight": torch.zeros(1)}, "'x.shira_weight' has no tensor 'x.weight'"),
        ({"peft_type": "SHIRA"}, {"head.shira_weight": torch.zeros(1)}, "the indices of 'head' are missing or not"),
        (
            {"peft_type": "SHIRA"},
            {"head.shira_weight": torch.zeros(1), "head.shira_indices": torch.tensor([[3], [0]])},
            r"the indices of 'head' are missing or not those of F32 \(3, 40\)",
        ),
    ],
)
def test_folders_that_are_no_adapter_of_the_model(tmp_path, config, contents, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in contents.items()},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match=said):
        read_adapter(tmp_path, model_of())
