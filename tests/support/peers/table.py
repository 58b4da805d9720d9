"""Every rule that a peer has a reference for."""

from tests.support.peers.delta import DELTA
from tests.support.peers.hebbian import HEBBIAN
from tests.support.peers.others import OTHERS

PEERS = {peer.name: peer for peer in (*HEBBIAN, *DELTA, *OTHERS)}
"""By the name of the rule."""
