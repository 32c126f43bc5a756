#!/usr/bin/env python3
"""What tests/bench/run.sh measured, as Markdown: speed_tables.py FOLDER"""
import datetime
import json
import pathlib
import re
import statistics
import sys

FOLDER = pathlib.Path(sys.argv[1])


def load(name):
    return json.loads((FOLDER / name).read_text())["benchmarks"]


def processor():
    text = (FOLDER / "cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", text)
    flags = text.split("flags", 1)[-1]
    isa = "AVX-512" if "avx512bw" in flags else "AVX2" if "avx2" in flags else "without AVX2"
    return f"{model[1] if model else 'processor unknown'}, {isa}"


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def rate(run):
    return f"{run['%_of_peak']:.0f} % ({run['GFLOP/s']:.0f})"


def fields(name):
    return dict(part.split(":") for part in name.split("/") if ":" in part)


def attention(runs):
    found = {}
    for run in runs:
        if run["name"].startswith("attention/"):
            at = fields(run["name"])
            found[at["head_dim"], int(at["T"]), at["threads"], run["name"].split("/")[1]] = rate(run)
    keys = sorted({key[:2] for key in found}, key=lambda key: (-int(key[0]), key[1]))
    table(["head_dim", "T", "forward, 1 thread", "2 threads", "backward, 1 thread", "2 threads"],
          [[dim, str(length)] + [found.get((dim, length, threads, which), "-")
                                 for which in ("forward", "backward") for threads in ("1", "2")]
           for dim, length in keys])


def products(runs):
    found = {}
    for run in runs:
        by, which = run["name"].split("/")[:2]
        if by in ("matmul", "openblas"):
            at = fields(run["name"])
            found[(at["rows"], at["in"], at["out"]), which, at["threads"], by] = run
    head = ["rows, in, out", "product"]
    for threads in ("1", "2"):
        head += [f"Ringlet, {threads} thread{'s' if threads == '2' else ''}", "OpenBLAS"]
    rows = []
    for shape in dict.fromkeys(key[0] for key in found):
        for which in ("forward", "dX", "dW"):
            cells = [rate(found[shape, which, threads, by]) if (shape, which, threads, by) in found else "-"
                     for threads in ("1", "2") for by in ("matmul", "openblas")]
            rows.append([", ".join(shape), which] + cells)
    table(head, rows)


def others(runs):
    rows = {}
    for run in runs:
        if "items_per_second" in run:
            name, threads = re.match(r"(.*)/threads:(\d)", run["name"]).groups()
            rows.setdefault(name, {})[threads] = (
                f"{1e9 / run['items_per_second']:.2f} ns, {run['bytes_per_second'] / 1e9:.0f} GB/s")
    table(["operation", "an element, 1 thread", "2 threads"],
          [[name, cells.get("1", "-"), cells.get("2", "-")] for name, cells in rows.items()])


def peer_runs():
    """Length -> (PyTorch's version, variant) -> turn -> run."""
    found = {}
    for path in FOLDER.glob("torch-*.jsonl"):
        for line in path.read_text().splitlines():
            run = json.loads(line)
            variant = run["torch"], run["attention"]
            found.setdefault(run["length"], {}).setdefault(variant, {})[path.stem.split("-")[1]] = run
    return found


def our_runs():
    """Length -> who -> turn -> run."""
    found = {}
    for path in sorted(FOLDER.glob("steps-*-*-[0-9].json")):
        _, length, who, turn = path.stem.split("-")
        found.setdefault(int(length), {}).setdefault(who, {})[turn] = load(path.name)[0]
    return found


def median(turns, key):
    return statistics.median(run[key] for run in turns.values())


