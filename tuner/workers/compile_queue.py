"""Candidates on their way to the compiling workers, and which of them is next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuner.workers.worker import Candidate, Result


@dataclass(eq=False)
class Job:
    """A candidate on its way.

    Attributes:
        candidate: what to try.
        compiled: None until a worker has compiled it, or found that it cannot be.
        begun: whether a worker has taken it.
    """

    candidate: Candidate
    compiled: Result | None = None
    begun: bool = False


class CompileQueue:
    """Submitted candidates, first come first served, then prefetched ones."""

    def __init__(self) -> None:
        self._submitted: deque[Job] = deque()
        self._prefetched: list[Job] = []

    def submit(self, candidate: Candidate) -> Job:
        """Put `candidate` behind what was submitted before; one that was prefetched is found again."""
        job = next((job for job in self._prefetched if job.candidate == candidate), Job(candidate))
        self._prefetched = [each for each in self._prefetched if each is not job]
        if not job.begun:
            self._submitted.append(job)
        return job

    def prefetch(self, candidates: Iterable[Candidate]) -> list[Job]:
        """Put candidates behind all that is submitted, then or later."""
        jobs = [Job(candidate) for candidate in candidates]
        self._prefetched += jobs
        return jobs

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Make submitted jobs prefetched ones, begun or not: nobody waits for them, but they may be submitted again."""
        self._submitted = deque(job for job in self._submitted if job not in jobs)
        self._prefetched += [job for job in jobs if job not in self._prefetched]

    def again(self, job: Job) -> None:
        """Put a job that was taken, and not compiled for no fault of its own, before all that was submitted."""
        job.begun = False
        if job not in self._prefetched:
            self._submitted.appendleft(job)

    def withdraw(self, jobs: Sequence[Job]) -> None:
        """Forget jobs that nobody waits for any more."""
        self._submitted = deque(job for job in self._submitted if job not in jobs)
        self._prefetched = [job for job in self._prefetched if job not in jobs]

    def waiting(self) -> int:
        """How many no worker has taken."""
        return len(self._submitted) + sum(not job.begun for job in self._prefetched)

    def take(self) -> Job:
        """The next, of at least one that waits."""
        job = (
            self._submitted.popleft() if self._submitted else next(each for each in self._prefetched if not each.begun)
        )
        job.begun = True
        return job
