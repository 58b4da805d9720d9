from __future__ import annotations

from codegen.device import cpu
from tests.tuner.conftest import STEP
from tuner.workers.compile_queue import CompileQueue
from tuner.workers.worker import Candidate


def candidate(number: int) -> Candidate:
    return Candidate(STEP, cpu(), "tvm", {"threads": number})


def taken(queue: CompileQueue) -> list[int]:
    return [queue.take().candidate.settings["threads"] for _ in range(queue.waiting())]


def test_what_is_submitted_comes_before_what_is_prefetched():
    queue = CompileQueue()
    queue.prefetch(map(candidate, (1, 2)))
    queue.submit(candidate(3))
    queue.submit(candidate(4))
    assert taken(queue) == [3, 4, 1, 2]


def test_a_prefetched_candidate_that_is_submitted_is_compiled_once_and_in_its_turn():
    queue = CompileQueue()
    first, second, third = queue.prefetch(map(candidate, (1, 2, 3)))
    assert queue.take() is first
    assert queue.submit(candidate(1)) is first
    assert queue.submit(candidate(3)) is third
    assert queue.submit(candidate(3)) is not third, "each job belongs to one who submitted it"
    assert taken(queue) == [3, 3, 2]
    assert second.begun


def test_a_job_whose_worker_was_killed_comes_first_and_one_that_is_withdrawn_never():
    queue = CompileQueue()
    job, other = queue.submit(candidate(1)), queue.submit(candidate(2))
    (prefetched,) = queue.prefetch([candidate(3)])
    assert queue.take() is job
    queue.again(job)
    assert queue.take() is job
    queue.withdraw([other, prefetched])
    assert taken(queue) == []
    assert queue.submit(candidate(3)) is not prefetched


def test_jobs_that_are_put_back_wait_behind_the_others_and_are_found_again_begun_or_not():
    queue = CompileQueue()
    begun, waiting, other = (queue.submit(candidate(number)) for number in (1, 2, 3))
    assert queue.take() is begun
    queue.put_back([begun, waiting])
    assert queue.waiting() == 2
    assert queue.submit(candidate(1)) is begun
    assert taken(queue) == [3, 2]
    assert queue.submit(candidate(2)) is waiting
    assert queue.submit(candidate(3)) is not other, "it was not put back"
