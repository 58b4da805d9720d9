"""What a memory computes: the rule, one record for the whole family.

Per head and token, with write vector w, probe p, target a, and A the accumulator behind the memory S = view(A):

    z_t = base p_t                      base: the memory at the start of the chunk; before the token, if chunks are 1
    u_t = d loss(z_t, a_t) / d z_t      loss: 1/2 ||phi(z) - a||^2, or one that is written down
    A_t = decay_t o A_{t-1} - step_size_t u_t w_t^T
    o_t = S q_t  or  S^T r_t            S: after the write, before it, or at the start of the chunk

TRELLIS (arXiv 2512.23852, sections 3 and 3.2) is the rule of all defaults: two passes, keys then values, with
r_t = link(S_k q_t) and y_t = out(S_v^T r_t). Changing a rule changes the result; changing a schedule never does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from codegen.errors import RuleError
from codegen.maps import registry
from codegen.scalars import positive_number, whole_number

MAPS: dict[str, str] = {name: made.formula for name, made in registry.MAPS.items()}
"""Every map that comes along, by name with its formula. A map acts on the last axis and has no parameters."""

READOUT_EPS = 1e-6
"""Epsilon of ln_silu where it is used as `link` or `out`; as `phi` it is the rule's `phi_eps`."""

SOLVE = "solve"
"""The link that is no map: r = (S_k + diag(regulariser))^-1 q."""

CHOICES: dict[str, tuple[object, ...]] = {
    "step_size": ("head", "token", "reader_writer"),
    "passes": (2, 1),
    "decay": ("scalar", "none", "slot", "channel"),
    "decay_first": (False, True),
    "probe": ("w", "own"),
    "erase": (False, True),
    "momentum": (False, True),
    "normaliser": ("none", "read", "both"),
    "transposed": (False, True),
    "read": ("after", "before", "chunk_start"),
    "view_gradient": (False, True),
}
"""What each field of a rule may be, the default first; the other fields are maps and numbers."""

STEP_SIZES = ("head", "token")
"""step_size is `[H]` ("head") or `[B, T, H]` ("token")."""

LONGEST_WINDOW = 64
"""Of `Rule.window`: the pairs (u, w) of its tokens are carried."""


@dataclass(frozen=True)
class Rule:
    """What one memory computes; the defaults are TRELLIS (arXiv 2512.23852, section 3.2).

    Attributes:
        phi: write map, the one the inner loss 1/2 ||phi(z) - a||^2 is taken through; or a loss itself, of z and a.
        link: map between the two passes (the paper's f), or "solve": r = (S_k + diag(regulariser))^-1 q; a rule of one
            pass has none, and "identity" here.
        out: map of the final readout.

            Each is a name in `MAPS` or one that `codegen.maps.define` was given, or what it returned, or a definition
            such as "cubic(z) = z ** 3"; it is kept as a name in `MAPS` or as a definition.

        phi_eps: epsilon inside ln_silu when it is `phi`; a positive number that float32 holds.
        step_size: "head" for step_size `[H]`, "token" for `[B, T, H]`; "reader_writer" for a second one, `reader_step`
            tau: S_t = S_0 - tau_t sum of step_size_i u_i w_i^T over the tokens of the chunk, S_0 its start (TTT).
        passes: 2 for a memory of keys and one of values, linked; 1 for one memory S `[D_v, D_k]`, w = k and a = v.
        decay: what of the memory is kept: everything ("none"), one number per token ("scalar"), one for each row of S
            ("slot") or for each column ("channel").
        decay_first: whether z is taken at the decayed memory ("post"), not at that before the token ("pre").
        probe: "w" where z is taken along the write vector, "own" along a vector of its own (Comba, GDN-2).
        erase: whether (S_{t-1} a) b^T is added, for a pair (a, b) of vectors (RWKV-7).
        momentum: whether writes pass through a second state, P_t = eta_t P_{t-1} - step_size_t u w^T (Titans).
        window: the number of tokens, the current one the last, whose writes are repeated (OmegaNet); 1 is no window.
        normaliser: whether a vector n of written keys divides what is read, S q / (n q + 1e-6) ("read"), and z too
            ("both") (Infini-attention).
        transposed: whether S^T v is regressed onto k, S being `[D_v, D_k]` still (gated Oja).
        read: the memory that is read: "after" the write, "before" it, or that at the "chunk_start".
        view: map of each row of the accumulator that gives the row of the memory (Memora's softmax).
        view_gradient: whether the inner gradient goes through the view, to the accumulator (Lattice).

    Raises:
        UnknownMapError: a name that no map has, or a loss that is to read.
        RuleError: a field outside its choices, or two that exclude one another; the message names both.
        MapTextError: a definition that is none.
        SizeError: `phi_eps` that is not a positive number within float32; NumberTypeError: that is no number.

    Example:
        >>> Rule(phi="identity").key()
        'trellis(phi=identity,phi_eps=1e-06,link=ln_silu,out=identity,step_size=head)'
        >>> Rule(phi="identity", passes=1, link="identity", decay_first=True).key()
        'rule(phi=identity,phi_eps=1e-06,link=identity,out=identity,step_size=head,passes=1,decay_first=True)'
    """

    phi: str = "ln_silu"
    link: str = "ln_silu"
    out: str = "identity"
    phi_eps: float = 1e-6
    step_size: str = "head"
    passes: int = 2
    decay: str = "scalar"
    decay_first: bool = False
    probe: str = "w"
    erase: bool = False
    momentum: bool = False
    window: int = 1
    normaliser: str = "none"
    transposed: bool = False
    read: str = "after"
    view: str = "identity"
    view_gradient: bool = False

    def __post_init__(self) -> None:
        if self.passes == 1 and self.link == "ln_silu":
            object.__setattr__(self, "link", "identity")
        for role in ("phi", "link", "out", "view"):
            if role != "link" or self.link != SOLVE:
                object.__setattr__(self, role, str(registry.named_map(role, getattr(self, role))))
        for field, choices in CHOICES.items():
            value = getattr(self, field)
            if value not in choices or type(value) is not type(choices[0]):
                raise RuleError(field=field, value=value, reason=f"choose one of: {', '.join(map(repr, choices))}")
        object.__setattr__(self, "phi_eps", positive_number("phi_eps", self.phi_eps))
        object.__setattr__(self, "window", whole_number("window", self.window, LONGEST_WINDOW))
        for field, reason in _refusals(self):
            raise RuleError(field=field, value=getattr(self, field), reason=reason)

    @property
    def is_trellis(self) -> bool:
        """Whether it differs from TRELLIS in its maps and the layout of its step size only."""
        plain = self.link != SOLVE and self.step_size in STEP_SIZES and not self.loss.takes_gain
        return plain and not self._family_fields()

    @property
    def loss(self) -> registry.Map:
        """phi, or the loss in its place."""
        return registry.find(self.phi)

    def _family_fields(self) -> dict[str, object]:
        """The fields that TRELLIS lets stand, where they differ from its own."""
        own = ("phi", "link", "out", "phi_eps", "step_size")
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name not in own and getattr(self, each.name) != each.default
        }

    def key(self) -> str:
        """Stable text key, in which a user's map is its name and a digest of its formula."""
        phi, link, out = (
            name if name == SOLVE else registry.find(name).key for name in (self.phi, self.link, self.out)
        )
        more = self._family_fields()
        if "view" in more:
            more["view"] = registry.find(self.view).key
        kind = "trellis" if self.is_trellis else "rule"
        rest = "".join(f",{name}={value}" for name, value in more.items())
        return f"{kind}(phi={phi},phi_eps={self.phi_eps!r},link={link},out={out},step_size={self.step_size}{rest})"


