#!/usr/bin/env bash
# Split what the GPU machine lacks into folders that each fit into one call: .carry/NAME-00, .carry/NAME-01, ...
#   tests/bench/pack_carry.sh wheels                     downloads the wheels into .carry/wheels first
#   tests/bench/pack_carry.sh data FILE_OR_FOLDER...     e.g. ../shared/data/flickr8k-*.tar ../shared/teacher
# A call carries the working tree and one folder, 64 MiB together. On that machine `on_gpu.sh keep` stores the pieces.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=${1:?Give wheels, or data and the files to pack.}
shift
mkdir -p .carry
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qx /.carry/ "$exclude" 2>/dev/null || echo /.carry/ >>"$exclude"

if [ "$name" = wheels ]; then
    # These packages are missing on the GPU machine or have another version there (KINDS.md). Optional dependencies of
    # packages are left out.
    mkdir -p .carry/wheels
    platforms=()
    for tag in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2014 1; do
        case $tag in 2014 | 1) platforms+=(--platform "manylinux${tag}_x86_64") ;;
        *) platforms+=(--platform "manylinux_${tag}_x86_64") ;; esac
    done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d .carry/wheels ${QSEEK_WHEELS:-faiss-cuda==1.14.1.post4 lancedb==0.40.0 \
        lance-namespace==0.13.0 lance-namespace-urllib3-client==0.13.0 deprecation pydantic==2.14.3 pydantic-core==2.50.4 \
        annotated-types typing-inspection braceexpand platformdirs==4.14.5}
    set -- .carry/wheels
fi
[ $# -gt 0 ] || { echo "Nothing to pack was given. Name files or folders after $name." >&2; exit 2; }

tree_bytes=$(git ls-files -co --exclude-standard -z | xargs -0 du -cb 2>/dev/null | tail -1 | cut -f1)
piece_bytes=$((64 * 1048576 - tree_bytes - 4 * 1048576)) # The transfer itself adds up to 4 MiB.
[ "$piece_bytes" -gt 4194304 ] || {
    echo "The working tree has $tree_bytes bytes and leaves no room for pieces. Remove large files from it." >&2
    exit 1
}
find .carry -mindepth 1 -maxdepth 1 -type d -name "$name-[0-9][0-9]" -exec rm -r {} +
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
mkdir "$scratch/stream" "$scratch/parts"
for path in "$@"; do
    tar -C "$(dirname "$path")" -cf - --mode=u+rwX "$(basename "$path")" | tar -C "$scratch/stream" -xf -
done
tar -C "$scratch/stream" -cf - . | split -b "$piece_bytes" -d -a 2 - "$scratch/parts/part-"
total=$(find "$scratch/parts" -name 'part-*' | wc -l)
for part in "$scratch"/parts/part-*; do
    number=${part##*-}
    mkdir -p ".carry/$name-$number"
    mv "$part" ".carry/$name-$number/$name.part-$number"
    echo "$total" >".carry/$name-$number/$name.total"
done
echo "Wrote $total folders of at most $piece_bytes bytes, beside a working tree of $tree_bytes bytes. Carry each with:"
for folder in .carry/"$name"-[0-9][0-9]; do
    echo "  run {command: \"bash tests/bench/on_gpu.sh keep\", carry: [\"$folder\"]}"
done
