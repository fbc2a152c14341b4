"""DASH against its plain-loop oracle, and its invariants (arXiv 2602.02016)."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from edgert.converters.optim import Dash
from edgert.converters.optim.blocks import (
    Blocked,
    Grid,
    assign_ranks,
    build_plan,
    gather,
    scatter,
    tile_grids,
)
from edgert.converters.optim.options import resolve


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- tiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(48, 32), (50, 33), (5, 300), (1, 7), (8, 3, 3, 3)])
def test_scatter_inverts_gather(shape):
    matrix = torch.randn(shape).reshape(shape[0], -1)
    back = torch.full_like(matrix, math.nan)
    for grid in tile_grids(*matrix.shape, 16):
        tiles = torch.empty(grid.tiles, grid.r, grid.c)
        gather([matrix], [grid], tiles)
        first = matrix[grid.row : grid.row + grid.r, grid.col : grid.col + grid.c]
        assert torch.equal(tiles[0], first)
        scatter(tiles, [back], [grid])
    assert torch.equal(back, matrix)


def test_gather_reads_transposed_matrices_and_converts():
    matrix = torch.randn(33, 50).t()
    grid = Grid(16, 16, 2, 1, 16, 16)
    tiles = torch.empty(2, 16, 16, dtype=torch.float64)
    gather([matrix], [grid], tiles)
    assert torch.equal(tiles[1], matrix[32:48, 16:32].double())


def test_plan_counts_the_example_of_the_paper():
    plan = build_plan([Blocked(0, 32000, 2048, 2, 0)], 1024)
    sizes = {(key.r, key.c): n for key, n in plan.sizes.items()}
    assert sizes == {(1024, 1024): 62, (256, 1024): 2}
    assert {key.k: n for key, n in plan.factors.items()} == {1024: 126, 256: 2}


def test_plan_cuts_four_tile_shapes():
    plan = build_plan([Blocked(0, 50, 33, 2, 0)], 16)
    assert {(k.r, k.c): n for k, n in plan.sizes.items()} == {
        (16, 16): 6,
        (16, 1): 3,
        (2, 16): 2,
        (2, 1): 1,
    }


def test_bad_block_is_refused():
    with pytest.raises(ValueError, match="positive, found 4, 4, 0"):
        tile_grids(4, 4, 0)


def test_ranks_are_balanced_by_size():
    owner = assign_ranks([10, 100, 60, 50, 3], [False, False, False, False, True], 2)
    assert owner == [0, 0, 1, 1, 0]  # 100+10 | 60+50, the vector by its index


# ---- the optimizer against a plain loop ------------------------------------------------------


class LoopShampoo:
    """The update of arXiv 2602.02016, one tile at a time with eigh, without any stack."""

    def __init__(self, weight, block, *, lr, betas=(0.9, 0.95, 0.95), wd=0.0, freq=1, **options):
        self.w, self.lr, self.wd, self.freq = weight, lr, wd, freq
        self.b, self.bl, self.bv = betas
        self.mu, self.nesterov = options.get("mu", 0.0), options.get("nesterov", True)
        self.eps_root = options.get("eps_root")
        self.t = 0
        rows, cols = weight.shape
        self.tiles = [
            (slice(i, min(i + block, rows)), slice(j, min(j + block, cols)), {})
            for i in range(0, rows, block)
            for j in range(0, cols, block)
        ]

    def root(self, a):
        k = a.shape[0]
        eps = self.eps_root
        if eps is None:
            eps = max(1e-10, 1e-6 * a.trace().item() / k)
        values, q = torch.linalg.eigh(a + eps * torch.eye(k, dtype=a.dtype))
        values = values + eps - min(values[0].item(), 0.0)
        return q @ torch.diag(values**-0.25) @ q.T

    def step(self, grad):
        self.t += 1
        self.w *= 1 - self.lr * self.wd
        for rows, cols, s in self.tiles:
            g = grad[rows, cols]
            if not s:
                s.update(L=0, R=0, V=0, G=0, M=0)
            fresh = 1.0 if self.bl == 1 else 1 - self.bl
            s["L"] = self.bl * s["L"] + fresh * g @ g.T
            s["R"] = self.bl * s["R"] + fresh * g.T @ g
            s["V"] = self.bv * s["V"] + (1 - self.bv) * g * g
            if self.t == 1 or self.t % self.freq == 0:
                s["rootL"], s["rootR"] = self.root(s["L"]), self.root(s["R"])
            s["G"] = self.b * s["G"] + (1 - self.b) * g
            adam = s["G"] / (1 - self.b**self.t)
            adam = adam / ((s["V"] / (1 - self.bv**self.t)).sqrt() + 1e-8)
            u = s["rootL"] @ s["G"] @ s["rootR"]
            p = u * adam.norm() / (u.norm() + 1e-16)
            if self.mu:
                s["M"] = self.mu * s["M"] + p
                p = p + self.mu * s["M"] if self.nesterov else s["M"]
            self.w[rows, cols] -= self.lr * p


def gradients(shape, steps, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(steps)
    ]


def weight(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    )


def feed(optimizer, pairs):
    for p, g in pairs:
        p.grad = g.to(p.dtype).clone()
    optimizer.step()


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


CASES = [
    dict(),
    dict(freq=3),
    dict(betas=(0.0, 1.0, 0.95)),
    dict(mu=0.3, nesterov=True),
    dict(mu=0.3, nesterov=False),
    dict(eps_root=1e-10),
]


@pytest.mark.parametrize("options", CASES, ids=[str(c) for c in CASES])
@pytest.mark.parametrize("stack", ["model", "layer"])
def test_float64_matches_the_loop_after_20_steps(stack, options):
    options = {"freq": 1, **options}
    shapes = [(48, 32), (50, 33), (5, 40)]
    params = [weight(*shape, seed=i) for i, shape in enumerate(shapes)]
    loops = [LoopShampoo(p.detach().clone(), 16, lr=1e-2, wd=0.1, **options) for p in params]
    dash = Dash(params, 1e-2, block=16, weight_decay=0.1, solver="evd", stack=stack, **options)
    for step in range(20):
        grads = [gradients(shape, 20, seed=i + 7)[step] for i, shape in enumerate(shapes)]
        feed(dash, zip(params, grads, strict=True))
        for loop, g in zip(loops, grads, strict=True):
            loop.step(g)
    for p, loop in zip(params, loops, strict=True):
        assert relative(p.detach(), loop.w) < 1e-9


def test_one_tile_is_plain_shampoo():
    p = weight(20, 12)
    loop = LoopShampoo(p.detach().clone(), 100, lr=1e-2)
    dash = Dash([p], 1e-2, block=100, solver="evd", freq=1)
    for g in gradients((20, 12), 20):
        feed(dash, [(p, g)])
        loop.step(g)
    assert relative(p.detach(), loop.w) < 1e-9


def test_float32_stays_near_the_float64_loop():
    p = weight(64, 32, dtype=torch.float32)
    loop = LoopShampoo(p.detach().double(), 32, lr=1e-2)
    dash = Dash([p], 1e-2, block=32, solver="evd", freq=1)
    origin = loop.w.clone()
    for step, g in enumerate(gradients((64, 32), 20, dtype=torch.float32), 1):
        feed(dash, [(p, g)])
        loop.step(g.double())
        if step in (1, 5, 20):
            moved = (loop.w - origin).norm()
            assert (p.detach().double() - loop.w).norm() / moved < 2e-2, step


@pytest.mark.parametrize("solver", ["evd", "ndb", "cn", "chebyshev"])
def test_stacked_equals_one_optimizer_per_tile(solver):
    p = weight(48, 32)
    tiles = {
        (i, j): weight(48, 32).detach()[i : i + 16, j : j + 16].clone()
        for i in (0, 16, 32)
        for j in (0, 16)
    }
    tiles = {at: torch.nn.Parameter(t) for at, t in tiles.items()}
    options = dict(block=16, solver=solver, freq=1, weight_decay=0.1)
    dash = Dash([p], 1e-2, **options)
    singles = [Dash([t], 1e-2, **options) for t in tiles.values()]
    for g in gradients((48, 32), 5):
        feed(dash, [(p, g)])
        for ((i, j), t), single in zip(tiles.items(), singles, strict=True):
            feed(single, [(t, g[i : i + 16, j : j + 16])])
    # Coupled Newton stops when the whole stack has converged, so a lone tile stops earlier.
    bound = 1e-8 if solver == "cn" else 1e-12
    for (i, j), t in tiles.items():
        assert relative(p.detach()[i : i + 16, j : j + 16], t.detach()) < bound


def test_convolutions_and_unit_dimensions_are_matrices():
    conv, plain = weight(8, 3, 3, 3), torch.nn.Parameter(weight(8, 3, 3, 3).detach().reshape(8, 27))
    extra = torch.nn.Parameter(plain.detach().clone().reshape(1, 8, 1, 27))
    dash = Dash([conv, plain, extra], 1e-2, block=16, freq=1)
    for g in gradients((8, 27), 3):
        feed(dash, [(conv, g.reshape(8, 3, 3, 3)), (plain, g), (extra, g.reshape(1, 8, 1, 27))])
    assert relative(conv.detach().reshape(8, 27), plain.detach()) < 1e-14
    assert relative(extra.detach().reshape(8, 27), plain.detach()) < 1e-14


# ---- invariants ------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["evd", "ndb", "cn", "chebyshev"])
def test_every_tile_moves_as_far_as_adam(solver):
    p = weight(48, 40)
    dash = Dash([p], 1.0, block=16, solver=solver, freq=1)
    mean, square = torch.zeros(48, 40), torch.zeros(48, 40)
    for t, g in enumerate(gradients((48, 40), 4), 1):
        before = p.detach().clone()
        feed(dash, [(p, g)])
        mean = 0.9 * mean + 0.1 * g
        square = 0.95 * square + 0.05 * g * g
        adam = mean / (1 - 0.9**t) / ((square / (1 - 0.95**t)).sqrt() + 1e-8)
        moved = before - p.detach()
        for grid in tile_grids(48, 40, 16):
            for i in range(grid.nr):
                at = slice(grid.row + i * grid.r, grid.row + (i + 1) * grid.r)
                to = slice(grid.col, grid.col + grid.c)
                assert moved[at, to].norm().item() == pytest.approx(
                    adam[at, to].norm().item(), rel=1e-9
                )


def test_roots_are_cached_between_refreshes():
    p = weight(16, 16)
    dash = Dash([p], 1e-2, block=16, freq=10)
    seen = []
    for step, g in enumerate(gradients((16, 16), 30), 1):
        before = dash.stats["solves"]
        feed(dash, [(p, g)])
        if dash.stats["solves"] > before:
            seen.append(step)
    assert seen == [1, 10, 20, 30]
    assert dash.stats == {"solves": 4, "refreshes": 4, "fallbacks": 0}


def test_one_solver_call_serves_all_factors_of_one_side():
    params = [weight(48, 32), weight(32, 16), weight(20, 16)]
    dash = Dash(params, 1e-2, block=16, freq=1)
    feed(dash, [(p, p.detach().clone()) for p in params])
    assert dash.stats["solves"] == 2  # sides 16 and 4


@pytest.mark.parametrize("solver", ["evd", "ndb", "cn", "chebyshev"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_gradient_only_decays(solver, dtype):
    p, bias = weight(20, 20, dtype=dtype), weight(20, dtype=dtype)
    start, start_bias = p.detach().clone(), bias.detach().clone()
    dash = Dash([p, bias], 0.1, block=16, solver=solver, weight_decay=0.5, freq=1)
    feed(dash, [(p, torch.zeros(20, 20)), (bias, torch.zeros(20))])
    assert torch.equal(p.detach(), (start.float() * (1 - 0.05)).to(dtype))
    assert torch.equal(bias.detach(), start_bias)


def build(weights=0, dtype=torch.float32, **options):
    params = [weight(50, 33, seed=weights, dtype=dtype), weight(33, seed=weights, dtype=dtype)]
    defaults = dict(block=16, solver="ndb", freq=3, mu=0.2, weight_decay=0.01)
    return params, Dash(params, 1e-2, **{**defaults, **options})


@pytest.mark.parametrize("solver", ["evd", "ndb", "cn", "chebyshev"])
def test_resumed_run_is_bit_identical(solver):
    grads = list(zip(gradients((50, 33), 14), gradients((33,), 14), strict=True))
    params, dash = build(solver=solver, one_dim="shampoo")
    for pair in grads[:7]:
        feed(dash, zip(params, pair, strict=True))
    buffer = io.BytesIO()
    torch.save({"model": params, "optimizer": dash.state_dict()}, buffer)
    for pair in grads[7:]:
        feed(dash, zip(params, pair, strict=True))

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed_params, resumed = build(weights=5, solver=solver, one_dim="shampoo")
    with torch.no_grad():
        for p, value in zip(resumed_params, saved["model"], strict=True):
            p.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    for pair in grads[7:]:
        feed(resumed, zip(resumed_params, pair, strict=True))
    for a, b in zip(params, resumed_params, strict=True):
        assert torch.equal(a, b)
    assert resumed.stats == dash.stats


def test_copies_carry_the_state():
    params, dash = build()
    feed(dash, [(p, torch.ones_like(p)) for p in params])
    copied_params, copied = copy.deepcopy((params, dash))
    for optimizer, ps in ((dash, params), (copied, copied_params)):
        feed(optimizer, [(p, p.detach().clone()) for p in ps])
    assert all(torch.equal(a, b) for a, b in zip(params, copied_params, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(block=8), "saved index differs"),
        (dict(stack="layer"), "saved index differs"),
        (dict(seed=1), "saved seed differs"),
        (dict(mu=0.0), "disagree on"),
    ],
)
def test_foreign_state_is_refused_before_anything_changes(change, message):
    params, dash = build()
    feed(dash, [(p, torch.ones_like(p)) for p in params])
    _, other = build(**change)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(dash.state_dict())
    after = other.state_dict()
    for name, tensor in before["dash"]["tensors"].items():
        assert torch.equal(tensor, after["dash"]["tensors"][name])


def test_foreign_shapes_and_foreign_optimizers_are_refused():
    _, dash = build()
    other = Dash([weight(33, 50), weight(33)], 1e-2)
    with pytest.raises(ValueError, match="saved shapes differs"):
        other.load_state_dict(dash.state_dict())
    adam = torch.optim.AdamW([weight(3, 3)])
    with pytest.raises(ValueError, match="no 'dash' entry"):
        dash.load_state_dict(adam.state_dict())


def test_each_group_uses_its_own_rate_and_decay():
    a, b = weight(16, 16), weight(16, 16)
    start = a.detach().clone()
    dash = Dash([{"params": [a], "lr": 1e-2}, {"params": [b]}], 1e-3, block=16)
    feed(dash, [(a, start), (b, start)])
    ratio = (a.detach() - start).norm() / (b.detach() - start).norm()
    assert ratio.item() == pytest.approx(10)
    dash.param_groups[1]["weight_decay"] = 0.5
    before = b.detach().clone()
    feed(dash, [(a, 0 * start), (b, 0 * start)])
    drift = (b.detach() - before).norm()
    assert drift > 0


def test_before_start_it_is_adam():
    p = weight(20, 12)
    start = p.detach().clone()
    dash = Dash([p], 1e-2, block=16, start=5, freq=10)
    adam = torch.nn.Parameter(start.clone())
    reference = torch.optim.AdamW([adam], 1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    grads = gradients((20, 12), 6)
    for g in grads[:4]:
        feed(dash, [(p, g)])
        feed(reference, [(adam, g)])
        assert relative(p.detach(), adam.detach()) < 1e-12
    assert dash.stats["solves"] == 0
    feed(dash, [(p, grads[4])])
    feed(reference, [(adam, grads[4])])
    assert dash.stats["refreshes"] == 1  # the first preconditioned step needs roots
    assert relative(p.detach(), adam.detach()) > 1e-6


def test_decay_shrinks_by_one_minus_lr_wd():
    p = weight(16, 16)
    start = p.detach().clone()
    dash = Dash([p], 0.1, weight_decay=0.3)
    feed(dash, [(p, torch.zeros(16, 16))])
    assert torch.allclose(p.detach(), start * 0.97, rtol=1e-15, atol=0)


def test_vectors_follow_adamw():
    p = weight(33)
    copied = torch.nn.Parameter(p.detach().clone())
    dash = Dash([p], 1e-2, weight_decay=0.5)
    adam = torch.optim.AdamW([copied], 1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for g in gradients((33,), 5):
        feed(dash, [(p, g)])
        feed(adam, [(copied, g)])
    assert relative(p.detach(), copied.detach()) < 1e-12


def test_excluded_matrices_follow_adamw_with_decay():
    p, copied = weight(9, 7), weight(9, 7)
    dash = Dash([p], 1e-2, weight_decay=0.5, exclude=lambda q: q.shape[0] == 9)
    adam = torch.optim.AdamW([copied], 1e-2, betas=(0.9, 0.95), weight_decay=0.5)
    for g in gradients((9, 7), 5):
        feed(dash, [(p, g)])
        feed(adam, [(copied, g)])
    assert relative(p.detach(), copied.detach()) < 1e-12
    assert dash.stats["solves"] == 0


def test_one_sided_shampoo_for_vectors():
    p = weight(40)
    start = p.detach().clone()
    dash = Dash([p], 1e-2, block=16, one_dim="shampoo", freq=1)
    (g,) = gradients((40,), 1)
    feed(dash, [(p, g)])
    expected = start.clone()
    for at in (slice(0, 16), slice(16, 32), slice(32, 40)):
        part = g[at]
        factor = 0.05 * torch.outer(part, part)
        eps = max(1e-10, 1e-6 * factor.trace().item() / len(part))
        values, q = torch.linalg.eigh(factor + eps * torch.eye(len(part), dtype=g.dtype))
        values = values + eps - min(values[0].item(), 0)
        u = q @ torch.diag(values**-0.5) @ q.T @ (0.1 * part)
        adam = part / (part.abs() + 1e-8)
        expected[at] -= 1e-2 * u * adam.norm() / u.norm()
    assert relative(p.detach(), expected) < 1e-9


def test_long_vectors_stay_with_adamw():
    p = weight(2049)
    dash = Dash([p], 1e-2, one_dim="shampoo")
    feed(dash, [(p, torch.ones(2049))])
    assert dash.stats["solves"] == 0


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_parameters_without_gradient_keep_their_state(missing):
    shapes = [(20, 16), (16, 16), (16,)]
    params = [weight(*s, seed=i, dtype=torch.float32) for i, s in enumerate(shapes)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in params]
    options = dict(block=16, solver="ndb", freq=2)
    dash = Dash(params, 1e-2, **options)
    separate = [Dash([p], 1e-2, **options) for p in alone]
    for step in range(6):
        for i, (p, q) in enumerate(zip(params, alone, strict=True)):
            g = gradients(shapes[i], 6, seed=i)[step].float()
            absent = i == missing and step in (0, 1, 3)
            p.grad = q.grad = None if absent else g
        dash.step()
        for optimizer in separate:
            optimizer.step()
    for p, q in zip(params, alone, strict=True):
        assert relative(p.detach(), q.detach().double()) < 1e-6


def test_added_group_keeps_earlier_state():
    a, b = weight(20, 16), weight(20, 16, seed=3)
    copied = torch.nn.Parameter(a.detach().clone())
    dash, alone = Dash([a], 1e-2, block=16), Dash([copied], 1e-2, block=16)
    for step, g in enumerate(gradients((20, 16), 12)):
        if step == 5:
            dash.add_param_group({"params": [b], "lr": 1e-3})
        feed(dash, [(a, g)] + ([(b, g)] if step >= 5 else []))
        feed(alone, [(copied, g)])
    assert relative(a.detach(), copied.detach()) < 1e-12


def test_low_precision_parameters_round_once():
    p16, p32 = weight(16, 16, dtype=torch.bfloat16), weight(16, 16, dtype=torch.bfloat16)
    p32 = torch.nn.Parameter(p32.detach().float())
    options = dict(weight_decay=0.1, block=16)
    dash16, dash32 = Dash([p16], 1e-2, **options), Dash([p32], 1e-2, **options)
    (g,) = gradients((16, 16), 1, dtype=torch.bfloat16)
    feed(dash16, [(p16, g)])
    feed(dash32, [(p32, g)])
    assert torch.equal(p16.detach(), p32.detach().bfloat16())
    tensors = dash16.state_dict()["dash"]["tensors"].values()
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_gradients_are_not_modified():
    params, dash = build()
    grads = [torch.randn_like(p) for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    kept = [g.clone() for g in grads]
    dash.step()
    assert all(torch.equal(a, b) for a, b in zip(grads, kept, strict=True))


def test_closure_loss_is_returned():
    p = weight(4, 4)
    dash = Dash([p], 1e-2)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert dash.step(closure).item() > 0


def test_matmul_precision_is_restored():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        params, dash = build()
        feed(dash, [(p, torch.ones_like(p)) for p in params])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_named_parameters_and_schedulers():
    net = torch.nn.Linear(6, 5)
    dash = Dash(net.named_parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(dash, 0.1, total_steps=4, cycle_momentum=False)
    before = net.weight.detach().clone()
    net(torch.ones(2, 6)).sum().backward()
    dash.step()
    schedule.step()
    assert not torch.equal(net.weight, before)
    assert dash.param_groups[0]["param_names"] == ["weight", "bias"]


def test_public_names():
    from edgert.converters import optim

    assert optim.__all__ == sorted(optim.__all__)
    assert {"Dash", "MSign"} <= set(optim.__all__)


def test_empty_parameters_are_left_alone():
    p = torch.nn.Parameter(torch.empty(0, 4))
    dash = Dash([p], 1e-2)
    feed(dash, [(p, torch.empty(0, 4))])
    assert p.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(lr=-1.0), "lr is -1.0"),
        (dict(solver="qr"), "solver is 'qr', expected one of auto, evd"),
        (dict(scaling="max"), "scaling is 'max'"),
        (dict(one_dim="none"), "one_dim is 'none'"),
        (dict(stack="all"), "stack is 'all'"),
        (dict(betas=(0.9, 0.95)), "betas has 2 values"),
        (dict(betas=(1.0, 0.9, 0.9)), r"betas\[0\] is 1.0"),
        (dict(block=0), "block is 0"),
        (dict(freq=0), "freq is 0"),
        (dict(newton_steps=0), "newton_steps is 0"),
        (dict(cheb_degree=1), "cheb_degree is 1"),
        (dict(eps_root=-1.0), "eps_root is -1.0"),
        (dict(eps_graft=math.nan), "eps_graft is nan"),
        (dict(mu=1.0), "mu is 1.0"),
        (dict(mu=0.9), "pass allow_high_mu=True"),
        (dict(weight_decay=-0.1), "weight_decay is -0.1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dash([weight(4, 4)], **{"lr": 1e-3, **options})


@pytest.mark.parametrize(
    ("cuda", "numel", "solver", "expected"),
    [
        (False, 10**9, "auto", ("evd", 128, 10)),
        (True, 10**6, "auto", ("ndb", 512, 1)),
        (True, 10**9, "cn", ("cn", 1024, 1)),
        (True, 10**6, "evd", ("evd", 512, 10)),
    ],
)
def test_defaults_follow_the_device(cuda, numel, solver, expected):
    dash = Dash([weight(4, 4)], 1e-3, solver=solver)
    block, hyper = resolve(dash._options, [SimpleNamespace(is_cuda=cuda, numel=lambda: numel)])
    assert (hyper.root.solver, block, hyper.freq) == expected


def test_defaults_are_the_papers_or_say_why():
    dash = Dash([weight(4, 4)], 1e-3)
    _, hyper = resolve(dash._options, [])
    assert (hyper.beta_grad, hyper.beta_factor, hyper.beta_graft) == (0.9, 0.95, 0.95)
    assert (hyper.eps_graft, hyper.start, hyper.mu, hyper.nesterov) == (1e-8, 1, 0.0, True)
    root = hyper.root
    assert (root.steps, root.scaling, root.degree, root.cheb_eps) == (15, "pim", 60, 1e-3)
    assert root.eps is None  # max(1e-10, 1e-6 trace / k), which the loop above uses too


def test_high_momentum_by_explicit_choice():
    moved = {}
    for mu in (0.0, 0.9):
        p = weight(4, 4)
        dash, start = Dash([p], 1e-3, mu=mu, allow_high_mu=True), p.detach().clone()
        for _ in range(3):
            p.grad = torch.ones_like(p)
            dash.step()
        moved[mu] = (p.detach() - start).norm().item()
    assert moved[0.9] > 1.5 * moved[0.0] > 0


def test_groups_may_not_differ_in_shared_settings():
    with pytest.raises(ValueError, match="sets betas; only lr and weight_decay"):
        Dash([{"params": [weight(4, 4)], "betas": (0.9, 0.9, 0.9)}], 1e-3)


def test_fp16_newton_needs_a_gpu():
    p = weight(4, 4)
    dash = Dash([p], 1e-3, solver="cn_fp16")
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="needs parameters on a CUDA device"):
        dash.step()


def test_sparse_and_complex_are_refused():
    with pytest.raises(TypeError, match=r"torch.complex64, expected a real"):
        Dash([torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)], 1e-3)
    table = torch.nn.Embedding(5, 4, sparse=True)
    dash = Dash(table.parameters(), 1e-3)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"torch\.sparse_coo gradient, expected dense"):
        dash.step()


def test_diverging_tiles_fall_back_and_are_counted():
    p = weight(16, 16, dtype=torch.float32)
    dash = Dash([p], 1e-2, block=16, solver="ndb", newton_steps=80, freq=1, eps_root=1e-30)
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(16, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    for _ in range(3):
        feed(dash, [(p, thin)])
    assert dash.stats["fallbacks"] > 0
    assert torch.isfinite(p).all()


def _train_rank(rank, path, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )
    params, dash = build(process_group=torch.distributed.group.WORLD)
    for pair in zip(gradients((50, 33), 4), gradients((33,), 4), strict=True):
        feed(dash, zip(params, pair, strict=True))
    queue.put(
        (rank, [p.detach().numpy() for p in params], len(dash.state_dict()["dash"]["tensors"]))
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_the_work_and_agree(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=_train_rank, args=(rank, tmp_path / "store", queue))
        for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    results = sorted([queue.get() for _ in workers], key=lambda item: item[0])
    for worker in workers:
        worker.join()
    params, dash = build()
    for pair in zip(gradients((50, 33), 4), gradients((33,), 4), strict=True):
        feed(dash, zip(params, pair, strict=True))
    for _, values, _ in results:
        for p, value in zip(params, values, strict=True):
            assert torch.equal(p.detach(), torch.from_numpy(value))
    assert results[0][2] != results[1][2]
