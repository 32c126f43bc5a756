#!/usr/bin/env python3
"""What PyTorch does on the same GPU: attention at the shapes of tests/bench/gpu_bench (its flash and cuDNN kernels), one
large matrix product, a copy, and whole training steps of the same GPT (RMSNorm, rotary positions, SwiGLU, tied head).

  gpu_torch.py OUT.json [--only attention|step] [--budget 90]

Attention in TFLOP/s: forward 4 T^2 H d, half of that causal, backward 2.5 times forward. Steps: bf16 under autocast, f32
weights, fused AdamW, torch.compile for each block and the head; MFU = (6 N T + 6 L T^2 d) / seconds / 989e12.
What is left when the budget (seconds) is spent is left out, and the JSON says so.
"""
import argparse
import json
import statistics
import sys
import time

try:
    import torch
except ImportError:
    sys.exit("PyTorch is missing")
import torch._dynamo
import torch.nn.functional as F
import torch.utils.checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, WIDTH, HEADS, KV_HEADS, MLP_WIDTH, HEAD_DIM = 12, 768, 6, 6, 2048, 128
PEAK_FLOPS = 989e12
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
STARTED = time.perf_counter()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--only", choices=["attention", "step"])
    parser.add_argument("--budget", type=float, default=90)
    parser.add_argument("--quick", action="store_true", help="no sequences above 8k in attention")
    return parser.parse_args()


OPTIONS = parse()
FIGURES, LEFT_OUT = [], []


def write():
    """After each figure: a run that is cut off has said what it found."""
    result = {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
              "device": torch.cuda.get_device_name(), "figures": FIGURES, "left_out": LEFT_OUT}
    with open(OPTIONS.out, "w") as file:
        json.dump(result, file, indent=1)


def add(name, ms, value, unit, **more):
    FIGURES.append({"name": name, "ms": ms, "value": value, "unit": unit, **more})
    print(f"{name:<64} {ms:10.3f} ms {value:10.1f} {unit}", flush=True)
    write()


def leave_out(name, cause):
    LEFT_OUT.append({"name": name, "cause": str(cause).splitlines()[0] if str(cause) else repr(cause)})
    print(f"{name:<64} left out: {LEFT_OUT[-1]['cause']}", flush=True)
    write()


def spent():
    return time.perf_counter() - STARTED > OPTIONS.budget


def milliseconds(body, budget_ms=150):
    """Median over batches of calls, with the queue drained around each."""
    def run(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            body()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / calls

    run(1)
    estimate = max(run(2), 1e-3)
    calls = max(1, min(100, int(1.5 / estimate)))
    batches = max(3, min(30, int(budget_ms / (estimate * calls))))
    return statistics.median(run(calls) for _ in range(batches))


def measure_attention():
    for heads, head_dim in ((16, 128), (32, 64)):
        for length in (2048, 8192) if OPTIONS.quick else (2048, 8192, 16384, 32768):
            q, k, v, d_output = (torch.randn(1, heads, length, head_dim, device="cuda", dtype=torch.bfloat16)
                                 for _ in range(4))
            for x in (q, k, v):
                x.requires_grad_()
            for causal in (True, False):
                flops = 4 * length**2 * heads * head_dim / (2 if causal else 1)
                for backend in BACKENDS:
                    name = (f"SDPA {backend}, head_dim {head_dim}, T {length // 1024}k, "
                            f"{'causal' if causal else 'full block'}")
                    if spent():
                        leave_out(name, "out of time")
                        continue
                    try:
                        with sdpa_kernel(BACKENDS[backend]):
                            measure_one(name, q, k, v, d_output, causal, flops)
                    except RuntimeError as error:
                        leave_out(name, error)


def measure_one(name, q, k, v, d_output, causal, flops):
    def attend():
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with torch.no_grad():
        ms = milliseconds(attend)
    add(name + ", forward", ms, flops / ms / 1e9, "TFLOP/s")
    output = attend()
    ms = milliseconds(lambda: torch.autograd.grad(output, (q, k, v), d_output, retain_graph=True))
    add(name + ", backward", ms, 2.5 * flops / ms / 1e9, "TFLOP/s")


def measure_matmul_and_copy():
    size = 8192
    a, b, c = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    ms = milliseconds(lambda: torch.matmul(a, b.t(), out=c))
    add("A B^T, 8192 x 8192 x 8192", ms, 2 * size**3 / ms / 1e9, "TFLOP/s")
    source = torch.randn(1 << 27, device="cuda")
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source))
    add("copy, 512 MiB", ms, 2 * source.numel() * 4 / ms / 1e6, "GB/s")


def rms_norm(x, weight):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).to(x.dtype)


def rotate(x, cosine, sine):
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1).to(x.dtype)


