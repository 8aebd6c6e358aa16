"""Other people's methods on TRACE's data, one folder each."""
