"""What generated modules for CPUs call where the tokens of a tile are computed at once: rules that are linear in S.

Per head and tile, in rows of tokens, with L_t the sum of log gates from the tile's start to token t:

    X   = gamma v                                         Hebbian loss
    X_t = gamma_t (v_t - z_t)                             squared loss: a triangular system, as z_t has X_i of all i < t
    O_t = exp(L_t) q_t S_0^T + sum over i <= t of (exp(L_t - L_i) q_t . k_i) X_i
    S   = exp(L_C) S_0 + X^T (exp(L_C - L) K)

The modules `no_decay`, `scalar_decay` and `channel_decay` have the same functions. Exponents are running products of
forget gates, of which none exceeds 1 for gates of at most 1: nothing overflows, and a gate of 0 forgets exactly.
"""
