"""Measure loading, indexing, searching and reranking with ViT-g at full size, beside transformers.

    python tests/bench/full_size.py [--folder FOLDER] [--photos 20] [--candidates 128] [--rounds 6]

It writes a checkpoint of 1.2 billion random parameters in the published layout, in float32 (4.7 GB), to the folder, or
uses the one that is there. Then it measures in one run, both sides in the same dtype and with the same weights:
  - the memory of loading, in a separate process;
  - the photos/s of encoding (patches and ITC vectors) by ours and by transformers' Blip2ForImageTextRetrieval;
  - the seconds to rerank the candidates of a text whose patches are in memory: ours cold (projections folded), ours
    making keys, ours with keys held, and transformers' forward with its encoder replaced by the patches;
  - the commands `qseek index` and `qseek search` on photo files, each in a separate process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inputs import TEXTS, make_photos
from report import MIB, median, peak_memory, spread, table, write_report

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import Blip2ForImageTextRetrieval

    from engine.models.retrieval_model import RetrievalModel

ENCODING_ROUNDS = 2
VOCABULARY = 30523  # BERT's tokens and [DEC].
# A program that loads a model and prints its times and memory as JSON.
LOAD = """
import json, sys, threading, time
from pathlib import Path
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
import torch
from engine.models.loading import load_model
from engine.models.malloc import keep_freed_memory
keep_freed_memory()  # The command line does this too.
before, most, done = status("RssAnon"), [0], threading.Event()
def sample():
    while not done.wait(0.01):
        most[0] = max(most[0], status("RssAnon"))
threading.Thread(target=sample, daemon=True).start()
started = time.perf_counter()
model = load_model(sys.argv[1])
seconds = time.perf_counter() - started
done.set()
weights = sum(tensor.nbytes for tensor in [*model.net.parameters(), *model.net.buffers()])
print(json.dumps({"seconds": seconds, "weights": weights, "peak": most[0] - before, "resident": status("VmHWM"),
    "parameters": sum(parameter.numel() for parameter in model.net.parameters()), "dtype": str(model.dtype)}))
