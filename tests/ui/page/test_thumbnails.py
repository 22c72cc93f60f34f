"""Thumbnails are square, upright and kept on disk."""

from __future__ import annotations

import io

from PIL import Image

from engine.types import Photo
from ui.page import thumbnails


def test_a_thumbnail_is_square_and_upright_and_stays_when_the_photo_is_gone(tmp_path):
    picture = Image.new("RGB", (600, 300), "red")
    picture.paste("blue", (300, 0, 600, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright: red above, blue below
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    photo = Photo(0, "ab" * 16, 300, 600, (tmp_path / "gone.jpg", tmp_path / "turned.jpg"))
    data = thumbnails.get_thumbnail(photo, tmp_path)
    shown = Image.open(io.BytesIO(data)).convert("RGB")
    assert shown.size == (thumbnails.SIDE, thumbnails.SIDE)
    red, blue = shown.getpixel((200, 20)), shown.getpixel((200, 380))
    assert red[0] > 200 > 60 > red[2] and blue[2] > 200 > 60 > blue[0]
    (tmp_path / "turned.jpg").unlink()
    assert thumbnails.get_thumbnail(photo, tmp_path) == data