def block_forward(x, cosine, sine, attention_norm, qkv_weight, output_weight, mlp_norm, gate_up_weight, down_weight):
    rows = x.shape[0]
    qkv = F.linear(rms_norm(x, attention_norm), qkv_weight).view(rows, -1, HEAD_DIM).transpose(0, 1)[None]
    q, k, v = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    grouped = {"enable_gqa": True} if HEADS != KV_HEADS else {}
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, **grouped)
    x = x + F.linear(attended[0].transpose(0, 1).reshape(rows, -1), output_weight)
    gate, up = F.linear(rms_norm(x, mlp_norm), gate_up_weight).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down_weight)


def loss_of(x, labels, norm, weight):
    return F.cross_entropy(F.linear(rms_norm(x, norm), weight).float(), labels)


class Gpt(torch.nn.Module):
    def __init__(self, length, vocabulary, checkpointed):
        super().__init__()

        def linear(rows, columns):
            return torch.nn.Parameter(0.02 * torch.randn(rows, columns))

        def block():  # in the order of block_forward's arguments
            return torch.nn.ParameterList([
                torch.nn.Parameter(torch.ones(WIDTH)), linear((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH),
                linear(WIDTH, HEADS * HEAD_DIM), torch.nn.Parameter(torch.ones(WIDTH)), linear(2 * MLP_WIDTH, WIDTH),
                linear(WIDTH, MLP_WIDTH)])

        self.embedding = linear(vocabulary, WIDTH)
        self.final_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.blocks = torch.nn.ModuleList([block() for _ in range(LAYERS)])
        # Functions of their weights: compiled once, not for each layer.
        self.block_forward = torch.compile(block_forward, dynamic=False)
        self.head = torch.compile(loss_of, dynamic=False)
        self.checkpointed = checkpointed
        angles = torch.outer(torch.arange(length, dtype=torch.float64),
                             1e4 ** (-torch.arange(HEAD_DIM // 2, dtype=torch.float64) * 2 / HEAD_DIM))
        self.register_buffer("cosine", angles.cos().float())
        self.register_buffer("sine", angles.sin().float())

    def forward(self, tokens, labels):
        x = F.embedding(tokens, self.embedding).to(torch.bfloat16)
        for block in self.blocks:
            arguments = (x, self.cosine, self.sine, *block)
            if self.checkpointed:
                x = torch.utils.checkpoint.checkpoint(self.block_forward, *arguments, use_reentrant=False)
            else:
                x = self.block_forward(*arguments)
        return self.head(x, labels, self.final_norm, self.embedding)


def step_times(length, vocabulary, checkpointed):
    """Milliseconds of single steps; the parameters; the last loss."""
    torch.manual_seed(0)
    model = Gpt(length, vocabulary, checkpointed).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    tokens, labels = torch.randint(0, vocabulary, (2, length), device="cuda").unbind(0)
    times, began = [], None
    for step in range(23):  # the first three compile and warm up
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(tokens, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= 3:
            began = began or start
            times.append(1e3 * (time.perf_counter() - start))
            if len(times) >= 3 and time.perf_counter() - began > 4:
                break
    return times, sum(p.numel() for p in model.parameters()), float(loss.detach())


def measure_step(length, vocabulary, backend):
    name = f"step, T {length // 1024}k, vocabulary {vocabulary}, SDPA {backend}"
    if spent():
        leave_out(name, "out of time")
        return
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(backend == "flash")
    torch.backends.cuda.enable_cudnn_sdp(backend == "cudnn")
    for checkpointed in (False, True):
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            times, parameters, loss = step_times(length, vocabulary, checkpointed)
        except torch.cuda.OutOfMemoryError:
            continue
        except Exception as error:
            leave_out(name, error)
            return
        ms = statistics.median(times)
        flops = 6 * parameters * length + 6 * LAYERS * length**2 * HEADS * HEAD_DIM
        add(name + (", checkpointed" if checkpointed else ""), ms, 100 * flops / (ms / 1e3) / PEAK_FLOPS, "% MFU",
            tokens_per_second=length / (ms / 1e3), parameters=parameters, loss=loss, steps=len(times),
            peak_gib=torch.cuda.max_memory_allocated() / 2**30)
        return
    leave_out(name, "out of memory")


def main():
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    torch.set_float32_matmul_precision("high")
    if OPTIONS.only != "attention":
        for length, vocabulary, backend in ((8192, 50304, "cudnn"), (65536, 257, "cudnn"), (8192, 257, "cudnn"),
                                            (65536, 50304, "cudnn"), (65536, 257, "flash")):
            # Steps alone may take it all; otherwise attention gets a third.
            if OPTIONS.only is None and time.perf_counter() - STARTED > 0.6 * OPTIONS.budget:
                leave_out(f"step, T {length // 1024}k, vocabulary {vocabulary}, SDPA {backend}", "out of time")
                continue
            measure_step(length, vocabulary, backend)
    if OPTIONS.only != "step":
        torch.cuda.empty_cache()
        measure_matmul_and_copy()
        measure_attention()


main()
