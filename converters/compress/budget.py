"""How many bits a factorisation takes, and which (k, s) fit a compression ratio.

Section and worked examples: COMPOT (arXiv 2602.15200) and CoSpaDi (arXiv 2509.22075), 16-bit
dictionary, 16-bit non-zeros, a mask of one bit for each atom and output. The compression ratio is
the share of bits removed from an fp16 weight. All totals are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import ConvertError, ResourceError
from . import checks

FORMS = ("dense", "lowrank", "mask", "index", "nm", "shared", "densified")
SMALLEST = 128  # matrices with a shorter side stay dense
ALIGN_FROM, ALIGN_K, ALIGN_S = 256, 32, 8
WORD = 64  # bits of a mask's word, and atoms that share a scale


@dataclass(frozen=True)
class Format:
    """`bits` for each value and a 16-bit scale for every `group` of them; group 0: no scales."""

    bits: int = 16
    group: int = 0

    def total(self, columns: int, length: int, *, padded: bool = False) -> int:
        """Bits of `columns` columns of `length` values; a group belongs to one column.

        padded: count the last group of a column in full, as blocked formats store it.
        """
        groups = -(-length // self.group) if self.group else 0
        values = groups * self.group if padded and self.group else length
        return columns * (values * self.bits + groups * 16)


FP16 = Format()


@dataclass(frozen=True)
class Dims:
    """What becomes of a weight `[m, n]`: `form` "dense", "lowrank" (s = k, no mask) or "mask"."""

    m: int
    n: int
    form: str
    k: int = 0
    s: int = 0

    @property
    def bits(self) -> int:
        """In fp16."""
        return storage_bits(self.m, self.n, self.k, self.s, self.form)

    @property
    def ratio(self) -> float:
        """Share of the dense fp16 bits removed."""
        return 1 - self.bits / (16 * self.m * self.n)

    def macs(self, *, densified: bool = False) -> int:
        """Multiplications for one row; densified: zeros of S count."""
        if self.form == "dense":
            return self.m * self.n
        return self.k * self.m + self.n * (self.k if densified else self.s)

    def longer(self) -> Dims:
        """With one step more values for each output, aligned as it was; itself if there is none."""
        step = ALIGN_S if self.k >= ALIGN_FROM and self.s % ALIGN_S == 0 else 1
        if self.form != "mask" or self.s + step >= self.k:
            return self
        return replace(self, s=self.s + step)


def storage_bits(
    m: int,
    n: int,
    k: int,
    s: int,
    form: str = "mask",
    a: Format = FP16,
    values: Format = FP16,
    *,
    padded: bool = False,
    outputs: int = 1,
    of: int = 4,
) -> int:
    """Bits of `A [m, k]` in format `a` and `S [k, n]` with s values for each column.

    form: "dense" (the weight itself, in format `a`), "lowrank" or "densified" (S with its zeros),
    "mask", "index" (16 bits each; 32 above 65536 atoms), "nm" (a position within `of` atoms),
    "shared" (one mask for `outputs` columns). padded: as it is stored, groups and mask words full,
    "mask" as in `kernels/sparse.py`; else the published formula. Raises ConvertError for sizes out
    of range.
    """
    checks.one_of(form, "form", FORMS)
    m, n = checks.whole(m, "m", 1), checks.whole(n, "n", 1)
    if form == "dense":
        return a.total(n, m, padded=padded)
    k, s = checks.whole(k, "k", 1), checks.whole(s, "s", 1, k)
    left = a.total(k, m, padded=padded)
    if form in ("lowrank", "densified"):
        return left + values.total(n, k, padded=padded)
    if padded and form == "mask":
        return left + 8 * n * _row_bytes(k, s, values)
    mask = WORD * -(-k // WORD) if padded else k
    groups = -(-n // checks.whole(outputs, "outputs", 1))
    where = {
        "mask": n * mask,
        "index": n * s * (16 if k <= 1 << 16 else 32),
        "nm": n * s * (checks.whole(of, "of", 1) - 1).bit_length(),
        "shared": groups * mask,
    }
    return left + values.total(n, s, padded=padded) + where[form]


def _row_bytes(k: int, s: int, values: Format) -> int:
    """Bytes of an output's mask, values and scales, which belong to words of the mask."""
    words = -(-k // WORD)
    return WORD // 8 * words + -(-s * values.bits // 8) + (2 * words if values.group else 0)


def bits_per_weight(bits: int, m: int, n: int) -> float:
    """Bits per original weight."""
    return bits / (m * n)


def choose(
    m: int,
    n: int,
    ratio: float,
    rho: float = 2.0,
    *,
    align: bool = True,
    mask: bool = True,
    smallest: int = SMALLEST,
) -> Dims:
    """The (k, s) that spend `(1 - ratio) * 16 m n` bits on a weight `[m, n]`, with s = k / rho.

    align: k from 256 on in multiples of 32, and what is left spent on s in multiples of 8 (ours).
    mask: False leaves the mask out of the count (CoSpaDi's tables; valid at rho = 2 only). A
    matrix with a side below `smallest`, or that nothing fits, stays dense; where s would reach k
    the code is dense ("lowrank"). Raises ConvertError for sizes, a ratio outside [0, 1) or
    rho < 1.
    """
    m, n = checks.whole(m, "m", 1), checks.whole(n, "n", 1)
    ratio = checks.fraction(ratio, "ratio", 0, 1)
    rho = checks.fraction(rho, "rho", 1, float("inf"))
    budget = int((1 - ratio) * 16 * m * n + 1e-6)
    if min(m, n) < smallest:
        return Dims(m, n, "dense")
    bit = 1 if mask else 0
    k = int(budget / (16 * (m + n / rho) + bit * n) + 1e-9)
    most = min(m, n)
    s = int(k / rho)
    if k > most:
        k = most
        s = (budget - 16 * m * k - bit * n * k) // (16 * n)
    elif align and k >= ALIGN_FROM:
        k -= k % ALIGN_K
        s = (budget - 16 * m * k - bit * n * k) // (16 * n)
        s -= s % ALIGN_S if s < k else 0
    while k > 1 and s >= 1 and 16 * (m * k + n * s) + bit * n * k > budget:
        k -= 1
        s = min(s, k)
    s = max(s, 1)
    if s < k and 16 * (m * k + n * s) + bit * n * k <= budget:
        return Dims(m, n, "mask", k, s)
    k = min(budget // (16 * (m + n)), most)
    found = Dims(m, n, "lowrank", k, k)
    return found if k >= 1 and found.bits < 16 * m * n else Dims(m, n, "dense")


def factor_bytes(m: int, n: int, k: int) -> int:
    """Estimate of the memory that factoring one weight `[m, n]` with k atoms takes at its peak.

    Gram matrix, ridged copy and factor; the weight, whitened, its residual and a copy; code and
    projections with their magnitudes; dictionaries. A third to a half above what NumPy was measured
    to allocate; that leaves LAPACK's work space its room.
    """
    return 8 * (4 * m * m + 5 * m * n + 6 * n * k + 6 * m * k + 6 * k * k)


def require_memory(m: int, n: int, k: int, available: int, *, name: str = "weight") -> None:
    """Raise ResourceError, with both numbers, if `factor_bytes` exceeds `available` bytes."""
    needed = factor_bytes(m, n, k)
    if needed > available:
        raise ResourceError(
            f"{name}: factoring [{m}, {n}] with {k} atoms takes about {needed / 1e9:.2f} GB of "
            f"memory, {available / 1e9:.2f} GB are available",
            hint="close other programs, leave this matrix dense, or convert on a larger machine",
        )


def check_total(dims: list[Dims], budget: int) -> int:
    """Bits of all of `dims`; ConvertError if they exceed `budget`."""
    total = sum(part.bits for part in dims)
    if total > budget:
        raise ConvertError(f"the factors take {total} bits, expected at most {budget}")
    return total
