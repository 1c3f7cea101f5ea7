"""Matchers measured on pairs with ground truth: formats, metrics, baselines, reports."""

METHODS = ("lumiglue", "nn", "ratio-0.8", "ratio-0.9", "adalam")
