"""MSign: polar factors, what an application changes and what it leaves (arXiv 2602.01734)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from edgert.converters.optim import Dash, MSign, jacobian_alignment, stable_rank
from edgert.converters.optim.polar import impact, polar, polar_newton_schulz, polar_svd
from edgert.converters.optim.targets import is_attention, matches, matrix_parts
from torch import nn

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gaussian(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def planted(rows, cols, cond, *, n=3, seed=0):
    """Random matrices `[n, rows, cols]` with log-spaced singular values 1 ... 1/cond."""
    short = min(rows, cols)
    u, _ = torch.linalg.qr(gaussian(n, rows, short, seed=seed, dtype=torch.float64))
    v, _ = torch.linalg.qr(gaussian(n, cols, short, seed=seed + 1, dtype=torch.float64))
    s = torch.logspace(0, -math.log10(cond), short, dtype=torch.float64)
    return ((u * s) @ v.mT).float()


class Attention(nn.Module):
    def __init__(self, d):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(d, d, bias=False))

    def forward(self, x):
        scores = self.q_proj(x) @ self.k_proj(x).mT / x.shape[-1] ** 0.5
        return self.o_proj(scores.softmax(-1) @ self.v_proj(x))


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.self_attn = Attention(d)
        self.up_proj, self.down_proj = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.down_proj(torch.tanh(self.up_proj(self.norm2(x))))


class Tiny(nn.Module):
    def __init__(self, d=16, layers=3):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, d)
        self.layers = nn.ModuleList(Block(d) for _ in range(layers))
        self.lm_head = nn.Linear(d, 11)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def model(seed=0):
    torch.manual_seed(seed)
    return Tiny()


def wrapped(net, *, base=torch.optim.AdamW, lr=1e-2, **options):
    return MSign(base(net.parameters(), lr), named_params=net.named_parameters(), **options)


def train(net, optimizer, steps, *, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(11, (4, 9), generator=generator)
        optimizer.zero_grad()
        logits = net(tokens[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()


def weights(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def o_proj(net, layer=0):
    return net.layers[layer].self_attn.o_proj.weight.detach()


# ---- polar factors ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
@pytest.mark.parametrize("cond", [10, 100, 1000])
@pytest.mark.parametrize("shape", [(64, 64), (48, 192), (192, 48)])
def test_polar_factor_is_orthonormal_on_the_short_side(method, cond, shape):
    w = planted(*shape, cond)
    _, sign = polar(w, method, EPS)
    gram = sign @ sign.mT if shape[0] <= shape[1] else sign.mT @ sign
    assert (gram - torch.eye(min(shape))).abs().max() <= 1e-5
    assert (sign - polar_svd(w, EPS)[1]).abs().max() < 1e-4


@pytest.mark.parametrize("cond", [10, 1000])
def test_newton_schulz_converges_by_itself(cond):
    assert polar_newton_schulz(planted(64, 64, cond))[1].all()


def test_newton_schulz_hands_rank_deficient_matrices_to_the_svd():
    w = torch.cat([planted(32, 32, 10, n=1), gaussian(1, 32, 4) @ gaussian(1, 4, 32, seed=1)])
    assert polar_newton_schulz(w)[1].tolist() == [True, False]
    sign = polar(w, "newton_schulz", EPS)[1]
    assert torch.linalg.matrix_norm(sign).square().tolist() == pytest.approx([32, 4], rel=1e-4)


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_impact_is_nuclear_over_root_rank_times_frobenius(method):
    w = gaussian(2, 40, 24)
    s = torch.linalg.svdvals(w)
    expected = s.sum(-1) / (24**0.5 * s.norm(dim=-1))
    assert torch.allclose(impact(w, polar(w, method, EPS)[1]), expected, atol=1e-5)


def test_impact_of_known_spectra():
    assert impact(*_with_sign(gaussian(1, 512, 512))).item() == pytest.approx(0.849, abs=3e-3)
    slow = torch.diag(1 / torch.arange(1, 513))[None]
    assert impact(*_with_sign(slow)).item() == pytest.approx(0.24, abs=0.01)


def _with_sign(w):
    return w, polar_svd(w, EPS)[1]


# ---- one application -------------------------------------------------------------------------


def single(w, **options):
    """`w` as the only target of an MSign that has just been applied."""
    p = nn.Parameter(w.clone())
    base = torch.optim.SGD([p], 0.1)
    optimizer = MSign(base, named_params=[("w", p)], targets="all2d", **options)
    optimizer.apply()
    return p.detach(), optimizer


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
@pytest.mark.parametrize("shape", [(64, 64), (48, 192)])
def test_application_restores_stable_rank_and_keeps_norm_and_spaces(method, shape):
    w = gaussian(*shape)
    exact = torch.linalg.svdvals(w)
    before = (exact.square().sum() / exact[0] ** 2).item()
    assert before < 0.6 * min(shape)
    if shape == (64, 64):
        assert before == pytest.approx(0.25 * 64, rel=0.25)
    out, _ = single(w, polar=method)
    s = torch.linalg.svdvals(out)
    assert (s.square().sum() / s[0] ** 2).item() == pytest.approx(min(shape), rel=1e-4)
    assert out.norm().item() == pytest.approx(w.norm().item(), rel=1e-6)
    again, _ = single(out, polar=method)
    assert torch.allclose(again, out, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 48), (70, 90)])
def test_rank_deficient_weights_keep_rank_and_spaces(shape):
    left, right = gaussian(shape[0], 5), gaussian(5, shape[1], seed=1)
    out, _ = single(left @ right)
    s = torch.linalg.svdvals(out)
    assert (s > 1e-4 * s[0]).sum() == 5
    assert (s.square().sum() / s[0] ** 2).item() == pytest.approx(5, rel=1e-4)
    q, _ = torch.linalg.qr(left)
    assert torch.allclose(q @ (q.T @ out), out, atol=1e-4)  # column space
    q, _ = torch.linalg.qr(right.T)
    assert torch.allclose((out @ q) @ q.T, out, atol=1e-4)  # row space


def test_mix_flattens_by_the_exponent_asked_for():
    w = planted(32, 32, 100, n=1)[0]
    out, _ = single(w, mix=0.5)
    s = torch.linalg.svdvals(w).sqrt()
    expected = s / s.norm() * w.norm()
    assert torch.allclose(torch.linalg.svdvals(out), expected, rtol=1e-4)


def test_guard_skips_matrices_far_from_their_sign():
    slow = torch.diag(1 / torch.arange(1, 129.0))
    out, optimizer = single(slow, guard_cos=0.5)
    assert torch.equal(out, slow)
    assert optimizer.stats == {"applied": 0, "guarded": 1, "skipped": 0}
    out, optimizer = single(gaussian(32, 32), guard_cos=0.5)
    assert optimizer.stats == {"applied": 1, "guarded": 0, "skipped": 0}


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_zero_weights_are_skipped(method):
    out, optimizer = single(torch.zeros(8, 8), polar=method)
    assert torch.equal(out, torch.zeros(8, 8))
    assert optimizer.stats["skipped"] == 1


def test_bf16_weights_are_computed_in_float32():
    w = gaussian(32, 32, dtype=torch.bfloat16)
    out, _ = single(w)
    assert out.dtype == torch.bfloat16
    assert stable_rank(out[None])[0] == pytest.approx(32, rel=2e-2)


def test_convolutions_are_flattened():
    w = gaussian(6, 2, 3, 3)
    assert torch.allclose(single(w)[0].view(6, 18), single(w.view(6, 18))[0], atol=1e-6)


# ---- the wrapper -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD, Dash])
def test_monitor_mode_is_bit_identical_to_its_base(base):
    plain, watched = model(), model()
    train(plain, base(plain.parameters(), 1e-2), 6)
    optimizer = wrapped(watched, base=base, period=None, monitor_every=2)
    train(watched, optimizer, 6)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(watched)[name]), name
    assert [t for t, _ in optimizer.watch.history] == [2, 4, 6]
    assert optimizer.stats["applied"] == 0


def test_it_applies_at_exactly_the_multiples_of_its_period():
    net = model()
    optimizer = wrapped(net, period=3)
    flat = []
    for step in range(7):
        train(net, optimizer, 1, first=step)
        s = torch.linalg.svdvals(o_proj(net))
        flat.append(bool(s[0] - s[-1] < 1e-4))
    assert flat == [False, False, True, False, False, True, False]
    assert optimizer.stats["applied"] == 2 * 12


def test_start_and_stop_limit_the_steps():
    net = model()
    optimizer = wrapped(net, period=2, start=3, stop=5)
    train(net, optimizer, 8)
    assert optimizer.stats["applied"] == 12  # step 4 only


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attn", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("attn_out", {"o_proj"}),
        ("all2d", {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"}),
        (lambda name, p: "up_proj" in name, {"up_proj"}),
    ],
)
def test_only_targets_change(targets, expected):
    net = model()
    before = weights(net)
    optimizer = wrapped(net, targets=targets, period=1)
    optimizer.apply()
    changed = {name for name, value in weights(net).items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-2] for name in changed} == expected
    assert len(changed) == 3 * len(expected)
    assert all(name.endswith("weight") for name in changed)


def test_tagged_tensors_are_never_touched():
    net = model()
    net.layers[1].self_attn.q_proj.weight._edgert_no_msign = True
    before = weights(net)
    wrapped(net, targets=lambda name, p: True).apply()
    name = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(weights(net)[name], before[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("_orig_mod.model.layers.0.self_attn.o_proj.weight", True),
        ("transformer.h.3.attn.c_attn.weight", True),
        ("transformer.h.3.attn.c_proj.weight", True),
        ("transformer.h.3.mlp.c_proj.weight", False),
        ("blocks.2.mixer.out_proj.weight", False),
        ("blocks.2.attention.qkv.weight", True),
        ("encoder.layers.0.self_attn.in_proj_weight", True),
        ("model.layers.0.mlp.up_proj.weight", False),
        ("model.embed_tokens.weight", False),
    ],
)
def test_attention_projections_by_name(name, expected):
    assert is_attention(name) is expected


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "lm_head.weight", "wte.weight", "ln_f.weight", "a.norm1.w"],
)
def test_embeddings_heads_and_norms_never_match(name):
    assert not matches(name, torch.zeros(4, 4), "all2d")


def test_fused_projections_split_into_three():
    w = nn.Parameter(gaussian(24, 8))
    optimizer = MSign(torch.optim.SGD([w], 0.1), named_params=[("attn.qkv.weight", w)], period=1)
    before = w.detach().clone()
    optimizer.apply()
    for part, old in zip(w.detach().chunk(3), before.chunk(3), strict=True):
        assert stable_rank(part[None])[0] == pytest.approx(8, rel=1e-4)
        assert part.norm().item() == pytest.approx(old.norm().item(), rel=1e-6)
    assert set(optimizer.stable_ranks()) == {f"attn.qkv.weight[{i}]" for i in range(3)}


def test_fused_projections_with_grouped_queries_need_a_tag():
    w = nn.Parameter(gaussian(16, 8))
    with pytest.raises(ValueError, match=r"16 x 8 .* p\._edgert_qkv_rows"):
        matrix_parts("attn.qkv.weight", w)
    w._edgert_qkv_rows = (8, 4, 4)
    assert [tuple(part.shape) for part in matrix_parts("attn.qkv.weight", w)] == [
        (8, 8),
        (4, 8),
        (4, 8),
    ]
    transposed = nn.Parameter(gaussian(8, 24))
    parts = matrix_parts("attn.c_attn.weight", transposed)
    assert [tuple(part.shape) for part in parts] == [(8, 8)] * 3


def test_schedulers_scalers_and_hooks_see_the_base():
    net = model()
    optimizer = wrapped(net, period=2)
    base = optimizer.base
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train(net, optimizer, 1)
    scheduler.step()
    assert base.param_groups[0]["lr"] == pytest.approx(5e-3)
    assert calls == [1]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(base.param_groups) == 2


def test_skipped_steps_do_not_count():
    net = model()
    optimizer = wrapped(net, period=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(net(torch.tensor([[1, 2]])).sum()).backward()
        if bad:
            net.lm_head.weight.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.t == 2


def test_as_a_hook_of_the_base_it_counts_once():
    net, copied = model(), model()
    hooked, other = wrapped(net, period=2), wrapped(copied, period=2)
    hooked.base.register_step_post_hook(hooked.after_step)
    train(net, hooked.base, 2)
    train(net, hooked, 2, first=2)
    train(copied, other, 4)
    assert hooked.t == other.t == 4
    for name, value in weights(net).items():
        assert torch.equal(value, weights(copied)[name]), name


@pytest.mark.parametrize("base", [torch.optim.AdamW, Dash])
def test_resumed_run_is_bit_identical(base):
    net = model()
    optimizer = wrapped(net, base=base, period=3)
    train(net, optimizer, 4)
    saved = copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    assert set(saved["optimizer"]) == {"base", "t"}
    train(net, optimizer, 4, first=4)
    fresh = model(seed=9)
    resumed = wrapped(fresh, base=base, period=3)
    fresh.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    train(fresh, resumed, 4, first=4)
    assert resumed.t == 8
    for name, value in weights(net).items():
        assert torch.equal(value, weights(fresh)[name]), name


def test_closure_loss_passes_through():
    net = model()
    optimizer = wrapped(net)

    def closure():
        loss = net(torch.tensor([[1, 2]])).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(targets="mlp"), "targets is 'mlp', expected attn, attn_out, all2d or a callable"),
        (dict(targets=lambda name, p: False), "matches none of the optimizer's parameters"),
        (dict(period=0), "period is 0"),
        (dict(monitor_every=0), "monitor_every is 0"),
        (dict(polar="qr"), "polar is 'qr', expected one of svd, newton_schulz, auto"),
        (dict(mix=0.0), "mix is 0.0"),
        (dict(mix=0.5, polar="newton_schulz"), "mix below 1 needs singular values"),
        (dict(guard_cos=2.0), "guard_cos is 2.0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wrapped(model(), **options)


def test_wrong_base_and_foreign_state_are_refused():
    net = model()
    with pytest.raises(TypeError, match="base is list, expected a torch optimizer"):
        MSign([], named_params=net.named_parameters())
    with pytest.raises(ValueError, match="the state lacks"):
        wrapped(net).load_state_dict({"t": 3})


# ---- warning signs ---------------------------------------------------------------------------


def test_stable_rank_of_known_matrices():
    stack = torch.stack(
        [torch.eye(12), torch.diag(torch.tensor([3.0] + [1.0] * 11)), torch.zeros(12, 12)]
    )
    assert stable_rank(stack).tolist() == pytest.approx([12, 20 / 9, 0], rel=1e-5)


def test_monitor_warns_once_when_early_layers_collapse():
    net = model()
    optimizer = wrapped(net, base=torch.optim.SGD, lr=0.0, period=None, monitor_every=1)
    train(net, optimizer, 1)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            getattr(net.layers[0].self_attn, name).weight[1:] *= 1e-3
    with pytest.warns(UserWarning, match="step 2: geometric-mean stable rank of the first third"):
        train(net, optimizer, 1)
    train(net, optimizer, 1)  # warnings are errors here: no second one


def test_monitor_ignores_late_layers_and_warmup():
    net = model()
    optimizer = wrapped(net, base=torch.optim.SGD, lr=0.0, period=None, monitor_every=1, warmup=3)
    train(net, optimizer, 2)
    with torch.no_grad():
        net.layers[2].self_attn.o_proj.weight[1:] *= 1e-3
        net.layers[0].self_attn.o_proj.weight[1:] *= 1e-3
    train(net, optimizer, 2)  # the first layer fell before the baseline was taken
    assert len(optimizer.watch.history) == 4


def test_alignment_of_linear_blocks_is_that_of_their_singular_vectors():
    first, second = gaussian(6, 6), gaussian(6, 6, seed=1)
    u = torch.linalg.svd(first)[0][:, 0]
    v = torch.linalg.svd(second)[2][0]
    blocks = [lambda x: x @ first.T, lambda x: x @ second.T]
    found = jacobian_alignment(blocks, gaussian(1, 1, 6, seed=2), iterations=200)
    assert found == pytest.approx([abs(float(u @ v))], abs=1e-4)


def test_alignment_runs_on_transformer_blocks():
    net = model()
    found = jacobian_alignment(list(net.layers), gaussian(1, 8, 16))
    assert len(found) == 2
    assert all(0 <= value <= 1 + 1e-6 for value in found)


def test_alignment_runs_on_fused_attention():
    """Models call `scaled_dot_product_attention`, whose fast kernels have no forward mode."""

    def block(x):
        return x + nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    def plain(x):
        late = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (x @ x.mT / x.shape[-1] ** 0.5).masked_fill(late, -math.inf)
        return x + scores.softmax(-1) @ x

    hidden = gaussian(1, 8, 16)
    found = jacobian_alignment([block, block], hidden)
    assert found == pytest.approx(jacobian_alignment([plain, plain], hidden), abs=1e-4)


def test_monitor_records_alignment_without_changing_the_run():
    plain, watched = model(), model()
    hidden = gaussian(1, 8, 16)
    optimizer = wrapped(
        watched,
        period=None,
        monitor_every=2,
        alignment_probe=lambda: jacobian_alignment(list(watched.layers), hidden),
    )
    train(watched, optimizer, 4)
    train(plain, torch.optim.AdamW(plain.parameters(), 1e-2), 4)
    assert [(t, len(values)) for t, values in optimizer.watch.alignments] == [(2, 2), (4, 2)]
    assert all(torch.equal(v, weights(watched)[n]) for n, v in weights(plain).items())


def test_alignment_refuses_long_sequences():
    with pytest.raises(ValueError, match=r"hidden has shape \(1, 65, 4\)"):
        jacobian_alignment([], torch.zeros(1, 65, 4))


def test_two_factor_alignment_bound():
    """`||J2 J1|| >= a ||J2|| ||J1||`: exact for two factors; for three and more it can fail."""
    for seed in range(20):
        first, second = gaussian(12, 12, seed=2 * seed), gaussian(12, 12, seed=2 * seed + 1)
        u = torch.linalg.svd(first)[0][:, 0]
        v = torch.linalg.svd(second)[2][0]
        norms = torch.linalg.matrix_norm(second, 2) * torch.linalg.matrix_norm(first, 2)
        assert torch.linalg.matrix_norm(second @ first, 2) >= abs(u @ v) * norms * (1 - 1e-5)


def test_aligned_gradient_steps_lower_the_stable_rank():
    s = torch.tensor([2.0, 1.0, 0.8, 0.5], dtype=torch.float64)
    correlation = torch.tensor([-1.0, -0.3, -0.2, -0.1], dtype=torch.float64)
    found = []
    for _ in range(5):
        found.append(stable_rank(torch.diag(s)[None])[0].item())
        s = s - 0.1 * correlation
    assert found == pytest.approx([1.4725, 1.4520, 1.4338, 1.4175, 1.4028], abs=1e-4)
