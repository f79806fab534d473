"""Speed and memory of Transom beside a hand-written model and other libraries. ``make bench`` runs it."""
