"""Search efficiency on recorded spaces: our strategies beside other people's."""
