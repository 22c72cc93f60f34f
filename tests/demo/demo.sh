#!/bin/sh
# Index a folder of photos with the bundled model, search it for three texts, and say how to open the page (`make demo`).
# PHOTOS=folder uses your own photos. All files are written below .demo/.
set -eu
QSEEK="$BIN/qseek"
export QSEEK_INDEX=.demo/index
if [ -n "${PHOTOS:-}" ]; then
    # Each folder has its own index, so that an index never holds the photos of another folder.
    QSEEK_INDEX=".demo/index-$(printf %s "$PHOTOS" | cksum | cut -d' ' -f1)"
else
    PHOTOS=.demo/photos
    "$BIN/python" tests/demo/demo_photos.py "$PHOTOS"
fi
echo "\$ qseek index $PHOTOS"
status=0
"$QSEEK" index "$PHOTOS" || status=$?
# With status 3 some photos could not be read; `qseek index` has printed their names, and the demo goes on.
if [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then exit "$status"; fi
for text in "a motorcycle" "a cat looking at the camera" "a cup of coffee on a table"; do
    echo
    echo "\$ qseek search \"$text\" -k 3"
    "$QSEEK" search "$text" -k 3
done
echo
echo "Search for your own text:  QSEEK_INDEX=$QSEEK_INDEX $QSEEK search \"a flower\""
echo "Open the page:             QSEEK_INDEX=$QSEEK_INDEX $QSEEK app      (then open http://localhost:8501 in a browser)"
