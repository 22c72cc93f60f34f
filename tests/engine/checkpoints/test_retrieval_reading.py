"""Files of LAVIS and folders of transformers are read whole, ours are written for them, and others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lavis_networks import CLIP, EVA, lavis_state, random_net, write_lavis_retriever
from random_blip2 import ATOL, TEXTS, make_inputs, random_retriever, save_retriever_folder
from reference import draw_normal
from tiny import tiny_checkpoint, tiny_tokenizer
from transformers import Blip2ForImageTextRetrieval

from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net, make_net
from engine.checkpoints.filling import resize_positions
from engine.checkpoints.lavis_files import read_lavis
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.transformers_export import save_transformers
from engine.errors import CheckpointError
from engine.models.loading import load_model


@pytest.mark.parametrize("clip", [False, True])
def test_lavis_files_come_back_whole(tmp_path: Path, clip: bool) -> None:
    net = random_net(CLIP if clip else EVA)
    path, encoder = write_lavis_retriever(tmp_path, net, clip)
    source = read_lavis(path, tiny_tokenizer(), encoder)
    actual = make_net(source, path, torch.float32)
    assert actual.config.qformer.cross_attention_every == 2 and actual.config.vision.image_size == 56
    want = net.state_dict()
    assert actual.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in actual.state_dict().items())
    pixels = draw_normal(1, (2, 3, 56, 56))
    torch.testing.assert_close(
        actual.eval().encode_patches(pixels), net.encode_patches(pixels), atol=ATOL, rtol=0
    )
    with pytest.raises(CheckpointError, match=r"does not hold the frozen image encoder .*--encoder"):
        read_lavis(path, tiny_tokenizer())


@pytest.mark.parametrize("clip", [False, True])
def test_lavis_at_other_pixels(tmp_path: Path, clip: bool) -> None:
    net = random_net(CLIP if clip else EVA)
    path, encoder = write_lavis_retriever(tmp_path, net, clip)
    actual = make_net(read_lavis(path, tiny_tokenizer(), encoder, image_size=84), path, torch.float32)
    positions = net.state_dict()["vision.backbone.pos_embed"]
    want = resize_positions(positions, 6, align_corners=clip)
    assert (
        torch.equal(actual.state_dict()["vision.backbone.pos_embed"], want)
        and actual.config.vision.image_size == 84
    )
    assert actual.eval().encode_patches(draw_normal(1, (1, 3, 84, 84))).shape[1] == 37
    with pytest.raises(CheckpointError, match="not a multiple"):
        read_lavis(path, tiny_tokenizer(), encoder, image_size=90)


def test_a_fine_tuned_lavis_file_has_its_encoder(tmp_path: Path) -> None:
    net = random_net(EVA)
    torch.save({"model": lavis_state(net, False)}, tmp_path / "coco.pth")
    actual = make_net(read_lavis(tmp_path / "coco.pth", tiny_tokenizer()), tmp_path, torch.float32)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in actual.state_dict().items())


def test_our_folder_goes_to_transformers(tmp_path: Path) -> None:
    """A folder that we write loads in transformers without a missing key and gives equal scores."""
    net = random_net(EVA)
    save_transformers(tmp_path / "out", net, tiny_tokenizer())
    theirs, info = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels, ids, mask = make_inputs(3)
    asking = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask.long()}
    with torch.no_grad():
        itc = theirs.eval()(**asking).logits_per_image
        itm = theirs(**asking, use_image_text_matching_head=True).logits_per_image
    keys = net.compute_photo_keys(net.encode_patches(pixels))
    torch.testing.assert_close(
        itc_scores(net.encode_photos(keys), net.encode_texts(ids, mask)), itc, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(net.match(keys, ids, mask), itm, atol=1e-4, rtol=0)
    again = load_net(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.items())


def test_a_transformers_folder_is_a_model(tmp_path: Path) -> None:
    """A transformers folder is loaded by its path alone, encodes texts and photos, and writes no captions."""
    save_retriever_folder(random_retriever(), tmp_path)
    model = load_model(str(tmp_path), device="cpu", dtype="float32")
    assert not model.config.has_captions and model.image_size == 56
    ids, mask, _ = TextTokenizer(tiny_tokenizer(), 32)(TEXTS)
    torch.testing.assert_close(
        torch.from_numpy(model.encode_texts(TEXTS)[0]), model.net.encode_texts(ids, mask), atol=ATOL, rtol=0
    )


def test_bfloat16_is_cast_tensor_by_tensor(tmp_path: Path) -> None:
    save_retriever_folder(random_retriever(), tmp_path)
    model = load_model(str(tmp_path), device="cpu", dtype="bfloat16")
    full = load_model(str(tmp_path), device="cpu", dtype="float32")
    for name, value in model.net.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, full.net.state_dict()[name].bfloat16()), (
            name
        )


REFUSED = {
    "stage 2": ({"language_projection.weight": torch.ones(1)}, "is a captioner"),
    "stranger": ({"lora.weight": torch.ones(1)}, "no place .*lora.weight"),
    "another shape": ({"itm_head.weight": torch.ones(2, 3)}, r"match_head.weight is \(2, 3\), should be \(2, 64\)"),
    "bias for the keys": (
        {"vision_model.encoder.layers.1.self_attn.qkv.bias": torch.ones(264)}, "has a bias for the keys",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_weights_that_do_not_fit(tmp_path: Path, case: str) -> None:
    changed, message = REFUSED[case]
    theirs = random_retriever()
    theirs.save_pretrained(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict() | changed, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load_model(str(tmp_path), device="cpu")


def test_a_download_that_stopped(tmp_path: Path) -> None:
    save_retriever_folder(random_retriever(), tmp_path, "shards")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_folder(tmp_path)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of .* not complete"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no weight_map"):
        read_folder(tmp_path)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


def test_a_file_that_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"query_tokens": Trap()}}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="was refused"):
        read_lavis(tmp_path / "evil.pth", tiny_tokenizer())
    assert "code ran" not in capsys.readouterr().out
    for content in ({"model": {"query_tokens": 3}}, [torch.ones(1)], {}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match="no tensors by name"):
            read_lavis(tmp_path / "odd.pth", tiny_tokenizer())
    with pytest.raises(CheckpointError, match="not there"):
        read_lavis(tmp_path / "none.pth", tiny_tokenizer())


def test_other_architectures_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CheckpointError, match="model of type 'clip', which is not BLIP-2"):
        read_folder(tmp_path)
    tiny = tiny_checkpoint(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="EVA ViT"):
        save_transformers(tmp_path / "out", *_net_and_words(tiny))
    assert not (tmp_path / "out").exists()


def _net_and_words(folder: Path) -> tuple[Retriever, object]:
    net, words = load_net(folder)
    return net, words.tokenizer


def test_not_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read(self: Path, **options: str) -> str:
        return "MemAvailable: 20 kB\n" if self.name == "meminfo" else real(self, **options)

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(CheckpointError, match=r"of memory for its weights, and 0\.0 GiB are free"):
        load_model(str(tiny_checkpoint(tmp_path / "tiny")), device="cpu")
