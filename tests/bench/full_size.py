"""ViT-g at full size, random weights in the published layout: load, index, search and rerank, beside transformers.

    python tests/bench/full_size.py [--folder FOLDER] [--photos 20] [--candidates 128] [--rounds 6]

Writes a checkpoint of 1.2 billion parameters in float32 (4.7 GB) to the folder, or uses the one that is there; then
measures in one run, both sides in the same dtype and with the same weights:
  - memory of loading, in a process of its own;
  - photos/s of encoding (patches and ITC vectors) by ours and by transformers' Blip2ForImageTextRetrieval;
  - seconds to rerank the candidates of a text whose patches are at hand: ours cold (projections folded), ours making
    keys, ours with keys held, transformers' forward with its encoder replaced by the patches;
  - the commands `qseek index` and `qseek search`, photos as files, in a process of their own.
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
from typing import TYPE_CHECKING

from inputs import TEXTS, make_photos
from report import MIB, median, peak_memory, spread, table, write_report

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import Blip2ForImageTextRetrieval

    from engine.models.retrieval_model import RetrievalModel

ENCODING_ROUNDS = 2
VOCABULARY = 30523  # BERT's and [DEC]
LOAD = """
import json, sys, threading, time
from pathlib import Path
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
import torch
from engine.models.loading import load_model
from engine.models.malloc import keep_freed_memory
keep_freed_memory()  # as the command does
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
    """Random weights that say different things of different photos, saved by transformers, in shards of 2 GB."""
    import torch
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, OPTConfig

    config = Blip2Config(
        qformer_config=Blip2QFormerConfig(vocab_size=VOCABULARY, use_qformer_text_input=True),
        # The text model is not part of the retrieval checkpoint; its config is.
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


def load_in_own_process(folder: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def time_encoding(
    model: RetrievalModel, theirs: Blip2ForImageTextRetrieval, pictures: np.ndarray, rounds: int
) -> tuple[dict[str, list[float]], float, Tensor]:
    """Seconds of each round by side, the largest difference of a vector, our patches."""
    import torch

    from engine.blip2.pixels import make_pixel_batches

    seconds: dict[str, list[float]] = defaultdict(list)
    apart, patches = 0.0, torch.empty(0)
    for _ in range(rounds):
        started = time.perf_counter()
        patches = model.encode_patches(pictures)
        ours = torch.from_numpy(model.encode_photos(patches))
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            rows = []
            for pixels in make_pixel_batches(
                pictures, model.config.vision, model.vision_at_once, model.device, model.dtype
            ):
                seen = theirs.vision_model(pixel_values=pixels)[0]
                queries = theirs.query_tokens.expand(len(seen), -1, -1)
                read = theirs.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
                rows.append(torch.nn.functional.normalize(theirs.vision_projection(read).float(), dim=-1))
            want = torch.cat(rows).cpu()
        seconds["transformers"].append(time.perf_counter() - started)
        apart = max(apart, float((ours - want).abs().max()))
    return seconds, apart, patches


def time_reranking(
    model: RetrievalModel, theirs: Blip2ForImageTextRetrieval, patches: Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each question by way, and each way's largest difference from transformers' logits."""
    import torch
    from reference_rerank import transformers_match

    keys = model.compute_photo_keys(patches)

    def by_transformers(text: str) -> np.ndarray:
        with torch.inference_mode():
            return transformers_match(theirs, model, text, patches).cpu().numpy()

    def by_keys(text: str) -> np.ndarray:
        parts = [model.match(model.compute_photo_keys(part), [text]) for part in patches.split(64)]
        return np.concatenate(parts)

    import numpy as np

    ways: dict[str, Callable[[str], np.ndarray]] = {
        "transformers": by_transformers,
        "ours, cold, folded": lambda text: model.match(patches, [text]),
        "ours, cold, making keys": by_keys,
        "ours, keys held": lambda text: model.match(keys, [text]),
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    apart: dict[str, float] = defaultdict(float)
    for text in TEXTS[:rounds]:
        want = None
        for name, way in ways.items():
            started = time.perf_counter()
            got = way(text)
            seconds[name].append(time.perf_counter() - started)
            want = got if want is None else want
            apart[name] = max(apart[name], float(np.abs(got - want).max()))
        apart["deviation"] = float(want[:, 1].std())
    return seconds, apart


def run_commands(folder: Path, photos: Path, scratch: Path, candidates: int) -> list[tuple[str, str, str]]:
    """Qseek index and search as a person runs them: (command, wall seconds, MiB peak)."""
    rows = []
    common = ["--model", str(folder), "--index", str(scratch / "index")]
    for name, arguments in (
        ("index, `--features store`", ["index", str(photos), "--features", "store"]),
        ("search, reranked", ["search", TEXTS[0], "--rerank", str(candidates), "--paths"]),
    ):
        with peak_memory() as memory:
            started = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "ui.cli.main", *arguments, *common], capture_output=True, text=True
            )
        if done.returncode:
            raise SystemExit(done.stderr)
        seconds = time.perf_counter() - started
        rows.append((name, f"{seconds:.1f}", f"{(memory.peak - memory.before) / MIB:.0f}"))
        print(done.stderr, done.stdout, sep="\n", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="of the checkpoint: written when it is not there")
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6, help="questions")
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
    loading = load_in_own_process(folder)
    commands = run_commands(folder, scratch / "photos", scratch, args.candidates)

    keep_freed_memory()  # as the command does
    model = load_model(str(folder))
    theirs = Blip2ForImageTextRetrieval.from_pretrained(folder, dtype=model.dtype).to(model.device).eval()
    paths = sorted((scratch / "photos").iterdir())
    pictures = np.stack([decode(path, model.image_size).pixels for path in paths])
    encoding, vectors_apart, patches = time_encoding(model, theirs, pictures, ENCODING_ROUNDS)
    more = patches.repeat(-(-args.candidates // len(patches)), 1, 1)[: args.candidates]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(more.shape, generator=generator).to(more)
    reranking, apart = time_reranking(model, theirs, more + 0.1 * noise, args.rounds)

    gib = 2**30
    ratio = loading["peak"] / loading["weights"]
    base = median(reranking["transformers"])
    parts = [
        f"Loading, in a process of its own: {loading['parameters'] / 1e9:.2f} billion parameters, "
        f"{loading['weights'] / gib:.2f} GiB as {loading['dtype'].removeprefix('torch.')}, from float32 shards in "
        f"{loading['seconds']:.1f} s; most memory at once {loading['peak'] / gib:.2f} GiB, {ratio:.2f} of the weights "
        f"(wanted: under 1.3); {loading['resident'] / gib:.2f} GiB with the mapped files' pages.",
        table(
            ("encoding", "s a round", "photos/s", "of transformers"),
            [
                (
                    name, spread(found, 1), f"{len(pictures) / median(found):.2f}",
                    f"{median(encoding['transformers']) / median(found):.2f}",
                )
                for name, found in encoding.items()
            ],
        ),
        f"{len(pictures)} photos a round, patches and ITC vectors; largest difference of a vector's component: "
        f"{vectors_apart:.1e}.",
        table(
            (f"reranking {args.candidates}", "s", "of transformers", "largest difference of a logit"),
            [
                (name, spread(found, 1, 2), f"{base / median(found):.2f}", f"{apart[name]:.1e}")
                for name, found in reranking.items()
            ],
        ),
        f"Patches at hand; one text of 8 to 12 tokens a question. Standard deviation of transformers' logits: "
        f"{apart['deviation']:.2f}. Wanted: 1.2 cold, 1.8 with keys held.",
        table(("command", "s, start to end", "MiB more at the peak"), commands),
    ]  # fmt: skip
    write_report("full_size", parts, model)


if __name__ == "__main__":
    main()
