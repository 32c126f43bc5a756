#!/usr/bin/env python3
"""The tables of one run of tests/gpu/run.sh, as Markdown.

  gpu_tables.py OUT > tests/bench/results/gpu.md

Reads machine.txt, gpu_bench.json, torch.json and steps/T-VOCABULARY-RECOMPUTE.jsonl of the folder; what is not there is left out.
"""
import json
import pathlib
import re
import statistics
import sys

LAYERS, WIDTH, MLP_WIDTH = 12, 768, 2048  # of configs/gpu-124m.toml
PEAK_FLOPS = 989e12
MATRIX_PARAMETERS = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * MLP_WIDTH)


def load(path):
    return json.loads(path.read_text()) if path.exists() else {"figures": []}


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def attention(ours, torch):
    """Rows by shape; columns by who computes."""
    cells = {}
    for figure in ours + torch:
        match = re.fullmatch(r"(?:SDPA )?(\w+), (head_dim \d+, T \w+, [\w ]+, (?:forward|backward))", figure["name"])
        if match:
            cells.setdefault(match[2], {})[match[1]] = figure["value"]
    who = [name for name in ("wgmma", "mma", "cudnn", "flash", "plain") if any(name in row for row in cells.values())]
    titles = {"cudnn": "PyTorch, cuDNN", "flash": "PyTorch, flash", "plain": "plain bf16"}
    rows = []
    for shape, row in cells.items():
        best = max(row.get("wgmma", 0), row.get("mma", 0))
        ratio = f"{best / row['cudnn']:.2f}" if row.get("cudnn") and best else ""
        rows.append([shape] + [f"{row[name]:.0f}" if name in row else "" for name in who] + [ratio])
    if rows:
        print("## Attention\n\nTFLOP/s; forward 4 T^2 H d flops, half of that causal; backward 2.5 times forward, deterministic "
              "(PyTorch's is not).\n")
        table(["batch 1, bf16"] + [titles.get(name, name) for name in who] + ["best / cuDNN"], rows)


def others(figures):
    groups = {}
    for figure in figures:
        if not figure["group"].startswith("Attention"):
            groups.setdefault(figure["group"], []).append(figure)
    for group, members in groups.items():
        print(f"## {group}\n")
        table(["", "ms", "", ""], [[f["name"], f"{f['ms']:.3f}", f"{f['value']:.1f}", f["unit"]] for f in members])


def steps(folder, torch):
    rows = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: int(p.stem.split("-")[0])):
        tokens, vocabulary, recompute = path.stem.split("-")
        tokens, vocabulary = int(tokens), int(vocabulary)
        times = [json.loads(line)["step_ms"] for line in path.read_text().splitlines() if '"step_ms"' in line]
        if not times:
            continue
        seconds = statistics.median(times[2:] or times) / 1e3
        flops = 6 * (MATRIX_PARAMETERS + vocabulary * WIDTH) * tokens + 6 * LAYERS * tokens * tokens * WIDTH
        peer = [f for f in torch if f["name"] == f"step, T {tokens // 1024}k, vocabulary {vocabulary}, SDPA cudnn"]
        rows.append([f"{tokens:,}", f"{vocabulary:,}", recompute, str(len(times)), f"{1e3 * seconds:.1f}",
                     f"{tokens / seconds:,.0f}", f"{100 * flops / seconds / PEAK_FLOPS:.1f} %",
                     f"{peer[0]['ms']:.1f}" if peer else "", f"{peer[0]['ms'] / 1e3 / seconds:.2f}" if peer else ""])
    if rows:
        print("## Whole steps\n\nconfigs/gpu-124m.toml: 12 layers, width 768, 6 heads of 128, bf16, deterministic, one rank; "
              "MFU = (6 N T + 6 L T^2 d) / s / 989e12. PyTorch: the same model, torch.compile, cuDNN attention, fused AdamW, "
              "no recompute.\n")
        table(["T", "vocabulary", "recompute", "steps", "ms", "tokens/s", "MFU", "PyTorch ms", "times as fast"], rows)


def main():
    out = pathlib.Path(sys.argv[1])
    ours, torch = load(out / "gpu_bench.json"), load(out / "torch.json")
    print(f"# On one {ours.get('device', 'GPU')}\n\n`tests/gpu/run.sh OUT` wrote what this is made of; `tests/bench/gpu_tables.py OUT` "
          "makes it.\n")
    machine = out / "machine.txt"
    if machine.exists():
        print("```\n" + machine.read_text().strip() + "\n```\n")
    if "torch" in torch:
        print(f"PyTorch {torch['torch']}, cuDNN {torch['cudnn']}.\n")
    steps(out / "steps", torch["figures"])
    attention(ours["figures"], torch["figures"])
    others(ours["figures"])


main()
