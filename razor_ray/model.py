"""Build a network, load its weights safely, and take features and logits from one forward pass."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
from collections.abc import Callable, Mapping

import pyarrow.fs as pafs
import safetensors.torch
import torch
from torch import Tensor, nn

from razor_ray.headers import SMALL_IMAGE
from razor_ray.transforms import denormalize

DEFAULT_SMALL, DEFAULT_LARGE = "resnet9", "resnet18"


class ResNet9(nn.Module):
    """A small residual network for images of 8 to 64 pixels: eight convolutions, two shortcuts, 0.4 million weights.

    After the network that D. Page trained CIFAR-10 with (How to train your ResNet, 2018), four times as narrow.

    Parameters
    ----------
    num_classes : int
    width : int
        Channels of the first layer; the embedding has eight times as many numbers.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = _convolution(3, width)
        self.stage1 = nn.Sequential(_convolution(width, 2 * width), _Halve(), _Residual(2 * width))
        self.stage2 = nn.Sequential(_convolution(2 * width, 4 * width), _Halve())
        self.stage3 = nn.Sequential(_convolution(4 * width, 8 * width), _Halve(), _Residual(8 * width))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to logits (B, C)."""
        features = self.stage3(self.stage2(self.stage1(self.stem(images))))  # (B, 8 W, S/8, S/8)
        return self.head(self.pool(features).flatten(1))


class _Halve(nn.MaxPool2d):
    def __init__(self) -> None:
        super().__init__(2, ceil_mode=True)  # so that images of 4 pixels have something left


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.body(images)


class LeNet(nn.Module):
    """LeNet-5 with rectified units, on grey values in 0..1: 44 thousand weights for ten classes.

    Maps are averaged (as LeCun et al. have it), the input is neither padded nor normalised: the form whose random
    subsets of Fashion-MNIST come out where the literature has them. It matters: with all three the other way, a
    thousand images are learnt to 81 % instead of 76 % (docs/experiments.md).

    References
    ----------
    LeCun et al., Gradient-based Learning Applied to Document Recognition, Proceedings of the IEEE 86(11), 1998.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(4),  # nothing at 28 pixels, where the maps are 4 x 4
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S), S at least 16, to logits (B, C)."""
        grey = denormalize(images).mean(dim=1, keepdim=True)  # (B, 1, S, S)
        return self.classifier(self.features(grey))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _small_resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 as the literature trains it on CIFAR: torchvision's but for the first layers.

    A convolution of 3 x 3 keeps the size, and nothing pools after it; those for ImageNet leave 8 x 8 of 32 x 32 pixels.

    References
    ----------
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016: section 4.2 for the first layer.
    """
    network = _constructor("resnet18")(num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision has it
    network.maxpool = nn.Identity()
    return network


_OWN: dict[str, Callable[[int], nn.Module]] = {
    DEFAULT_SMALL: ResNet9,
    "lenet": LeNet,
    "resnet18_small": _small_resnet18,
}


def resolve_arch(arch: str, image_size: int) -> str:
    """The name that 'auto' stands for at this image size; other names as they are.

    >>> resolve_arch("auto", 32), resolve_arch("auto", 224), resolve_arch("vit_b_16", 224)
    ('resnet9', 'resnet18', 'vit_b_16')
    """
    if arch != "auto":
        return arch
    return DEFAULT_SMALL if image_size <= SMALL_IMAGE else DEFAULT_LARGE


def check_arch(arch: str) -> None:
    """Raise ValueError if there is no network of this name, without making it."""
    if arch != "auto":
        _constructor(arch)


def build(arch: str, num_classes: int) -> nn.Module:
    """A network with fresh weights.

    Parameters
    ----------
    arch : str
        'resnet9', 'lenet', 'resnet18_small', a torchvision model name, or 'module:function', called with `num_classes`.
    num_classes : int

    Raises
    ------
    ValueError
        If there is no such network, or it does not end in a linear layer of `num_classes` outputs.
    """
    constructor = _constructor(arch)
    if not callable(constructor):
        raise ValueError(f"arch {arch} is {type(constructor).__name__}, not a function of the number of classes.")
    network = constructor(num_classes)
    if not isinstance(network, nn.Module):
        raise ValueError(f"arch {arch} gave {type(network).__name__}, not a torch.nn.Module.")
    head = classifier(network)
    if head.out_features != num_classes:
        raise ValueError(f"arch {arch} ends in {head.out_features} outputs, but there are {num_classes} classes.")
    return network


def classifier(network: nn.Module) -> nn.Linear:
    """The last linear layer, whose input is the embedding and whose output the logits."""
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise ValueError(
            f"{type(network).__name__} has no linear layer to take embeddings from. Use a network that ends in one, "
            "such as resnet18, efficientnet_b0 or vit_b_16."
        )
    return heads[-1]


class FeaturesAndLogits(nn.Module):
    """A network that also gives the input of its last linear layer, from the same forward pass.

    Parameters
    ----------
    network : nn.Module
        As `build` makes it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._captured: list[Tensor] = []
        classifier(network).register_forward_pre_hook(lambda _, inputs: self._captured.append(inputs[0]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) to embeddings (B, D) and logits (B, C)."""
        self._captured.clear()
        logits = self.network(images)
        assert len(self._captured) == 1, "the last linear layer must run once in a forward pass"
        return self._captured.pop().flatten(1), logits


def check_takes(network: nn.Module, arch: str, image_size: int, num_classes: int, *, with_features: bool) -> None:
    """See whether a network takes images of a size, and gives what is read from it, before hours depend on it.

    Parameters
    ----------
    network : nn.Module
        Left in evaluation mode.
    arch : str
        Its name.
    image_size, num_classes : int
    with_features : bool
        Whether its features are needed besides the logits.

    Raises
    ------
    ValueError
        With what the network says of a black image.
    """
    image, network = torch.zeros(1, 3, image_size, image_size), network.eval()
    runs: list[int] = []
    hook = classifier(network).register_forward_pre_hook(lambda *_: runs.append(1)) if with_features else None
    try:
        with torch.inference_mode():
            logits = network(image)
    except Exception as error:  # of as many kinds as there are networks
        said = str(error).strip().partition("\n")[0].removesuffix(".") or type(error).__name__
        raise ValueError(
            f"{arch} does not take images of {image_size} pixels: {said}. Choose another image_size, of which 224 "
            "suits most networks, or another arch."
        ) from error
    finally:
        if hook is not None:
            hook.remove()
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ValueError(f"{arch} must give logits (B, {num_classes}) of images (B, 3, S, S), but of one gave {shape}.")
    if with_features and len(runs) != 1:
        raise ValueError(
            f"{arch} runs its last linear layer, whose input are the features, {len(runs)} times for an image. Use a "
            "network that ends in one, such as resnet18."
        )


def load_weights(network: nn.Module, content: bytes, name: str) -> None:
    """Put a state_dict into a network, without running any code that the file may hold.

    Parameters
    ----------
    network : nn.Module
    content : bytes
        A safetensors file, or what `torch.save` made of a state_dict; a dictionary that holds it under 'model' or
        'state_dict' will do, and so will names that begin with 'module.'.
    name : str
        Of the file; tells the format by its ending, and stands in messages.

    Raises
    ------
    ValueError
        If the file holds more than tensors, or does not fit the network; the message names the first that do not fit.
    """
    weights = _state_dict(content, name)
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"weights {name} do not fit {type(network).__name__}: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} not known ({', '.join(unexpected[:3])}). Name their network by its option, such as "
            "--proxy.arch."
        )
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"weights {name} do not fit: {key} is {tuple(value.shape)}, the network's is {tuple(own[key].shape)}. "
                "Check the option arch and the number of classes."
            )
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:  # a sparse or quantised tensor, say
        raise ValueError(f"weights {name} do not fit: {_first_line(error)}") from error


