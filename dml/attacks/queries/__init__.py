"""Attacks on queries, one file each; their names are in :data:`dml.attacks.ATTACKS`."""
