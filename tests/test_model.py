"""Networks: built by name, opened at the last linear layer, loaded without running what a file may hold."""

from __future__ import annotations

import io
import sys
import types

import pyarrow.fs as pafs
import pytest
import safetensors.torch
import torch
from torch import nn

from razor_ray import model, transforms
from razor_ray.headers import network_size
from tests.conftest import FailingStore


class Odd(nn.Module):
    """Gives something that is no logits of as many classes, or runs its linear layer twice."""

    def __init__(self, gives) -> None:
        super().__init__()
        self.gives, self.last = gives, nn.Linear(3, 5)

    def forward(self, images):
        return self.gives(self.last, images.mean((2, 3)))


@pytest.mark.parametrize(("arch", "size"), [("resnet9", 32), ("lenet", 28), ("resnet18", 64), ("vit_b_16", 224)])
def test_a_network_that_takes_its_images(arch, size):
    model.check_takes(model.build(arch, 5), arch, size, 5, with_features=True)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (lambda: model.build("vit_b_16", 5), 32, "odd does not take images of 32 pixels: Wrong image height"),
        (lambda: model.build("alexnet", 5), 32, "odd does not take images of 32 pixels: "),
        (lambda: Odd(lambda last, x: last(x)[:, :4]), 8, r"must give logits \(B, 5\) .* of one gave \(1, 4\)"),
        (lambda: Odd(lambda last, x: [last(x)]), 8, "of one gave list"),
        (lambda: Odd(lambda last, x: last(x) + last(x)), 8, "runs its last linear layer, .*, 2 times"),
        (lambda: Odd(lambda last, x: x.repeat(1, 2)[:, :5]), 8, "runs its last linear layer, .*, 0 times"),
    ],
)
def test_a_network_that_does_not_is_told_of_at_once(network, size, message):
    with pytest.raises(ValueError, match=message):
        model.check_takes(network(), "odd", size, 5, with_features=True)


def test_features_are_no_matter_where_none_are_read():
    model.check_takes(Odd(lambda last, x: x.repeat(1, 2)[:, :5]), "odd", 8, 5, with_features=False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def network_with_noise(arch: str, num_classes: int) -> nn.Module:
    """Fresh weights, and statistics of batch normalisation that are not 0 and 1."""
    network = model.build(arch, num_classes)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("num_batches_tracked"):
            value.fill_(2**40 + 1)
    return network.eval()


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


# Networks.


@pytest.mark.parametrize("side", [8, 28, 32, 33, 64])
def test_resnet9_sees_small_images(side):
    network = model.build("resnet9", 7)
    images = torch.rand(2, 3, side, side)
    assert network(images).shape == (2, 7)
    assert network.eval()(images.contiguous(memory_format=torch.channels_last)).shape == (2, 7)


def test_the_resnet18_of_the_literature_on_cifar():
    network = model.build("resnet18_small", 10)
    # torchvision's 11,181,642 weights for ten classes, less 64 x 3 x (7 x 7 - 3 x 3) of the first convolution.
    assert sum(weight.numel() for weight in network.parameters()) == 11_173_962
    sizes = []
    network.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    network.layer4.register_forward_hook(lambda _, __, output: sizes.append(output.shape))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(2, 64, 32, 32), (2, 512, 4, 4)]


@pytest.mark.parametrize("side", [1, 4, 5, 6, 7])
def test_the_default_network_sees_the_smallest_images(side):
    # What 'auto' chooses for images of this side must run on them.
    size = network_size(side, side)
    network = model.build(model.resolve_arch("auto", size), 2).eval()
    assert network(torch.rand(1, 3, size, size)).shape == (1, 2)


def test_resnet9_by_hand():
    network = model.ResNet9(10)
    # 3x3 kernels: 3-16, 16-32, two of 32-32, 32-64, 64-128, two of 128-128; two numbers per channel of batch norm.
    weights = 9 * (3 * 16 + 16 * 32 + 2 * 32 * 32 + 32 * 64 + 64 * 128 + 2 * 128 * 128)
    norms = 2 * (16 + 32 + 2 * 32 + 64 + 128 + 2 * 128)
    assert sum(p.numel() for p in network.parameters()) == weights + norms + 128 * 10 + 10
    assert model.classifier(network).in_features == 128


@pytest.mark.parametrize(
    ("arch", "side", "size"),
    [
        ("resnet9", 32, 128),
        ("resnet18", 32, 512),
        ("mobilenet_v3_small", 32, 1024),
        ("shufflenet_v2_x0_5", 32, 1024),
        ("regnet_y_400mf", 32, 440),
    ],
)
def test_embedding_is_what_the_head_sees(arch, side, size):
    network = model.FeaturesAndLogits(network_with_noise(arch, 7)).eval()
    images = torch.rand(3, 3, side, side)
    with torch.inference_mode():
        embedding, logits = network(images)
        head = model.classifier(network.network)
        assert embedding.shape == (3, size)
        assert logits.shape == (3, 7)
        torch.testing.assert_close(head(embedding), logits, rtol=0, atol=0)
        torch.testing.assert_close(network.network(images), logits, rtol=0, atol=0)
        again, _ = network(images[:1])  # a smaller batch after a larger one, and after a call of the bare network
    assert again.shape == (1, size)


