"""Whole collections of photos: features, pairs, matches and a reconstruction, in resumable steps."""
