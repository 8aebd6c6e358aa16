"""Networks whose features distances are taken in, and the features of a set of volumes, kept on disk."""