def steps():
    rows = []
    everybodys = peer_runs()
    versions = sorted({version for peers in everybodys.values() for version, _ in peers},
                      key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    for length, ours in sorted(our_runs().items()):
        peers = everybodys.get(length, {})

        def over_best(turns, key):
            """Of each PyTorch."""
            cells = []
            for wanted in versions:
                best = max((peer for (version, _), peer in peers.items() if version == wanted),
                           key=lambda peer: median(peer, "tokens_per_second"), default={})
                ratios = [run[key] / best[turn]["tokens_per_second"] for turn, run in turns.items() if turn in best]
                cells.append(f"{statistics.median(ratios):.2f}x" if ratios else "-")
            return cells

        for who, turns in ours.items():
            share = {key: median(turns, key) for key in ("%_of_peak", "GFLOP/s")}
            rows.append([str(length), who.replace("_", " "), f"{median(turns, 'tokens/s'):.0f}", rate(share)]
                        + over_best(turns, "tokens/s") + [f"{max(run['RSS_GiB'] for run in turns.values()):.2f}"])
        for (version, attention), turns in sorted(peers.items(), key=lambda item: (versions.index(item[0][0]), item[0][1])):
            rows.append([str(length), f"PyTorch {version}, {attention}", f"{median(turns, 'tokens_per_second'):.0f}", "-"]
                        + over_best(turns, "tokens_per_second")
                        + [f"{max(run['peak_gib'] for run in turns.values()):.2f}"])
    table(["T", "who", "tokens/s", "of FMA peak (GFLOP/s)"]
          + [f"over the best PyTorch {version}" for version in versions] + ["peak GiB"], rows)
    for length, ours in sorted(our_runs().items()):
        ranks, threads = ours.get("two_ranks_zigzag", {}), ours.get("one_rank_of_two_threads", {})
        ratios = [run["tokens/s"] / threads[turn]["tokens/s"] for turn, run in ranks.items() if turn in threads]
        if ratios:
            print(f"T = {length}: two zigzag ranks are {statistics.median(ratios):.2f} times as fast as one rank of two "
                  "threads.\n")


def rings():
    if not (FOLDER / "rings.jsonl").exists():
        return
    runs = [json.loads(line) for line in (FOLDER / "rings.jsonl").read_text().splitlines()]
    print("## Ring attention alone: what a balanced layout is worth\n")
    print("A layer of 8 heads of 32, forward and backward, ranks of one thread, layouts by turns; medians of 5. The "
          "work of a rank is the processor time of its thread; four ranks share two cores.\n")
    table(["ranks", "T", "layout", "seconds", "largest work over mean"],
          [[str(run["ranks"]), str(run["length"]), run["layout"],
            f"{run['seconds']:.3f}" if run["ranks"] == 2 else "-", f"{run['largest_over_mean']:.3f}"] for run in runs])
    seconds = {run["layout"]: run["seconds"] for run in runs if run["ranks"] == 2}
    print(f"Zigzag is {seconds['contiguous'] / seconds['zigzag']:.2f} times as fast as contiguous on two ranks.\n")


def growth():
    if not (FOLDER / "growth" / "study.json").exists():
        return
    study = json.loads((FOLDER / "growth" / "study.json").read_text())
    cells = [cell for cell in study["cells"] if cell["status"] == "done"]
    fits = [fit["time_ms"] for fit in study["fits"] if fit["time_ms"]["coefficients"]]
    off = [f"{100 * residual:+.1f} %" for residual in fits[0]["residuals"]] if fits else ["-"] * len(cells)
    print("## How the time of a step grows\n")
    print("configs/quickstart.toml (4 layers, width 128) on one rank of two threads; a + b T + c T^2 by least "
          "relative squares through the fastest tenth of the steps (p10); `ringlet scale`.\n")
    table(["T", "steps", "step, ms: median", "p10", "tokens/s", "p10 off the curve"],
          [[str(cell["seq_len"]), f"{cell['steps']:.0f}", f"{cell['step_ms']:.1f}", f"{cell['step_ms_p10']:.1f}",
            f"{cell['tokens_per_second']:.0f}", residual]
           for cell, residual in zip(cells, off)])
    for fit in fits:
        a, b, c = fit["coefficients"]
        wrong = f"; not positive: {fit['not_positive']}" if fit["not_positive"] else ""
        print(f"a = {a:.3g} ms, b = {b:.3g} ms, c = {c:.3g} ms{wrong}\n")


def main():
    runs = load("operations.json") if (FOLDER / "operations.json").exists() else []
    print("# Speed on the CPU\n")
    measured = datetime.date.fromtimestamp((FOLDER / "cpuinfo").stat().st_mtime)
    print(f"{processor()}; two threads in all; {measured}; f32. A share is of the FMA peak that was measured "
          "right before and after, medians; in brackets GFLOP/s. Made by `bash tests/bench/run.sh`.\n")
    if runs:
        print("## Attention, causal, 8 heads\n")
        attention(runs)
        print("## Matrix products of a linear layer\n")
        products(runs)
        print("## What is no product (2048 rows of 256; MLP 683; 512 rows of 8192 logits; 5.2 M weights)\n")
        others(runs)
    print("## A whole training step\n")
    print("4 layers, width 256, 8 heads of 32, vocabulary 8192, tied head, MLP 683: 5.24 M parameters in matrices. FLOPs: "
          "6 N T + 7 L T^2 d. Recompute policy `none`, from T = 32,768 `selective` (its recomputation is not counted). "
          "PyTorch: the same model, tests/peers/train_torch.py. Ours and PyTorch's in three turns (one at T = 32,768): "
          "medians of the turns, and of what they are over each other within a turn.\n")
    steps()
    rings()
    growth()


main()