def test_a_head_that_runs_twice_is_noticed():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.head(images))

    with pytest.raises(AssertionError, match="once"):
        model.FeaturesAndLogits(Twice())(torch.rand(1, 3))


def test_lenet_by_hand():
    # 6 x (25 + 1) + 16 x (6 x 25 + 1) + 120 x 257 + 84 x 121 + 10 x 85, and maps of 4 x 4 at 28 pixels.
    network = model.build("lenet", 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == 156 + 2416 + 30840 + 10164 + 850
    assert network.features[:6](torch.zeros(1, 1, 28, 28)).shape == (1, 16, 4, 4)
    # What it sees is grey, in 0..1: a mid-grey pixel of 102 is 0.4 again, whatever normalisation made of it.
    seen = []
    network.features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(transforms.normalize(torch.full((1, 28, 28, 3), 102, dtype=torch.uint8)))
    torch.testing.assert_close(seen[0], torch.full((1, 1, 28, 28), 0.4))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    # Maps are averaged over 2 x 2, not their largest taken.
    averaged = network.features[2](torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]]))
    assert averaged.item() == network.features[5](torch.tensor([[[[1.0, 1.0], [1.0, 5.0]]]])).item() == 2.0


def test_no_linear_layer():
    with pytest.raises(ValueError, match=r"SqueezeNet has no linear layer .* resnet18"):
        model.build("squeezenet1_1", 10)


@pytest.mark.parametrize(
    ("arch", "meant"),
    [
        ("resnet19", r" Did you mean resnet\d+\?"),
        ("ResNet18", r" Did you mean resnet18\?"),
        ("fasterrcnn_resnet50_fpn", r"[^?]*"),
        ("quantized_resnet18", r"[^?]*"),
        ("", ""),
        ("auto", ""),  # what stands for a name, which is never built
    ],
)
def test_unknown_names(arch, meant):
    said = rf"^no arch '{arch}'\.{meant}.* Use resnet9, lenet, resnet18_small, a torchvision model"
    with pytest.raises(ValueError, match=said):
        model.build(arch, 10)
    if arch != "auto":
        with pytest.raises(ValueError, match=said):
            model.check_arch(arch)


@pytest.mark.parametrize("arch", ["auto", "resnet9", "lenet", "resnet50", "razor_ray.model:LeNet"])
def test_known_names_are_let_through(arch):
    model.check_arch(arch)


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("my_networks")
    module.tiny = lambda num_classes: nn.Sequential(
        nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, num_classes)
    )
    module.deaf = lambda num_classes: nn.Linear(12, 1000)
    module.number = 3.14
    monkeypatch.setitem(sys.modules, "my_networks", module)


@pytest.mark.usefixtures("own_module")
def test_a_function_of_a_module():
    network = model.FeaturesAndLogits(model.build("my_networks:tiny", 4))
    embedding, logits = network(torch.rand(2, 3, 2, 2))
    assert embedding.shape == (2, 5)
    assert logits.shape == (2, 4)
    with pytest.raises(ValueError, match="my_networks:deaf ends in 1000 outputs, but there are 4 classes"):
        model.build("my_networks:deaf", 4)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("arch", ["my_networks:nothing", "my_networks:", "no_such_module:tiny", ":", ":tiny"])
def test_a_function_that_is_not_there(arch):
    with pytest.raises(ValueError, match=r"cannot load arch|Empty module name"):
        model.build(arch, 4)


@pytest.mark.usefixtures("own_module")
def test_a_name_that_is_no_function():
    with pytest.raises(ValueError, match="my_networks:number"):
        model.build("my_networks:number", 4)


# Weights.


