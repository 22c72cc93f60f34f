"""Any timm encoder gives patches (B, P, V), row by row, with or without its class token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.blip2.config import VisionConfig, mini
from engine.blip2.vision import VisionEncoder, fold_batch_norms, list_network_parts
from engine.errors import CheckpointError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}


def make_encoder(name: str, size: int, channels: int, seed: int = 0, **fields: object) -> VisionEncoder:
    torch.manual_seed(seed)
    net = VisionEncoder(VisionConfig(name, size, channels, **fields)).eval()  # type: ignore[arg-type]
    return net.requires_grad_(False)


def pixels(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_a_vit_keeps_or_drops_its_class_token() -> None:
    with_class_token = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=VIT)
    dropped = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=VIT, class_token=False)
    dropped.load_state_dict(with_class_token.state_dict())
    with_class, without = with_class_token(pixels(32)), dropped(pixels(32))
    assert with_class.shape == (2, 17, 32) and without.shape == (2, 16, 32)
    assert torch.equal(with_class[:, 1:], without)
    assert (with_class_token.count_patches(), dropped.count_patches()) == (17, 16)


def test_every_prefix_token_goes() -> None:
    """Register tokens are left out like the class token, since they are no patches."""
    args = {**VIT, "reg_tokens": 3, "no_embed_class": True}
    with_class_token = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=args)
    dropped = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=args, class_token=False)
    dropped.load_state_dict(with_class_token.state_dict())
    assert with_class_token(pixels(32)).shape[1] == 20
    assert torch.equal(with_class_token(pixels(32))[:, 4:], dropped(pixels(32)))


def test_the_last_norm_is_a_choice() -> None:
    bare = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=VIT)
    normed = make_encoder("vit_tiny_patch16_224", 32, 32, timm_args=VIT, final_norm=True)
    assert isinstance(bare.backbone.norm, nn.Identity) and isinstance(normed.backbone.norm, nn.LayerNorm)
    normed.load_state_dict({**normed.state_dict(), **bare.state_dict()})
    with torch.no_grad():
        normed.backbone.norm.weight.uniform_(0.5, 2)
    want = normed.backbone.norm(bare(pixels(32)))
    torch.testing.assert_close(normed(pixels(32)), want)
    assert not torch.allclose(bare(pixels(32)), want, atol=0.1)


@pytest.mark.parametrize(
    ("name", "size", "channels", "side", "fields"),
    [
        ("vit_tiny_patch16_224", 32, 32, 4, {"timm_args": VIT, "class_token": False}),
        ("test_resnet", 96, 96, 3, {}),
        ("test_efficientnet", 160, 256, 5, {}),
        ("test_convnext", 96, 64, 3, {}),
        ("mobilenetv2_100", 160, 1280, 5, {"timm_args": {"pad_type": "same"}, "final_norm": True}),
        ("swin_tiny_patch4_window7_224", 64, 16, 8, {"timm_args": SWIN}),
    ],
)
def test_patches_go_row_by_row(name: str, size: int, channels: int, side: int, fields: dict) -> None:
    model = make_encoder(name, size, channels, **fields)
    patches = model(pixels(size, 1))
    assert patches.shape == (1, side * side, channels) and model.count_patches() == side * side
    assert torch.isfinite(patches).all()

    def changes(row: int, column: int) -> Tensor:
        """Return how much each patch changes when one part of the picture does."""
        step = size // side
        changed = pixels(size, 1)
        changed[:, :, row * step : (row + 1) * step, column * step : (column + 1) * step] *= -1
        return (model(changed) - patches).norm(dim=2)[0]

    right, below = side - 1, side * (side - 1)  # the upper right and the lower left corner
    of_right, of_below = changes(0, side - 1), changes(side - 1, 0)
    assert of_right[right] * of_below[below] > 1.2 * of_right[below] * of_below[right]


def test_conv_features_are_the_map_transposed() -> None:
    model = make_encoder("test_resnet", 96, 96)
    grid = model.backbone.forward_features(pixels(96))
    patches = model(pixels(96))
    assert grid.shape == (2, 96, 3, 3) and patches.shape == (2, 9, 96)
    for row in range(3):
        for column in range(3):
            assert torch.equal(patches[:, 3 * row + column], grid[:, :, row, column])


def test_what_timm_cannot_make_is_said() -> None:
    with pytest.raises(CheckpointError, match="The image encoder 'vit_enormous' cannot be made by timm"):
        VisionEncoder(VisionConfig("vit_enormous", 32, 32))
    with pytest.raises(CheckpointError, match=r"cannot be made by timm .*'num_wings': 2"):
        VisionEncoder(VisionConfig("vit_tiny_patch16_224", 32, 32, {"num_wings": 2}))
    with pytest.raises(CheckpointError, match=r"'test_resnet' gives 96 channels, but config\.json says 97"):
        VisionEncoder(VisionConfig("test_resnet", 32, 97))


def test_folding_batch_norms_changes_no_number() -> None:
    encoder = VisionEncoder(mini().vision).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics of a trained network, not the fresh 0 and 1
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    lean = fold_batch_norms(encoder)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in lean.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    pixels = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(lean(pixels), encoder(pixels), atol=1e-4, rtol=1e-3)


def test_a_net_that_norms_first_is_left_alone() -> None:
    """An encoder whose batch norms do not run right after their convolutions is returned as it is."""
    encoder = VisionEncoder(VisionConfig("resnetv2_18", 64, 512, class_token=False)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.2, 3.0)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fold_batch_norms(encoder)(pixels), encoder(pixels), atol=1e-3, rtol=1e-3)


def test_an_earlier_map_is_averaged_onto_the_patches() -> None:
    """The map of part 15 of EfficientNet-Lite2 has twice the side of the last one: 2 x 2 places go to each patch."""
    encoder = make_encoder(
        "tf_efficientnet_lite2", 64, 1280 + 120, earlier_part=15, class_token=False, final_norm=True
    )
    plain = make_encoder("tf_efficientnet_lite2", 64, 1280, class_token=False, final_norm=True)
    plain.load_state_dict(encoder.state_dict())
    batch = pixels(64)
    patches, parts = encoder(batch), list_network_parts(encoder)
    torch.testing.assert_close(patches[:, :, :1280], plain(batch), atol=1e-5, rtol=0)
    features = batch
    for _, part in parts[:16]:
        features = part(features)
    assert features.shape == (2, 120, 4, 4)
    for row in range(2):
        for column in range(2):
            place = features[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
            torch.testing.assert_close(patches[:, 2 * row + column, 1280:], place, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.read_parts(features, 16), patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(fold_batch_norms(encoder)(batch), patches, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "number"), [("tf_efficientnet_lite2", 22), ("vit_tiny_patch16_224", 3)])
def test_an_earlier_part_that_an_encoder_lacks_is_refused(name: str, number: int) -> None:
    with pytest.raises(CheckpointError, match=f"earlier_part is {number}, but the image encoder '{name}'"):
        VisionEncoder(VisionConfig(name, 32, 192, earlier_part=number))
