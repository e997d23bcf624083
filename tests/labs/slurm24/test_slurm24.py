"""The same tests on Slurm 24.11: the contract, the states and the actions."""

from __future__ import annotations

import pytest

from tests.labs.slurm.test_actions import (
    losing,
    test_a_connection_cut_during_sbatch_leaves_exactly_one_job,
    test_a_failed_element_comes_back_and_its_array_is_left_alone,
    test_a_job_on_two_nodes_comes_back_without_the_dead_one,
    test_a_launch_failure_is_answered_by_another_node,
    test_a_requeue_that_stopped_half_way_is_taken_up,
    test_a_requeue_truncates_the_log_whose_end_was_collected,
    test_a_running_job_submitted_again_never_runs_twice,
    test_a_training_survives_node_failure_out_of_memory_and_time_limit,
    test_draining_needs_the_right_and_is_probed,
    test_hold_and_release_by_the_guard,
    test_what_patrol_selects,
    test_what_the_partition_does_not_give_is_refused_or_bounded,
)
from tests.labs.slurm.test_contract import TestSlurm
from tests.labs.slurm.test_states import (
    test_a_failed_node_fails_the_job_only_where_slurm_does_not_requeue_it,
    test_a_heterogeneous_job_is_one_job,
    test_a_job_over_its_time_limit_failed,
    test_a_job_that_will_not_move_is_stuck_with_its_reason,
    test_accounting_that_is_down_changes_no_verdict_and_stops_actions,
    test_an_array_is_seen_by_element_and_as_a_whole,
    test_each_way_to_end_is_told_for_what_it_is,
    test_slurms_own_requeue_is_respected_and_the_next_run_is_guarded,
    test_what_ended_on_purpose_is_stopped_not_failed,
    test_what_waits_on_purpose_is_neither_stuck_nor_failed,
)

pytestmark = pytest.mark.lab("slurm24")

__all__ = [
    "TestSlurm",
    "losing",
    "test_a_connection_cut_during_sbatch_leaves_exactly_one_job",
    "test_a_failed_element_comes_back_and_its_array_is_left_alone",
    "test_a_failed_node_fails_the_job_only_where_slurm_does_not_requeue_it",
    "test_a_heterogeneous_job_is_one_job",
    "test_a_job_on_two_nodes_comes_back_without_the_dead_one",
    "test_a_job_over_its_time_limit_failed",
    "test_a_job_that_will_not_move_is_stuck_with_its_reason",
    "test_a_launch_failure_is_answered_by_another_node",
    "test_a_requeue_that_stopped_half_way_is_taken_up",
    "test_a_requeue_truncates_the_log_whose_end_was_collected",
    "test_a_running_job_submitted_again_never_runs_twice",
    "test_a_training_survives_node_failure_out_of_memory_and_time_limit",
    "test_accounting_that_is_down_changes_no_verdict_and_stops_actions",
    "test_an_array_is_seen_by_element_and_as_a_whole",
    "test_draining_needs_the_right_and_is_probed",
    "test_each_way_to_end_is_told_for_what_it_is",
    "test_hold_and_release_by_the_guard",
    "test_slurms_own_requeue_is_respected_and_the_next_run_is_guarded",
    "test_what_ended_on_purpose_is_stopped_not_failed",
    "test_what_patrol_selects",
    "test_what_the_partition_does_not_give_is_refused_or_bounded",
    "test_what_waits_on_purpose_is_neither_stuck_nor_failed",
]
