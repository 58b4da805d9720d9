"""Where sealed states are kept: in memory, on a disk or in Redis, and all of these as one."""
