"""Candidate captions are ranked as search ranks them, equal ones are merged, and the best are selected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capfilt_runs import CONFIG, ORIGINAL_CAPTIONS, load_matcher, read_shard_json, run_in_workspace
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


def test_captions_are_ranked_as_search_ranks_them(workspace: Path) -> None:
    """Every drawn caption scores as in a direct match with its photo, and the two that are kept score best."""
    everything = read_shard_json(run_in_workspace(workspace, "all", replace(CONFIG, keep=5)))
    best = read_shard_json(run_in_workspace(workspace))
    searcher = Searcher(None, load_matcher(workspace))
    for fields, few in zip(everything, best, strict=True):
        path = workspace / "photos" / f"{fields['key']}.png"
        expected = searcher.match(path, fields["captions"], top=5).hits
        assert [hit.text for hit in expected] == fields["captions"] and len(expected) > 2
        np.testing.assert_allclose(fields["scores"], [hit.score for hit in expected], atol=2e-3)
        assert few["captions"] == fields["captions"][:2] and few["scores"] == fields["scores"][:2]
    assert len({round(score, 3) for fields in everything for score in fields["scores"]}) > 20


def test_without_a_ready_matching_head_the_cosine_ranks(workspace: Path) -> None:
    unready = replace(tiny_config(), match_ready=False)
    tiny_checkpoint(workspace / "runs" / "unready" / "model", unready)
    fields = read_shard_json(run_in_workspace(workspace, config=replace(CONFIG, matcher="unready", keep=5)))[
        0
    ]
    model = load_captioner_and_matcher(
        replace(CONFIG, captioner="unready", matcher="unready"), workspace / "runs", "cpu"
    )[1]
    hits = Searcher(None, model).match(workspace / "photos" / "a.png", fields["captions"]).hits
    np.testing.assert_allclose(fields["scores"], [hit.itc for hit in hits], atol=2e-3)


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
    run_in_workspace(workspace)
    assert counts == {"vision": 7, "keys": 7}


def test_originals_compete_or_stay_or_are_left_out(workspace: Path) -> None:
    config = replace(CONFIG, pictures=("own-*.tar",), keep=3)
    ranked, beside, left_out = (
        read_shard_json(run_in_workspace(workspace, name, replace(config, originals=name)))
        for name in ("ranked", "kept", "none")
    )
    filtered = read_shard_json(
        run_in_workspace(workspace, "filter", replace(config, per_photo=0, keep=1, originals="ranked"))
    )
    everything = read_shard_json(
        run_in_workspace(workspace, "every", replace(config, keep=8, originals="ranked"))
    )
    for number, originals in enumerate(ORIGINAL_CAPTIONS):
        captions, scores = everything[number]["captions"], everything[number]["scores"]
        is_drawn = everything[number]["synthetic"]
        drawn = [text for text, synthetic in zip(captions, is_drawn, strict=True) if synthetic]
        originals_by_score = [text for text in captions if text in originals]
        assert set(captions) == {*originals, *drawn} and scores == sorted(scores)[::-1]
        assert ranked[number]["captions"] == captions[:3]
        assert left_out[number]["captions"] == drawn[:3]
        assert beside[number]["captions"] == originals_by_score + drawn[:3]
        assert beside[number]["synthetic"] == [False] * len(originals) + [True] * 3
        assert filtered[number]["captions"] == originals_by_score[:1]
        assert filtered[number]["synthetic"] == [False]
    photos_of_runs = (ranked, beside, left_out, filtered, everything)
    assert {len(photos) for photos in photos_of_runs} == {len(ORIGINAL_CAPTIONS)}


def test_equal_captions_count_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case and spaces do not count. A caption of the photo's own stays its own, and empty ones are dropped."""
    texts = ["a Red  dog", "a cat", "a cat", " ", "A cat "]
    monkeypatch.setattr(RetrievalModel, "draw_captions", lambda *_, **__: [texts, texts])
    model = load_matcher(workspace)
    pictures = [np.zeros((40, 40, 3), np.uint8)] * 2
    from PIL import Image

    samples = [CaptionedPicture("x", b"", ("a red dog",)), CaptionedPicture("y", b"")]
    config = replace(CONFIG, originals="ranked")
    captions_of_photos = CandidateRanker(model, model, config).rank_captions(
        samples, [Image.fromarray(p) for p in pictures], 0
    )
    assert [
        sorted((caption.text, caption.synthetic) for caption in captions) for captions in captions_of_photos
    ] == [
        [("a cat", True), ("a red dog", False)],
        [("a Red  dog", True), ("a cat", True)],
    ]


def test_captions_below_the_least_score_are_dropped(workspace: Path) -> None:
    captions = [
        CandidateCaption("a", True, 2.0),
        CandidateCaption("b", False, 1.0),
        CandidateCaption("c", True, 0.5),
    ]
    for least, originals, expected in ((1.0, "ranked", "ab"), (3.0, "ranked", ""), (3.0, "kept", "b")):
        selected = select_captions(captions, replace(CONFIG, least=least, originals=originals))
        assert "".join(caption.text for caption in selected) == expected
    whole = read_shard_json(run_in_workspace(workspace))
    limit = sorted(fields["scores"][0] for fields in whole)[3]
    out = run_in_workspace(workspace, "some", replace(CONFIG, least=limit + 1e-4))
    expected = [fields["key"] for fields in whole if fields["scores"][0] > limit]
    assert [fields["key"] for fields in read_shard_json(out)] == expected and 0 < len(expected) < 7
