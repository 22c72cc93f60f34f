"""Measure what a retrieval model knows: recall beside ridge regression, names, and whether its percentages are true.

    python tests/bench/model_quality.py DATA [--model NAME|FOLDER] [--demo FOLDER] [--no-report]

DATA holds flickr8k-train-*.tar, flickr8k-dev-*.tar, imagenet-sample-*.tar and imagenette-*.tar. Ridge and kernel ridge
go from the mean of a photo's patches to the mean of its captions' vectors, both as the model itself makes them: what a
model gains over them is what its Q-Former adds. Labels are read to score answers, never to train. --demo names the
folder of `make demo`'s photos, each of which is asked for by its question.

Shapes: N photos, M captions, E embedding, V vision width, K candidates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from report import table, write_report

from engine.blip2.retriever import itc_scores
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import read_small_sets
from engine.datasets.picture_reading import load_pictures
from engine.evaluation.recall import recall
from engine.models.loading import load_model
from engine.models.retrieval_model import BEHIND, RetrievalModel, compute_match_probabilities, compute_scores
from training.batches.class_names import ClassNames

BATCH, CANDIDATES, CAPTIONS = 50, 128, 5
COLUMNS = ("IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10")
NUM_BINS = 10
QUESTIONS = {
    "astronaut": "an astronaut in a space suit",
    "brick": "a brick wall",
    "camera": "a man with a camera on a tripod",
    "cat": "a cat looking at the camera",
    "china": "a temple with a roof",
    "clock": "a clock",
    "coffee": "a cup of coffee on a table",
    "coins": "a collection of old coins",
    "flower": "a flower",
    "grass": "grass",
    "gravel": "gravel on the ground",
    "hubble_deep_field": "stars and galaxies in the night sky",
    "immunohistochemistry": "a tissue sample under a microscope",
    "moon": "the surface of the moon",
    "motorcycle": "a motorcycle",
    "page": "a page of text",
    "retina": "the retina of an eye",
    "rocket": "a rocket at its launch",
}
ABSURD = ("a purple submarine", "a group of penguins playing the piano", "a zebra in a supermarket")


def encode(model: RetrievalModel, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Return the mean patches (N, V), the vectors (N, Q, E) and the patches (N, P, width) of pictures."""
    means, vectors, patches = [], [], []
    for start in range(0, len(pictures), BATCH):
        part = model.encode_patches(pictures[start : start + BATCH])
        means.append(part.float().mean(dim=1).cpu().numpy())
        vectors.append(model.encode_photos(part))
        patches.append(part.cpu())
    return np.concatenate(means), np.concatenate(vectors), torch.cat(patches)


def read(model: RetrievalModel, pattern: str, data: Path) -> tuple[np.ndarray, list[CaptionedPicture]]:
    """Read every picture of a set at the model's size, with its captions or label."""
    pictures, samples, _ = load_pictures(read_small_sets([pattern], data), model.image_size)
    return pictures, samples


def score_itc(vectors_NQE: np.ndarray, texts_ME: np.ndarray) -> np.ndarray:
    """Return the ITC scores (N, M)."""
    return itc_scores(torch.from_numpy(vectors_NQE).float(), torch.from_numpy(texts_ME).float()).numpy()


def fit_ridges(train_NV: np.ndarray, targets_NE: np.ndarray, dev_NV: np.ndarray) -> dict[str, np.ndarray]:
    """Return the vectors of dev's photos by ridge and by kernel ridge regression, each with its best strength."""
    mean, deviation = train_NV.mean(0), train_NV.std(0) + 1e-3
    train, dev = ((rows - mean) / deviation for rows in (train_NV, dev_NV))
    centre = targets_NE.mean(0)
    results = {}
    for strength in (300, 1000, 3000, 10000):
        weights = np.linalg.solve(
            train.T @ train + strength * np.eye(train.shape[1]), train.T @ (targets_NE - centre)
        )
        results[f"ridge, {strength}"] = dev @ weights + centre
    squares = (train**2).sum(1)
    distances = squares[:, None] + squares - 2 * train @ train.T
    width = np.median(distances)
    to_dev = (dev**2).sum(1)[:, None] + squares - 2 * dev @ train.T
    for strength in (0.03, 0.1, 0.3):
        kernel = np.exp(-distances / width) + strength * np.eye(len(train))
        results[f"kernel ridge, {strength}"] = (
            np.exp(-to_dev / width) @ np.linalg.solve(kernel, targets_NE - centre) + centre
        )
    return results


