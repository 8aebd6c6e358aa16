"""CTFlow's networks: the spatio-temporal transformer and the autoencoder of slices."""