def save_weights(network: nn.Module) -> bytes:
    """A network's state_dict as the content of a safetensors file."""
    # Copies, since safetensors refuses tensors that share memory, as tied layers do.
    return safetensors.torch.save(
        {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in network.state_dict().items()
        }
    )


def read_file(filesystem: pafs.FileSystem, path: str) -> bytes:
    """A whole file. That it is not there is for the user to mend, a ValueError; that a store fails is an OSError."""
    if filesystem.get_file_info(path).type != pafs.FileType.File:
        raise ValueError(f"cannot read {path}: there is no such file.")
    with filesystem.open_input_file(path) as stream:
        return stream.read()


def weights_hash(content: bytes) -> str:
    """SHA-256 of a weights file, as the manifest gives it."""
    return hashlib.sha256(content).hexdigest()


def _constructor(arch: str) -> Callable[[int], nn.Module]:
    if arch in _OWN:
        return _OWN[arch]
    if ":" in arch:
        module, _, function = arch.partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"cannot load arch {arch}: {error}. It must be importable on every node.") from error
    # Here and not above: it brings torch's compiler along, a second of every process that scores.
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers, not detectors
    if arch not in known:
        near = difflib.get_close_matches(arch.lower(), [*_OWN, *known], 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"no arch {arch!r}.{meant} Use resnet9, lenet, resnet18_small, a torchvision model such as resnet50, or "
            "module:function."
        )
    # These two give a second classifier's logits while they train, which nothing here asks for.
    options = {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") else {}
    return lambda num_classes: torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)


def _state_dict(content: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        if name.endswith(".safetensors"):
            weights = safetensors.torch.load(content)
        else:
            weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling errors of many kinds; a refusal of code is one of them
        cause = "it is empty" if not content else "it is no weights file, or holds more than tensors"
        raise ValueError(
            f"cannot load weights {name} safely: {cause}. Save a state_dict, best as .safetensors."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise ValueError(f"weights {name} must be a state_dict, a dictionary of tensors.")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