"""


def write_checkpoint(folder: Path) -> None:
    """Save a retrieval model of transformers in shards of 2 GB; its random weights tell photos apart."""
    import torch
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, OPTConfig

    config = Blip2Config(
        qformer_config=Blip2QFormerConfig(vocab_size=VOCABULARY, use_qformer_text_input=True),
        # A retrieval checkpoint holds the config of the language model, but not the model.
        text_config=OPTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16, vocab_size=20
        ),
    )
    with torch.device("meta"):
        net = Blip2ForImageTextRetrieval(config)
    net = net.to_empty(device="cpu").eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        parameter.normal_(generator=random)
        if parameter.ndim == 1:
            parameter.mul_(0.1).add_(float(name.endswith("weight")))
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0
        else:
            parameter.mul_(parameter[0].numel() ** -0.5)
    for name, buffer in net.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[1])[None])
    net.save_pretrained(folder, max_shard_size="2GB")
    words = sorted({word for text in TEXTS for word in text.split()})
    pieces = ["[PAD]", *(f"[unused{n}]" for n in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    pieces += [f"[filler{n}]" for n in range(VOCABULARY - 1 - len(pieces))] + ["[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")


def measure_loading(folder: Path) -> dict[str, Any]:
    """Load a model in a fresh process; return its seconds, bytes and number of parameters, as LOAD prints them."""
    process = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    return json.loads(process.stdout)


def time_encoding(
    model: RetrievalModel, theirs: Blip2ForImageTextRetrieval, pictures: np.ndarray, rounds: int
) -> tuple[dict[str, list[float]], float, Tensor]:
    """Encode pictures with both sides.

    Returns the seconds of each round by side, the largest difference of a component of a vector, and our patches.
    """
    import torch

    from engine.blip2.pixels import make_pixel_batches

    seconds: dict[str, list[float]] = defaultdict(list)
    difference, patches = 0.0, torch.empty(0)
    for _ in range(rounds):
        started = time.perf_counter()
        patches = model.encode_patches(pictures)
        ours = torch.from_numpy(model.encode_photos(patches))
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            vectors = []
            for pixels in make_pixel_batches(
                pictures, model.config.vision, model.vision_at_once, model.device, model.dtype
            ):
                encoded = theirs.vision_model(pixel_values=pixels)[0]
                queries = theirs.query_tokens.expand(len(encoded), -1, -1)
                hidden = theirs.qformer(query_embeds=queries, encoder_hidden_states=encoded)[0]
                vectors.append(
                    torch.nn.functional.normalize(theirs.vision_projection(hidden).float(), dim=-1)
                )
            expected = torch.cat(vectors).cpu()
        seconds["transformers"].append(time.perf_counter() - started)
        difference = max(difference, float((ours - expected).abs().max()))
    return seconds, difference, patches


def time_reranking(
    model: RetrievalModel, theirs: Blip2ForImageTextRetrieval, patches: Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Rerank the photos of these patches for each text in four ways.

    Returns the seconds of each text by way, and the largest difference of a logit from transformers' by way; under
    "deviation" the latter has the standard deviation of transformers' logits.
    """
    import numpy as np
    import torch
    from reference_rerank import transformers_match

    keys = model.compute_photo_keys(patches)

    def by_transformers(text: str) -> np.ndarray:
        with torch.inference_mode():
            return transformers_match(theirs, model, text, patches).cpu().numpy()

    def by_keys(text: str) -> np.ndarray:
        return np.concatenate(
            [model.match(model.compute_photo_keys(part), [text]) for part in patches.split(64)]
        )

    ways: dict[str, Callable[[str], np.ndarray]] = {
        "transformers": by_transformers,
        "ours, cold, folded": lambda text: model.match(patches, [text]),
        "ours, cold, making keys": by_keys,
        "ours, keys held": lambda text: model.match(keys, [text]),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    differences: dict[str, float] = defaultdict(float)
    for text in TEXTS[:rounds]:
        expected = None
        for name, match in ways.items():
            started = time.perf_counter()
            logits = match(text)
            seconds[name].append(time.perf_counter() - started)
            expected = logits if expected is None else expected
            differences[name] = max(differences[name], float(np.abs(logits - expected).max()))
        differences["deviation"] = float(expected[:, 1].std())
    return seconds, differences


def run_commands(folder: Path, photos: Path, scratch: Path, candidates: int) -> list[tuple[str, str, str]]:
    """Run `qseek index` and `qseek search` as a person does; return (command, wall seconds, MiB at the peak) of
    each.
    """
    rows = []
    common = ["--model", str(folder), "--index", str(scratch / "index")]
    for name, arguments in (
        ("index, `--features store`", ["index", str(photos), "--features", "store"]),
        ("search, reranked", ["search", TEXTS[0], "--rerank", str(candidates), "--paths"]),
    ):
        with peak_memory() as memory:
            started = time.perf_counter()
            process = subprocess.run(
                [sys.executable, "-m", "ui.cli.main", *arguments, *common], capture_output=True, text=True
            )
        if process.returncode:
            raise SystemExit(process.stderr)
        seconds = time.perf_counter() - started
        rows.append((name, f"{seconds:.1f}", f"{(memory.peak - memory.before) / MIB:.0f}"))
        print(process.stderr, process.stdout, sep="\n", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="Folder of the checkpoint, which is written if it is missing."
    )
    parser.add_argument("--photos", type=int, default=20, help="Number of photos to index and encode.")
    parser.add_argument("--candidates", type=int, default=128, help="Number of photos to rerank.")
    parser.add_argument("--rounds", type=int, default=6, help="Number of texts, at most 10.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    import numpy as np
    import torch
    from transformers import Blip2ForImageTextRetrieval

    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory
    from indexer.decode import decode

    folder = args.folder or scratch / "vit-g"
    if not (folder / "config.json").exists():
        write_checkpoint(folder)
    make_photos(None, scratch, args.photos)
    loading = measure_loading(folder)
    commands = run_commands(folder, scratch / "photos", scratch, args.candidates)

    keep_freed_memory()  # The command line does this too.
    model = load_model(str(folder))
    theirs = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=model.dtype).to(model.device).eval()
    paths = sorted((scratch / "photos").iterdir())
    pictures = np.stack([decode(path, model.image_size).pixels for path in paths])
    encoding, vector_difference, patches = time_encoding(model, theirs, pictures, ENCODING_ROUNDS)
    repeated = patches.repeat(-(-args.candidates // len(patches)), 1, 1)[: args.candidates]
    noise = torch.randn(repeated.shape, generator=torch.Generator().manual_seed(0)).to(repeated)
    reranking, logit_differences = time_reranking(model, theirs, repeated + 0.1 * noise, args.rounds)

    base = median(encoding["transformers"])
    encoding_rows = [
        (name, spread(times, 1), f"{len(pictures) / median(times):.2f}", f"{base / median(times):.2f}")
        for name, times in encoding.items()
    ]
    base = median(reranking["transformers"])
    reranking_rows = [
        (name, spread(times, 1, 2), f"{base / median(times):.2f}", f"{logit_differences[name]:.1e}")
        for name, times in reranking.items()
    ]
    reranking_head = (
        f"reranking {args.candidates}",
        "s",
        "of transformers",
        "largest difference of a logit",
    )
    parts = [
        report_loading(loading),
        table(("encoding", "s a round", "photos/s", "of transformers"), encoding_rows),
        f"A round encodes {len(pictures)} photos to patches and ITC vectors. The largest difference of a vector's "
        f"component is {vector_difference:.1e}.",
        table(reranking_head, reranking_rows),
        "The patches are in memory; each question is one text of 8 to 12 tokens. The standard deviation of "
        f"transformers' logits is {logit_differences['deviation']:.2f}. Wanted: 1.2 times as fast cold, 1.8 times with "
        "keys held.",
        table(("command", "s, start to end", "MiB more at the peak"), commands),
    ]
    write_report("full_size", parts, model)


def report_loading(loading: dict[str, Any]) -> str:
    """Return the sentences of the report about the time and memory of loading."""
    gib = 2**30
    ratio = loading["peak"] / loading["weights"]
    return (
        f"A separate process loaded {loading['parameters'] / 1e9:.2f} billion parameters, "
        f"{loading['weights'] / gib:.2f} GiB as {loading['dtype'].removeprefix('torch.')}, from float32 shards in "
        f"{loading['seconds']:.1f} s. It took "
        f"{loading['peak'] / gib:.2f} GiB of memory at the peak, {ratio:.2f} of the weights (wanted: under 1.3), and "
        f"{loading['resident'] / gib:.2f} GiB with the pages of the mapped files."
    )


if __name__ == "__main__":
    main()