def rerank(
    model: RetrievalModel, patches_NPV: torch.Tensor, texts: list[str], itc_NM: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, M) with the best candidates of each text and photo reranked, and ITM's logits where it read.

    Pairs that ITM did not read have NaN as logits, and their cosine less 1000 as a score.
    """
    logits_NM2 = np.full((*itc_NM.shape, 2), np.nan, np.float32)
    wanted = np.zeros(itc_NM.shape, bool)
    k = min(CANDIDATES, *itc_NM.shape)
    np.put_along_axis(wanted, np.argsort(-itc_NM, axis=0)[:k], True, axis=0)
    np.put_along_axis(wanted, np.argsort(-itc_NM, axis=1)[:, :k], True, axis=1)
    for text, caption in enumerate(texts):
        rows = np.flatnonzero(wanted[:, text])
        keys = model.compute_photo_keys(patches_NPV[rows].to(model.device))
        logits_NM2[rows, text] = model.match(keys, model.start_texts([caption]))
    scores = np.where(wanted, 0, -BEHIND) + itc_NM
    scores[wanted] = compute_scores(model.config, logits_NM2[wanted], itc_NM[wanted])
    return scores, logits_NM2


def calibration_error(
    probabilities: np.ndarray, truths: np.ndarray
) -> tuple[float, list[tuple[object, ...]]]:
    """Return the expected calibration error over ten equal bins (arXiv:1706.04599, equation 3), and a row for each."""
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    error, rows = 0.0, []
    for number in range(NUM_BINS):
        inside = bins == number
        if inside.any():
            mean, share = probabilities[inside].mean(), truths[inside].mean()
            error += inside.mean() * abs(mean - share)
            rows.append(
                (
                    f"{number * 10} to {number * 10 + 10}%",
                    int(inside.sum()),
                    f"{100 * mean:.1f}",
                    f"{100 * share:.1f}",
                )
            )
    return float(error), rows


def recall_part(model: RetrievalModel, data: Path, k: int) -> list[str]:
    """Return the tables of recall on Flickr8k dev, of the ridges beside it, and of the percentages."""
    pictures, samples = read(model, "flickr8k-train-*.tar", data)
    train_means, _, _ = encode(model, pictures)
    captions = [text for sample in samples for text in sample.captions[:CAPTIONS]]
    targets = model.encode_texts(captions)[0].reshape(len(samples), CAPTIONS, -1).mean(1)
    pictures, samples = read(model, "flickr8k-dev-*.tar", data)
    means, vectors, patches = encode(model, pictures)
    texts = [text for sample in samples for text in sample.captions[:CAPTIONS]]
    owners = np.arange(len(texts)) // CAPTIONS
    texts_ME = model.encode_texts(texts)[0]
    itc = score_itc(vectors, texts_ME)
    results = {"ITC": recall(itc, owners)}
    parts = []
    if k:
        scores, logits = rerank(model, patches, texts, itc)
        results[f"reranked, k = {k}"] = recall(scores, owners)
        read_pairs = ~np.isnan(logits[..., 0])
        probabilities = compute_match_probabilities(model.config, logits[read_pairs], itc[read_pairs])
        truths = (np.arange(len(samples))[:, None] == owners)[read_pairs]
        error, rows = calibration_error(probabilities, truths)
        parts.append(
            f"Expected calibration error on dev's candidate pairs: {error:.4f}\n\n"
            + table(("match", "pairs", "mean", "true"), rows)
        )
    for name, predicted in fit_ridges(train_means, targets, means).items():
        unit = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
        results[name] = recall(unit @ texts_ME.T, owners)
    rows = [(name, *(f"{values[column]:.1f}" for column in COLUMNS)) for name, values in results.items()]
    return [table(("Flickr8k dev", *COLUMNS), rows), *parts]


def names_part(model: RetrievalModel, data: Path) -> str:
    """Return the table of names: one photo of each of 1,000 classes, and Imagenette's photos among ten and 1,000."""
    names = ClassNames().names
    texts = model.encode_texts([f"a photo of a {group[0]}" for group in names])[0]
    first_names = np.array([group[0] for group in names])
    rows = []
    for pattern in ("imagenet-sample-*.tar", "imagenette-*.tar"):
        pictures, samples = read(model, pattern, data)
        if pattern.startswith("imagenette"):
            pictures, samples = pictures[::8], samples[::8]
        labels = np.array([sample.label for sample in samples])
        scores = score_itc(encode(model, pictures)[1], texts)
        classes = np.flatnonzero(np.isin(first_names, labels))
        # Two classes are called crane, and two maillot; either is right.
        among_these = first_names[classes[scores[:, classes].argmax(1)]]
        among_all = first_names[scores.argmax(1)]
        shares = [f"{100 * (answers == labels).mean():.1f}" for answers in (among_these, among_all)]
        rows.append((pattern, len(labels), len(classes), *shares))
    return table(("names right, percent", "photos", "classes", "among these", "among 1,000"), rows)


def demo_part(model: RetrievalModel, folder: Path) -> str:
    """Return the table of `make demo`'s photos: the question of each, the photo that comes first, and its match."""
    paths = sorted(path for path in folder.iterdir() if path.stem in QUESTIONS)
    samples = [CaptionedPicture(path.stem, path.read_bytes(), ()) for path in paths]
    pictures, samples, _ = load_pictures(samples, model.image_size)
    _, vectors, patches = encode(model, pictures)
    rows = []
    for name, question in [*QUESTIONS.items(), *(("nothing", text) for text in ABSURD)]:
        itc = score_itc(vectors, model.encode_texts([question])[0])
        logits = model.match(
            model.compute_photo_keys(patches.to(model.device)), model.start_texts([question])
        )
        scores = compute_scores(model.config, logits, itc[:, 0])
        matches = compute_match_probabilities(model.config, logits, itc[:, 0])
        first, by_itc = (samples[int(values.argmax())].key for values in (scores, itc[:, 0]))
        rows.append(
            (question, name, first, f"{100 * matches[scores.argmax()]:.0f}%", by_itc, f"{itc.max():.2f}")
        )
    return table(("question", "wanted", "first", "match", "first by ITC", "cosine"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--demo", type=Path)
    parser.add_argument("--no-rerank", action="store_true")
    parser.add_argument("--no-report", action="store_true")
    options = parser.parse_args()
    model = load_model(options.model)
    parts = [
        names_part(model, options.data),
        *recall_part(model, options.data, 0 if options.no_rerank else CANDIDATES),
    ]
    if options.demo:
        parts.append(demo_part(model, options.demo))
    if options.no_report:
        print("\n\n".join(parts))
    else:
        write_report("model_quality", parts, model)


if __name__ == "__main__":
    main()
