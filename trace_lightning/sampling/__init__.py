"""From a trained pair model to a volume: Algorithm 1 and the unlinked pairs that it is compared with."""
