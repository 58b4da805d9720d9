from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import redis_server
from tests.trellis_ops.serve.store.stores import ROOM
from trellis_ops.serve.store import Disk, Memory
from trellis_ops.serve.store.tiers.redis import Redis
from trellis_ops.serve.store.tiers.tier import Tier

TIERS = ("memory", "disk", "redis")


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_server.Server]:
    if redis_server.PROGRAM is None:
        pytest.skip(redis_server.WHY_NOT)
    with redis_server.server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(running_redis: redis_server.Server) -> str:
    """The URL of an empty server."""
    with running_redis.client() as client:
        client.flushall()
    return running_redis.url


@pytest.fixture(params=TIERS)
def make_tier(request: pytest.FixtureRequest, tmp_path) -> Callable[..., Tier]:
    """Makes a tier with a quota; each of one test on the same place, but for memory."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else ""

    def make(quota: int = ROOM) -> Tier:
        if request.param == "memory":
            return Memory(ROOM, quota)
        return Disk(tmp_path / "states", ROOM, quota) if request.param == "disk" else Redis(url, quota)

    return make
