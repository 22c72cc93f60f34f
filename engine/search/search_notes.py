"""Write the sentences that a result carries for the person who asked, such as "The index holds 3 photos."."""

from __future__ import annotations


def size_notes(num_photos: int, top: int) -> list[str]:
    if not num_photos:
        return ["The index holds no photos; add some with `qseek index FOLDER`."]
    count = "1 photo" if num_photos == 1 else f"{num_photos} photos"
    return [f"The index holds {count}."] if num_photos < top else []


def other_photo_notes(num_others: int, top: int) -> list[str]:
    if not num_others:
        return ["The index holds no other photo; add some with `qseek index FOLDER`."]
    count = "1 other photo" if num_others == 1 else f"{num_others} other photos"
    return [f"The index holds {count}."] if num_others < top else []
