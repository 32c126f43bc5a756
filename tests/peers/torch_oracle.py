"""The same model in PyTorch, written from its description alone: an opinion from outside.

  python3 torch_oracle.py FOLDER

reads FOLDER/case.json (config, tokens, labels, document_starts, window, loss_scale, optimizer,
steps, dtype) and FOLDER/weights.safetensors; writes FOLDER/results.json (loss and gradient norm of
each step) and FOLDER/results.safetensors (float64):
  losses, d_embedding_output, attention_output.I, lse.I, gradient.NAME   of the first step
  weight.NAME                                                            after all steps
Exits with 77 where there is no PyTorch. Any version from 1.13 on will do.
"""
import json
import math
import pathlib
import struct
import sys

try:
    import torch
    from torch.nn import functional as F
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(77)

DTYPES = {"F32": torch.float32, "F64": torch.float64}


def read_safetensors(path):
    raw = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + header_bytes]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        flat = torch.frombuffer(bytearray(raw[begin:end]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        values = tensor.detach().double().reshape(-1).tolist()
        parts.append(struct.pack(f"<{len(values)}d", *values))
        end = offset + len(parts[-1])
        header[name] = {"dtype": "F64", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


class Oracle:
    def __init__(self, case, weights):
        self.case, self.config, self.weights = case, case["config"], weights
        self.tokens = torch.tensor(case["tokens"])
        self.labels = torch.tensor(case["labels"])
        self.positions = torch.arange(len(case["tokens"]))
        self.attention_outputs, self.lse = [], []

    def visible(self):
        """[query, key]: same document, not later, inside the window."""
        starts = torch.tensor(self.case["document_starts"])
        document = (self.positions[:, None] >= starts[None, :]).sum(1)
        distance = self.positions[:, None] - self.positions[None, :]
        allowed = (document[:, None] == document[None, :]) & (distance >= 0)
        if self.case["window"] > 0:
            allowed &= distance < self.case["window"]
        return allowed

    def norm(self, x, name):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean_square + self.config["norm_epsilon"]) * self.weights[name]

    def rotate(self, x):
        """Half-split pairs as complex numbers, turned by position * base^(-2i / head_dim)."""
        half = x.shape[-1] // 2
        exponent = torch.arange(half, dtype=torch.float64) / half
        turn = self.positions[:, None].double() * self.config["rope_base"] ** -exponent
        pairs = torch.complex(x[..., :half], x[..., half:])
        turned = pairs * torch.polar(torch.ones_like(turn), turn).to(pairs.dtype)
        return torch.cat([turned.real, turned.imag], -1)

    def attention(self, x, block):
        config, length = self.config, len(self.positions)
        heads, kv_heads, dim = config["heads"], config["kv_heads"], config["head_dim"]
        fused = F.linear(x, self.weights[block + "attention.qkv.weight"])
        fused = fused.view(length, heads + 2 * kv_heads, dim).transpose(0, 1)
        q, k, v = fused.split([heads, kv_heads, kv_heads])
        if config["qk_norm"]:
            q = self.norm(q, block + "attention.q_norm.weight")
            k = self.norm(k, block + "attention.k_norm.weight")
        q, k = self.rotate(q), self.rotate(k)
        k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(dim)
        scores = scores.masked_fill(~self.visible(), -math.inf)
        output = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, heads * dim)
        self.attention_outputs.append(output)
        self.lse.append(scores.logsumexp(-1).transpose(-1, -2))
        return F.linear(output, self.weights[block + "attention.output.weight"])

    def mlp(self, x, block):
        gate, up = F.linear(x, self.weights[block + "mlp.gate_up.weight"]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.weights[block + "mlp.down.weight"])

    def losses(self):
        """Per position; keeps what lies on the way."""
        self.attention_outputs, self.lse = [], []
        x = F.embedding(self.tokens, self.weights["embedding.weight"])
        self.embedding_output = x
        x.retain_grad()
        for layer in range(self.config["layers"]):
            block = f"blocks.{layer}."
            x = x + self.attention(self.norm(x, block + "attention_norm.weight"), block)
            x = x + self.mlp(self.norm(x, block + "mlp_norm.weight"), block)
        head = "embedding.weight" if self.config["tied_head"] else "head.weight"
        logits = F.linear(self.norm(x, "final_norm.weight"), self.weights[head])
        return F.cross_entropy(logits, self.labels, ignore_index=-1, reduction="none")


def make_optimizer(settings, weights):
    decayed = [w for w in weights.values() if w.dim() == 2]
    others = [w for w in weights.values() if w.dim() != 2]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings["learning_rate"],
        betas=(settings["beta1"], settings["beta2"]),
        eps=settings["epsilon"],
    )


def clip_gradients(weights, largest):
    # Not clip_grad_norm_: it divides by norm + 1e-6.
    norm = torch.sqrt(sum(w.grad.double().pow(2).sum() for w in weights.values())).item()
    for weight in weights.values():
        weight.grad *= min(1.0, largest / norm)
    return norm


def first_step_results(oracle, losses):
    results = {"losses": losses, "d_embedding_output": oracle.embedding_output.grad}
    for layer, (output, lse) in enumerate(zip(oracle.attention_outputs, oracle.lse)):
        results[f"attention_output.{layer}"] = output
        results[f"lse.{layer}"] = lse
    for name, weight in oracle.weights.items():
        results["gradient." + name] = weight.grad.clone()
    return results


def main(folder):
    torch.set_num_threads(1)
    case = json.loads((folder / "case.json").read_text())
    dtype = getattr(torch, case["dtype"])
    stored = read_safetensors(folder / "weights.safetensors")
    weights = {name: w.to(dtype).clone().requires_grad_() for name, w in stored.items()}
    oracle, optimizer = Oracle(case, weights), make_optimizer(case["adamw"], weights)
    results, summary = {}, {"torch": torch.__version__, "losses": [], "norms": []}
    for step in range(max(1, case["steps"])):
        optimizer.zero_grad()
        losses = oracle.losses()
        loss = losses.sum() * case["loss_scale"]
        loss.backward()
        if step == 0:
            results = first_step_results(oracle, losses)
        summary["losses"].append(loss.item())
        summary["norms"].append(clip_gradients(weights, case["clip"]))
        if case["steps"] > 0:
            optimizer.step()
    results.update({"weight." + name: weight for name, weight in weights.items()})
    write_safetensors(folder / "results.safetensors", results)
    (folder / "results.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
