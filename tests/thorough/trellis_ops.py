"""Of the package trellis_ops."""

from __future__ import annotations

from tests.thorough.cases import ALL, Cases

TRELLIS_OPS: Cases = {
    "tests/trellis_ops/dispatch/test_ranks.py": {
        "test_ranks_with_different_databases_run_the_leaders_selection": ("leader",),
    },
    "tests/trellis_ops/eager/test_backward.py": {
        "test_nearly_equal_slots_lose_no_more_digits_than_their_difference_has": ("1-tvm",),
        "test_the_kernel_and_the_eager_reverse_pass_agree_on_unusual_chunks": ("2",),
    },
    "tests/trellis_ops/eager/test_eager.py": {
        "test_forgetting_everything_or_nothing": ("-30.0-1",),
        "test_types": (
            "dtype0-70-1",
            "dtype1-300-64",
            "dtype2-300-64",
            "dtype2-70-1",
        ),
    },
    "tests/trellis_ops/family/peers/test_peers.py": {
        "test_a_rule_is_its_peers": (
            "abc-T500-D60-gate1.0",
            "comba-T500-D60-gate1.0",
            "delta_product-T500-D60-gate1.0",
            "deltanet-T500-D60-gate1.0",
            "gdn2-T500-D60-gate1.0",
            "iplr-T500-D60-gate1.0",
            "kda-T500-D60-gate1.0",
            "linear_normalised-T500-D60-gate1.0",
            "mesanet-T500-D60-gate1.0",
            "momentum_delta-T500-D60-gate1.0",
            "oja-T500-D60-gate1.0",
            "retention-T500-D60-gate1.0",
            "rwkv6-T500-D60-gate1.0",
            "rwkv7-T500-D60-gate1.0",
            "simple_gla-T500-D60-gate1.0",
            "ttt_linear-T500-D60-gate1.0",
        ),
    },
    "tests/trellis_ops/family/test_neighbours.py": {
        "test_gradients": (
            "log_decay-inf-kda-70-no padding",
            "log_decay-nan-kda-70-no padding",
            "v-nan-kda-70-no padding",
            "v-nan-titans-20-no padding",
        ),
    },
    "tests/trellis_ops/glue/test_operators.py": {
        "test_kernels_give_what_pytorch_gives_in_float64": (
            "dtype1-free",
            "dtype1-gated_norm",
            "dtype1-rms_norm",
            "dtype1-swiglu_gate",
        ),
        "test_what_torch_knows_of_the_operators": ("dtype1",),
    },
    "tests/trellis_ops/hf/test_folders.py": {
        "test_every_rule_is_saved_loaded_and_generates": (
            "abc",
            "comba",
            "deltanet",
            "gated_deltanet",
            "gdn2",
            "gla",
            "gsa",
            "infini",
            "kda",
            "lattice",
            "linear",
            "memora",
            "mesanet",
            "moneta",
            "oja",
            "omeganet",
            "rwkv7",
        ),
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
            "omeganet",
            "ttt_linear",
        ),
    },
    "tests/trellis_ops/operators/test_compiled_steps.py": {
        "test_a_compiled_step_of_a_model_decodes_as_the_model_does": ("learned",),
    },
    "tests/trellis_ops/operators/test_empty_sequences.py": {
        "test_gradients": ("tvm-20-first_order",),
    },
    "tests/trellis_ops/operators/test_user_maps.py": {
        "test_first_order_gradients_of_tvm": ALL,
        "test_kernels_of_tvm": (
            "gelu_tanh",
            "huber_loss",
        ),
        "test_kernels_of_tvm_whose_chunks_share_a_tile": ALL,
        "test_losses_whose_derivatives_hold_no_z_or_one_number_for_all_slots": (
            "hebbian_loss-1",
            "hebbian_loss-16",
            "of_means-1",
            "of_the_mean-1",
            "of_the_mean-16",
        ),
    },
    "tests/trellis_ops/test_memory.py": {
        "test_gradients_agree_with_the_oracle": (
            "bilevel-rule0",
            "first_order-rule1",
            "first_order-rule2",
            "first_order-rule3",
        ),
        "test_steps_continue_what_attention_computes": (
            "gsa-1",
            "in_place_ttt-1",
            "infini-4",
            "omeganet-4",
            "titans-1",
            "trellis-1",
        ),
    },
    "tests/trellis_ops/test_ops.py": {
        "test_attention_agrees_with_the_oracle": (
            "1-token-tvm",
            "64-head-None",
            "64-head-eager",
            "64-head-tvm",
            "7-head-None",
            "7-head-tvm",
        ),
        "test_gradcheck_of_attention_in_float64": ("3",),
        "test_half_precision_inputs_keep_float32_states": (
            "dtype0-None",
            "dtype0-tvm",
        ),
        "test_step_agrees_with_the_oracle_and_moves_the_state_in_place": (
            "dtype0-True-tvm",
            "dtype1-False-tvm",
        ),
        "test_update_then_readouts_equal_attention": (
            "1-None",
            "1-eager",
            "1-tvm",
        ),
    },
}
