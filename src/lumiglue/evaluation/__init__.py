"""Measuring a matcher beside what a user would pick instead."""
