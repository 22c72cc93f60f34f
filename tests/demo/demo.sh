#!/bin/sh
# `make demo`: index a folder of real photos with the bundled model, ask three things, say how to open the page.
# PHOTOS=folder uses your own photos. Everything is written below .demo/.
set -eu
QSEEK="$BIN/qseek"
export QSEEK_INDEX=.demo/index
if [ -n "${PHOTOS:-}" ]; then
    # An index of its own for each folder, so that other photos do not stay in it.
    QSEEK_INDEX=".demo/index-$(printf %s "$PHOTOS" | cksum | cut -d' ' -f1)"
else
    PHOTOS=.demo/photos
    "$BIN/python" tests/demo/demo_photos.py "$PHOTOS"
fi
echo "\$ qseek index $PHOTOS"
status=0
"$QSEEK" index "$PHOTOS" || status=$?
if [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then exit "$status"; fi # 3: some photos could not be read, and were named
for text in "a motorcycle" "a cat looking at the camera" "a cup of coffee on a table"; do
    echo
    echo "\$ qseek search \"$text\" -k 3"
    "$QSEEK" search "$text" -k 3
done
echo
echo "Ask your own:   QSEEK_INDEX=$QSEEK_INDEX $QSEEK search \"a flower\""
echo "Open the page:  QSEEK_INDEX=$QSEEK_INDEX $QSEEK app      (then http://localhost:8501 in a browser)"
