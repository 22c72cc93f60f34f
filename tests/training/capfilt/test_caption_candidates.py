"""Which captions of a photo are kept, how they are ranked and what is read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capfilt_runs import CONFIG, ORIGINAL_CAPTIONS, load_matcher, read_shard_json, run
from tiny import tiny_checkpoint, tiny_config

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.models.retrieval_model import RetrievalModel
from engine.search.searcher import Searcher
from training.capfilt.caption_candidates import (
    CandidateCaption,
    CandidateRanker,
    load_captioner_and_matcher,
    select_captions,
)


def test_the_ranking_is_searchs(workspace: Path) -> None:
    """Every drawn caption against a direct match of that photo; the two kept are the best of all."""
    everything = read_shard_json(run(workspace, "all", replace(CONFIG, keep=5)))
    best = read_shard_json(run(workspace))
    searcher = Searcher(None, load_matcher(workspace))
    for said, few in zip(everything, best, strict=True):
        path = workspace / "photos" / f"{said['key']}.png"
        want = searcher.match(path, said["captions"], top=5).hits
        assert [hit.text for hit in want] == said["captions"] and len(want) > 2
        np.testing.assert_allclose(said["scores"], [hit.score for hit in want], atol=2e-3)
        assert few["captions"] == said["captions"][:2] and few["scores"] == said["scores"][:2]
    assert len({round(score, 3) for said in everything for score in said["scores"]}) > 20


def test_without_a_ready_matching_head_the_cosine_ranks(workspace: Path) -> None:
    unready = replace(tiny_config(), match_ready=False)
    tiny_checkpoint(workspace / "runs" / "unready" / "model", unready)
    said = read_shard_json(run(workspace, config=replace(CONFIG, matcher="unready", keep=5)))[0]
    model = load_captioner_and_matcher(
        replace(CONFIG, captioner="unready", matcher="unready"), workspace / "runs", "cpu"
    )[1]
    hits = Searcher(None, model).match(workspace / "photos" / "a.png", said["captions"]).hits
    np.testing.assert_allclose(said["scores"], [hit.itc for hit in hits], atol=2e-3)


def test_a_photo_is_encoded_once_for_all_its_captions(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"vision": 0, "keys": 0}
    encode, keys = RetrievalModel.encode_patches, RetrievalModel.compute_photo_keys

    def count_encode(model: RetrievalModel, pictures: np.ndarray) -> torch.Tensor:
        counts["vision"] += len(pictures)
        return encode(model, pictures)

    def count_keys(model: RetrievalModel, patches: torch.Tensor) -> Any:
        counts["keys"] += len(patches)
        return keys(model, patches)

    monkeypatch.setattr(RetrievalModel, "encode_patches", count_encode)
    monkeypatch.setattr(RetrievalModel, "compute_photo_keys", count_keys)
    run(workspace)
    assert counts == {"vision": 7, "keys": 7}


def test_originals(workspace: Path) -> None:
    """They compete, or stay whatever they score, or are left out."""
    config = replace(CONFIG, pictures=("own-*.tar",), keep=3)
    ranked, beside, alone = (
        read_shard_json(run(workspace, name, replace(config, originals=name)))
        for name in ("ranked", "kept", "none")
    )
    filtered = read_shard_json(
        run(workspace, "filter", replace(config, per_photo=0, keep=1, originals="ranked"))
    )
    every = read_shard_json(run(workspace, "every", replace(config, keep=8, originals="ranked")))
    for own, one, two, none, best, all_ in zip(
        ORIGINAL_CAPTIONS, ranked, beside, alone, filtered, every, strict=True
    ):
        drawn = [text for text, made in zip(all_["captions"], all_["synthetic"], strict=True) if made]
        assert set(all_["captions"]) == {*own, *drawn} and all_["scores"] == sorted(all_["scores"])[::-1]
        assert one["captions"] == all_["captions"][:3] and none["captions"] == drawn[:3]
        by_score = [text for text in all_["captions"] if text in own]
        assert two["captions"] == by_score + drawn[:3]
        assert two["synthetic"] == [False] * len(own) + [True] * 3
        assert best["captions"] == by_score[:1] and best["synthetic"] == [False]


def test_equal_captions_count_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case and spaces aside; what is the photo's own stays its own, and empty ones are none."""
    texts = ["a Red  dog", "a cat", "a cat", " ", "A cat "]
    monkeypatch.setattr(RetrievalModel, "draw_captions", lambda *_, **__: [texts, texts])
    model = load_matcher(workspace)
    pictures = [np.zeros((40, 40, 3), np.uint8)] * 2
    from PIL import Image

    samples = [CaptionedPicture("x", b"", ("a red dog",)), CaptionedPicture("y", b"")]
    config = replace(CONFIG, originals="ranked")
    found = CandidateRanker(model, model, config).rank_captions(
        samples, [Image.fromarray(p) for p in pictures], 0
    )
    assert [sorted((one.text, one.synthetic) for one in some) for some in found] == [
        [("a cat", True), ("a red dog", False)],
        [("a Red  dog", True), ("a cat", True)],
    ]


def test_the_least_score(workspace: Path) -> None:
    captions = [
        CandidateCaption("a", True, 2.0),
        CandidateCaption("b", False, 1.0),
        CandidateCaption("c", True, 0.5),
    ]
    for least, originals, want in ((1.0, "ranked", "ab"), (3.0, "ranked", ""), (3.0, "kept", "b")):
        chosen = select_captions(captions, replace(CONFIG, least=least, originals=originals))
        assert "".join(one.text for one in chosen) == want
    whole = read_shard_json(run(workspace))
    limit = sorted(said["scores"][0] for said in whole)[3]
    out = run(workspace, "some", replace(CONFIG, least=limit + 1e-4))
    want = [said["key"] for said in whole if said["scores"][0] > limit]
    assert [said["key"] for said in read_shard_json(out)] == want and 0 < len(want) < 7
