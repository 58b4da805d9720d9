"""States in a Redis server, which many machines may share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from codegen.scalars import positive_number, whole_number
from trellis_ops.errors import StoreTierError
from trellis_ops.serve.store.entry import Entry, Owner

_LABELS = "trellis:labels"

# KEYS: order, sizes, state. ARGV: key, state, tokens, quota in bytes, seconds, whether it is pinned.
# The order has priorities as `retention.py` has them; the sizes have "clock" and "total" too.
_SAVE = """
local order, sizes, key, size = KEYS[1], KEYS[2], ARGV[1], string.len(ARGV[2])
local quota, pinned = tonumber(ARGV[4]), ARGV[6] == '1'
if not pinned and size > quota then return 0 end
local old = tonumber(redis.call('HGET', sizes, key) or '0')
local total = tonumber(redis.call('HGET', sizes, 'total') or '0') - old
local clock = tonumber(redis.call('HGET', sizes, 'clock') or '0')
redis.call('ZREM', order, key)
redis.call('HDEL', sizes, key)
while not pinned and total + size > quota do
  local least = redis.call('ZPOPMIN', order)
  if #least == 0 then total = 0 break end
  total = total - tonumber(redis.call('HGET', sizes, least[1]) or '0')
  clock = math.max(clock, tonumber(least[2]))
  redis.call('HDEL', sizes, least[1])
  redis.call('DEL', string.sub(KEYS[3], 1, -1 - #key) .. least[1])
end
if pinned then redis.call('SET', KEYS[3], ARGV[2]) else redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[5]) end
redis.call('ZADD', order, pinned and 1e300 or clock + tonumber(ARGV[3]) / size, key)
redis.call('HSET', sizes, key, size, 'total', total + size, 'clock', clock)
if not pinned then redis.call('EXPIRE', order, ARGV[5]) redis.call('EXPIRE', sizes, ARGV[5]) end
return 1
"""

# KEYS: order, sizes, state. ARGV: key, tokens, seconds, whether it is pinned.
_LOAD = """
local order, sizes, key = KEYS[1], KEYS[2], ARGV[1]
local state = redis.call('GET', KEYS[3])
local size = tonumber(redis.call('HGET', sizes, key) or '0')
if not state then
  redis.call('ZREM', order, key)
  if redis.call('HDEL', sizes, key) == 1 then redis.call('HINCRBY', sizes, 'total', -size) end
  return false
end
if ARGV[4] == '0' then
  local clock = tonumber(redis.call('HGET', sizes, 'clock') or '0')
  local priority = tonumber(redis.call('ZSCORE', order, key) or '0')
  redis.call('ZADD', order, math.max(priority, clock) + tonumber(ARGV[2]) / string.len(state), key)
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  redis.call('EXPIRE', order, ARGV[3])
  redis.call('EXPIRE', sizes, ARGV[3])
end
return state
"""

# KEYS: order, sizes, state. ARGV: key.
_DROP = """
local size = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[2], 'total', -size) end
return redis.call('DEL', KEYS[3])
"""


class Redis:
    """A tier in a Redis server of version 6.2 or newer, or in a cluster: all keys of a tenant have one hash tag.

    The bytes of a tenant are bounded here, those of all by the server's `maxmemory`; a state that the server has
    evicted or let expire is a miss. A request waits for the server at most `timeout_seconds` twice, and after a failure
    no request asks for `retry_seconds`.

    Args:
        url: as "redis://:password@host:6379/0"; "rediss://" for TLS.
        quota_bytes: of the states of one tenant under one model.
        expire_seconds: after the last use, when the server forgets a state that is not pinned.
        timeout_seconds: of a connection and of a command.
        retry_seconds: how long the server is left alone after a failure.

    Raises:
        SizeError: a number out of range. ValueError: no URL of a Redis server.
    """

    name = "redis"
    private = False

    def __init__(
        self,
        url: str,
        quota_bytes: int,
        expire_seconds: int = 7 * 24 * 3600,
        timeout_seconds: float = 0.5,
        retry_seconds: float = 5.0,
    ) -> None:
        self.quota_bytes = whole_number("quota_bytes", quota_bytes)
        self.expire_seconds = whole_number("expire_seconds", expire_seconds)
        self.retry_seconds = positive_number("retry_seconds", retry_seconds)
        seconds = positive_number("timeout_seconds", timeout_seconds)
        # The client's own retries would wait for seconds; a miss costs less.
        once = Retry(NoBackoff(), 0)
        self._client = redis.Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=once)
        self._save, self._load, self._drop = (self._client.register_script(each) for each in (_SAVE, _LOAD, _DROP))
        self._closed_until = 0.0
        self._saved: set[str] = set()
        self._lock = threading.Lock()

    def longest(self, owner: Owner, keys: Sequence[str], segment: int) -> list[Entry]:
        """Those of `keys` that are stored, the last first.

        Raises:
            StoreTierError: the server does not answer, or what was saved for this label is gone.
        """
        if not keys:
            return []
        order = _of(owner, "order")
        ask = self._client.pipeline(transaction=False)
        ask.zmscore(order, list(keys))
        ask.sismember(_LABELS, owner.label)
        scores, known = self._asked(ask.execute)
        if not known and owner.label in self._saved:
            with self._lock:
                self._saved.discard(owner.label)
            raise StoreTierError(tier=self.name, kind="emptied", problem="the states that were saved there are gone")
        stored = [index for index, score in enumerate(scores) if score is not None]
        return [Entry(owner, keys[index], (index + 1) * segment) for index in reversed(stored)]

    def load(self, entry: Entry) -> bytes | None:
        """What `save` was given, or None if it is gone.

        Raises:
            StoreTierError: the server does not answer.
        """
        arguments: list[str | int] = [entry.key, entry.tokens, self.expire_seconds, int(entry.owner.pinned)]
        found: bytes | None = self._asked(lambda: self._load(keys=_keys(entry), args=arguments))
        return found

    def save(self, entry: Entry, sealed: bytes) -> bool:
        """Keep a state; False if it is larger than the quota.

        Raises:
            StoreTierError: the server does not answer, or has no memory left.
        """
        bounds = [self.quota_bytes, self.expire_seconds, int(entry.owner.pinned)]
        arguments: list[str | bytes | int] = [entry.key, sealed, entry.tokens, *bounds]
        kept = self._asked(lambda: self._save(keys=_keys(entry), args=arguments))
        if kept:
            self._asked(lambda: self._client.sadd(_LABELS, entry.owner.label))
            with self._lock:
                self._saved.add(entry.owner.label)
        return bool(kept)

    def drop(self, entry: Entry) -> None:
        """Keep a state no longer.

        Raises:
            StoreTierError: the server does not answer.
        """
        self._asked(lambda: self._drop(keys=_keys(entry), args=[entry.key]))

    def labels(self) -> set[str]:
        """The labels of all states that were saved here.

        Raises:
            StoreTierError: the server does not answer.
        """
        found: set[bytes] = self._asked(lambda: self._client.smembers(_LABELS))
        return {each.decode() for each in found}

    def _asked(self, command: Callable[[], Any]) -> Any:
        if time.monotonic() < self._closed_until:
            problem = f"it failed less than {self.retry_seconds:g} s ago and is left alone"
            raise StoreTierError(tier=self.name, kind="unreachable", problem=problem)
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._closed_until = time.monotonic() + self.retry_seconds
            raise StoreTierError(tier=self.name, kind="unreachable", problem=str(error)) from error
        except redis.RedisError as error:
            kind = "full" if str(error).startswith("OOM") or "maxmemory" in str(error) else "refused"
            raise StoreTierError(tier=self.name, kind=kind, problem=str(error)) from error


def _of(owner: Owner, what: str) -> str:
    # The braces are the hash tag by which a cluster keeps all of an owner on one node.
    return f"trellis:{{{owner.label}.{owner.scope}}}:{what}"


def _keys(entry: Entry) -> list[str]:
    return [_of(entry.owner, "order"), _of(entry.owner, "sizes"), _of(entry.owner, f"state:{entry.key}")]
