#!/usr/bin/env python3
"""The training step of tests/bench/steps.cpp in PyTorch, for comparison: the same model (RMSNorm, rotary positions, SwiGLU,
tied head), f32, one window of T tokens, AdamW. One JSON line: milliseconds and tokens a second (medians), peak memory.

  train_torch.py --length 2048 --attention sdpa --threads 2 [--steps 5]

--attention naive: T x T scores and softmax; sdpa: PyTorch's fused operation; tiled: blocks with a running softmax written
in Python, memory linear in T (arXiv:2205.14135), blocks above the diagonal skipped.
The process starts itself again with the settings that make PyTorch fast on a CPU: the BLAS kernels of this processor,
PyTorch's OpenMP flavour of it, an allocator that keeps its memory.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--attention", choices=["naive", "sdpa", "tiled"], default="sdpa")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tile", type=int, default=512)
    return parser.parse_args()


def tuned_environment(threads):
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith("flags")), "").split()
    wide = "avx512bw" in flags
    return {
        "RINGLET_PEER_TUNED": "1",
        "OPENBLAS_CORETYPE": "SkylakeX" if wide else "Haswell",
        "ATEN_CPU_CAPABILITY": "avx512" if wide else "avx2",
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_TOP_PAD_": str(1 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
        "LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu/openblas-openmp:" + os.environ.get("LD_LIBRARY_PATH", ""),
    }


OPTIONS = parse()
if "RINGLET_PEER_TUNED" not in os.environ:
    os.environ.update(tuned_environment(OPTIONS.threads))
    os.execv(sys.executable, [sys.executable] + sys.argv)

try:
    import torch
except ImportError:
    sys.exit("PyTorch is missing: sudo apt-get install python3-torch")
import torch.nn.functional as F

VOCABULARY, LAYERS, WIDTH, HEADS, MLP_WIDTH = 8192, 4, 256, 8, 683
HEAD_DIM = WIDTH // HEADS


def naive(q, k, v):
    scores = q @ k.transpose(-2, -1) * HEAD_DIM**-0.5
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(mask, float("-inf")), -1) @ v


def sdpa(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F._scaled_dot_product_attention(q, k, v, None, 0.0, False, True)[0]


class Tiled(torch.autograd.Function):
    @staticmethod
    def scores(q, k, i, j):
        scores = q @ k.transpose(-2, -1)
        if i == j:
            scores += torch.full(scores.shape[-2:], float("-inf")).triu(1)
        return scores

    @staticmethod
    def forward(context, q, k, v):
        tile, length = OPTIONS.tile, q.shape[-2]
        output, lse = torch.empty_like(q), torch.empty(q.shape[:-1])
        for i in range(0, length, tile):
            rows = slice(i, i + tile)
            query = q[..., rows, :] * HEAD_DIM**-0.5
            maximum = torch.full(query.shape[:-1] + (1,), -1e30)
            total, sums = torch.zeros_like(maximum), torch.zeros_like(query)
            for j in range(0, i + tile, tile):
                scores = Tiled.scores(query, k[..., j:j + tile, :], i, j)
                higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))
                weights = scores.sub_(higher).exp_()
                rescale = (maximum - higher).exp_()
                maximum = higher
                total = total * rescale + weights.sum(-1, keepdim=True)
                sums = sums.mul_(rescale) + weights @ v[..., j:j + tile, :]
            output[..., rows, :] = sums / total
            lse[..., rows] = (maximum + total.log()).squeeze(-1)
        context.save_for_backward(q, k, v, output, lse)
        return output

    @staticmethod
    def backward(context, d_output):
        q, k, v, output, lse = context.saved_tensors
        tile, d_output = OPTIONS.tile, d_output.contiguous()
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        delta = (output * d_output).sum(-1, keepdim=True)
        for i in range(0, q.shape[-2], tile):
            rows = slice(i, i + tile)
            query, gradient = q[..., rows, :] * HEAD_DIM**-0.5, d_output[..., rows, :]
            for j in range(0, i + tile, tile):
                columns = slice(j, j + tile)
                scores = Tiled.scores(query, k[..., columns, :], i, j)
                weights = scores.sub_(lse[..., rows].unsqueeze(-1)).exp_()
                dv[..., columns, :] += weights.transpose(-2, -1) @ gradient
                d_scores = (gradient @ v[..., columns, :].transpose(-2, -1)).sub_(delta[..., rows, :]).mul_(weights)
                dk[..., columns, :] += d_scores.transpose(-2, -1) @ query
                dq[..., rows, :] += (d_scores @ k[..., columns, :]).mul_(HEAD_DIM**-0.5)
        return dq, dk, dv


def tiled(q, k, v):
    return Tiled.apply(q.contiguous(), k.contiguous(), v.contiguous())


ATTENTION = {"naive": naive, "sdpa": sdpa, "tiled": tiled}[OPTIONS.attention]


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x, cosine, sine):
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda rows, columns: torch.nn.Parameter(0.02 * torch.randn(rows, columns))
        self.attention_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.mlp_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.qkv, self.output = linear(3 * WIDTH, WIDTH), linear(WIDTH, WIDTH)
        self.gate_up, self.down = linear(2 * MLP_WIDTH, WIDTH), linear(WIDTH, MLP_WIDTH)

    def forward(self, x, cosine, sine):
        heads = F.linear(rms_norm(x, self.attention_norm), self.qkv).view(-1, 3, HEADS, HEAD_DIM).permute(1, 2, 0, 3)
        q, k, v = heads[None].unbind(1)
        attended = ATTENTION(rotate(q, cosine, sine), rotate(k, cosine, sine), v)
        x = x + F.linear(attended[0].transpose(0, 1).reshape(-1, WIDTH), self.output)
        gate, up = F.linear(rms_norm(x, self.mlp_norm), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Gpt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(0.02 * torch.randn(VOCABULARY, WIDTH))
        self.final_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.blocks = torch.nn.ModuleList([Block() for _ in range(LAYERS)])
        angles = torch.outer(torch.arange(OPTIONS.length, dtype=torch.float64),
                             1e4 ** (-torch.arange(HEAD_DIM // 2, dtype=torch.float64) * 2 / HEAD_DIM))
        self.cosine, self.sine = angles.cos().float(), angles.sin().float()

    def forward(self, tokens, labels):
        x = self.embedding[tokens]
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        return F.cross_entropy(F.linear(rms_norm(x, self.final_norm), self.embedding), labels)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(OPTIONS.threads)
    model = Gpt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    tokens, labels = torch.randint(0, VOCABULARY, (2, OPTIONS.length)).unbind(0)
    seconds = []
    for step in range(OPTIONS.steps + 1):  # the first warms up
        start = time.perf_counter()
        loss = model(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step > 0:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(json.dumps({
        "torch": torch.__version__, "attention": OPTIONS.attention, "length": OPTIONS.length,
        "threads": OPTIONS.threads, "loss": loss.item(), "ms": 1e3 * median,
        "tokens_per_second": OPTIONS.length / median,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)}))


main()
