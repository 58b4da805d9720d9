"""What generated modules for CPUs call where z of all tokens of a chunk is taken at the chunk's start.

What a chunk writes is then known at once, whatever the loss. With S_0 and P_0 the states at the start of a tile, its
tokens t and its pairs s of u and w:

    S_t = B_t S_0 + f_t P_0 - sum over s of G[t, s] u_s w_s^T
    P_t = m_t P_0 - sum over s of n[t, s] u_s w_s^T

`weights` finds the numbers B, f, m and the rows G, n, which are all that rules differ in; `memory` has the products.
"""
