"""Cases that only `make test-thorough` runs, as quicker ones of the same test, or tests beside it, show the same.

They repeat with another size, rule, type or schedule, and each compiles a kernel of its own or starts processes. A case
that is named on the command line runs in any case.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

ALL = ("",)
"""Every case of a test."""

THOROUGH: dict[str, dict[str, tuple[str, ...]]] = {
    "tests/codegen/backends/triton/test_compiled.py": {
        "test_every_kernel_compiles_for_sm_90": ("trellis_attention-substitution",),
        "test_forward_substitution_with_the_paper_s_sizes_spills_nothing": (
            "gfx942",
            "sm_80",
        ),
        "test_the_backwards_compile_for_sm_90": ("backward-sizes1-settings1-backward_first_order",),
        "test_training_of_many_slots_spills_no_more_than_it_did": ALL,
    },
    "tests/codegen/backends/triton/test_descriptors.py": {
        "test_tiles_are_copied_by_the_tensor_memory_accelerator": (
            "memory_readout-readout-copies3-{'num_stages': 3, 'tile_rows': 32}",
            "memory_readout_transposed-readout-copies4-{}",
            "memory_update-update-copies2-{}",
            "trellis_attention-fused-copies0-{'num_stages': 3, 'tile_rows': 32}",
            "trellis_attention-split-copies1-{}",
        ),
    },
    "tests/codegen/backends/tvm/test_backward.py": {
        "test_every_map_in_every_place": (
            "l2_silu",
            "silu",
        ),
        "test_narrow_vectors": ALL,
        "test_sizes_and_types": (
            "1-1-1-float32",
            "80-96-48-float16",
        ),
        "test_tiles_of_a_chunk_of_packed_sequences": ("64-bilevel",),
        "test_tiles_that_span_chunks_of_packed_sequences": ("2-bilevel",),
    },
    "tests/codegen/backends/tvm/rules/test_chunks.py": {
        "test_a_batch_with_initial_states": (
            "comba",
            "deltanet",
            "erase_post",
            "fixed",
            "gla",
            "gsa_before",
            "linked",
        ),
        "test_half_precision": (
            "kda-dtype0-0.02",
            "linear-dtype1-0.002",
        ),
        "test_tiles_of_any_shape": (
            "comba-32-8-12",
            "erase_post-8-4-4",
            "erase_post-32-8-12",
        ),
        "test_widths_that_fill_no_vector": (
            "deltanet-1-1",
            "deltanet-3-70",
            "gla-1-1",
            "gla-100-5",
        ),
    },
    "tests/codegen/backends/tvm/rules/test_chunks_backward.py": {
        "test_all_gradients_of_a_batch": (
            "deltanet",
            "erase_post",
            "fixed",
        ),
        "test_gates_that_keep_little_have_all_digits_of_their_gradient": (
            "comba",
            "erase_post",
            "gla",
            "kda",
            "linear",
        ),
        "test_tiles_of_any_shape": ("16-4-4",),
        "test_z_as_a_constant": ("linear",),
    },
    "tests/codegen/backends/tvm/test_forward.py": {
        "test_every_chunk_and_tile": (
            "1073741824-16-fused",
            "2-8-pair",
            "33-8-fused",
            "70-64-fused",
        ),
        "test_every_write_map_and_size": (
            "identity-fused-1-1-1",
            "l2_silu-fused-64-64-64",
            "softmax-fused-80-96-48",
        ),
        "test_tiles_that_span_chunks": ALL,
    },
    "tests/codegen/backends/tvm/test_non_finite.py": {
        "test_backward": (
            "16-rule1-bilevel-changes1",
            "16-rule2-bilevel-changes2",
            "20-rule4-bilevel-changes4",
            "3-rule6-first_order-changes6",
        ),
        "test_backward_of_sizes": (
            "16-64-64-64-bilevel",
            "2-32-64-16-bilevel",
        ),
    },
    "tests/codegen/backends/tvm/rules/test_recurrence.py": {
        "test_exact": ("gain",),
        "test_packed_sequences_of_which_one_is_empty": (
            "gain",
            "gated_delta",
            "probe",
            "transposed",
            "views_before",
        ),
        "test_several_segments": (
            "divided_twice",
            "erase",
            "gain",
            "gated_delta",
            "probe",
            "transposed",
            "trellis",
            "views_before",
        ),
    },
    "tests/codegen/backends/tvm/rules/test_stale_chunks.py": {
        "test_packed_sequences_with_states": (
            "chunk_start",
            "hebbian",
            "reader",
            "slots_at_the_chunk_start",
            "titans",
            "window_longer_than_a_tile",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_compiled.py": {
        "test_defaults_fit_a_multiprocessor_and_do_not_spill": (
            "memory_readout-bfloat16",
            "memory_readout_transposed-float32",
            "memory_update-bfloat16",
            "trellis_attention-float32",
            "trellis_step-bfloat16",
            "trellis_step_chunked-float32",
        ),
        "test_products_take_tensor_cores": (
            "float16-tf32-sm_80",
            "bfloat16-bf16-sm_80",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_emulated.py": {
        "test_every_chunk_and_tile": (
            "2-4",
            "16-16",
        ),
        "test_every_share_of_the_work": ("64-8",),
        "test_half_precision_packed_sequences_that_forget_everything": (
            "float16-1",
            "bfloat16-20",
        ),
        "test_maps_that_a_user_defines": (
            "gelu_tanh",
            "huber_loss",
        ),
        "test_sizes": (
            "1-1-1-1",
            "20-33-5-17",
            "20-64-64-64",
        ),
        "test_split_with_every_readout_map": ("silu-32",),
    },
    "tests/codegen/backends/tvm_cuda/test_non_finite.py": {
        "test_attention": (
            "l2_silu-1-no padding",
            "l2_silu-20-no padding",
            "l2_silu-20-padding",
            "softmax-20-no padding",
        ),
        "test_readout": (
            "memory_readout-multiply-adds-padding",
            "memory_readout-tensor cores-padding",
        ),
        "test_rounded_products": (
            "tf32-float16-no padding",
            "bf16-bfloat16-padding",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_tensor_cores_emulated.py": {
        "test_every_chunk_and_tile": ("33-32",),
        "test_every_share_of_the_work": ("64-16",),
        "test_sizes": ("64-64-64",),
        "test_split_with_maps_in_all_places": ("softmax",),
        "test_the_default_of_bfloat16_inputs": ("16",),
    },
    "tests/codegen/test_show.py": {
        "test_a_rule_by_name_or_fields": ALL,
    },
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
            "2-16",
            "5-4",
            "16-2",
            "17-4",
            "1-16",
        ),
        "test_tiles_of_a_chunk_of_packed_sequences": (
            "16-backward_split-first_order",
            "16-backward-first_order",
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
    "tests/stress/test_interruptions.py": {
        "test_compiles_are_interrupted": ("2",),
    },
    "tests/trellis_ops/dispatch/test_ranks.py": {
        "test_ranks_with_different_databases_run_the_leaders_selection": ("leader",),
    },
    "tests/trellis_ops/eager/test_backward.py": {
        "test_nearly_equal_slots_lose_no_more_digits_than_their_difference_has": ("1-tvm",),
        "test_only_inputs_and_states_at_starts_of_chunks_are_kept": ("tvm-16-2",),
        "test_the_kernel_and_the_eager_reverse_pass_agree_on_unusual_chunks": ("2",),
    },
    "tests/trellis_ops/eager/test_eager.py": {
        "test_types": (
            "dtype0-70-1",
            "dtype2-300-64",
            "dtype2-70-1",
        ),
    },
    "tests/trellis_ops/family/test_neighbours.py": {
        "test_gradients": (
            "v-nan-kda-70-no padding",
            "v-nan-titans-20-no padding",
        ),
    },
    "tests/trellis_ops/family/peers/test_peers.py": {
        "test_a_rule_is_its_peers": ("mesanet-T500-D60-gate1.0",),
    },
    "tests/trellis_ops/hf/test_training.py": {
        "test_inductor_compiles_padded_rows": ALL,
    },
    "tests/trellis_ops/lm/train/test_compare.py": {
        "test_rules_are_compared_in_the_place_of_the_three": ALL,
    },
    "tests/trellis_ops/lm/train/test_processes.py": {
        "test_two_processes_train_as_one": (
            "--phi identity",
            "--rule in_place_ttt --fsdp",
        ),
    },
    "tests/trellis_ops/lm/train/test_resume.py": {
        "test_an_interrupted_run_keeps_the_step_under_way": (
            "abc",
            "ttt_linear",
        ),
    },
    "tests/trellis_ops/operators/test_empty_sequences.py": {
        "test_gradients": ("tvm-4-first_order",),
    },
    "tests/trellis_ops/operators/test_user_maps.py": {
        "test_first_order_gradients_of_tvm": ("huber_loss",),
        "test_kernels_of_tvm": (
            "gelu_tanh",
            "huber_loss",
        ),
        "test_kernels_of_tvm_whose_chunks_share_a_tile": ALL,
        "test_losses_whose_derivatives_hold_no_z_or_one_number_for_all_slots": (
            "hebbian_loss-1",
            "hebbian_loss-4",
            "of_means-1",
            "of_the_mean-1",
            "of_the_mean-4",
        ),
    },
    "tests/trellis_ops/test_memory.py": {
        "test_gradients_agree_with_the_oracle": (
            "first_order-rule1",
            "first_order-rule3",
            "bilevel-rule0",
        ),
    },
    "tests/trellis_ops/test_ops.py": {
        "test_attention_agrees_with_the_oracle": (
            "1-token-tvm",
            "7-head-tvm",
        ),
        "test_gradcheck_of_attention_in_float64": ("3",),
        "test_half_precision_inputs_keep_float32_states": ("dtype1-tvm",),
        "test_step_agrees_with_the_oracle_and_moves_the_state_in_place": (
            "dtype0-True-tvm",
            "dtype1-False-tvm",
        ),
        "test_update_then_readouts_equal_attention": ("1-tvm",),
    },
    "tests/tuner/experiments/test_regret.py": {
        "test_the_regret_of_each_winner_is_against_the_best_of_all": ALL,
    },
    "tests/tuner/verify/test_check.py": {
        "test_right_gradients_pass": ("backward_first_order-4-token",),
        "test_rounding_does_not_decide_what_stands_in_one_slot_and_nothing_overflows": (
            "identity-identity-64-64-64",
            "identity-ln_silu-64-64-64",
            "ln_silu-ln_silu-64-64-64",
            "silu-ln_silu-64-64-64",
            "softmax-identity-64-64-64",
        ),
    },
    "tests/tuner/verify/test_rules.py": {
        "test_right_gradients_pass": (
            "mesanet-backward_first_order",
            "titans-backward",
            "ttt_linear-backward_first_order",
        ),
    },
    "tests/tuner/workers/test_faults.py": {
        "test_a_candidate_at_fault_costs_itself_only": (
            "abort",
            "compiler_never_ends",
            "exit",
        ),
        "test_the_finals_are_held_without_a_candidate_at_fault": (
            "all_memory",
            "segmentation_fault",
        ),
    },
}
"""The cases by file and test, each as pytest prints it between brackets."""


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the cases of tests/thorough.py too")


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the thorough cases, unless they are asked for.

    Raises:
        pytest.UsageError: a case that is listed here is no case of its file.
    """
    # What failed last is collected alone, and runs again whatever it is.
    if _names_a_test(config.args) or config.getoption("lf", False):
        return
    _require_all({item.nodeid for item in items})
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if _is_thorough(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_thorough(item)]


def _names_a_test(arguments: Sequence[str]) -> bool:
    return any("::" in each for each in arguments)


def _require_all(found: set[str]) -> None:
    collected = {each.partition("::")[0] for each in found}
    for path in THOROUGH.keys() & collected:
        for test, cases in THOROUGH[path].items():
            name = f"{path}::{test}"
            for case in cases:
                if not any(each == f"{name}[{case}]" or (not case and each.startswith(name)) for each in found):
                    raise pytest.UsageError(
                        f"tests/thorough.py names {name}[{case}], which is no test; correct it there"
                    )


def _is_thorough(item: pytest.Item) -> bool:
    path, _, name = item.nodeid.partition("::")
    test, _, case = name.partition("[")
    cases = THOROUGH.get(path, {}).get(test, ())
    return cases == ALL or case.removesuffix("]") in cases
