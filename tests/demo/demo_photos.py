"""Write the real photographs that scikit-image and scikit-learn carry into a folder, as JPEG files.

python tests/demo/demo_photos.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

# Those that lie in scikit-image's wheel; its others would be downloaded.
SKIMAGE = [
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
    """Returns how many were written; those already there are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: getattr(data, name)() for name in SKIMAGE}
    pictures["motorcycle"] = data.stereo_motorcycle()[0]
    samples = load_sample_images()
    pictures |= {
        Path(name).stem: picture for name, picture in zip(samples.filenames, samples.images, strict=True)
    }
    for name, picture in pictures.items():
        path = folder / f"{name}.jpg"
        if not path.exists():
            Image.fromarray(picture).convert("RGB").save(path, quality=92)
    return len(pictures)


if __name__ == "__main__":
    print(f"{write_photos(Path(sys.argv[1]))} photos in {sys.argv[1]}")
