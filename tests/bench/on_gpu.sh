#!/usr/bin/env bash
# Install, check, train and measure qseek on a GPU machine that is lent for a short time and has no network.
#   bash tests/bench/on_gpu.sh STAGE...      runs the stages in this order; each may take the seconds at its right:
#   keep     store carried pieces, once for each .carry/NAME-NN folder; the machine must stay warm   30 s
#   install  install the carried wheels into $SITE and print what is installed              90 s
#   check    test the model, losses and vectors on the GPU                                  200 s
#   slots    compare FAISS on the GPU with brute force                                      120 s
#   text     qseek train text    --recipe $TEXT_RECIPE                                      180 s
#   distill  qseek train distill --recipe $DISTILL_RECIPE                                   540 s
#   stage1   qseek train stage1  --recipe $STAGE1_RECIPE                                    540 s
#   soup     qseek train stage1  --recipe mini-itc for each of $SEEDS; average the models with mini: $RUNS/mini-soup
#            (then call the stages stage1 and recall with STAGE1_RECIPE=mini-again)           540 s
#   train    text, distill and stage1; continues from checkpoints if the same machine is called again
#   recall   qseek recall on Flickr8k dev with the model of $STAGE1_RECIPE, otherwise $MODEL   180 s
#   full     measure ViT-g at full size with random weights, and 768,000 pairs of a recall run  400 s
#   bench    run index_speed.py and search_speed.py with the model that recall takes        300 s
# Results are written to $OUT; at most 8 files of 16 MiB come back. A call lasts 10 minutes: choose stages that fit.
# When a stage fails or runs out of time, the next one still runs; the exit status is the number of failed stages.
set -uo pipefail
cd "$(dirname "$0")/../.."
HOME_HERE=${QSEEK_GPU_HOME:-/tmp/qseek}
OUT=${OUT:-$HOME_HERE/out}
SITE=$HOME_HERE/site
RUNS=$HOME_HERE/runs
DATA=$HOME_HERE/data
PYTHON=${PYTHON:-python3}
MODEL=${MODEL:-mini}
TEXT_RECIPE=${TEXT_RECIPE:-mini-text}
DISTILL_RECIPE=${DISTILL_RECIPE:-mini-encoder}
STAGE1_RECIPE=${STAGE1_RECIPE:-mini}
export PYTHONPATH=$SITE:$PWD PYTHONUNBUFFERED=1 QSEEK_BENCH_RESULTS=$OUT/results
mkdir -p "$HOME_HERE/parts" "$SITE" "$RUNS" "$OUT/results"
failed=0

# SECONDS COMMAND...: interrupt the command after these seconds as Ctrl-C does, so that training writes its checkpoint.
bounded() {
    timeout --signal=INT --kill-after=20 "$@"
}

unpack() { # NAME FOLDER: join the pieces of an archive and unpack it into a folder, once.
    local total num_pieces
    [ -e "$2/.unpacked" ] && return 0
    total=$(cat "$HOME_HERE/parts/$1.total" 2>/dev/null) || {
        echo "No pieces of $1 are here: carry them and run the stage keep."
        return 1
    }
    num_pieces=$(find "$HOME_HERE/parts" -name "$1.part-*" | wc -l)
    [ "$num_pieces" = "$total" ] || {
        echo "Only $num_pieces of $total pieces of $1 are here: carry the others first."
        return 1
    }
    mkdir -p "$2" && cat "$HOME_HERE/parts/$1".part-* | tar -C "$2" -xf - && touch "$2/.unpacked"
}

stage_keep() {
    find .carry -type f \( -name '*.part-*' -o -name '*.total' \) -exec mv -f {} "$HOME_HERE/parts/" \; 2>/dev/null
    ls -l "$HOME_HERE/parts"
}

