"""Feature datasets: what is trained on, and how it is made."""
