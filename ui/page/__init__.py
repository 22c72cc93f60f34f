"""The page that `qseek app` serves: type a text, see the photos.

Open page.py first: Streamlit runs it from the top after every click. page_cache.py keeps the model, the index and the
answers between these runs, tiles.py draws a photo with its scores, thumbnails.py makes its small picture,
page_captions.py and caption_desk.py write captions after the photos are shown.

It may import ui/session.py, ui/reports, engine/pictures and the ground. Streamlit puts this folder first on sys.path:
no file here may have the name of a module of the standard library.
"""
