"""Word the notes that a result carries for the person who asked, such as "The index holds 3 photos."."""

from __future__ import annotations

from engine.wording import count_text


def size_notes(num_photos: int, top: int) -> list[str]:
    """Return a note when the index holds fewer photos than were asked for."""
    if not num_photos:
        return ["The index holds no photos. Add some with `qseek index FOLDER`."]
    return [f"The index holds {count_text(num_photos, 'photo')}."] if num_photos < top else []


def other_photo_notes(num_others: int, top: int) -> list[str]:
    """Return a note when the index holds, beside the given photo, fewer photos than were asked for."""
    if not num_others:
        return ["The index holds no other photo. Add some with `qseek index FOLDER`."]
    return [f"The index holds {count_text(num_others, 'other photo')}."] if num_others < top else []


def text_cut_notes(num_cut: int, max_tokens: int) -> list[str]:
    """Return a note when the last `num_cut` tokens of the text were left out.

    max_tokens: how many tokens the model reads.
    """
    if not num_cut:
        return []
    end = "token was" if num_cut == 1 else f"{num_cut} tokens were"
    return [f"The model reads {max_tokens} tokens; the text's last {end} left out."]


def texts_cut_notes(num_texts_cut: int, max_tokens: int) -> list[str]:
    """Return a note when some of the texts to choose from were cut.

    max_tokens: how many tokens of each text the model reads.
    """
    if not num_texts_cut:
        return []
    texts = "text was" if num_texts_cut == 1 else "texts were"
    return [f"{num_texts_cut} {texts} longer than the model reads and cut to {max_tokens} tokens."]


def not_ready_notes(model_name: str) -> list[str]:
    """Return a note when the model cannot put photos in a better order than the cosine does."""
    return [f"{model_name} is not trained well enough to rerank, so photos are ordered by the cosine alone."]
