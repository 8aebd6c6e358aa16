"""From a trained pair model to a volume: Algorithm 1, the unlinked pairs it is compared with, and faster ways."""
