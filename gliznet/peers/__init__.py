"""The peers: every system that the sources compare with, under one protocol.

`build("gliclass-uni", backbone)` imports a peer's library only when it is asked for.
"""

import importlib
from pathlib import Path
from typing import Any

from gliznet.peers.protocol import Costs, FitSettings, MissingExtra, Peer, PeerError

PEERS = {
    "gliznet": "gliznet.peers.gliznet:GliZNetPeer",
    "gliclass-uni": "gliznet.peers.gliclass:GLiClassUniEncoder",
    "gliclass-bi": "gliznet.peers.gliclass:GLiClassBiEncoder",
    "gliclass-fused": "gliznet.peers.gliclass:GLiClassBiEncoderFused",
    "cross-encoder": "gliznet.peers.cross_encoder:CrossEncoderPeer",
    "nli": "gliznet.peers.nli:NLIPeer",
    "bi-encoder": "gliznet.peers.bi_encoder:BiEncoderPeer",
    "embedding": "gliznet.peers.bi_encoder:EmbeddingPeer",
    "sce": "gliznet.peers.sce:SCEPeer",
}
"""Name of each peer and where its class lies."""

__all__ = ["PEERS", "Costs", "FitSettings", "MissingExtra", "Peer", "PeerError", "build", "kind"]


def kind(name: str) -> type[Peer]:
    """The class of a peer.

    Raises:
        PeerError: an unknown name.
        MissingExtra: its library is not installed.
    """
    if name not in PEERS:
        raise PeerError(f"there is no peer {name!r}: choose one of {', '.join(PEERS)}")
    module, _, attribute = PEERS[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "gliznet":
            raise
        raise MissingExtra(
            f"the peer {name!r} needs {error.name}: pip install 'gliznet[peers]'"
        ) from error


def build(name: str, backbone: str | Path, **options: Any) -> Peer:
    """A peer over a backbone; raises as `kind`, and TypeError for an option it does not have."""
    return kind(name)(backbone, **options)
