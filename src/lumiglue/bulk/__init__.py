"""Whole collections of photos: features, pairs, matches and a reconstruction, in steps that go on after a kill."""
