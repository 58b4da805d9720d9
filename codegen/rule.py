"""What a memory computes: the rule, and the maps it is made of.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Per head and token, with write vector w (k, then v):

    z_t = S_{t'} w_t
    u_t = J_phi(z_t)^T (phi(z_t) - alpha_t)
    S_t = beta_t S_{t-1} - gamma_t u_t w_t^T

and r_t = link(S_k q_t), y_t = out(S_v^T r_t). Changing a rule changes the result; changing a schedule never does.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.errors import UnknownMapError
from codegen.scalars import positive_number

MAPS: dict[str, str] = {
    "identity": "x",
    "silu": "x * sigmoid(x)",
    "ln_silu": "(s - mean s) / sqrt(var s + eps), s = silu(x), biased variance",
    "l2_silu": "s / max(||s||_2, 1e-6), s = silu(x)",
    "softmax": "exp(x) / sum exp(x)",
}
"""Every map by name, with its formula. A map acts on the last axis and has no parameters of its own."""

READOUT_EPS = 1e-6
"""Epsilon of ln_silu where it is used as `link` or `out`; as `phi` it is the rule's `phi_eps`."""

STEP_SIZES = ("head", "token")
"""gamma is `[H]` ("head") or `[B, T, H]` ("token")."""


@dataclass(frozen=True)
class Rule:
    """What one two-pass memory computes (arXiv 2512.23852, section 3.2).

    Attributes:
        phi: write map, the one the inner loss is taken through.
        link: map between the two passes (the paper's f).
        out: map of the final readout.
        phi_eps: epsilon inside ln_silu when it is `phi`; a positive number that float32 holds.
        step_size: "head" for gamma `[H]`, "token" for gamma `[B, T, H]`.

    Raises:
        UnknownMapError: a map name outside `MAPS`, or a step size outside `STEP_SIZES`.
        SizeError: `phi_eps` that is not a positive number within float32; NumberTypeError: that is no number.

    Example:
        >>> Rule(phi="identity").key()
        'trellis(phi=identity,phi_eps=1e-06,link=ln_silu,out=identity,step_size=head)'
    """

    phi: str = "ln_silu"
    link: str = "ln_silu"
    out: str = "identity"
    phi_eps: float = 1e-6
    step_size: str = "head"

    def __post_init__(self) -> None:
        for role in ("phi", "link", "out"):
            name = getattr(self, role)
            if not isinstance(name, str) or name not in MAPS:
                raise UnknownMapError(role=role, name=name, known=", ".join(MAPS))
        if self.step_size not in STEP_SIZES:
            raise UnknownMapError(role="step_size", name=self.step_size, known=", ".join(STEP_SIZES))
        object.__setattr__(self, "phi_eps", positive_number("phi_eps", self.phi_eps))

    def key(self) -> str:
        """Stable text key."""
        return (
            f"trellis(phi={self.phi},phi_eps={self.phi_eps!r},link={self.link},"
            f"out={self.out},step_size={self.step_size})"
        )
