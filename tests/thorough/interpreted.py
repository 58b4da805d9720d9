"""Of Triton's kernels, interpreted."""

from __future__ import annotations

from tests.thorough.cases import Cases

INTERPRETED: Cases = {
    "tests/interpreted/limits/test_non_finite.py": {
        "test_backward": ("backward_split-padding",),
    },
    "tests/interpreted/rules/test_neighbours.py": {
        "test_attention_and_its_gradients": ("log_decay-kda-20",),
    },
    "tests/interpreted/rules/test_peers_kernels.py": {
        "test_a_rule_is_its_peers_kernel": ("comba-Sizes(tokens=63, dim=60, batch=1, heads=2, gate=0.1)",),
    },
    "tests/interpreted/test_backward.py": {
        "test_states_that_are_computed_again": (
            "1-16",
            "16-2",
            "17-4",
            "2-16",
            "5-4",
        ),
        "test_tiles_of_a_chunk_of_packed_sequences": (
            "16-backward-first_order",
            "16-backward_split-first_order",
            "32-backward-bilevel",
        ),
        "test_whole_chunks_of_packed_sequences": (
            "16-16-bilevel",
            "16-16-first_order",
            "20-32-first_order",
            "32-32-bilevel",
            "40-64-bilevel",
            "64-64-first_order",
        ),
    },
    "tests/interpreted/test_descriptors.py": {
        "test_descriptors_change_nothing": (
            "48-16-split",
            "64-32-split",
        ),
        "test_packed_sequences": (
            "16-16-bfloat16-split",
            "16-16-float32-fused",
            "32-32-bfloat16-split",
            "32-32-float32-fused",
            "32-32-float32-split",
            "48-16-bfloat16-fused",
            "48-16-float32-split",
            "64-32-bfloat16-fused",
            "64-32-bfloat16-split",
            "64-32-float32-split",
        ),
    },
    "tests/interpreted/test_substitution.py": {
        "test_longer_tiles_and_several_stored_states": ("64",),
        "test_tiles_and_a_shorter_one": ("identity",),
    },
}