@pytest.mark.parametrize("wrap", [dict, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_torch(wrap, prefix):
    source, target = network_with_noise("resnet9", 3), model.build("resnet9", 3)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    model.load_weights(target, saved(wrap(state)), "w.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_safetensors(prefix):
    source, target = network_with_noise("resnet9", 3), model.build("resnet9", 3)
    content = safetensors.torch.save({prefix + name: value for name, value in source.state_dict().items()})
    model.load_weights(target, content, "s3://bucket/w.safetensors")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("arch", ["resnet9", "shufflenet_v2_x0_5"])
def test_saved_weights_come_back_bit_for_bit(arch):
    source = network_with_noise(arch, 3).to(memory_format=torch.channels_last)
    content = model.save_weights(source)
    assert content == model.save_weights(source)
    target = model.build(arch, 3).eval().to(memory_format=torch.channels_last)
    model.load_weights(target, content, "w.safetensors")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
        assert target.state_dict()[name].dtype == value.dtype
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(source(images), target(images))
    assert model.save_weights(target) == content


def test_weights_that_are_shared_can_be_saved():
    # A network of the user's own may tie layers; it must not fail after it was trained.
    network = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    network[1].weight = network[0].weight
    target = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model.load_weights(target, model.save_weights(network), "w.safetensors")
    assert torch.equal(target[1].weight, network[0].weight)


def test_weights_of_another_number_of_classes():
    content = model.save_weights(model.build("resnet9", 3))
    with pytest.raises(ValueError, match=r"w.safetensors do not fit: head.* is \(3.*, the network's is \(4"):
        model.load_weights(model.build("resnet9", 4), content, "w.safetensors")


def test_weights_of_another_network():
    target = model.build("resnet9", 3)
    before = model.save_weights(target)
    with pytest.raises(ValueError, match=r"w.pt do not fit ResNet9: 50 missing .* 2 not known \(bias, weight\)"):
        model.load_weights(target, saved(nn.Linear(2, 2).state_dict()), "w.pt")
    assert model.save_weights(target) == before


def test_one_missing_and_one_too_many_are_named():
    network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"1 missing \(bias\), 1 not known \(bais\)"):
        model.load_weights(network, saved({"weight": torch.zeros(2, 2), "bais": torch.zeros(2)}), "w.pt")


def test_a_file_with_code_is_refused_and_does_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    for value in (Hostile(), {"weight": Hostile()}, {"state_dict": {"weight": torch.zeros(2, 2), "bias": Hostile()}}):
        for name in ("w.pt", "w.pth", "w.bin", "w.safetensors"):
            with pytest.raises(ValueError, match=rf"cannot load weights {name} safely"):
                model.load_weights(nn.Linear(2, 2), saved(value), name)
    assert not ran.exists()


NO_STATE_DICT = {
    "empty": b"",
    "text": b"weights",
    "zeros": b"\0" * 100,
    "cut": saved(torch.zeros(2))[:60],
    "pickled network": saved(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", NO_STATE_DICT.values(), ids=NO_STATE_DICT.keys())
def test_a_file_that_is_no_state_dict(name, content):
    with pytest.raises(ValueError, match=rf"(?s)cannot load weights {name} safely: .*Save a state_dict"):
        model.load_weights(nn.Linear(2, 2), content, name)


@pytest.mark.parametrize("content", NO_STATE_DICT.values(), ids=NO_STATE_DICT.keys())
def test_a_refusal_is_one_line_that_advises_nothing_unsafe(content):
    # torch's own message has eight lines, an escape sequence, and the advice to load with weights_only=False.
    with pytest.raises(ValueError, match=r"w\.pt") as raised:
        model.load_weights(nn.Linear(2, 2), content, "w.pt")
    message = str(raised.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "False" not in message
    assert "safely: ." not in message, "no cause is given"


@pytest.mark.parametrize("value", [torch.zeros(2), [torch.zeros(2)], {"weight": 1}, 3, None])
def test_a_file_of_something_else(value):
    with pytest.raises(ValueError, match=r"weights w.pt must be a state_dict, a dictionary of tensors"):
        model.load_weights(nn.Linear(2, 2), saved(value), "w.pt")


def test_names_that_are_no_text():
    with pytest.raises(ValueError, match=r"w.pt"):
        model.load_weights(nn.Linear(2, 2), saved({0: torch.zeros(2, 2), 1: torch.zeros(2)}), "w.pt")


def test_a_sparse_tensor_is_refused():
    sparse = {"weight": torch.eye(2).to_sparse(), "bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"w.pt"):
        model.load_weights(nn.Linear(2, 2), saved(sparse), "w.pt")


def test_half_precision_weights_are_taken():
    network = nn.Linear(2, 2)
    state = {"weight": torch.full((2, 2), 0.5, dtype=torch.float16), "bias": torch.ones(2, dtype=torch.bfloat16)}
    model.load_weights(network, saved(state), "w.pt")
    assert network.weight.dtype == torch.float32
    assert network.weight.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert network.bias.tolist() == [1, 1]


def test_hash_by_hand():
    assert model.weights_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    one, other = model.build("resnet9", 2), model.build("resnet9", 2)
    assert model.weights_hash(model.save_weights(one)) != model.weights_hash(model.save_weights(other))


def test_a_store_that_fails_is_not_a_file_that_is_missing(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"01")
    with pytest.raises(OSError, match="503 Slow Down"):
        model.read_file(pafs.PyFileSystem(FailingStore(range(9))), str(tmp_path / "w.pt"))


def test_read_file(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"\0\1")
    filesystem = pafs.LocalFileSystem()
    assert model.read_file(filesystem, str(tmp_path / "w.pt")) == b"\0\1"
    for path in (tmp_path / "none.pt", tmp_path, tmp_path / "w.pt" / "in"):
        with pytest.raises(ValueError, match=f"cannot read {path}"):
            model.read_file(filesystem, str(path))
