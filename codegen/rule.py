"""What a memory computes: the rule, and the maps it is made of.

Source: TRELLIS, arXiv 2512.23852, sections 3 and 3.2. Per head and token, with write vector w (k, then v):

    z_t = S_{t'} w_t
    u_t = J_phi(z_t)^T (phi(z_t) - target_t)
    S_t = beta_t S_{t-1} - step_size_t u_t w_t^T

and r_t = link(S_k q_t), y_t = out(S_v^T r_t). Changing a rule changes the result; changing a schedule never does.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.errors import UnknownMapError
from codegen.maps import registry
from codegen.scalars import positive_number

MAPS: dict[str, str] = {name: made.formula for name, made in registry.MAPS.items()}
"""Every map that comes along, by name with its formula. A map acts on the last axis and has no parameters."""

READOUT_EPS = 1e-6
"""Epsilon of ln_silu where it is used as `link` or `out`; as `phi` it is the rule's `phi_eps`."""

STEP_SIZES = ("head", "token")
"""step_size is `[H]` ("head") or `[B, T, H]` ("token")."""


@dataclass(frozen=True)
class Rule:
    """What one two-pass memory computes (arXiv 2512.23852, section 3.2).

    Attributes:
        phi: write map, the one the inner loss is taken through; or that loss itself, of z and target.
        link: map between the two passes (the paper's f).
        out: map of the final readout.

            Each is a name in `MAPS` or one that `codegen.maps.define` was given, or what it returned, or a definition
            such as "cubic(z) = z ** 3"; it is kept as a name in `MAPS` or as a definition.

        phi_eps: epsilon inside ln_silu when it is `phi`; a positive number that float32 holds.
        step_size: "head" for step_size `[H]`, "token" for step_size `[B, T, H]`.

    Raises:
        UnknownMapError: a name that no map has, a loss that is to read, or a step size outside `STEP_SIZES`.
        MapTextError: a definition that is none.
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
            object.__setattr__(self, role, str(registry.named_map(role, getattr(self, role))))
        if self.step_size not in STEP_SIZES:
            raise UnknownMapError(role="step_size", name=self.step_size, known=", ".join(STEP_SIZES))
        object.__setattr__(self, "phi_eps", positive_number("phi_eps", self.phi_eps))

    def key(self) -> str:
        """Stable text key, in which a user's map is its name and a digest of its formula."""
        phi, link, out = (registry.find(name).key for name in (self.phi, self.link, self.out))
        return f"trellis(phi={phi},phi_eps={self.phi_eps!r},link={link},out={out},step_size={self.step_size})"
