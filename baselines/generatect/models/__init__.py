"""The networks of GenerateCT, in the names of the published weights. No lightning in here."""
