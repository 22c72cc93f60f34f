"""Write the photographs that scikit-image and scikit-learn contain into a folder, as JPEG files.

python tests/demo/demo_photos.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

# These are in scikit-image's wheel; it would download its other photos.
SKIMAGE_NAMES = [
    "astronaut",
    "brick",
    "camera",
    "cat",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "page",
    "retina",
    "rocket",
]


def write_photos(folder: Path) -> int:
    """Write the photos that the folder lacks; return the number of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: getattr(data, name)() for name in SKIMAGE_NAMES}
    pictures["motorcycle"] = data.stereo_motorcycle()[0]
    sklearn_images = load_sample_images()
    named_images = zip(sklearn_images.filenames, sklearn_images.images, strict=True)
    pictures |= {Path(name).stem: picture for name, picture in named_images}
    for name, picture in pictures.items():
        path = folder / f"{name}.jpg"
        if not path.exists():
            Image.fromarray(picture).convert("RGB").save(path, quality=92)
    return len(pictures)


if __name__ == "__main__":
    num_photos = write_photos(Path(sys.argv[1]))
    print(f"There are {num_photos} photos in {sys.argv[1]}.")