stage_install() {
    unpack wheels "$HOME_HERE/wheels" || return 1
    bounded 90 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$SITE" "$HOME_HERE"/wheels/wheels/*.whl || return 1
    bounded 60 "$PYTHON" - <<'PY'
import torch
print("torch", torch.__version__, torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU")
for name in ("faiss", "lancedb", "braceexpand", "timm", "tokenizers", "safetensors", "platformdirs"):
    try:
        module = __import__(name)
        print(name, getattr(module, "__version__", "is installed"))
    except Exception as error:  # All failures must be seen at once, because the machine is lent for a short time.
        print(name, "FAILED:", type(error).__name__, error)
import faiss
print("GPUs that FAISS sees:", faiss.get_num_gpus())
PY
}

stage_check() {
    QSEEK_TEST_GPU=0 bounded 200 "$PYTHON" -m pytest -q -p no:cacheprovider --timeout=120 \
        tests/engine/blip2/test_retriever_goldens.py tests/training/losses/test_itc_itm_itg.py \
        tests/engine/vectors/test_slot_index.py tests/training/loop/test_train_loop.py
}

stage_slots() { bounded 120 "$PYTHON" tests/bench/slots_speed.py; }

unpack_data() { # Unpack the data; training continues from the runs in its folder called runs, if there is one.
    unpack data "$DATA" || return 1
    if [ -d "$DATA/runs" ]; then cp -rn "$DATA/runs/." "$RUNS/"; fi
}

stage_text() {
    unpack_data || return 1
    bounded 180 "$PYTHON" -m ui.cli.main train text --recipe "$TEXT_RECIPE" --data "$DATA" --runs "$RUNS"
}

stage_distill() {
    unpack_data || return 1
    bounded 540 "$PYTHON" -m ui.cli.main train distill --recipe "$DISTILL_RECIPE" --data "$DATA" \
        --teacher "$DATA/teacher" --runs "$RUNS"
}

stage_stage1() {
    unpack_data || return 1
    bounded 540 "$PYTHON" -m ui.cli.main train stage1 --recipe "$STAGE1_RECIPE" --data "$DATA" --runs "$RUNS"
}

stage_soup() {
    unpack_data || return 1
    local models=() seed
    for seed in ${SEEDS:-11 12 13 14}; do
        bounded 130 "$PYTHON" -m ui.cli.main train stage1 --recipe mini-itc --name "mini-itc-$seed" \
            --set "encoder_optim.seed=$seed" --data "$DATA" --runs "$RUNS" || return 1
        models+=("$RUNS/mini-itc-$seed/model")
    done
    rm -rf "$RUNS/mini-soup"
    "$PYTHON" -m ui.cli.main models average mini "${models[@]}" "$RUNS/mini-soup/model"
}

stage_train() { stage_text && stage_distill && stage_stage1; }

choose_model() { # Print the model that was trained on this machine, otherwise $MODEL.
    if [ -f "$RUNS/$STAGE1_RECIPE/model/config.json" ]; then echo "$RUNS/$STAGE1_RECIPE/model"; else echo "$MODEL"; fi
}

stage_recall() {
    unpack_data || return 1
    bounded 180 "$PYTHON" -m ui.cli.main recall "$DATA/flickr8k-dev-000.tar" --model "$(choose_model)" |
        tee "$OUT/results/recall.md"
}

stage_bench() {
    bounded 120 "$PYTHON" tests/bench/index_speed.py --count "${COUNT:-2000}" --model "$(choose_model)"
    local first_status=$?
    # shellcheck disable=SC2086
    bounded 180 "$PYTHON" tests/bench/search_speed.py --sizes ${SIZES:-1000 100000} --model "$(choose_model)"
    return $((first_status + $?))
}

stage_full() {
    bounded 250 "$PYTHON" tests/bench/full_size.py --folder "$HOME_HERE/vit-g"
    local first_status=$?
    bounded 150 "$PYTHON" tests/bench/recall_speed.py --folder "$HOME_HERE/vit-g" \
        --photos 1000 --texts 5000 --texts-a-photo 768
    return $((first_status + $?))
}

pack_results() { # Pack reports, logs and models for the way back: at most 8 files of 16 MiB, at most two folders deep.
    tar -C "$OUT" -czf "$OUT/results.tgz" results && rm -r "$OUT/results"
    find "$RUNS" -name log.jsonl -print0 | tar --null -T - -czf "$OUT/run-logs.tgz" 2>/dev/null
    local trained=() file
    for file in "$DISTILL_RECIPE/encoder.safetensors" "$TEXT_RECIPE/text.safetensors" \
        "$TEXT_RECIPE/tokenizer.json" "$STAGE1_RECIPE/model" mini-soup/model; do
        [ -e "$RUNS/$file" ] && trained+=("$file")
    done
    if [ ${#trained[@]} -gt 0 ]; then
        tar -C "$RUNS" -cf - "${trained[@]}" | split -b 16000000 -d -a 1 - "$OUT/runs.tar."
        echo "Join and unpack the trained models with: cat runs.tar.* | tar -x"
    fi
    ls -l "$OUT"
}

[ $# -gt 0 ] || { sed -n '2,18p' "$0"; exit 2; }
for stage in "$@"; do
    if ! declare -F "stage_$stage" >/dev/null; then
        echo "There is no stage $stage. Run this script without arguments to see the stages." >&2
        exit 2
    fi
done
for stage in "$@"; do
    started=$SECONDS
    echo "=== $stage"
    "stage_$stage" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    [ "$status" = 0 ] || failed=$((failed + 1))
    echo "=== $stage ended with status $status after $((SECONDS - started)) s." | tee -a "$OUT/log.txt"
done
if [ "$*" != keep ]; then pack_results; fi
exit "$failed"
