"""A plain Llama in torch: RMSNorm, rotary positions, grouped queries, SwiGLU, tied embeddings.

Letters: B rows, T tokens, C width, H query heads, G key/value heads, D head size (64), F feed-
forward width, V vocabulary. Query, key and value share one matrix, and so do gate and up: one
large product trains faster than three small ones. `hf_state_dict` splits them again.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; the defaults are the shipped one (23.6M parameters)."""

    vocab: int = 12288
    width: int = 384
    layers: int = 12
    heads: int = 6
    kv_heads: int = 2
    ffn: int = 1024
    context: int = 2048
    rope_theta: float = 50000.0
    norm_eps: float = 1e-5
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.heads * HEAD != self.width or self.heads % self.kv_heads:
            raise ValueError(
                f"width {self.width} must be heads {self.heads} x {HEAD}, "
                f"and kv_heads {self.kv_heads} must divide heads"
            )


TINY_MODEL = ModelConfig(vocab=1024, width=64, layers=2, heads=1, kv_heads=1, ffn=128, context=128)


def rotary_table(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """Cosines and sines, float32 [2, context, D]; both halves of D hold the same angles."""
    steps = torch.arange(0, HEAD, 2, device=device, dtype=torch.float32) / HEAD
    angles = torch.outer(
        torch.arange(config.context, device=device, dtype=torch.float32), config.rope_theta**-steps
    )
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary positions on [B, heads, T, D], pairing i with i + D/2 as Hugging Face does."""
    cos, sin = table[:, : x.shape[-2]].to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x32 * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention; [B, T, C] to [B, T, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.qkv_proj = nn.Linear(
            config.width, (config.heads + 2 * config.kv_heads) * HEAD, bias=False
        )
        self.o_proj = nn.Linear(config.width, config.width, bias=False)
        rows = (config.heads * HEAD, config.kv_heads * HEAD, config.kv_heads * HEAD)
        self.qkv_proj.weight._edgert_qkv_rows = rows  # type: ignore[assignment]  # MSign: three matrices

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        b, t, c = x.shape
        qkv = self.qkv_proj(x).view(b, t, -1, HEAD).transpose(1, 2)  # [B, H + 2G, T, D]
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(q, table), rotate(k, table)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, H, T, D]
        return self.o_proj(y.transpose(1, 2).reshape(b, t, c))


class FeedForward(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.width, 2 * config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the stream after dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = RMSNorm(config.width, config.norm_eps)
        self.ffn = FeedForward(config)
        self.drop = config.dropout

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.norm1(x), table), self.drop, self.training)
        return x + F.dropout(self.ffn(self.norm2(x)), self.drop, self.training)


class Llama(nn.Module):
    """Tokens int64 [B, T] to logits [B, T, V]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.register_buffer("table", rotary_table(config), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Normal(0, 0.02); matrices that write into the stream are scaled by 1/sqrt(2 layers)."""
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                depth = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    weight, std=0.02 / (math.sqrt(2 * self.config.layers) if depth else 1)
                )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x, self.table)
        return F.linear(self.norm(x), self.embed.weight)

    def loss(self, tokens: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean cross entropy (nats) over targets int64 [B, T], weighted by floats [B, T]."""
        nats = F.cross_entropy(
            self(tokens).flatten(0, 1).float(), targets.flatten(), reduction="none"
        )
        weights = weights.flatten()
        return (nats * weights).sum() / weights.sum().clamp_min(1.0)

    @property
    def size(self) -> int:
        """Number of parameters, the tied embedding once."""
        return sum(p.numel() for p in self.parameters())


def hf_state_dict(model: Llama) -> dict[str, Tensor]:
    """bfloat16 tensors under Hugging Face's LlamaForCausalLM names, without the tied lm_head."""
    c = model.config
    names = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
    }
    for i, block in enumerate(model.blocks):
        prefix = f"model.layers.{i}."
        q, k, v = block.attention.qkv_proj.weight.split(
            (c.width, c.kv_heads * HEAD, c.kv_heads * HEAD), dim=0
        )
        gate, up = block.ffn.gate_up_proj.weight.chunk(2, dim=0)
        names |= {
            prefix + "input_layernorm.weight": block.norm1.weight,
            prefix + "self_attn.q_proj.weight": q,
            prefix + "self_attn.k_proj.weight": k,
            prefix + "self_attn.v_proj.weight": v,
            prefix + "self_attn.o_proj.weight": block.attention.o_proj.weight,
            prefix + "post_attention_layernorm.weight": block.norm2.weight,
            prefix + "mlp.gate_proj.weight": gate,
            prefix + "mlp.up_proj.weight": up,
            prefix + "mlp.down_proj.weight": block.ffn.down_proj.weight,
        }
    return {
        name: t.detach().to("cpu", torch.bfloat16).contiguous().clone() for name, t in names.items()
    }


def load_hf_state_dict(model: Llama, tensors: dict[str, Tensor]) -> None:
    """Inverse of `hf_state_dict`, so that an exported checkpoint can be evaluated or tuned on."""
    with torch.no_grad():
        model.embed.weight.copy_(tensors["model.embed_tokens.weight"])
        model.norm.weight.copy_(tensors["model.norm.weight"])
        for i, block in enumerate(model.blocks):
            get = lambda name, p=f"model.layers.{i}.": tensors[p + name + ".weight"]
            block.norm1.weight.copy_(get("input_layernorm"))
            block.norm2.weight.copy_(get("post_attention_layernorm"))
            qkv = [get(f"self_attn.{x}_proj") for x in "qkv"]
            block.attention.qkv_proj.weight.copy_(torch.cat(qkv))
            block.attention.o_proj.weight.copy_(get("self_attn.o_proj"))
            block.ffn.gate_up_proj.weight.copy_(
                torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")])
            )
            block.ffn.down_proj.weight.copy_(get("mlp.down_proj"))


def config_dict(config: ModelConfig) -> dict:
    """Plain dictionary for checkpoints and logs."""
    return asdict(config)
