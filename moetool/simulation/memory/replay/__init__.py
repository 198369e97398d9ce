"""Replays of timelines, in this process or in another one next to it."""