def _refusals(rule: Rule) -> Iterator[tuple[str, str]]:
    """The fields that a rule cannot have beside its others, each with the reason."""
    if rule.passes == 2:
        for field in ("probe", "erase", "normaliser", "transposed"):
            if getattr(rule, field) != CHOICES[field][0]:
                yield field, "a rule of two passes (passes=2) has no such field; it is for passes=1"
        if rule.decay == "channel":
            yield "decay", "the memories of two passes have columns of different kinds; take passes=1, or 'slot'"
    elif rule.link != "identity":
        yield "link", "there is nothing to link with passes=1; give link='identity'"
    if rule.link == SOLVE and rule.phi != "hebbian":
        yield "phi", "link='solve' needs a symmetric S_k, as writes of k k^T alone give; give phi='hebbian'"
    if rule.link == SOLVE and rule.decay == "slot":
        yield "decay", "link='solve' needs a symmetric S_k; take 'scalar' or 'none'"
    if rule.step_size == "reader_writer":
        for field, plain in (("decay", "none"), ("momentum", False), ("window", 1), ("erase", False)):
            if getattr(rule, field) != plain:
                yield (
                    field,
                    f"step_size='reader_writer' reads S_0 minus all writes of the chunk: it needs {field}={plain!r}",
                )
        if rule.view != "identity":
            yield "view", "step_size='reader_writer' has no accumulator to view; give view='identity'"
    if rule.decay == "none" and rule.decay_first:
        yield "decay_first", "there is no decay (decay='none') that could come first"
    if rule.normaliser != "none":
        for field, plain in (("momentum", False), ("window", 1), ("erase", False), ("transposed", False)):
            if getattr(rule, field) != plain:
                yield field, f"the vector of a normaliser has no such part; give {field}={plain!r}"
        if rule.decay == "slot":
            yield "decay", "the vector of a normaliser belongs to all slots; take 'scalar' or 'channel'"
        if rule.view != "identity" or rule.step_size == "reader_writer":
            yield "normaliser", "it divides what an accumulator gives; it excludes view and step_size='reader_writer'"
    if rule.view_gradient and rule.view == "identity":
        yield "view_gradient", "there is no view (view='identity') to go through"
    if rule.view != "identity" and rule.link == SOLVE:
        yield "view", "link='solve' solves with the memory itself, which no view keeps symmetric; give view='identity'"
    if rule.view != "identity" and (rule.erase or rule.window > 1):
        yield "view", "it excludes erase and window, which are products with the memory itself"
