"""The caption encoder: transformers' T5EncoderModel (v1.1) in plain torch, with its names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 32
FARTHEST = 128


@dataclass(frozen=True)
class TextConfig:
    """Shape of the encoder."""

    vocab: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 4
    head_size: int = 64
    ffn: int = 640


TINY_TEXT = TextConfig(vocab=600, width=64, layers=2, heads=4, head_size=16, ffn=96)


class Norm(nn.Module):
    """T5's layer norm: scale only, no mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]"""
        x = x.float()
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class SelfAttention(nn.Module):
    """Attention with a relative bias, which the first layer owns.

    T5's has no 1/sqrt(head size): its query weights are that much smaller. Trained in that form,
    every step of AdamW changes them by as many times more, and the attention saturates. So the
    queries are scaled here, and `exported` folds the scale into the weights.
    """

    def __init__(self, config: TextConfig, *, bias: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_size
        self.heads = config.heads
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(config.width, inner, bias=False)
        self.v = nn.Linear(config.width, inner, bias=False)
        self.o = nn.Linear(inner, config.width, bias=False)
        if bias:
            self.relative_attention_bias = nn.Embedding(BUCKETS, config.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, d], bias [B, heads, L, L] -> [B, L, d]"""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + bias
        mixed = scores.softmax(-1).to(v.dtype) @ v
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x)"""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.ffn, bias=False)
        self.wi_1 = nn.Linear(config.width, config.ffn, bias=False)
        self.wo = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, L, d]"""
        gate = F.gelu(self.wi_0(x), approximate="tanh")
        out: Tensor = self.wo(gate * self.wi_1(x))
        return out


class Sublayer(nn.Module):
    """A norm and the layer behind it, under the layer's own name."""

    def __init__(self, width: int, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.layer_norm = Norm(width)
        self.add_module(name, layer)


class Layer(nn.Module):
    """Self-attention and gated feed-forward."""

    def __init__(self, config: TextConfig, *, bias: bool) -> None:
        super().__init__()
        attention = SelfAttention(config, bias=bias)
        self.layer = nn.ModuleList(
            [
                Sublayer(config.width, "SelfAttention", attention),
                Sublayer(config.width, "DenseReluDense", GatedFeedForward(config)),
            ]
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, d], bias [B, heads, L, L] -> [B, L, d]"""
        one, two = self.layer
        x = x + one.SelfAttention(one.layer_norm(x), bias)
        return x + two.DenseReluDense(two.layer_norm(x))


class TextEncoder(nn.Module):
    """Token ids to caption states."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab, config.width)
        self.encoder = nn.ModuleDict(
            {
                "block": nn.ModuleList([Layer(config, bias=i == 0) for i in range(config.layers)]),
                "final_layer_norm": Norm(config.width),
            }
        )
        self._initialise()

    def _initialise(self) -> None:
        c = self.config
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            scale = c.width**-0.5
            if name.endswith((".o.weight", "wo.weight")):
                scale = p.shape[1] ** -0.5
            elif name.startswith("shared"):
                scale = 1.0
            nn.init.normal_(p, std=scale)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 [B, L], mask bool [B, L] -> [B, L, d]"""
        x = self.shared(ids)
        blocks = self.encoder["block"]
        table = blocks[0].layer[0].SelfAttention.relative_attention_bias
        bias = table(buckets(ids.shape[1], ids.device)).permute(2, 0, 1)[None].float()
        bias = bias.masked_fill(~mask[:, None, None, :], -1e9)
        for block in blocks:
            x = block(x, bias)
        out: Tensor = self.encoder["final_layer_norm"](x)
        return out


def exported(encoder: TextEncoder) -> dict[str, Tensor]:
    """The weights as T5EncoderModel wants them: the scale of the queries is in theirs."""
    scale = encoder.config.head_size**-0.5
    return {
        name: tensor * scale if name.endswith(".q.weight") else tensor
        for name, tensor in encoder.state_dict().items()
    }


def imported(tensors: dict[str, Tensor], config: TextConfig) -> dict[str, Tensor]:
    """The inverse of `exported`."""
    scale = config.head_size**0.5
    return {
        name: tensor * scale if name.endswith(".q.weight") else tensor
        for name, tensor in tensors.items()
    }


def buckets(length: int, device: torch.device) -> Tensor:
    """int64 [L, L]: T5's bucket of key j seen from query i."""
    places = torch.arange(length, device=device)
    ahead = places[None, :] - places[:, None]
    half = BUCKETS // 2
    exact = half // 2
    distance = ahead.abs()
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(FARTHEST / exact)
    far = (exact + (far * (half - exact)).long()).clamp(max=half - 1)
    return (ahead > 0).long() * half + torch.where(distance < exact, distance, far)


def text_config(config: TextConfig) -> dict:
    """config.json of `text_encoder/`."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": config.ffn,
        "d_kv": config.head_size,
        "d_model": config.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": FARTHEST,
        "relative_attention_num_buckets": BUCKETS,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": config.vocab,
    }
