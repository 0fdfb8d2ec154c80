"""The checks of scripts/reliability, a file for each, and what they share."""
